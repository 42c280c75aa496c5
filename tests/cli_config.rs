//! The binary as people and scripts meet it: exit codes, messages, the effective configuration.

use std::process::{Command, Output};

/// What must never be printed.
const PASSWORD: &str = "hunter2";

struct House {
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn file(&self, text: &str) -> String {
        let path = self.dir.path().join("c.toml");
        std::fs::write(&path, text).expect("writes");
        path.display().to_string()
    }

    /// Runs the binary in an empty directory with no environment but the given one.
    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_afterimage"))
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .envs(env.iter().copied())
            .current_dir(self.dir.path())
            .output()
            .expect("runs")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// (exit code, stdout, stderr)
fn seen(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn show_prints_the_effective_configuration_with_its_origins_and_without_secrets() {
    let house = House::new();
    let url = format!("postgres://u:{PASSWORD}@127.0.0.1/history");
    let file = house.file("[commit]\nlinger = '50ms'\nmax_rows = 7\n[kafka]\nbrokers = 'file:1'");
    let env = [
        ("DATABASE_URL", url.as_str()),
        ("AFTERIMAGE_COMMIT__MAX_ROWS", "8"),
        ("KAFKA_CLIENT_CERT_KEY", "-----BEGIN hunter2"),
    ];
    let args = ["config", "show", "--config", &file, "--brokers", "flag:1", "--set", "commit.max_bytes=1MB"];
    let (code, out, err) = seen(&house.run(&args, &env));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(!out.contains(PASSWORD), "{out}");
    for (setting, origin) in [
        ("brokers = \"flag:1\"", "# --brokers"),
        ("linger = \"50ms\"", "c.toml"),
        ("max_rows = 8", "# AFTERIMAGE_COMMIT__MAX_ROWS"),
        ("max_bytes = \"1MB\"", "# --set commit.max_bytes"),
        ("url = \"postgres://u:****@127.0.0.1/history\"", "# DATABASE_URL"),
        ("sslmode = \"prefer\"", "# default"),
        ("group = \"afterimage.history\"", "# default"),
        ("key = \"****\"", "# KAFKA_CLIENT_CERT_KEY"),
    ] {
        assert!(
            out.lines().any(|line| line.starts_with(setting) && line.contains(origin)),
            "{setting} {origin}\n{out}"
        );
    }

    let mut json = args.to_vec();
    json.push("--json");
    let (code, out, err) = seen(&house.run(&json, &env));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(!out.contains(PASSWORD), "{out}");
    let out: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (out["kafka"]["brokers"].as_str(), out["origins"]["kafka.brokers"].as_str()),
        (Some("flag:1"), Some("--brokers"))
    );
}

#[test]
fn a_refused_configuration_exits_with_2_and_says_where_why_and_what_next() {
    let house = House::new();
    let file = house.file(&format!(
        "[kafka]\nbrokes = 'h:1'\n[commit]\nlinger = 'soon'\n[postgres]\nurl = 'mysql://u:{PASSWORD}@h/d'"
    ));
    for verb in [&["run"][..], &["migrate"], &["config", "show"]] {
        let mut args = verb.to_vec();
        args.extend(["--config", &file]);
        let (code, out, err) = seen(&house.run(&args, &[("AFTERIMAGE_STATE__DRI", "/x")]));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
        assert!(!err.contains(PASSWORD), "{err}");
        for expected in [
            format!(
                "afterimage: {file}: kafka.brokes: unknown key `kafka.brokes`\n  next: did you mean kafka.brokers?"
            ),
            "afterimage: AFTERIMAGE_STATE__DRI: unknown key `state.dri`\n  next: did you mean state.dir?".to_owned(),
            format!("afterimage: {file}: commit.linger: `soon` is not a duration"),
            format!("afterimage: {file}: postgres.url: the connection string can't be used"),
        ] {
            assert!(err.contains(&expected), "{expected}\nis not in\n{err}");
        }
    }
}

#[test]
fn what_a_verb_needs_is_asked_for_before_anything_starts() {
    let house = House::new();
    let (code, _, err) = seen(&house.run(&["run"], &[("DATABASE_URL", "postgres://u@127.0.0.1/d")]));
    assert_eq!(code, Some(2));
    assert!(
        err.starts_with("afterimage: kafka.brokers: no Kafka broker is configured\n  next: set --brokers"),
        "{err}"
    );
    for verb in ["run", "migrate"] {
        let (code, _, err) = seen(&house.run(&[verb, "--brokers", "127.0.0.1:1"], &[]));
        assert_eq!(code, Some(2));
        assert!(
            err.starts_with("afterimage: postgres.url: no Postgres database is configured\n  next: set --url"),
            "{err}"
        );
    }
}

#[test]
fn a_taken_metrics_port_is_a_clear_error() {
    let house = House::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("bound").to_string();
    let args = ["run", "--brokers", "127.0.0.1:1", "--url", "postgres://u@127.0.0.1:1/d", "--metrics-listen", &address];
    let (code, _, err) = seen(&house.run(&args, &[]));
    assert_eq!(code, Some(1));
    assert!(
        err.contains(&format!("afterimage: metrics: {address} can't be listened on: "))
            && err.contains("\n  next: stop what"),
        "{err}"
    );
}

#[test]
fn bad_usage_exits_with_2_and_help_with_0() {
    let house = House::new();
    for args in [
        &["nonsense"][..],
        &["run", "--nonsense"],
        &["demo", "--workers", "9"],
        &["config"],
        &["config", "show", "--set", "x"],
        &["config", "show", "--set", "postgres://u:hunter2@h?a=b"],
    ] {
        let (code, out, err) = seen(&house.run(args, &[]));
        assert_eq!((code, out.as_str(), err.is_empty()), (Some(2), "", false), "{args:?} {err}");
        assert!(!err.contains(PASSWORD), "{err}");
    }
    for args in [&["--help"][..], &["run", "--help"], &["config", "show", "--help"], &["--version"]] {
        let (code, out, err) = seen(&house.run(args, &[]));
        assert_eq!((code, out.is_empty(), err.as_str()), (Some(0), false, ""), "{args:?}");
    }
    let (_, out, _) = seen(&house.run(&["--help"], &[]));
    assert!(out.contains("Exit codes:") && out.contains("halted on purpose"), "{out}");
}

#[test]
fn a_file_in_the_working_directory_is_read_and_completions_are_printed() {
    let house = House::new();
    std::fs::write(house.dir.path().join("afterimage.toml"), "[worker]\nname = 'here'").expect("writes");
    let (code, out, _) = seen(&house.run(&["config", "show"], &[]));
    assert_eq!(code, Some(0));
    assert!(
        out.lines().any(|line| line.starts_with("name = \"here\"") && line.ends_with("# afterimage.toml")),
        "{out}"
    );
    let named = house.file("[worker]\nname = 'named'");
    let (_, out, _) = seen(&house.run(&["config", "show"], &[("AFTERIMAGE_CONFIG", &named)]));
    assert!(out.contains("name = \"named\"") && !out.contains("\"here\""), "{out}");
    let (code, out, _) = seen(&house.run(&["completions", "bash"], &[]));
    assert_eq!(code, Some(0));
    assert!(out.contains("afterimage") && out.contains("--metrics-listen"));
}

#[test]
fn a_demo_that_cannot_be_is_refused_before_anything_is_started() {
    let house = House::new();
    for (args, said) in [
        (&["--orgs", "emea,emea"][..], "names an org twice"),
        (&["--orgs", "a,b,c,d,e,f,g,h,i"], "one to eight"),
        (&["--orgs", "Emea"], "lower case"),
        (&["--events", "7"], "7 is not in"),
        (&["--workers", "0"], "0 is not in"),
        (&["--broker", "nowhere"], "HOST:PORT"),
        (&["--capture", "debezium", "--broker", "embedded"], "real Kafka"),
        (&["--debezium", "1.9"], "2.7"),
        (&["--brokers", "h:9092"], "--brokers"),
        (&["--url", "postgres://u:hunter2@h/x"], "--url"),
        (&["--set", "commit.linger=1ms"], "--set"),
        (&["--log-format", "xml"], "text nor json"),
    ] {
        let args: Vec<&str> = ["demo"].into_iter().chain(args.iter().copied()).collect();
        // Without PATH: a demo that began would fail over Postgres, with 1.
        let (code, out, err) = seen(&house.run(&args, &[]));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.contains(said) && !err.contains(PASSWORD), "{args:?}: {err}");
    }
}

#[test]
fn a_demo_on_kafka_without_java_says_what_to_install() {
    let house = House::new();
    for (path, missing) in [("", "Java is missing"), ("java", "Maven")] {
        let bin = house.dir.path().join("bin");
        std::fs::create_dir_all(&bin).expect("a directory");
        if !path.is_empty() {
            std::os::unix::fs::symlink("/bin/true", bin.join(path)).expect("links");
        }
        let (code, out, err) =
            seen(&house.run(&["demo", "--broker", "kafka"], &[("PATH", bin.to_str().expect("UTF-8"))]));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains(missing) && err.contains("apt-get install default-jdk-headless maven"), "{err}");
    }
}
