//! Encrypted connections as a deployment has them: to a Postgres that lets nobody in without TLS, and to a Kafka that wants
//! a client's certificate, as Heroku's does. Right, wrong and missing certificates; no password and no key in any output.

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};

use afterimage::demo::child::{self, LastSignal, Running};
use afterimage::demo::postgres::{PostgresOptions, PrivatePostgres};
use afterimage::kafka::EmbeddedBroker;
use support::certificates::{Authority, Identity};
use support::postgres::connect;
use support::wait::{LONG, wait_for};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// What must never be printed.
const PASSWORD: &str = "hunter2";

/// A server that lets nobody in without TLS, and a session that was there before.
async fn server(identity: &Identity) -> (PrivatePostgres, Client) {
    let server = PrivatePostgres::start(PostgresOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    server.create_database("history").await.unwrap();
    let url = server.url("history");
    let client = connect(&url).await;
    // The server writes them itself, so that they belong to whom it runs as.
    for (text, file) in [
        (identity.certificate.as_str(), "server.crt"),
        (identity.key.as_str(), "server.key"),
        ("local all all trust\nhostssl all all 127.0.0.1/32 trust", "pg_hba.conf"),
    ] {
        let lines = format!("SELECT unnest(string_to_array($text${}$text$, E'\\n'))", text.trim_end());
        client.batch_execute(&format!("COPY ({lines}) TO PROGRAM 'umask 077; cat > {file}'")).await.unwrap();
    }
    client.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    wait_for("a server that refuses plain text", LONG, async || match tokio_postgres::connect(&url, NoTls).await {
        Err(error) if error.as_db_error().is_some_and(|db| db.message().contains("no encryption")) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => Err("it does not".to_owned()),
    })
    .await;
    (server, client)
}

/// Where the program runs: an empty directory, no environment.
struct House(TempDir);

impl House {
    fn new() -> House {
        House(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
        command.args(args).env_clear().env("HOME", self.0.path()).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// A worker that goes on, and where it logs.
    fn worker(&self, args: &[&str], env: &[(&str, &str)]) -> (Running, String) {
        let log = self.file("worker.log", "");
        let out = fs::File::options().append(true).open(&log).unwrap();
        let mut command = self.command(&["run", "--metrics-listen", "off", "--state-dir"]);
        command.arg(self.0.path().join("state")).args(args).envs(env.iter().copied());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        (Running(child::spawn_bound(command, LastSignal::Kill).unwrap()), log)
    }
}

/// (exit code, all that was written)
fn seen(output: &Output) -> (Option<i32>, String) {
    let all = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8(all).unwrap())
}

async fn logs(log: &str, words: &str) -> String {
    wait_for(&format!("{words:?} in the log"), LONG, async || {
        let text = fs::read_to_string(log).unwrap();
        if text.contains(words) { Ok(text) } else { Err(text) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_is_encrypted_and_verified_as_asked() {
    let (ours, other) = (Authority::new("ours"), Authority::new("another"));
    let (server, client) = server(&ours.identity("localhost")).await;
    let house = House::new();
    let (right, wrong) = (house.file("right.pem", &ours.pem()), house.file("wrong.pem", &other.pem()));
    let to = |host: &str, query: &str| {
        let url = server.url("history").replace("@127.0.0.1:", &format!(":{PASSWORD}@{host}:"));
        format!("{url}?{query}")
    };
    let migrate = |url: &str| seen(&house.command(&["migrate", "--url", url]).output().unwrap());
    for (host, query, said) in [
        ("localhost", "sslmode=disable".to_owned(), "no encryption"),
        ("localhost", "sslmode=verify-full".to_owned(), "certificate verify failed"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={wrong}"), "certificate verify failed"),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={right}"), "mismatch"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}.none"), "right.pem.none: "),
    ] {
        let (code, text) = migrate(&to(host, &query));
        assert_eq!(code, Some(1), "{host} {query}\n{text}");
        assert!(text.contains(said) && text.contains("\n  next: "), "{said} is not in\n{text}");
        assert!(!text.contains(PASSWORD), "{text}");
        if query.contains("pem") && !query.contains("none") {
            assert!(text.contains("  next: check that postgres.ca"), "{text}");
        }
    }
    let there = "SELECT count(*) FROM pg_namespace WHERE nspname = 'afterimage'";
    assert_eq!(client.query_one(there, &[]).await.unwrap().get::<_, i64>(0), 0, "nobody came in");
    for (host, query) in [
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}")),
        // On this machine, with nothing said; and with a CA, which is to be verified.
        ("127.0.0.1", String::new()),
        ("localhost", format!("sslrootcert={right}")),
    ] {
        let (code, text) = migrate(&to(host, &query));
        assert!(code == Some(0) && !text.contains(PASSWORD), "{host} {query}\n{text}");
    }

    let broker = EmbeddedBroker::start(1).unwrap();
    broker.create_topic("calm.emea.account", 1).unwrap();
    let url = to("localhost", &format!("sslmode=verify-full&sslrootcert={right}"));
    let (_worker, log) = house.worker(&["--brokers", &broker.servers(), "--url", &url, "--worker", "one"], &[]);
    let text = logs(&log, "claimed topic=").await;
    assert!(!text.contains(PASSWORD), "{text}");
    let sessions =
        "SELECT count(*), count(*) FILTER (WHERE s.ssl) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
                    WHERE a.application_name = 'afterimage/one'";
    wait_for("sessions, all of them encrypted", LONG, async || {
        let row = client.query_one(sessions, &[]).await.unwrap();
        let (all, encrypted): (i64, i64) = (row.get(0), row.get(1));
        if all > 0 && all == encrypted { Ok(()) } else { Err(format!("{encrypted} of {all}")) }
    })
    .await;
}

#[cfg(feature = "java-tests")]
#[tokio::test(flavor = "multi_thread")]
async fn kafka_with_a_clients_certificate_is_read_as_heroku_gives_it() {
    use afterimage::demo::kafka::{PrivateKafka, Size};
    use afterimage::demo::patience::Stop;
    use afterimage::demo::postgres::free_port;
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::config::ClientConfig;
    use support::postgres::fresh_database;

    let (ours, other) = (Authority::new("ours"), Authority::new("another"));
    let house = House::new();
    // As on Heroku, the certificate names no host.
    let (broker, client) = (ours.identity("kafka.example"), ours.identity("client"));
    let keystore = house.file("broker.pem", &format!("{}{}", broker.key, broker.certificate));
    let truststore = house.file("clients.pem", &ours.pem());
    let port = free_port().unwrap();
    let settings = format!(
        "listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CONTROLLER_PORT@,SSL://127.0.0.1:{port}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SSL://127.0.0.1:{port}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL\n\
         ssl.keystore.type=PEM\nssl.keystore.location={keystore}\nssl.truststore.type=PEM\n\
         ssl.truststore.location={truststore}\nssl.client.auth=required\n"
    );
    let kafka = tokio::task::spawn_blocking(move || {
        PrivateKafka::start_with(&support::java::java(), Size::Small, &settings, &Stop::default())
    });
    let kafka = kafka.await.unwrap().unwrap_or_else(|error| panic!("{error:#}"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let topic = NewTopic::new("calm.emea.account", 1, TopicReplication::Fixed(1));
    for made in admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }

    let sink = fresh_database().await;
    let (code, text) = seen(&house.command(&["migrate", "--url", &sink.url]).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    let (url, trusted, foreign) = (format!("kafka+ssl://127.0.0.1:{port}"), ours.pem(), other.pem());
    let env = |ca: &'static str| {
        let mut env = vec![("DATABASE_URL", sink.url.as_str()), ("KAFKA_URL", url.as_str())];
        env.push(("KAFKA_TRUSTED_CERT", if ca == "foreign" { &foreign } else { &trusted }));
        if ca != "no certificate" {
            env.push(("KAFKA_CLIENT_CERT", &client.certificate));
            env.push(("KAFKA_CLIENT_CERT_KEY", &client.key));
        }
        env
    };
    let no_names = ["--set", "kafka.verify_hostname=false"];
    for (args, env, said) in [
        (&no_names[..], env("foreign"), "certificate verify failed"),
        (&["--set", "kafka.verify_hostname=true"], env("right"), "certificate verify failed"),
        (&no_names, env("no certificate"), "cert"),
    ] {
        let mut command = house.command(&["run", "--metrics-listen", "off", "--state-dir"]);
        let output = command.arg(house.0.path().join("refused")).args(args).envs(env).output().unwrap();
        let (code, text) = seen(&output);
        assert_eq!(code, Some(1), "{said}\n{text}");
        assert!(text.contains(said) && text.contains("\n  next: "), "{said} is not in\n{text}");
        assert!(!text.contains("PRIVATE KEY"), "{text}");
    }
    let (_worker, log) = house.worker(&no_names, &env("right"));
    let text = logs(&log, "claimed topic=").await;
    assert!(!text.contains("PRIVATE KEY"), "{text}");
}
