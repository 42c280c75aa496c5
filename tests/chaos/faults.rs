//! Does to the parts what the plan says.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use afterimage::demo::postgres::PrivatePostgres;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::feed::Feed;
use super::plan::{Fault, Kind};
use super::proxy::{AtCommit, Proxy};
use super::support::kafka::Broker;
use super::support::wait::let_pass;
use super::watch::Watch;
use super::workers::{Ended, Worker, copy_dir, remove_dir};

/// How long a COMMIT is waited for: a worker that has no partition makes none.
const COMMIT_TIME: Duration = Duration::from_secs(30);
/// A worker that ended by itself is noticed after this.
const SUPERVISE: Duration = Duration::from_millis(200);

/// Everything that faults happen to.
pub struct Stage {
    /// Kafka.
    pub broker: AsyncMutex<Broker>,
    /// PostgreSQL.
    pub postgres: AsyncMutex<PrivatePostgres>,
    /// The database, directly.
    pub url: String,
    /// The workers. Who holds a lock decides whether it runs.
    pub workers: Vec<Arc<AsyncMutex<Worker>>>,
    /// Their ways to PostgreSQL; the lock is for whoever waits for a COMMIT there.
    pub proxies: Vec<(Proxy, AsyncMutex<()>)>,
    /// Positions.
    pub watch: Watch,
    /// The load.
    pub feed: Feed,
    /// Where everything of this run lies.
    pub dir: PathBuf,
    /// What the workers did that they should not have.
    pub misdeeds: Mutex<Vec<String>>,
    /// How often a worker could not start, since what it needs was away.
    pub refused: AtomicU64,
    /// Faults at a COMMIT that never came.
    pub missed: Mutex<Vec<usize>>,
    /// When all this began.
    pub begun: Instant,
}

impl Stage {
    /// Notes a line in the run's own log.
    pub fn note(&self, line: &str) {
        let line = format!("{:>8.1} s  {line}", self.begun.elapsed().as_secs_f64());
        if let Ok(mut log) = File::options().create(true).append(true).open(self.dir.join("chaos.log")) {
            let _ = writeln!(log, "{line}");
        }
    }

    fn blame(&self, misdeed: Option<String>) {
        if let Some(misdeed) = misdeed {
            self.note(&misdeed);
            self.misdeeds.lock().unwrap_or_else(PoisonError::into_inner).push(misdeed);
        }
    }

    fn strikes(&self, fault: &Fault) {
        self.note(&fault.to_string());
        self.watch.strikes(fault.kind, self.feed.given());
    }

    async fn worker(&self, index: usize) -> OwnedMutexGuard<Worker> {
        Arc::clone(&self.workers[index]).lock_owned().await
    }

