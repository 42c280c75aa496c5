//! Which faults come when, by the seed: kinds, targets, pauses. Nothing here looks at the world.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Workers that share the topics.
pub const WORKERS: usize = 3;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// kill -9 of a worker, started again after a pause
    Kill,
    /// SIGSTOP of a worker for less than its session, then SIGCONT
    Pause,
    /// SIGSTOP of a worker past its session of 6 s, then SIGCONT: a zombie wakes up
    Freeze,
    /// SIGTERM of a worker, started again after a pause
    Leave,
    /// kill -9 of the broker, started again on the same log
    Broker,
    /// PostgreSQL shut down immediately, started again: it recovers from its log
    Crash,
    /// PostgreSQL restarted in order: sessions are ended
    Restart,
    /// `pg_terminate_backend` of all sessions of a worker
    Terminate,
    /// The connection breaks when COMMIT is sent, which never arrives
    CutBefore,
    /// The connection breaks when COMMIT has been passed on, before its answer
    CutAfter,
    /// The connection breaks, and COMMIT arrives 3 s later
    Hold,
    /// COMMIT is carried out; its answer is thrown away, and the connection ends
    DropAnswer,
    /// COMMIT is carried out, and then nothing more is said on that connection, which stays open
    Mute,
    /// All connections of a worker to PostgreSQL break at once
    CutAll,
    /// Nothing passes between a worker and PostgreSQL for some seconds
    Stall,
    /// The state directory of a stopped worker is deleted
    StateLost,
    /// The state directory of a stopped worker is replaced by an older copy
    StateOld,
    /// Two stopped workers swap their state directories
    StateSwapped,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 18] = [
        Kind::Kill,
        Kind::Pause,
        Kind::Freeze,
        Kind::Leave,
        Kind::Broker,
        Kind::Crash,
        Kind::Restart,
        Kind::Terminate,
        Kind::CutBefore,
        Kind::CutAfter,
        Kind::Hold,
        Kind::DropAnswer,
        Kind::Mute,
        Kind::CutAll,
        Kind::Stall,
        Kind::StateLost,
        Kind::StateOld,
        Kind::StateSwapped,
    ];

    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }
}

/// One fault of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its number in the plan, from 1.
    pub number: usize,
    /// After the fault before it.
    pub after: Duration,
    /// What.
    pub kind: Kind,
    /// Whom: index of a worker.
    pub worker: usize,
    /// The other worker of a swap.
    pub other: usize,
    /// How long it lasts, or until what was stopped is started again.
    pub pause: Duration,
    /// kill -9 rather than SIGTERM, where something has to be stopped first; an old copy rather than a fresh one.
    pub rough: bool,
}

/// The faults of a seed. Kinds are dealt like cards, so that each comes once before any comes twice; but the broker dies
/// in every other deal only, since a busy machine needs half a minute to start one, and nothing else can happen then.
pub fn draw(seed: u64, faults: usize, kinds: &[Kind], gap: Duration) -> Vec<Fault> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xfa17);
    let (mut deck, mut deals): (Vec<Kind>, u32) = (Vec::new(), 0);
    let kinds = if kinds.is_empty() { &Kind::ALL[..] } else { kinds };
    let mut one = |number| {
        if deck.is_empty() {
            let spared = |kind: &Kind| *kind == Kind::Broker && deals % 2 == 1 && kinds.len() > 1;
            deck.extend(kinds.iter().filter(|kind| !spared(kind)));
            deals += 1;
            deck.shuffle(&mut rng);
        }
        let kind = deck.pop().unwrap_or(Kind::Kill);
        let worker = rng.random_range(0..WORKERS);
        let other = (worker + rng.random_range(1..WORKERS)) % WORKERS;
        let millis = match kind {
            Kind::Kill | Kind::Leave => rng.random_range(0..8_000),
            Kind::Pause => rng.random_range(200..4_000),
            Kind::Freeze => rng.random_range(7_000..14_000),
            Kind::Broker => rng.random_range(0..3_000),
            Kind::Crash | Kind::Restart => rng.random_range(0..2_000),
            Kind::Hold => 3_000,
            Kind::Mute | Kind::Stall => rng.random_range(1_000..12_000),
            Kind::StateLost | Kind::StateOld | Kind::StateSwapped => rng.random_range(0..5_000),
            Kind::Terminate | Kind::CutBefore | Kind::CutAfter | Kind::DropAnswer | Kind::CutAll => 0,
        };
        // Exponential, so that some come together and some alone.
        let wait = -gap.as_secs_f64() * (1.0 - rng.random::<f64>()).ln();
        Fault {
            number,
            after: Duration::from_secs_f64(wait).min(gap * 4),
            kind,
            worker,
            other,
            pause: Duration::from_millis(millis),
            rough: rng.random(),
        }
    };
    (1..=faults).map(&mut one).collect()
}

impl std::fmt::Display for Fault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { number, kind, worker, other, pause, rough, .. } = self;
        write!(out, "{number:>3} {:<13}", kind.name())?;
        match kind {
            Kind::Broker | Kind::Crash | Kind::Restart => write!(out, "        ")?,
            Kind::StateSwapped => write!(out, " w{worker}, w{other}")?,
            _ => write!(out, " w{worker}    ")?,
        }
        write!(out, " {:>6.1} s{}", pause.as_secs_f64(), if *rough { " rough" } else { "" })
    }
}
