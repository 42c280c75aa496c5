//! `afterimage demo` on real Kafka, as its user starts it: a guest that leaves nothing behind and takes nothing that is
//! not its own, and the demo with real Debezium in front.
#![cfg(feature = "java-tests")]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use support::kafka::Broker;
use support::wait::{LONG, wait_for};

/// Runs the demo to its end and gives its report, the only thing on stdout.
async fn report(args: &[&str]) -> Value {
    let demo = start(args);
    let output = tokio::task::spawn_blocking(move || demo.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: stdout is not one JSON document"))
}

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_afterimage"))
        .args(["demo", "--json"])
        .args(args)
        // Where the tests keep their class paths.
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn assert_whole(report: &Value, what: &str) {
    assert_eq!(report["account"]["right"], true, "{what}: {report:#}");
    assert_eq!(report["conservation"]["broken"], serde_json::json!([]), "{what}");
    assert_eq!(report["conservation"]["messages"], report["conservation"]["outcomes"], "{what}");
    assert_eq!(report["truth"]["differences"], serde_json::json!([]), "{what}");
    assert!(report["crash"]["waiting"].as_i64().unwrap() > 0, "{what}: a worker was killed with work in hand");
    assert!(report["crash"]["claimed_after"].is_number(), "{what}");
}

#[tokio::test]
async fn a_guest_removes_its_own_topics_and_those_of_dead_demos_only() {
    let broker = Broker::shared();
    // Of a demo that was killed long ago, of one that began as long ago and lives, and of somebody else.
    let (dead, living, other) = ("afterimage-demo-60000000-00000a.", "afterimage-demo-60000000-00000b.", "orders.");
    // Of one that was killed just now, and of one that has only made its topics yet.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let young = |number: char| format!("afterimage-demo-{now:x}-00000{number}.");
    let (killed, beginning) = (young('c'), young('d'));
    let topic = |prefix: &str| format!("{prefix}calm_connector_27001.emea.account");
    for prefix in [dead, living, other, &killed, &beginning] {
        broker.create_topic(&topic(prefix), 1).await;
    }
    let owner = async |prefix: &str| {
        let owner: BaseConsumer = broker.client().set("group.id", format!("{prefix}owner")).create().unwrap();
        owner.subscribe(&[&topic(prefix)]).unwrap();
        wait_for("a demo's membership", LONG, async || {
            let groups =
                owner.fetch_group_list(Some(&format!("{prefix}owner")), LONG).map_err(|error| error.to_string())?;
            let members: usize = groups.groups().iter().map(|group| group.members().len()).sum();
            if members == 1 { Ok(()) } else { Err(format!("{members} members")) }
        })
        .await;
        owner
    };
    let _living = owner(living).await;
    drop(owner(&killed).await);

    let told = report(&["--broker", &broker.bootstrap(), "--events", "3000"]).await;
    assert_whole(&told, "as a guest");
    assert_eq!(told["broker"]["given"], broker.bootstrap());
    wait_for("only others' topics", LONG, async || {
        let mut left = broker.topics().await;
        left.retain(|name| name.contains("calm_connector_27001"));
        left.sort();
        if left == [topic(living), topic(&beginning), topic(other)] { Ok(()) } else { Err(left.join(" ")) }
    })
    .await;
}

#[tokio::test]
async fn the_demo_on_real_debezium_comes_out_whole() {
    let told = report(&["--capture", "debezium", "--events", "4000", "--seed", "3"]).await;
    assert_whole(&told, "captured");
    assert_eq!((&told["capture"], &told["debezium"]), (&"debezium".into(), &"2.7".into()));
    assert_eq!(told["connector_kills"], 2);
}
