//! A worker that the system has stopped in the middle of a commit: whoever claims its partitions is not held up by it, and
//! when it wakes up it writes nothing (protocol D4, D5).
#![cfg(feature = "failpoints")]

mod support;

use afterimage::kafka::EmbeddedBroker;
use support::app::emea;
use support::audit::{assert_conserved, assert_same, caught_up, history, positions};
use support::stream::Stream;
use support::wait::{LONG, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_frozen_in_the_middle_of_a_commit_holds_nobody_up_and_writes_nothing_when_it_wakes_up() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (sink, deployment) = emea(&broker.servers(), "[kafka.extra]\n\"heartbeat.interval.ms\" = \"500\"\n").await;
    let client = sink.connect().await;
    // The server itself would end a transaction that stands idle for so long. Not this one: so only a claim frees itself.
    client
        .batch_execute(
            "CREATE FUNCTION public.patience() RETURNS trigger LANGUAGE plpgsql AS
               $$BEGIN PERFORM set_config('idle_in_transaction_session_timeout', '0', true); RETURN NULL; END$$;
             CREATE TRIGGER patience AFTER INSERT ON afterimage.keyframe FOR EACH STATEMENT
               EXECUTE FUNCTION public.patience()",
        )
        .await
        .unwrap();
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(20, 0..4);
    let gate = tempfile::tempdir().unwrap();
    let file = gate.path().join("go on");
    // All is written, the positions are locked, COMMIT is not sent.
    let action = format!("commit.advanced=pause:{}", file.display());
    let mut frozen = deployment.worker_with("frozen", &[("FAILPOINTS", &action)]);
    frozen.wait_for_log("failpoint commit.advanced\n").await;
    frozen.signal(libc::SIGSTOP);
    let locks =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    let idle = async || client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(idle().await, 1, "it is in the middle of it");

    let mut other = deployment.worker("other");
    other.wait_for_log("ended sessions that held positions to be claimed").await;
    caught_up(&client, &stream.ends(), &mut [&mut other]).await;
    let told = history(&client, "emea", "account").await;
    assert_same(&told, &stream.wanted());
    // It wakes up with its COMMIT still to be sent, and finds out that its partitions are gone.
    std::fs::write(&file, "").unwrap();
    let given_up = frozen.log().matches("given up").count() + frozen.log().matches("claiming again").count();
    frozen.signal(libc::SIGCONT);
    wait_for("the frozen worker to see it", LONG, async || {
        frozen.assert_running();
        let log = frozen.log();
        let seen = log.matches("given up").count() + log.matches("claiming again").count();
        if seen > given_up { Ok(()) } else { Err(log) }
    })
    .await;
    assert_same(&history(&client, "emea", "account").await, &told);
    assert_conserved(&client, &stream.ends()).await;

    // Both go on, whoever the group gives what.
    stream.rounds(20, 4..7);
    caught_up(&client, &stream.ends(), &mut [&mut frozen, &mut other]).await;
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_eq!(positions(&client).await, stream.ends());
    frozen.stop();
    other.stop();
}
