//! The binary as people and scripts meet it: exit codes, messages, the effective configuration.

mod support;

use std::process::{Command, Output};

use afterimage::kafka::EmbeddedBroker;
use support::postgres::fresh_database;

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
        self.command(args, env).output().expect("runs")
    }

    fn command(&self, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
        command.args(args).env_clear().env("HOME", self.dir.path()).envs(env.iter().copied());
        command.current_dir(self.dir.path());
        command
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
            "afterimage: AFTERIMAGE_STATE__DRI: is the variable of no key\n  next: did you mean AFTERIMAGE_STATE__DIR?"
                .to_owned(),
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
    assert!(out.contains("Exit codes:") && out.contains("halted or refused on purpose"), "{out}");
}

/// A full disk behind `>`: whoever reads the exit code must not take the file for whole.
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let house = House::new();
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["--version"],
        &["completions", "zsh"],
        &["config", "show"],
        &["config", "init", "--output", "-"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let mut command = house.command(args, &[]);
        let output = command.stdout(full).stderr(std::process::Stdio::piped()).output().expect("runs");
        let (code, _, err) = seen(&output);
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(err.starts_with("afterimage: stdout: No space left") && err.contains("  next: "), "{args:?}: {err}");
    }
}

/// Frozen servers take connections, and say nothing.
#[test]
fn a_database_that_says_nothing_is_given_up() {
    let house = House::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("postgres://u:{PASSWORD}@{}/d", silent.local_addr().expect("bound"));
    let url = url.as_str();
    let runs = [&["migrate", "--url", url][..], &["config", "types", "--from", url], &["status", "--url", url]];
    std::thread::scope(|scope| {
        let runs: Vec<_> = runs.into_iter().map(|args| scope.spawn(|| seen(&house.run(args, &[])))).collect();
        for run in runs {
            let (code, out, err) = run.join().expect("runs");
            assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
            assert!(
                err.contains("cannot connect to Postgres at 127.0.0.1:") && err.contains("/d: no answer within 10 s"),
                "{err}"
            );
            assert!(err.contains("  next: ") && !err.contains(PASSWORD), "{err}");
        }
    });
}

#[test]
fn what_would_fail_later_is_refused_with_the_file() {
    let house = House::new();
    for (file, said) in [
        (
            "[postgres]\nurl = 'postgres://u:hunter2@h/d?connect_timeout=hunter2'",
            "the value of connect_timeout can't be used",
        ),
        ("[postgres]\nurl = 'host=h port=99999 password=hunter2'", "its port is not one from 1 to 65535"),
        ("[postgres]\nurl = 'postgres://u:hunter2@h/d?sslmod=disable'", "\n  next: did you mean sslmode?"),
        ("[postgres]\npool_mode = 'transactions'", "\n  next: did you mean transaction?"),
        ("[log]\nformat = 'jsn'", "\n  next: did you mean json?"),
    ] {
        let path = house.file(file);
        for verb in [&["config", "show"][..], &["migrate"], &["run"]] {
            let mut args = verb.to_vec();
            args.extend(["--config", &path]);
            let (code, out, err) = seen(&house.run(&args, &[]));
            assert_eq!((code, out.as_str()), (Some(2), ""), "{file}\n{err}");
            assert!(
                err.starts_with(&format!("afterimage: {path}: ")) && err.contains(said),
                "{said}\nis not in\n{err}"
            );
            assert!(!err.contains(PASSWORD), "{err}");
        }
    }
    let types = |more: &[&str]| {
        let mut args = vec!["config", "types", "--from", "postgres://u@127.0.0.1:1/d"];
        args.extend(more);
        seen(&house.run(&args, &[]))
    };
    for (more, place) in [(&["--org", "x y"][..], "--org"), (&["--schema", "x y"], "--schema")] {
        let (code, _, err) = types(more);
        assert!(code == Some(2) && err.starts_with(&format!("afterimage: {place}: org name `x y` holds ' '")), "{err}");
    }
    let (code, _, err) = types(&["--schema", "x y", "--org", "x"]);
    assert!(code == Some(1) && err.contains("cannot connect to Postgres") && !err.contains("sink"), "{err}");
    let (code, _, err) = seen(&house.run(&["run", "--ulr=postgres://u:hunter2@h/d"], &[]));
    assert!(code == Some(2) && err.contains("a similar argument exists: '--url'") && !err.contains(PASSWORD), "{err}");
    let (_, _, err) = seen(&house.run(&["demo", "--log-format", "jsn"], &[]));
    assert!(err.contains("did you mean json?"), "{err}");
}

