//! Precedence, refusal, masking, and the derived defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;

/// What must never appear in anything printed.
const PASSWORD: &str = "hunter2";
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n";

struct Setup {
    sources: Sources,
    // Holds the file until the test ends.
    _dir: tempfile::TempDir,
}

fn setup(file: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Setup {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("afterimage.toml");
    std::fs::write(&path, file).expect("writes");
    let mut sources = Sources { file: Some(path), host: "box".to_owned(), pid: 7, ..Sources::default() };
    sources.env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
    for (flag, path, value) in flags {
        sources.flag(flag, path, *value);
    }
    Setup { sources, _dir: dir }
}

fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&setup(file, env, flags).sources)
}

/// A configuration of one file's text.
pub(super) fn from_toml(text: &str) -> Config {
    load(text, &[], &[]).expect("a good configuration")
}

fn problems(file: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> String {
    let error = load(file, env, flags).expect_err("must be refused");
    error.problems.iter().map(|problem| format!("{problem} -> {}\n", problem.next)).collect()
}

#[test]
fn flag_beats_variable_beats_herokus_variable_beats_file_beats_default() {
    let file = "[kafka]\nbrokers = 'file:1'\n[commit]\nmax_rows = 5";
    let heroku = ("KAFKA_URL", "kafka://heroku:1");
    let env = ("AFTERIMAGE_KAFKA__BROKERS", "env:1");
    let flag = ("--brokers", "kafka.brokers", "flag:1");
    let brokers = |file: &str, env: &[(&str, &str)], flags: &[_]| {
        let config = load(file, env, flags).expect("good");
        config.kafka().map(|kafka| kafka.brokers.clone()).ok()
    };
    assert_eq!(brokers("", &[], &[]), None);
    assert_eq!(brokers(file, &[], &[]).as_deref(), Some("file:1"));
    assert_eq!(brokers(file, &[heroku], &[]).as_deref(), Some("heroku:1"));
    assert_eq!(brokers(file, &[heroku, env], &[]).as_deref(), Some("env:1"));
    assert_eq!(brokers(file, &[heroku, env], &[flag]).as_deref(), Some("flag:1"));
    assert_eq!(brokers("", &[heroku], &[flag]).as_deref(), Some("flag:1"));
    assert_eq!(brokers(file, &[("AFTERIMAGE_KAFKA__BROKERS", "")], &[]).as_deref(), Some("file:1"), "empty = not set");

    assert_eq!(from_toml("").commit.max_rows, 10_000);
    assert_eq!(from_toml(file).commit.max_rows, 5);
    let config = load(file, &[("AFTERIMAGE_COMMIT__MAX_ROWS", "6")], &[]).expect("good");
    assert_eq!(config.commit.max_rows, 6);
    assert_eq!(from_toml("[commit]\nmax_rows = ''").commit.max_rows, 10_000, "empty = not set");
    let twice = [("--set", "commit.max_rows", "8"), ("--set", "commit.max_rows", "7")];
    assert_eq!(load(file, &[], &twice).expect("good").commit.max_rows, 7, "the later flag");
}

#[test]
fn time_machine_url_beats_database_url_and_both_lose_to_the_projects_own() {
    let database = ("DATABASE_URL", "postgres://localhost/main");
    let machine = ("TIME_MACHINE_URL", "postgres://localhost/history");
    let own = ("AFTERIMAGE_POSTGRES__URL", "postgres://localhost/own");
    let name = |env: &[_]| load("", env, &[]).expect("good").postgres().expect("set").name.clone();
    assert_eq!(name(&[database]), "main");
    assert_eq!(name(&[database, machine]), "history");
    assert_eq!(name(&[database, machine, own]), "own");
}

#[test]
fn every_default_is_what_the_documents_say() {
    let config = load("", &[("HOME", "/home/u")], &[]).expect("good");
    assert_eq!(
        config.state,
        StateSettings { dir: PathBuf::from("/home/u/.local/state/afterimage"), memory: 64_000_000, front: 64_000_000 }
    );
    assert_eq!(
        config.commit,
        CommitSettings { max_rows: 10_000, max_bytes: 8_000_000, linger: Duration::from_millis(100) }
    );
    assert_eq!(config.history.create_window, Duration::from_secs(24 * 3600));
    assert_eq!(config.metrics.listen, Some("127.0.0.1:9464".parse().expect("an address")));
    assert_eq!(config.log, LogSettings { format: LogFormat::Text, level: "info".to_owned() });
    assert_eq!(config.worker.name, "box-7");
    assert_eq!(config.debezium.placeholder, "__debezium_unavailable_value");
    assert_eq!(config.object("a", "b"), ObjectConfig::defaults("a", "b"));
    assert_eq!(config.object("a", "b").grace, Duration::from_secs(900));
    assert!(config.kafka().is_err() && config.postgres().is_err());
}

#[test]
fn the_example_of_the_documents_is_read_whole() {
    let config = from_toml(
        r#"
        [kafka]
        brokers = "127.0.0.1:9092"
        [kafka.extra]
        fetch.min.bytes = 7
        "queued.min.messages" = "9"
        [postgres]
        url = "postgres://u@127.0.0.1/history"
        [state]
        dir = "/var/lib/afterimage"
        [metrics]
        listen = "off"
        [[org]]
        name = "emea"
        topics = ["calm_connector_27001.emea.*"]
        [[object]]
        org = "emea"
        name = "job__c"
        identity = ["b", "a"]
        types = { due__c = "date", started__c = "timestamp", amount__c = "float8" }
        mask_add = ["x"]
        mask_remove = ["lastmodifieddate"]
        lookup = ["external_id__c"]
        grace = "20min"
        "#,
    );
    let object = config.object("emea", "job__c");
    assert_eq!(object.identity, Some(Identity::Columns(vec!["a".to_owned(), "b".to_owned()])), "sorted bytewise");
    assert_eq!(object.types.get("amount__c"), Some(&crate::core::value::Kind::Float8));
    assert!(object.mask_add.contains("x") && object.mask_remove.contains("lastmodifieddate"));
    assert_eq!(
        (object.lookup.as_slice(), object.grace),
        (["external_id__c".to_owned()].as_slice(), Duration::from_secs(1200))
    );
    let kafka = config.kafka().expect("set");
    assert_eq!((kafka.group.as_str(), kafka.tls.as_ref()), ("afterimage.history", None));
    let extra: Vec<_> = kafka.extra.iter().map(|(k, v)| (k.as_str(), v.expose().as_str())).collect();
    assert_eq!(extra, [("fetch.min.bytes", "7"), ("queued.min.messages", "9")]);
    assert_eq!(config.metrics.listen, None);
}

#[test]
fn an_unknown_key_is_refused_naming_its_place() {
    let text = problems("[kafka]\nbrokes = 'h:1'\n[nonsense]\nx = 1", &[], &[]);
    assert!(
        text.contains("afterimage.toml: kafka.brokes: unknown key `kafka.brokes` -> did you mean kafka.brokers?"),
        "{text}"
    );
    assert!(text.contains("unknown key `nonsense`"), "{text}");
    let text = problems("", &[("AFTERIMAGE_KAFKA_BROKERS", "h:1"), ("AFTERIMAGE_STATE__DRI", "/x")], &[]);
    assert!(
        text.contains("AFTERIMAGE_KAFKA_BROKERS: is the variable of no key -> did you mean AFTERIMAGE_KAFKA__BROKERS?"),
        "{text}"
    );
    assert!(
        text.contains("AFTERIMAGE_STATE__DRI: is the variable of no key -> did you mean AFTERIMAGE_STATE__DIR?"),
        "{text}"
    );
    let text = problems("", &[], &[("--set", "commit.lingr", "1s")]);
    assert!(text.contains("--set: unknown key `commit.lingr`"), "{text}");
    let text = problems(
        "[[org]]\nname='a'\ntopics=['a.b.*']\ntopic='x'\n[[object]]\norg='a'\nname='b'\ngracee='1s'",
        &[],
        &[],
    );
    assert!(text.contains("[[org]] 1: unknown key `topic` -> did you mean topics?"), "{text}");
    assert!(text.contains("[[object]] 1: unknown key `gracee`"), "{text}");
    // Another product's variables are not ours.
    assert!(load("", &[("AFTER_IMAGE_X", "1"), ("KAFKA_HOME", "x")], &[]).is_ok());
}

#[test]
fn bad_values_are_refused_all_at_once_with_place_reason_and_next_step() {
    let table: &[(&str, &str)] = &[
        ("[commit]\nlinger = 'soon'", "commit.linger: `soon` is not a duration"),
        ("[commit]\nlinger = '1h'", "is longer than 10s"),
        ("[commit]\nmax_rows = 0", "0 is outside 1 to 1000000"),
        ("[commit]\nmax_bytes = '8 bananas'", "is not a size"),
        ("[commit]\nmax_rows = [1]", "must be a text"),
        ("[state]\nmemory = '1kB'", "outside 16000000"),
        ("[state]\ndir = 'relative/x'", "is not an absolute path"),
        ("[metrics]\nlisten = 'localhost'", "neither an address"),
        ("[log]\nformat = 'xml'", "`xml` is not one of text, json"),
        ("[log]\nlevel = 'loud'", "`loud`"),
        ("[worker]\nname = 'a b'", "printable ASCII"),
        ("[postgres]\nurl = 'mysql://h/d'", "the connection string can't be used"),
        ("[postgres]\nsslmode = 'verify'", "not one of disable, prefer, require, verify-full"),
        ("[postgres]\nurl = 'postgres://h/d?sslmode=allow'", "sslmode: `allow`"),
        ("[postgres]\nurl = 'postgres://h/d?sslmode=require'\nca = '/x'", "sslmode require verifies nothing"),
        ("[kafka]\nbrokers = 'http://h'", "neither kafka:// nor kafka+ssl://"),
        ("[kafka]\nbrokers = [1]", "must be a list of texts"),
        (
            "[kafka]\nbrokers = 'h:1'\n[kafka.extra]\nenable.auto.commit = true",
            "enable.auto.commit is set by afterimage itself",
        ),
        ("[kafka]\nbrokers = 'kafka+ssl://h:1'\ncert = '/nowhere'", "neither PEM text nor a readable file"),
        ("kafka = 3", "is a section, not a value"),
        ("[kafka\n", "line 1, column"),
        ("[org]\nname = 'a'", "must be a list of tables"),
        ("[[org]]\ntopics = ['a.b.c']", "[[org]] 1: name is missing"),
        ("[[org]]\nname = 'a'", "it has no topics"),
        ("[[org]]\nname = 'a'\ntopics = []", "it has no topics"),
        ("[[org]]\nname = 'a'\ntopics = 'x'", "topics is not a list"),
        ("[[org]]\nname = 'a'\ntopics = ['a.**.c']", "more than one `*`"),
        ("[[org]]\nname = '1 a'\ntopics = ['a.b.c']", "must start with a letter"),
        (
            "[[org]]\nname = 'a'\ntopics = ['a.b.c']\n[[org]]\nname = 'a'\ntopics = ['d.e.f']",
            "there is an org a already",
        ),
        ("[[org]]\nname = 'a'\ntopics = ['a.b.c']\n[[object]]\norg = 'b'\nname = 'o'", "there is no org b"),
        ("[[object]]\norg = 'b'\nname = 'o'\n[[object]]\norg = 'b'\nname = 'o'", "declared twice"),
        ("[[object]]\norg = 'b'\nname = 'o'\nidentity = 'id'", "identity is not"),
        ("[[object]]\norg = 'b'\nname = 'o'\nidentity = []", "identity is not"),
        ("[[object]]\norg = 'b'\nname = 'o'\nidentity = ['a', 'a']", "identity is not"),
        ("[[object]]\norg = 'b'\nname = 'o'\ntypes = { x = 'mood' }", "the type of x is not known: `mood`"),
        ("[[object]]\norg = 'b'\nname = 'o'\ngrace = '2days'", "is longer than 1day"),
        (
            "[[object]]\norg = 'b'\nname = 'o'\nmask_add = ['x']\nmask_remove = ['x']",
            "x stands in mask_add and in mask_remove",
        ),
        (
            "[[object]]\norg = 'b'\nname = 'o'\nmask_add = ['x']\nidentity = ['x']",
            "x is masked, but part of the identity",
        ),
        ("[[object]]\norg = 'b'\nname = 'o'\nmask_add = ['sfid']", "sfid is masked, but part of the identity"),
        ("[[object]]\norg = 'b'\nname = 'o'\nmask_remove = ['name']", "name in mask_remove is not masked by default"),
        (
            "[[object]]\norg = 'b'\nname = 'o'\nmask_remove = ['_hc_lastop']",
            "columns that start with _hc_ are never stored",
        ),
        ("[[object]]\norg = 'b'\nname = 'o'\nmask_add = ['x']\nlookup = ['x']", "x is masked, but a lookup field"),
        (
            "[[object]]\norg = 'b'\nname = 'o'\nlookup = ['lastmodifiedbyid']",
            "is masked by default, but a lookup field",
        ),
        ("[[object]]\norg = 'b c'\nname = 'o'", "org name `b c` holds ' '"),
        (
            "[[org]]\nname = 'a'\ntopics = ['c.s.*']\n[[org]]\nname = 'b'\ntopics = ['c.s.*']",
            "topics c.s.* belongs to two orgs, a and b",
        ),
        (
            "[[org]]\nname = 'a'\ntopics = ['c.*.account']\n[[org]]\nname = 'b'\ntopics = ['x.y.z', 'c.s.*']",
            "a topic can fit c.*.account of org a and c.s.* of org b",
        ),
        ("[[org]]\nname = 'a'\ntopics = ['c1.transaction']", "fits no table's topic"),
        ("[postgres]\nurl = 'postgres://h:70000/d'", "its port is not one from 1 to 65535"),
        ("[postgres]\nurl = 'postgres://h/d?sslmod=require'", "it has a parameter `sslmod` that is not known"),
        ("[kafka]\nbrokers = 'h:70000'", "entry 1 has no usable port"),
        ("[metrics]\nlisten = '127.0.0.1:70000'", "there is no port 70000, 65535 is the last"),
        ("[log]\nlevel = 'info,afterimag=debug'", "nothing logs as afterimag"),
    ];
    for (file, expected) in table {
        let text = problems(file, &[], &[]);
        assert!(text.contains(expected), "{file}\ngave\n{text}");
        assert!(text.contains("afterimage.toml"), "the place is missing: {text}");
        assert!(text.lines().all(|line| line.split(" -> ").nth(1).is_some_and(|next| !next.is_empty())), "{text}");
    }
    let long = format!("[[org]]\nname = '{}'\ntopics = ['a.b.c']", "o".repeat(ORG_MAX + 1));
    assert!(problems(&long, &[], &[]).contains("longer than 55 bytes"));
    let long = format!("[[object]]\norg = 'a'\nname = '{}'", "o".repeat(IDENTIFIER_MAX + 1));
    assert!(problems(&long, &[], &[]).contains("longer than the 63 bytes"));
    assert_eq!(problems("[commit]\nmax_rows = 0\nlinger = 'x'\n[state]\ndir = 'y'", &[], &[]).lines().count(), 3);
    let text = problems("", &[("AFTERIMAGE_COMMIT__LINGER", "x")], &[]);
    assert!(text.starts_with("AFTERIMAGE_COMMIT__LINGER (commit.linger): "), "{text}");
}

#[test]
fn a_choice_is_told_its_nearest() {
    for (file, near) in [
        ("[log]\nformat = 'jsn'", "json"),
        ("[log]\nlevel = 'debgu'", "debug"),
        ("[postgres]\nsslmode = 'requre'", "require"),
        ("[postgres]\npool_mode = 'sesion'", "session"),
        ("[postgres]\nurl = 'postgres://h/d?sslmode=verify-ful'", "verify-full"),
        ("[kafka]\nverify_hostname = 'ture'", "true"),
        ("[[object]]\norg = 'b'\nname = 'o'\nidentity = 'sfdi'", "sfid"),
        ("[[object]]\norg = 'b'\nname = 'o'\nmask_remove = ['systemmodstmp']", "systemmodstamp"),
    ] {
        let text = problems(file, &[], &[]);
        assert!(text.contains(&format!(" -> did you mean {near}?")), "{file}\ngave\n{text}");
    }
}

#[test]
fn a_pattern_of_few_segments_is_refused_and_told_what_was_likely_meant() {
    let refused = |topics: &str| problems(&format!("[[org]]\nname = 'a'\ntopics = {topics}"), &[], &[]);
    let found = refused("['c.s']");
    assert!(
        found.contains("topic pattern `c.s` has fewer segments") && found.contains("write c.s.* for all"),
        "{found}"
    );
    let found = refused("['account', 'c.s.*']");
    assert!(found.contains("`account`") && found.contains("-> write <connector>.<schema>.<table>; one"), "{found}");
    assert_eq!(from_toml("[[org]]\nname = 'a'\ntopics = ['c.s.*', 'my.c.s.*']").warnings, Vec::<String>::new());
}

#[test]
fn what_mask_remove_knows_is_masked_by_default() {
    use crate::core::decode::{Decoder, TopicRules};
    use crate::core::event::Class;
    for column in read::SYSTEM {
        for (remove, class) in [(false, Class::System), (true, Class::Visible)] {
            let mut rules = TopicRules::default();
            if remove {
                rules.mask_remove.insert(column.to_owned());
            }
            let mut decoder = Decoder::new(rules);
            decoder.restore_columns([(column, crate::core::value::Kind::Text)]);
            assert_eq!(decoder.columns()[0].class, class, "{column}");
        }
    }
}

#[test]
fn what_is_set_to_nothing_is_shown_as_not_set() {
    let shown = from_toml("[postgres]\nurl = ''\nname = ''\n[state]\ndir = ''\n[kafka]\nkey = ''").shown().toml();
    for (start, end) in [("# url =", ""), ("# key =", ""), ("# name =", ""), ("dir = \"", "# default")] {
        assert!(shown.lines().any(|line| line.starts_with(start) && line.ends_with(end)), "{start}\n{shown}");
    }
    assert!(!shown.contains("****"), "{shown}");
}

#[test]
fn a_configuration_file_that_is_named_must_exist() {
    let named = Sources { file: Some(PathBuf::from("/nowhere/x.toml")), ..Sources::default() };
    let text = Config::load(&named).expect_err("missing").to_string();
    assert!(text.contains("/nowhere/x.toml: the configuration file cannot be read"), "{text}");
    let by_variable =
        Sources { env: [(ENV_FILE.to_owned(), "/nowhere/y.toml".to_owned())].into(), ..Sources::default() };
    assert!(Config::load(&by_variable).expect_err("missing").to_string().contains("/nowhere/y.toml"));
    let by_default = Sources { default_file: Some(PathBuf::from("/nowhere/z.toml")), ..Sources::default() };
    assert!(Config::load(&by_default).is_ok());
}

#[test]
fn postgres_is_verified_unless_there_is_a_reason_not_to() {
    let remote = "postgres://u:p@db.example.com/d";
    let dyno = ("DYNO", "worker.1");
    let heroku = ("DATABASE_URL", remote);
    let mode = |file: &str, env: &[_]| load(file, env, &[]).expect("good").postgres().expect("set").sslmode;
    let file = |text: &str| format!("[postgres]\nurl = '{text}'");
    // A dyno's own variable, a dyno with another database, Heroku's variable outside of Heroku.
    assert_eq!(mode("", &[dyno, heroku]), SslMode::Require);
    assert_eq!(mode(&file(remote), &[dyno]), SslMode::VerifyFull);
    assert_eq!(mode("", &[heroku]), SslMode::VerifyFull);
    assert_eq!(mode("[postgres]\nsslmode = 'verify-full'", &[dyno, heroku]), SslMode::VerifyFull);
    assert_eq!(mode("[postgres]\nca = '/ca.pem'", &[dyno, heroku]), SslMode::VerifyFull);
    for local in ["postgres://u@127.0.0.1/d", "postgres://u@localhost/d", "host=/tmp dbname=d", "postgres://u@[::1]/d"]
    {
        assert_eq!(mode(&file(local), &[]), SslMode::Prefer, "{local}");
    }
    assert_eq!(mode(&file("postgres://u@h/d?sslmode=disable"), &[]), SslMode::Disable);
    // Key and URL parameter: the higher layer wins, and of one layer the key.
    let both = format!("{}\nsslmode = 'require'", file("postgres://u@h/d?sslmode=disable"));
    assert_eq!(mode(&both, &[]), SslMode::Require);
    assert_eq!(mode(&both, &[("AFTERIMAGE_POSTGRES__URL", "postgres://u@h/d?sslmode=prefer")]), SslMode::Prefer);
    let config = from_toml(&file("postgres://u@h/d?sslmode=verify-full&sslrootcert=/ca.pem&application_name=x"));
    let postgres = config.postgres().expect("set");
    assert_eq!(
        (postgres.url.expose().as_str(), postgres.ca.clone()),
        ("postgres://u@h/d?application_name=x", Some(PathBuf::from("/ca.pem")))
    );
    assert_eq!(from_toml(&file("postgres://u@h/d?sslmode=disable")).warnings.len(), 1);
    let by_url = load("", &[("AFTERIMAGE_POSTGRES__URL", "postgres://u@h/d?sslmode=require")], &[]).expect("good");
    let origin = &by_url.shown().json()["origins"]["postgres.sslmode"];
    assert_eq!(origin, "AFTERIMAGE_POSTGRES__URL", "where a parameter of the URL came from");
    assert_eq!(from_toml(&file(remote)).warnings.len(), 0);
}

#[test]
fn kafka_tls_follows_scheme_and_own_certificates() {
    let pem = ("KAFKA_TRUSTED_CERT", PEM);
    let tls = |file: &str, env: &[_]| load(file, env, &[]).expect("good").kafka().expect("set").tls.clone();
    let heroku = [
        ("KAFKA_URL", "kafka+ssl://a:9096,kafka+ssl://b:9096"),
        pem,
        ("KAFKA_CLIENT_CERT", PEM),
        ("KAFKA_CLIENT_CERT_KEY", PEM),
    ];
    let full = tls("", &heroku).expect("TLS");
    assert_eq!(full.ca_pem.as_ref().map(Secret::expose).map(String::as_str), Some(PEM));
    assert!(full.cert_pem.is_some() && full.key_pem.is_some() && !full.verify_hostname);
    assert!(tls("[kafka]\nverify_hostname = true", &heroku).expect("TLS").verify_hostname);
    assert_eq!(tls("[kafka]\nbrokers = '127.0.0.1:9092'", &[pem]), None, "an attachment's CA alone turns nothing on");
    let own = format!("[kafka]\nbrokers = 'h:1'\nca = '''{PEM}'''");
    let own = tls(&own, &[]).expect("a CA of one's own means TLS");
    assert!(own.verify_hostname && own.cert_pem.is_none());
    assert!(tls("[kafka]\nbrokers = 'kafka+ssl://h:1'", &[]).expect("TLS").verify_hostname, "the system's CAs");
    let renamed = [("HEROKU_KAFKA_COPPER_URL", "kafka+ssl://c:1"), ("HEROKU_KAFKA_COPPER_TRUSTED_CERT", PEM)];
    assert!(tls("[kafka]\nattachment = 'HEROKU_KAFKA_COPPER'", &renamed).expect("TLS").ca_pem.is_some());
    let one_line = PEM.replace('\n', "\\n");
    let unescaped = tls("", &[("KAFKA_URL", "kafka+ssl://a:1"), ("KAFKA_TRUSTED_CERT", &one_line)]).expect("TLS");
    assert_eq!(unescaped.ca_pem.as_ref().map(Secret::expose).map(String::as_str), Some(PEM));

    let plain = format!("[kafka]\nbrokers = 'kafka://h:1'\nca = '''{PEM}'''");
    assert!(problems(&plain, &[], &[]).contains("plain text"));
    let half = format!("[kafka]\nbrokers = 'kafka+ssl://h:1'\ncert = '''{PEM}'''");
    assert!(problems(&half, &[], &[]).contains("it needs kafka.key beside it"));
}

#[test]
fn kafka_prefix_stands_before_the_group_once() {
    let group = |file: &str, env: &[_]| load(file, env, &[]).expect("good").kafka().expect("set").group.clone();
    let base = "[kafka]\nbrokers = 'h:1'\n";
    let sink = ("DATABASE_URL", "postgres://localhost/d1");
    assert_eq!(group(base, &[sink]), "afterimage.d1");
    assert_eq!(group(base, &[sink, ("KAFKA_PREFIX", "foobar.")]), "foobar.afterimage.d1");
    assert_eq!(group(&format!("{base}group = 'foobar.g'"), &[("KAFKA_PREFIX", "foobar.")]), "foobar.g");
    assert_eq!(group(&format!("{base}[postgres]\nname = 'sink1'"), &[sink]), "afterimage.sink1");
}

#[test]
fn no_secret_is_printed_in_any_form() {
    let file = format!(
        "[kafka]\nbrokers = 'kafka+ssl://h:1'\nca = '''{PEM}'''\ncert = '''{PEM}'''\nkey = '''{PEM}'''\n\
         [kafka.extra]\nsasl.password = '{PASSWORD}'\nsasl.pasword = '{PASSWORD}'\nssl.key.password = '{PASSWORD}'\nsasl.oauthbearer.config = '{PASSWORD}'\nfetch.min.bytes = 5\n\
         [postgres]\nurl = 'postgres://u:{PASSWORD}@h/d?password={PASSWORD}'"
    );
    let config = from_toml(&file);
    let prints = [
        config.shown().toml(),
        config.shown().json().to_string(),
        format!("{config:?}"),
        format!("{config:#?}"),
        config.warnings.join(" "),
    ];
    for text in &prints {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    assert!(prints[0].contains("url = \"postgres://u:****@h/d?password=****\""), "{}", prints[0]);
    assert!(
        prints[0].contains("\"fetch.min.bytes\" = 5") && prints[0].contains("\"sasl.password\" = \"****\""),
        "{}",
        prints[0]
    );

    // Nor in an error: unreadable TOML next to a password, bad values of secret keys, raw characters.
    let bad = [
        format!("[postgres]\nurl = 'postgres://u:{PASSWORD}@h/d\n"),
        format!("[postgres]\nurl = postgres://u:{PASSWORD}@h/d\n"),
        format!("[postgres]\nurl = \"{PASSWORD}\\q\"\n"),
        format!("[postgres]\nurl = {PASSWORD}\n"),
        format!("[postgres]\nurl = 'postgres://u:x@{PASSWORD}@h/d'"),
        format!("[postgres]\nurl = '{PASSWORD}'"),
        format!("[kafka]\nbrokers = 'kafka://u:{PASSWORD}@h:1'"),
        format!("[kafka]\nbrokers = 'kafka+ssl://h:1'\nkey = '{PASSWORD}'"),
        format!("[kafka.extra]\nsasl.password = ['{PASSWORD}']"),
        format!("[kafkas]\npassword = '{PASSWORD}'"),
    ];
    for file in &bad {
        let error = load(file, &[], &[]).expect_err(file);
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    }
}

#[test]
fn no_broken_file_makes_the_parser_quote_it() {
    let good = format!("[postgres]\nurl = 'postgres://u:{PASSWORD}@h/d'\nname = \"x\"\n");
    for at in 0..good.len() {
        let (head, tail) = good.split_at(at);
        let mut broken = vec![head.to_owned(), format!("{head}{}", &tail[1..])];
        let extras = ["\"", "'", "'''", "[", "]", "{", "=", "\n", "\\", "#", "\u{1}"];
        broken.extend(extras.map(|extra| format!("{head}{extra}{tail}")));
        for file in broken {
            if let Err(reason) = layers::parse_file(&file) {
                assert!(!reason.contains(PASSWORD), "{file}\ngave\n{reason}");
            }
        }
    }
}

#[test]
fn the_printed_configuration_is_one_that_can_be_read_again() {
    let file = "[kafka]\nbrokers='h:1'\n[kafka.extra]\nfetch.min.bytes=1\n[postgres]\nurl='postgres://u@localhost/d'\n[[org]]\nname='a'\ntopics=['a.b.*']\n[[object]]\norg='a'\nname='o'\ntypes={x='date'}";
    let first = load(file, &[], &[("--worker", "worker.name", "w1")]).expect("good");
    let second = from_toml(&first.shown().toml());
    assert_eq!((first.kafka(), first.postgres()), (second.kafka(), second.postgres()));
    assert_eq!((&first.orgs, &first.objects, &first.worker), (&second.orgs, &second.objects, &second.worker));
    assert_eq!(first.history_hash(), second.history_hash());
    assert!(first.shown().toml().contains("# --worker"));
    let json = first.shown().json();
    assert_eq!(json["kafka"]["extra"]["fetch.min.bytes"], 1);
    assert_eq!(json["origins"]["worker.name"], "--worker");
    assert_eq!(json["postgres"]["ca"], serde_json::Value::Null);
}

#[test]
fn the_history_hash_moves_with_history_only() {
    let hash = |file: &str| from_toml(file).history_hash();
    let org = "[[org]]\nname='a'\ntopics=['a.b.*']\n";
    assert_eq!(hash(org), hash(&format!("[worker]\nname='x'\n[kafka]\nbrokers='h:1'\n{org}")));
    assert_ne!(hash(org), hash(""));
    let object = format!("{org}[[object]]\norg='a'\nname='o'\n");
    let mut hashes = vec![hash(org), hash(&object)];
    for setting in [
        "identity='key'",
        "types={x='date'}",
        "types={x='time'}",
        "mask_add=['x']",
        "mask_remove=['lastmodifieddate']",
        "lookup=['x']",
        "grace='1s'",
    ] {
        hashes.push(hash(&format!("{object}{setting}")));
    }
    for (i, one) in hashes.iter().enumerate() {
        assert!(!hashes[..i].contains(one), "setting {i} does not move the hash");
    }
    assert_ne!(hash(org), hash(&format!("[history]\ncreate_window='1h'\n{org}")));
}

#[test]
fn lists_come_from_variables_too() {
    let env = [
        ("AFTERIMAGE_ORG", "[{ name = 'a', topics = ['c.s.*'] }]"),
        ("AFTERIMAGE_KAFKA__EXTRA__FETCH_MIN_BYTES", "3"),
        ("AFTERIMAGE_KAFKA__BROKERS", "h:1"),
    ];
    let config = load("[[org]]\nname='file'\ntopics=['x.y.z']", &env, &[]).expect("good");
    assert_eq!(
        config.orgs.iter().map(|org| org.name.as_str()).collect::<Vec<_>>(),
        ["a"],
        "the whole list is replaced"
    );
    assert_eq!(config.kafka().expect("set").extra.keys().collect::<Vec<_>>(), ["fetch.min.bytes"]);
    assert!(
        problems("", &[("AFTERIMAGE_ORG", "emea")], &[]).contains("AFTERIMAGE_ORG: is not a list of tables in TOML")
    );
}

#[test]
fn no_section_has_the_name_of_a_key() {
    for key in KEYS {
        assert!(!KEYS.iter().any(|other| other.path.starts_with(&format!("{}.", key.path))), "{}", key.path);
        assert!(key.help.len() > 10);
    }
}
