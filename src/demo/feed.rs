//! What drives a demo from its first message to the last commit: the simulator's messages into a broker, or its changes
//! into a source that real connectors read; in the middle, kill -9 of a worker.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::backlog::{Backlog, TopicPartition};
use super::broker::Broker;
use super::capture::Capture;
use super::crash::{self, Crash, CrashWatch};
use super::options::WorkerCommand;
use super::progress::{Figures, Progress};
use super::report::thousands;
use super::simulator::Simulator;
use super::sink::Sink;
use super::space;
use super::workers::Workers;

/// If nothing moves for this long although something waits, the demo gives up and shows the logs.
const STUCK: Duration = Duration::from_secs(90);
/// If nothing moves for this long, it is looked whether the disk is full: what then fails is tried again for ever.
const FULL: Duration = Duration::from_secs(10);
/// So long for late events to find their place: workers look for them every two seconds.
const PLACED: Duration = Duration::from_secs(20);
/// How long partitions without messages may take to be claimed again after a kill.
const CLAIM: Duration = Duration::from_secs(30);
/// How often the sink is asked for its positions.
const ASK: Duration = Duration::from_millis(25);
/// How often it is asked for what became of the messages.
const ASK_EFFECTS: Duration = Duration::from_millis(250);
/// How many messages lie between the last commit that was seen and the kill: so many are surely in hand then.
const IN_HAND: u64 = 50;

/// The drive. The order of events: one of the two ways in, then [`Feed::until_committed`].
pub struct Feed<'a> {
    backlog: Backlog,
    sink: &'a Sink,
    workers: &'a mut Workers,
    worker: &'a WorkerCommand,
    progress: &'a mut Progress,
    figures: Figures,
    /// When something last moved.
    moved: Instant,
    effects_asked: Option<Instant>,
    crash: Option<CrashWatch>,
    /// When the killed worker is started again, until then.
    restart: Option<(Instant, String)>,
}

impl<'a> Feed<'a> {
    /// Nothing has been produced yet.
    pub fn new(
        partitions: impl IntoIterator<Item = TopicPartition>,
        sink: &'a Sink,
        workers: &'a mut Workers,
        worker: &'a WorkerCommand,
        progress: &'a mut Progress,
    ) -> Self {
        Feed {
            backlog: Backlog::new(partitions),
            sink,
            workers,
            worker,
            progress,
            figures: Figures::default(),
            moved: Instant::now(),
            effects_asked: None,
            crash: None,
            restart: None,
        }
    }

    /// Carries all messages from the simulator to the broker, no faster than the workers commit.
    ///
    /// # Errors
    /// When a part fails or gets stuck.
    pub async fn simulated(&mut self, simulator: &mut Simulator, broker: &Broker) -> Result<()> {
        let mut number = 0_u64;
        let mut crash_at = None;
        while let Some(message) = simulator.next() {
            let to: TopicPartition = (message.topic.clone(), message.partition);
            let size = message.key.as_ref().map_or(0, Vec::len) + message.value.as_ref().map_or(0, Vec::len);
            while !self.backlog.admits(&to, size) {
                self.figures.made = simulator.totals().events;
                self.ask().await?;
            }
            broker.produce(&message).await?;
            self.backlog.produced(&to, size);
            number += 1;
            if number.is_multiple_of(500) {
                // A signal gets its turn, and a worker that could not start is noticed early.
                tokio::task::yield_now().await;
                self.workers.check()?;
                self.restart_if_due()?;
            }
            if self.crash.is_none() && simulator.progress() >= crash::WHEN {
                match crash_at {
                    None => {
                        // All workers are at work by then.
                        while self.backlog.total_committed() == 0 {
                            self.ask().await?;
                        }
                        crash_at = Some(number + IN_HAND);
                    }
                    Some(at) if number >= at => self.crash_a_worker().await?,
                    Some(_) => {}
                }
            }
        }
        self.figures.made = simulator.totals().events;
        Ok(())
    }

    /// Does everything that the simulator says to the source, until its connectors have sent all of it.
    ///
    /// # Errors
    /// When a part fails or gets stuck.
    pub async fn captured(&mut self, simulator: &mut Simulator, capture: &mut Capture) -> Result<()> {
        let mut looked = Instant::now();
        let mut kills = 0;
        while let Some(step) = simulator.step_live() {
            capture.expect(&step.messages)?;
            for operation in &step.operations {
                while capture.must_wait(operation) {
                    self.watch(capture)?;
                    self.ask().await?;
                }
                capture.apply(operation).await?;
            }
            if capture.kills() > kills {
                kills = capture.kills();
                self.progress.say("the connectors were killed (kill -9) and started again: they will repeat something");
            }
            if looked.elapsed() < ASK {
                continue;
            }
            looked = Instant::now();
            self.figures.made = simulator.totals().events;
            self.watch(capture)?;
            self.update().await?;
            let is_due = self.crash.is_none() && simulator.progress() >= crash::WHEN;
            if is_due && self.backlog.total_committed() > 0 && self.figures.lag() > 0 {
                self.crash_a_worker().await?;
            }
        }
        self.figures.made = simulator.totals().events;
        while !capture.is_complete()? {
            self.watch(capture)?;
            self.ask().await.map_err(|error| {
                let (missing, log) = (capture.missing(), capture.log());
                error.context(format!("{missing} row events were not captured\n--- connect\n{log}"))
            })?;
        }
        Ok(())
    }

