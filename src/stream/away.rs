//! A worker that has to begin anew, after damage or a full disk, and finds the sink or the broker away, waits for it, as it
//! would have done while it was reading. At its very first start that ends the process instead: then it is more likely the
//! address that is wrong.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::chunk::is_lasting;
use super::lasting::Lasting;
use super::{RunError, RunSettings};
use crate::kafka::KafkaError;
use crate::postgres::client::ConnectError;
use crate::postgres::migrate::MigrateError;
use crate::postgres::registry::RegistryError;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether it can be over by itself: what a worker that reads would ask again.
fn is_outage(error: &RunError) -> bool {
    match error {
        RunError::Connect(ConnectError::Silent { .. }) => true,
        // A wrong password is no outage.
        RunError::Connect(ConnectError::Refused { source, .. }) => !is_lasting(source),
        RunError::Query(error) | RunError::Registry(RegistryError::Query(error)) => !is_lasting(error),
        RunError::Schema(MigrateError::Silent(_)) => true,
        RunError::Schema(MigrateError::Postgres(error)) => !is_lasting(error),
        RunError::Kafka(error) => matches!(error, KafkaError::Unreachable { .. } | KafkaError::Request { .. }),
        _ => false,
    }
}

/// What keeps a worker from beginning anew.
#[derive(Debug, Default)]
pub(super) struct Away {
    /// It has come as far as its image store before: its addresses are right.
    known: bool,
    trouble: Option<Lasting>,
}

impl Away {
    /// Of a worker that begins anew.
    pub fn from_anew() -> Self {
        Away { known: true, trouble: None }
    }

    /// Whether it is worth waiting for.
    pub fn is_waited_for(&self, error: &RunError) -> bool {
        self.known && is_outage(error)
    }

    /// Waits a little. False = asked to stop meanwhile.
    pub async fn wait(&mut self, settings: &RunSettings, error: &RunError, stop: &mut oneshot::Receiver<()>) -> bool {
        let reason = error.to_string();
        if Lasting::tell(&mut self.trouble, &reason, Instant::now()) {
            tracing::warn!(
                reason,
                "this worker has to begin anew, and what it needs for that is away: it holds no partitions and tries again"
            );
        }
        settings.health.holds_nothing(format!("waiting to begin anew: {reason}"));
        tokio::select! {
            biased;
            _ = &mut *stop => false,
            () = tokio::time::sleep(PAUSE) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> KafkaError {
        KafkaError::Unreachable { brokers: "a:1".into(), detail: "refused".into() }
    }

    fn silent() -> ConnectError {
        ConnectError::Silent { place: "a".into(), within: Duration::from_secs(1) }
    }

    #[test]
    fn an_outage_is_waited_for_only_by_who_was_let_in_before() {
        let (first, again) = (Away::default(), Away::from_anew());
        for error in [RunError::from(unreachable()), silent().into()] {
            assert_eq!((first.is_waited_for(&error), again.is_waited_for(&error)), (false, true), "{error}");
        }
    }

    #[test]
    fn what_needs_a_person_is_not_waited_for() {
        let again = Away::from_anew();
        for error in [
            RunError::Kafka(KafkaError::Fatal("fenced".into())),
            RunError::Kafka(KafkaError::UnknownTopics(Vec::new())),
            RunError::Connect(ConnectError::Settings("no certificate".into())),
            RunError::Topic("t".into()),
            RunError::Mapping("two orgs".into()),
        ] {
            assert!(!again.is_waited_for(&error), "{error}");
        }
    }
}