    /// Starts workers again that ended by themselves, and tells of them; until aborted.
    pub async fn supervise(self: Arc<Stage>) {
        loop {
            for worker in &self.workers {
                if let Ok(mut worker) = worker.try_lock()
                    && let Some(Ended { status, in_work }) = worker.ended()
                {
                    let what = format!("{} ended by itself with {status}", worker.name);
                    if in_work {
                        self.blame(Some(what));
                    } else {
                        self.note(&format!("{what} while it started"));
                        self.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    worker.start();
                }
            }
            let_pass(SUPERVISE).await;
        }
    }

    /// Lets a fault happen, from its beginning to its end.
    pub async fn inflict(self: Arc<Stage>, fault: Fault) {
        match fault.kind {
            Kind::Kill => {
                let mut worker = self.worker(fault.worker).await;
                self.strikes(&fault);
                worker.kill();
                let_pass(fault.pause).await;
                worker.start();
            }
            Kind::Leave => {
                let mut worker = self.worker(fault.worker).await;
                self.strikes(&fault);
                self.blame(worker.stop().await);
                let_pass(fault.pause).await;
                worker.start();
            }
            Kind::Pause | Kind::Freeze => {
                let worker = self.worker(fault.worker).await;
                self.strikes(&fault);
                worker.signal(libc::SIGSTOP);
                let_pass(fault.pause).await;
                worker.signal(libc::SIGCONT);
            }
            Kind::Broker => self.broker_dies(&fault).await,
            Kind::Crash | Kind::Restart => self.postgres_restarts(&fault).await,
            Kind::Terminate => self.sessions_end(&fault).await,
            Kind::CutBefore => self.at_commit(&fault, AtCommit::CutBefore).await,
            Kind::CutAfter => self.at_commit(&fault, AtCommit::CutAfter).await,
            Kind::Hold => self.at_commit(&fault, AtCommit::Hold(fault.pause)).await,
            Kind::DropAnswer => self.at_commit(&fault, AtCommit::DropAnswer).await,
            Kind::Mute => self.at_commit(&fault, AtCommit::Mute(fault.pause)).await,
            Kind::CutAll => {
                self.strikes(&fault);
                self.proxies[fault.worker].0.cut_all();
            }
            Kind::Stall => {
                let (proxy, lock) = &self.proxies[fault.worker];
                let _alone = lock.lock().await;
                self.strikes(&fault);
                proxy.let_pass(false);
                let_pass(fault.pause).await;
                proxy.let_pass(true);
            }
            Kind::StateLost | Kind::StateOld => self.state_changes(&fault).await,
            Kind::StateSwapped => self.states_swap(&fault).await,
        }
        self.note(&format!("{:>3} is over", fault.number));
    }

    async fn broker_dies(&self, fault: &Fault) {
        let mut broker = self.broker.lock().await;
        self.strikes(fault);
        broker.kill();
        let_pass(fault.pause).await;
        tokio::task::block_in_place(|| broker.restart_at_last());
    }

    async fn postgres_restarts(&self, fault: &Fault) {
        let mut postgres = self.postgres.lock().await;
        self.strikes(fault);
        tokio::task::block_in_place(|| match fault.kind {
            Kind::Crash => postgres.crash(),
            _ => postgres.stop(),
        })
        .unwrap_or_else(|error| panic!("PostgreSQL: {error:#}"));
        let_pass(fault.pause).await;
        tokio::task::block_in_place(|| postgres.restart()).unwrap_or_else(|error| panic!("PostgreSQL: {error:#}"));
    }

    async fn sessions_end(&self, fault: &Fault) {
        // Nobody restarts the server meanwhile.
        let _postgres = self.postgres.lock().await;
        self.strikes(fault);
        let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.expect("PostgreSQL");
        let driver = tokio::spawn(connection);
        let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        client.query(query, &[&format!("afterimage/{}", worker_name(fault.worker))]).await.expect("an answer");
        drop(client);
        let _ = driver.await;
    }

    async fn at_commit(&self, fault: &Fault, what: AtCommit) {
        let (proxy, lock) = &self.proxies[fault.worker];
        let _alone = lock.lock().await;
        let met = proxy.met();
        proxy.arm(what);
        let since = Instant::now();
        while proxy.met() == met {
            if since.elapsed() > COMMIT_TIME && proxy.disarm() {
                self.note(&format!("{fault}: no COMMIT came"));
                self.missed.lock().unwrap_or_else(PoisonError::into_inner).push(fault.number);
                return;
            }
            let_pass(Duration::from_millis(5)).await;
        }
        self.strikes(fault);
        let_pass(fault.pause).await;
    }

    async fn end(&self, worker: &mut Worker, rough: bool) {
        if rough {
            worker.kill();
        } else {
            self.blame(worker.stop().await);
        }
    }

    async fn state_changes(&self, fault: &Fault) {
        let mut worker = self.worker(fault.worker).await;
        self.strikes(fault);
        self.end(&mut worker, fault.rough).await;
        let state = worker.state();
        let saved = self.dir.join(format!("older-{}", worker.name));
        if fault.kind == Kind::StateLost {
            remove_dir(&state).expect("a removed directory");
        } else if fault.rough && saved.exists() {
            // As it was some faults ago; what is here now will be old one day.
            let now = self.dir.join(format!("newer-{}", worker.name));
            copy_dir(&state, &now).expect("a copy");
            copy_dir(&saved, &state).expect("a copy");
            remove_dir(&saved).expect("a removed directory");
            fs::rename(&now, &saved).expect("a copy");
        } else {
            copy_dir(&state, &saved).expect("a copy");
            worker.start();
            let_pass(Duration::from_secs(3) + fault.pause).await;
            self.end(&mut worker, !fault.rough).await;
            copy_dir(&saved, &state).expect("a copy");
        }
        let_pass(fault.pause).await;
        worker.start();
    }

    async fn states_swap(&self, fault: &Fault) {
        // In order, so that two swaps never wait for one another.
        let (low, high) = (fault.worker.min(fault.other), fault.worker.max(fault.other));
        let mut one = self.worker(low).await;
        let mut other = self.worker(high).await;
        self.strikes(fault);
        self.end(&mut one, fault.rough).await;
        self.end(&mut other, !fault.rough).await;
        let between = self.dir.join("swapped");
        copy_dir(&one.state(), &between).expect("a copy");
        copy_dir(&other.state(), &one.state()).expect("a copy");
        copy_dir(&between, &other.state()).expect("a copy");
        remove_dir(&between).expect("a removed directory");
        let_pass(fault.pause).await;
        one.start();
        other.start();
    }

    /// Everything runs and nothing is held up any more.
    pub async fn calm(&self) {
        for (proxy, _) in &self.proxies {
            proxy.disarm();
            proxy.let_pass(true);
        }
        for worker in &self.workers {
            let mut worker = worker.lock().await;
            worker.signal(libc::SIGCONT);
            worker.start();
        }
    }
}

/// The name of a worker.
pub fn worker_name(index: usize) -> String {
    format!("w{index}")
}