/// Each script by its shell, where that is installed, and by its text.
#[test]
fn completions_are_good_scripts_for_their_shells() {
    let house = House::new();
    for (shell, check, holds) in [
        ("bash", &["bash", "-n"][..], "complete -F _afterimage"),
        ("zsh", &["zsh", "-n"], "#compdef afterimage"),
        ("fish", &["fish", "-n"], "complete -c afterimage"),
        ("elvish", &[], "edit:completion:arg-completer[afterimage]"),
        ("powershell", &[], "Register-ArgumentCompleter"),
    ] {
        let (code, script, err) = seen(&house.run(&["completions", shell], &[]));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{shell}");
        assert!(
            script.contains(holds) && script.contains("metrics-listen") && script.contains("completions"),
            "{shell}"
        );
        let path = house.dir.path().join(format!("script.{shell}"));
        std::fs::write(&path, script).expect("writes");
        let Some((program, args)) = check.split_first() else { continue };
        match Command::new(program).args(args).arg(&path).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {}", text(&output.stderr)),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{shell}: {error}"),
        }
        if shell == "fish" {
            // What it offers, by fish itself.
            let ask =
                "source $argv[1]; complete -C 'afterimage completions z'; complete -C 'afterimage run --log-format j'";
            if let Ok(output) = Command::new("fish").args(["--no-config", "-c", ask]).arg(&path).output() {
                assert_eq!(text(&output.stdout).split_whitespace().collect::<Vec<_>>(), ["zsh", "json"]);
            }
        }
        let (_, help, _) = seen(&house.run(&["completions", "--help"], &[]));
        assert!(help.contains(&format!("afterimage completions {shell} >")), "{shell}: {help}");
    }
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
fn a_demo_that_has_no_place_is_refused() {
    let house = House::new();
    for (place, said) in [
        ("/no/such/place", "/no/such/place: there is no such directory"),
        ("tmp", "tmp: it is not an absolute path"),
        ("/proc", "/proc: no directory can be made in it: "),
        ("/dev/null", "/dev/null: it is not a directory"),
    ] {
        let (code, out, err) = seen(&house.run(&["demo"], &[("TMPDIR", place)]));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{place}: {err}");
        assert!(err.starts_with(&format!("afterimage: TMPDIR: {said}")), "{said}\nis not in\n{err}");
        assert!(err.contains("\n  next: name a directory in TMPDIR that can be written"), "{err}");
    }
    // Others can pass through it: else it would not be used.
    std::fs::set_permissions(house.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("owned");
    let long = house.dir.path().join("d".repeat(90));
    std::fs::create_dir(&long).expect("a directory");
    let (code, _, err) = seen(&house.run(&["demo"], &[("TMPDIR", long.to_str().expect("UTF-8"))]));
    assert!(code == Some(2) && err.contains(" leave no room for the path of a socket; "), "{err}");
}

/// In clap's own refusals, in a worker's name, in addresses of brokers.
#[test]
fn no_password_is_quoted_wherever_it_was_typed() {
    let house = House::new();
    for args in [
        &["demo", "--broker", "u:hunter2@h:9092"][..],
        &["demo", "--broker=kafka://u:hunter2@h:9092"],
        &["demo", "u:hunter2@h"],
        &["u:hunter2@h"],
        &["run", "--worker", "postgres://u:hunter2@h/d"],
        &["config", "show", "--worker", "u:hunter2@h"],
        &["config", "show", "--metrics-listen", "u:hunter2@h:1"],
        &["config", "show", "--brokers", "u:hunter2@h:1"],
        &["config", "show", "--url", "postgres://u:hunter2@/d"],
    ] {
        let (code, out, err) = seen(&house.run(args, &[]));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(!err.contains(PASSWORD) && err.contains("\n  next: "), "{args:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_the_sink_has_a_next_step() {
    let house = House::new();
    let sink = fresh_database().await;
    let at = sink.url.rfind('@').expect("a user");
    let nobody = format!("postgres://no_such_role:{PASSWORD}{}", &sink.url[at..]);
    let nowhere = sink.url.replace(&sink.name, "no_such_database");
    for (url, said, next) in [
        (nobody.as_str(), "role \"no_such_role\" does not exist", "check the role and its password in the URL"),
        (&nowhere, "database \"no_such_database\" does not exist", "create it (`createdb`"),
    ] {
        for verb in [&["migrate", "--url"][..], &["status", "--url"], &["config", "types", "--from"]] {
            let (code, _, err) = seen(&house.run(&[verb, &[url][..]].concat(), &[]));
            assert_eq!(code, Some(1), "{err}");
            assert!(err.contains(said) && err.contains(&format!("\n  next: {next}")), "{err}");
            assert!(!err.contains(PASSWORD), "{err}");
        }
    }
    for url in ["postgres://", "postgres:///history", "postgres://u@/history", "dbname=history user=u"] {
        let (code, _, err) = seen(&house.run(&["migrate", "--url", url], &[]));
        assert!(
            code == Some(2) && err.contains("it names no host") && err.contains("next: write postgres://"),
            "{err}"
        );
    }

    let migrate = || seen(&house.run(&["migrate", "--url", &sink.url], &[]));
    let client = sink.connect().await;
    client.batch_execute("create function public.no() returns event_trigger language plpgsql as $$ begin raise 'not today'; end $$;
                          create event trigger no on ddl_command_end when tag in ('CREATE VIEW') execute function public.no()").await.unwrap();
    let (code, _, err) = migrate();
    assert!(
        code == Some(1) && err.contains("not today") && err.contains("\n  next: nothing of it was written"),
        "{err}"
    );
    client.batch_execute("drop event trigger no").await.unwrap();
    assert_eq!(migrate().0, Some(0));
    client.batch_execute("update afterimage.migration set checksum = '' where number = 2").await.unwrap();
    let (code, _, err) = migrate();
    assert!(
        code == Some(3) && err.contains("in another form") && err.contains("\n  next: use the afterimage that"),
        "{err}"
    );

    let (code, _, err) = seen(&house.run(&["config", "init", "--output", "."], &[]));
    assert_eq!(
        (code, err.as_str()),
        (Some(2), "afterimage: .: it is a directory\n  next: name a file in it: --output ./afterimage.toml\n")
    );
    for (args, said, next) in [
        (&["migarte"][..], "a similar subcommand exists: 'migrate'", "afterimage --help"),
        (&["config", "nonsense"], "unrecognized subcommand", "afterimage config --help"),
        (&["run", "--gruop", "g"], "'--group'", "afterimage run --help"),
        (&["demo", "--workers", "many"], "'many'", "afterimage demo --help"),
    ] {
        let (code, _, err) = seen(&house.run(args, &[]));
        assert!(code == Some(2) && err.contains(said) && err.ends_with(&format!("\n  next: {next}\n")), "{err}");
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

/// Sections, keys, keys and types of `[[org]]` and `[[object]]`, variables, `--set`, librdkafka's properties.
#[test]
fn a_misspelt_name_is_told_its_nearest_wherever_it_stands() {
    let house = House::new();
    let org = "[[org]]\nname = 'a'\ntopics = ['c.a.*']\n";
    let object = |line: &str| format!("{org}[[object]]\norg = 'a'\nname = 'o'\n{line}");
    let extra = |line: &str| format!("[kafka]\nbrokers = 'h:1'\n[kafka.extra]\n{line}");
    for (file, near) in [
        ("[kafak]\nbrokers = 'h:1'".to_owned(), "did you mean kafka?"),
        ("[debezum]\nplaceholder = 'x'".to_owned(), "did you mean debezium?"),
        ("[commit]\nlingr = '1s'".to_owned(), "did you mean commit.linger?"),
        ("[[orgs]]\nname = 'a'".to_owned(), "did you mean org?"),
        ("[[org]]\nname = 'a'\ntopic = ['c.a.*']".to_owned(), "did you mean topics?"),
        (object("lookups = ['x']"), "did you mean lookup?"),
        (object("mask_ad = ['x']"), "did you mean mask_add?"),
        (object("types = { x = 'timestmp' }"), "did you mean timestamp?"),
        (extra(&format!("sasl.pasword = '{PASSWORD}'")), "did you mean sasl.password?"),
        (extra("fetch.min.byts = 1"), "did you mean fetch.min.bytes?"),
        (extra(&format!("security.protocol = '{PASSWORD}'")), "CONFIGURATION.md"),
    ] {
        let path = house.file(&file);
        for verb in [&["config", "show"][..], &["run", "--url", "postgres://u@127.0.0.1:1/d"]] {
            let mut args = verb.to_vec();
            args.extend(["--config", &path]);
            let (code, out, err) = seen(&house.run(&args, &[]));
            assert_eq!((code, out.as_str()), (Some(2), ""), "{file}\n{err}");
            assert!(
                err.contains(&format!("afterimage: {path}: ")) || err.contains(&format!("afterimage: {path} ")),
                "{err}"
            );
            assert!(
                err.contains("  next: ") && err.contains(near) && !err.contains(PASSWORD),
                "{near}\nis not in\n{err}"
            );
        }
    }
    for (name, near) in [
        ("AFTERIMAGE_KAFKA_BROKERS", "AFTERIMAGE_KAFKA__BROKERS"),
        ("AFTERIMAGE_CONFG", "AFTERIMAGE_CONFIG"),
        ("AFTERIMAGE_LOG__LEVLE", "AFTERIMAGE_LOG__LEVEL"),
    ] {
        let (code, _, err) = seen(&house.run(&["config", "show"], &[(name, PASSWORD)]));
        assert_eq!(code, Some(2));
        assert!(err.contains(&format!("{name}: ")) && err.contains(&format!("did you mean {near}?")), "{err}");
        assert!(!err.contains(PASSWORD), "{err}");
    }
    let brokers = ("AFTERIMAGE_KAFKA__BROKERS", "h:1");
    let (code, _, err) =
        seen(&house.run(&["config", "show"], &[brokers, ("AFTERIMAGE_KAFKA__EXTRA__CLIENT_RAK", "r")]));
    assert!(
        code == Some(2)
            && err.contains("AFTERIMAGE_KAFKA__EXTRA__CLIENT_RAK")
            && err.contains("did you mean client.rack?"),
        "{err}"
    );
    let (code, _, err) = seen(&house.run(&["config", "show", "--set", "postgre.url=x"], &[]));
    assert!(
        code == Some(2) && err.contains("--set postgre.url") && err.contains("did you mean postgres.url?"),
        "{err}"
    );
}

#[test]
fn no_property_that_may_hold_a_secret_is_shown() {
    let house = House::new();
    let secrets =
        ["sasl.password", "ssl.key.password", "ssl.keystore.password", "sasl.oauthbearer.config", "ssl.key.pem"];
    let lines: Vec<String> = secrets.iter().map(|name| format!("{name} = '{PASSWORD}'\n")).collect();
    let file = house.file(&format!("[kafka]\nbrokers = 'h:1'\n[kafka.extra]\n{}client.rack = 'r1'", lines.concat()));
    for args in [&["config", "show", "--config", &file][..], &["config", "show", "--json", "--config", &file]] {
        let (code, out, err) = seen(&house.run(args, &[]));
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert!(!out.contains(PASSWORD) && out.contains("r1"), "{out}");
        assert_eq!(out.matches("****").count(), secrets.len(), "{out}");
    }
    // Java's own spelling is no property of librdkafka: refused, and not quoted.
    let file = house.file(&format!("[kafka]\nbrokers = 'h:1'\n[kafka.extra]\nsasl.jaas.config = '{PASSWORD}'"));
    let (code, out, err) = seen(&house.run(&["config", "show", "--config", &file], &[]));
    assert_eq!(code, Some(2));
    assert!(err.contains("sasl.jaas.config") && !err.contains(PASSWORD) && !out.contains(PASSWORD), "{err}");
}

#[test]
fn init_writes_a_file_that_changes_nothing_and_never_over_another() {
    let house = House::new();
    let (_, bare, _) = seen(&house.run(&["config", "show"], &[]));
    let (code, out, err) = seen(&house.run(&["config", "init"], &[]));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "wrote afterimage.toml\n", ""));
    let path = house.dir.path().join("afterimage.toml");
    let written = std::fs::read_to_string(&path).expect("a file");
    let without_pid =
        |text: &str| text.lines().filter(|line| !line.starts_with("name = ")).map(str::to_owned).collect::<Vec<_>>();
    let (code, shown, err) = seen(&house.run(&["config", "show"], &[]));
    assert_eq!((code, without_pid(&shown), err.as_str()), (Some(0), without_pid(&bare), ""));

    std::fs::write(&path, "[worker]\nname = 'mine'").expect("writes");
    let (code, out, err) = seen(&house.run(&["config", "init"], &[]));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert_eq!(
        err,
        "afterimage: afterimage.toml: the file is there already\n  next: name another with --output, or write over it with --force\n"
    );
    assert!(std::fs::read_to_string(&path).expect("a file").contains("mine"));
    let (code, ..) = seen(&house.run(&["config", "init", "--force"], &[]));
    assert_eq!((code, std::fs::read_to_string(&path).expect("a file")), (Some(0), written.clone()));
    let (code, out, _) = seen(&house.run(&["config", "init", "--output", "-"], &[]));
    assert_eq!((code, out), (Some(0), written));
    let (code, _, err) = seen(&house.run(&["config", "init", "--output", "no/such/place.toml"], &[]));
    assert!(code == Some(1) && err.contains("no/such/place.toml: ") && err.contains("  next: "), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_captured_tables_are_printed_to_be_pasted() {
    let house = House::new();
    let source = fresh_database().await;
    let client = source.connect().await;
    client
        .batch_execute(
            "create schema emea; create domain emea.money_d as numeric(10, 2);
             create domain emea.day as date; create domain emea.due_day as emea.day;
             create table emea.job__c (id serial primary key, sfid varchar(18), name varchar(80), active__c boolean,
               createddate timestamp, systemmodstamp timestamp, due__c date, \"At this\" timestamptz(3), amount__c float8,
               price__c emea.money_d, total__c int generated always as (7) stored, tags text[], doc jsonb, at__c time,
               ref__c uuid, raw__c bytea, _hc_lastop varchar(32), gone__c date);
             alter table emea.job__c drop column gone__c;
             create table emea.pairs (a bigint, b text, primary key (a, b));
             create table emea.texts (id text primary key);
             create table emea.odd (\"in two\nlines\" date, due emea.due_day);
             create table emea._trigger_log (id bigint, at timestamptz);
             create role nobody_here login",
        )
        .await
        .unwrap();
    // Rights on the tables are not needed.
    let at = source.url.rfind('@').expect("a user");
    let url = format!("postgresql://nobody_here{}", &source.url[at..]);
    let run = |args: &[&str]| {
        let mut all = vec!["config", "types", "--from", &url];
        all.extend(args);
        seen(&house.run(&all, &[]))
    };
    let (code, out, err) = run(&["--schema", "emea"]);
    let left_out = "afterimage: \"in two\\nlines\" of odd is left out: its name holds a control character\n";
    assert_eq!((code, err.as_str()), (Some(0), left_out));
    assert_eq!(
        out,
        "[[object]]\norg = \"emea\"\nname = \"job__c\"\ntypes = { due__c = \"date\", \"At this\" = \"timestamptz\", amount__c = \"float8\", \
         price__c = \"numeric\", at__c = \"time\", ref__c = \"uuid\", raw__c = \"bytea\" }\n\
         \n[[object]]\norg = \"emea\"\nname = \"odd\"\ntypes = { due = \"date\" }\n\
         \n[[object]]\norg = \"emea\"\nname = \"pairs\"\ntypes = { a = \"int8\" }\n"
    );
    // As pasted.
    let file = house.file(&out);
    let (code, shown, err) = seen(&house.run(&["config", "show", "--config", &file], &[]));
    assert!(code == Some(0) && err.is_empty() && shown.contains("timestamptz"), "{err}");
    let (code, out, _) = run(&["--schema", "emea", "--table", "pairs", "--org", "apac", "--json"]);
    let out: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let wanted = serde_json::json!({"object": [{"org": "apac", "name": "pairs", "types": {"a": "int8"}}]});
    assert_eq!((code, out), (Some(0), wanted));

    for (args, code, said) in [
        (&[][..], 2, "the database has no schema salesforce\n  next: there are: emea"),
        (&["--schema", "emae"], 2, "no schema emae\n  next: did you mean emea?"),
        (
            &["--schema", "emea", "--table", "jobs__c"],
            2,
            "schema emea has no table jobs__c\n  next: did you mean job__c?",
        ),
    ] {
        let (found, out, err) = run(args);
        assert_eq!((found, out.as_str()), (Some(code), ""), "{err}");
        assert!(err.contains(said), "{said}\nis not in\n{err}");
    }
    for (from, code, said) in [
        ("postgres://u:hunter2@127.0.0.1:1/d", 1, "cannot connect to"),
        ("mysql://u:hunter2@h/d", 2, "the connection string can't be used"),
    ] {
        let (found, out, err) = seen(&house.run(&["config", "types", "--from", from], &[]));
        assert_eq!((found, out.as_str()), (Some(code), ""), "{err}");
        assert!(err.contains(said) && err.contains("  next: ") && !err.contains(PASSWORD), "{err}");
    }
    client.batch_execute("drop role nobody_here").await.unwrap();
}

/// A role that lacks a right is told what to do, whichever it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_has_a_next_step() {
    let house = House::new();
    let broker = EmbeddedBroker::start(1).unwrap();
    broker.create_topic("c.emea.account", 1).unwrap();
    let sink = fresh_database().await;
    let client = sink.connect().await;
    client.batch_execute("create role poor_worker login").await.unwrap();
    let at = sink.url.rfind('@').expect("a user");
    let url = format!("postgresql://poor_worker{}", &sink.url[at..]);
    let file = house.file("[metrics]\nlisten = 'off'");
    let servers = broker.servers();
    let run = |verb: &str| seen(&house.run(&[verb, "--config", &file, "--url", &url, "--brokers", &servers], &[]));
    let (code, _, err) = run("migrate");
    assert!(
        code == Some(1) && err.contains("permission denied") && err.contains("\n  next: run it as the owner"),
        "{code:?} {err}"
    );
    let (code, ..) = seen(&house.run(&["migrate", "--url", &sink.url], &[]));
    assert_eq!(code, Some(0));
    for grant in [
        "select 1",
        "grant usage on schema afterimage to poor_worker",
        "grant select on afterimage.migration to poor_worker",
        "grant select on afterimage.meta, afterimage.org to poor_worker",
    ] {
        client.batch_execute(grant).await.unwrap();
        let (code, _, err) = run("run");
        assert!(code == Some(1) && err.contains("permission denied"), "{grant}: {code:?} {err}");
        assert!(err.contains("\n  next: as the owner of the schema, grant this role"), "{grant}: {err}");
    }
    client.batch_execute("drop owned by poor_worker; drop role poor_worker").await.unwrap();
}
