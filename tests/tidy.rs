//! Style as a test: the layers of the code, and the habits that a compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file of the product's own Rust, tests not counted.
const LONGEST: usize = 600;

/// Which crates and names a part of the source may mention: (name, the only places it may be named in).
const ARROWS: &[(&str, &[&str])] = &[
    ("rdkafka", &["src/kafka/", "src/demo/", "tests/"]),
    ("rdkafka_sys", &["src/kafka/", "src/demo/", "tests/"]),
    ("tokio_postgres", &["src/postgres/", "src/demo/", "tests/"]),
    ("postgres_types", &["src/postgres/", "src/demo/", "tests/"]),
    ("postgres_native_tls", &["src/postgres/"]),
    ("rocksdb", &["state/"]),
    ("anyhow", &["src/main.rs", "src/cli/", "src/demo/", "tests/"]),
];

/// What the pure core must not know: the outside world, the clock, chance, and anything that waits or reports.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "futures",
    "async",
    "tracing",
    "metrics",
    "SystemTime",
    "Instant",
    "rand",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "println",
    "eprintln",
    "dbg",
];

/// Which of the project's own layers a layer may not use: arrows point downwards only.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/core/", &["kafka", "postgres", "stream", "cli", "demo", "config", "telemetry"]),
    ("src/kafka/", &["postgres", "stream", "cli", "demo"]),
    ("src/postgres/", &["kafka", "stream", "cli", "demo"]),
    ("src/stream/", &["cli", "demo"]),
    ("src/config/", &["kafka", "postgres", "stream", "cli", "demo"]),
    ("src/telemetry/", &["kafka", "postgres", "stream", "cli", "demo"]),
];

/// Each of these has a page of its own.
const FOLDERS_WITH_README: &[&str] = &["src", "state", "proto", "tests", "tests/bench"];

#[test]
fn arrows_between_crates() {
    let mut wrong = Vec::new();
    for (path, line, code) in rust_code() {
        for (name, places) in ARROWS {
            if names(&code, name) && !places.iter().any(|place| path.starts_with(place)) {
                wrong.push(format!("{path}:{line}: names {name}, which belongs to {}", places.join(" ")));
            }
        }
    }
    none(wrong);
}

#[test]
fn the_core_is_pure() {
    let mut wrong = Vec::new();
    for (path, line, code) in rust_code().into_iter().filter(|(path, ..)| path.starts_with("src/core/")) {
        for name in NOT_IN_CORE.iter().filter(|name| names(&code, name)) {
            wrong.push(format!("{path}:{line}: the core names {name}"));
        }
    }
    none(wrong);
}

#[test]
fn layers_use_only_what_lies_below() {
    let mut wrong = Vec::new();
    for (path, line, code) in rust_code() {
        for (_, above) in LAYERS.iter().filter(|(layer, _)| path.starts_with(layer)) {
            for layer in above.iter().filter(|layer| names(&code, &format!("crate::{layer}"))) {
                wrong.push(format!("{path}:{line}: uses {layer}"));
            }
        }
    }
    none(wrong);
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut wrong = Vec::new();
    for (path, text) in texts().into_iter().filter(|(path, _)| path.ends_with(".rs") && !is_test_file(path)) {
        let lines = text.lines().count() - inline_tests(&text);
        if lines > LONGEST {
            wrong.push(format!("{path}: {lines} lines without its tests, {LONGEST} at most"));
        }
    }
    none(wrong);
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not hold them.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("to", "do!"),
        concat!("unimpl", "emented!"),
    ];
    none(lines_with(|line| marks.iter().find(|mark| names(line, mark)).map(|mark| format!("holds {mark}"))));
}

#[test]
fn no_path_of_somebodys_machine() {
    // A home directory as an example in a test is no machine's, so those are not looked for.
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    none(lines_with(|line| places.iter().find(|place| line.contains(*place)).map(|place| format!("holds {place}"))));
}

#[test]
fn every_folder_has_its_page() {
    let missing = FOLDERS_WITH_README.iter().map(|folder| root().join(folder).join("README.md"));
    none(missing.filter(|page| !page.is_file()).map(|page| format!("{} is missing", page.display())).collect());
}

#[test]
fn tests_wait_for_facts() {
    let mut wrong = Vec::new();
    let sleep = concat!("sle", "ep");
    for (path, line, code) in rust_code().into_iter().filter(|(path, ..)| path.starts_with("tests/")) {
        let sleeps = ["thread", "time"].iter().any(|from| code.contains(&format!("{from}::{sleep}")));
        if path != "tests/support/wait.rs" && (sleeps || code.contains(&format!("{sleep}("))) {
            wrong.push(format!("{path}:{line}: sleeps; wait for a fact with tests/support/wait.rs"));
        }
    }
    none(wrong);
}

#[test]
fn no_test_is_left_out() {
    let ignore = concat!("#[ign", "ore");
    none(lines_with(|line| line.trim_start().starts_with(ignore).then(|| "leaves a test out".to_string())));
}