    fn watch(&mut self, capture: &mut Capture) -> Result<()> {
        let before = self.backlog.total_produced();
        let backlog = &mut self.backlog;
        capture.watch(|partition, size| backlog.produced(partition, size))?;
        if self.backlog.total_produced() > before {
            self.moved = Instant::now();
        }
        Ok(())
    }

    /// Waits until the sink's positions have reached the end of every partition, and what came late is in its place.
    ///
    /// # Errors
    /// When a part fails or gets stuck.
    pub async fn until_committed(&mut self) -> Result<()> {
        while self.backlog.total_committed() < self.backlog.total_produced() {
            self.ask().await?;
        }
        // Partitions that were drained before the kill are claimed all the same. If one is not, the report says so.
        let drained = Instant::now();
        let is_open = |crash: &CrashWatch| crash.crash().claimed_after.is_none();
        while self.crash.as_ref().is_some_and(is_open) && drained.elapsed() < CLAIM {
            self.ask().await?;
        }
        // Where one has none, the report shows what is missing.
        let claimed = Instant::now();
        while self.sink.late().await? > 0 && claimed.elapsed() < PLACED {
            self.ask().await?;
        }
        Ok(())
    }

    /// What was seen of the kill.
    pub fn crash(&self) -> Option<Crash> {
        self.crash.as_ref().map(|watch| watch.crash().clone())
    }

    async fn ask(&mut self) -> Result<()> {
        let before = self.backlog.total_committed();
        self.update().await?;
        if self.backlog.total_committed() == before {
            tokio::time::sleep(ASK).await;
        }
        Ok(())
    }

    async fn crash_a_worker(&mut self) -> Result<()> {
        let holders = self.sink.holders().await?;
        for holder in &holders {
            self.backlog.committed(&holder.partition, holder.next);
        }
        // A position may just have been taken from its worker, for lookup fields that changed: it is claimed again soon.
        let at_work: Vec<_> = holders.iter().filter(|holder| self.workers.has(&holder.worker)).cloned().collect();
        let Some(crash) = CrashWatch::choose(&at_work, &self.backlog) else { return Ok(()) };
        self.workers.kill(&crash.worker)?;
        let now = Instant::now();
        self.restart = Some((now + crash::RESTART, crash.worker.clone()));
        self.progress.say(&format!(
            "worker {} was killed (kill -9) with {} messages in hand; it comes back in {} s",
            crash.worker,
            thousands(crash.waiting),
            crash::RESTART.as_secs()
        ));
        self.crash = Some(CrashWatch::begin(crash, now, &at_work));
        Ok(())
    }

    fn restart_if_due(&mut self) -> Result<()> {
        if let Some((_, name)) = self.restart.take_if(|(due, _)| *due <= Instant::now()) {
            self.workers.restart(self.worker, &name)?;
        }
        Ok(())
    }

    async fn update(&mut self) -> Result<()> {
        let before = self.backlog.total_committed();
        if let Some(crash) = self.crash.as_mut().filter(|crash| !crash.is_over()) {
            let holders = self.sink.holders().await?;
            crash.look(Instant::now(), &holders);
            for holder in &holders {
                self.backlog.committed(&holder.partition, holder.next);
            }
        } else {
            for (partition, next) in self.sink.committed().await? {
                self.backlog.committed(&partition, next);
            }
        }
        let now = Instant::now();
        if self.backlog.total_committed() > before {
            self.moved = now;
        }
        if self.effects_asked.is_none_or(|asked| now.duration_since(asked) >= ASK_EFFECTS) {
            (self.figures.deltas, self.figures.noops) = self.sink.effects().await?;
            self.effects_asked = Some(now);
        }
        (self.figures.messages, self.figures.committed) =
            (self.backlog.total_produced(), self.backlog.total_committed());
        self.progress.show(now, &self.figures);
        self.workers.check()?;
        self.restart_if_due()?;
        // A worker whose disk was full waits for more room than a server needs for its next write.
        if self.moved.elapsed() > FULL && (space::is_full() || space::is_told(&self.workers.logs())) {
            bail!("nothing moves for {FULL:?}\n{}", self.workers.logs());
        }
        if self.moved.elapsed() > STUCK {
            let (committed, produced) = (self.backlog.total_committed(), self.backlog.total_produced());
            let logs = self.workers.logs();
            bail!("nothing moved for {STUCK:?}, at {committed} of {produced} messages\n{logs}");
        }
        Ok(())
    }
}