#[test]
fn unsafe_code_gives_its_reasons() {
    let mut wrong = Vec::new();
    for (path, text) in texts().into_iter().filter(|(path, _)| path.ends_with(".rs") && path != "tests/tidy.rs") {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| names(&code_of(line), "unsafe")) {
            // What a caller has to promise stands in the doc comment of a function, why a block keeps it in a comment.
            let comment = lines[..n].iter().rev().take_while(|line| {
                let line = line.trim_start();
                line.starts_with("//") || line.starts_with("#[")
            });
            // A statement may begin a few lines before the block in it.
            let near = lines[n.saturating_sub(3)..n].iter();
            let says_why = near.chain(comment).any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            // A callback's contract is that of the C interface it is given to.
            if !says_why && !line.contains("unsafe extern \"C\" fn") {
                wrong.push(format!(
                    "{path}:{}: unsafe without a `SAFETY:` comment or a `# Safety` section above: {}",
                    n + 1,
                    line.trim()
                ));
            }
        }
    }
    none(wrong);
}

#[test]
fn the_rules_can_fail() {
    assert!(names("use rdkafka::consumer;", "rdkafka"));
    assert!(!names("use rdkafka_sys::types;", "rdkafka"));
    assert!(!names("let from_rdkafka = 1;", "rdkafka"));
    assert!(names("crate::kafka::source", "crate::kafka"));
    assert!(!names("crate::kafkaesque", "crate::kafka"));
    assert_eq!(code_of("    let x = 1; // rdkafka does this"), "    let x = 1; ");
    assert_eq!(code_of(r#"let x = "a // rdkafka"; y"#), r#"let x = ""; y"#);
    assert_eq!(code_of("/// [`rdkafka`] does this"), "");
    assert_eq!(code_of(r#"let q = '"'; rdkafka()"#), r#"let q = '"'; rdkafka()"#);
    assert_eq!(inline_tests("a\n#[cfg(test)]\nmod tests {\n    b\n}\nc\n"), 4);
    assert_eq!(inline_tests("a\n#[cfg(test)]\nmod tests;\nc\n"), 0);
    let texts = texts();
    assert!(texts.iter().any(|(path, _)| path == "src/lib.rs"), "the walk finds the source");
    assert!(texts.iter().any(|(path, _)| path == ".ci/packages"), "the walk finds hidden folders");
    assert!(!texts.iter().any(|(path, _)| path.starts_with("target/") || path.starts_with(".git/")));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// All text files of the project by their path from its root, in order.
fn texts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                // A target directory says so itself, whatever its name.
                let built = path.join("CACHEDIR.TAG").exists() || name == "target";
                if !built && name != ".git" {
                    open.push(path);
                }
            } else if kind.is_file()
                && name != ".git"
                && name != "Cargo.lock"
                && let Ok(text) = fs::read_to_string(&path)
            {
                found.push((relative(&path), text));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    let relative: PathBuf = path.strip_prefix(root()).unwrap().into();
    relative.to_str().unwrap().replace('\\', "/")
}

/// The code of all Rust files line by line, without comments and string contents.
fn rust_code() -> Vec<(String, usize, String)> {
    let mut all = Vec::new();
    for (path, text) in texts().into_iter().filter(|(path, _)| path.ends_with(".rs") && path != "tests/tidy.rs") {
        all.extend(text.lines().enumerate().map(|(n, line)| (path.clone(), n + 1, code_of(line))));
    }
    all
}

/// Recorded data is not prose: it may hold anything.
fn lines_with(judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in texts().into_iter().filter(|(path, _)| !path.ends_with(".jsonl")) {
        for (n, line) in text.lines().enumerate() {
            if let Some(why) = judge(line) {
                wrong.push(format!("{path}:{}: {why}: {}", n + 1, line.trim()));
            }
        }
    }
    wrong
}

/// Whether `name` stands in `text` as a whole path of identifiers, not as a part of another.
fn names(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        let longer = before.is_some_and(part) || (name.ends_with(part) && after.is_some_and(part));
        !longer
    })
}

/// A line of Rust without its comment and without what stands between double quotes. Strings over several lines are
/// taken for code, which is the stricter mistake.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' if !quoted && code.ends_with('\'') && chars.peek() == Some(&'\'') => code.push(c),
            '"' => {
                quoted = !quoted;
                code.push(c);
            }
            _ if quoted => {}
            '/' if chars.peek() == Some(&'/') => break,
            _ => code.push(c),
        }
    }
    code
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs") || path.contains("_tests.rs")
}

/// Lines of test modules written inside the file: from `#[cfg(test)]` before `mod … {` to the closing brace at the
/// same depth.
fn inline_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let mut count = 0;
    let mut n = 0;
    while n + 1 < lines.len() {
        let indent = lines[n].len() - lines[n].trim_start().len();
        let module = lines[n + 1].trim_start().starts_with("mod ") && lines[n + 1].trim_end().ends_with('{');
        if lines[n].trim() == "#[cfg(test)]" && module {
            let closing = format!("{}}}", " ".repeat(indent));
            let end = lines[n..].iter().position(|line| *line == closing).unwrap_or(lines.len() - n - 1);
            count += end + 1;
            n += end;
        }
        n += 1;
    }
    count
}
