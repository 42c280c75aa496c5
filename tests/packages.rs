//! `.ci/packages` on machines that lack something: a look at the paths that never run where everything is installed.
//! The machine is played by a `PATH` of the test's own, in which the tools are small scripts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// What the script may use of this machine.
const REAL: [&str; 16] = [
    "bash", "true", "awk", "sed", "sort", "head", "grep", "dirname", "readlink", "env", "mkdir", "rm", "tee", "cat",
    "touch", "chmod",
];

const ALL_FOR_BUILD: [&str; 4] = ["libclang-dev", "libssl-dev", "zlib1g-dev", "pkg-config"];

/// What keeps Debian from making and starting a cluster when the server is installed.
const DROP_IN: &str = "/etc/postgresql-common/createcluster.d/afterimage.conf";

/// What keeps Debian from starting a newly installed service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

struct Machine {
    bin: TempDir,
}

impl Machine {
    /// A machine with Rust, a compiler, PostgreSQL and PgBouncer, these packages, the user `uid`, and no sudo.
    fn new(uid: u32, packages: &[&str]) -> Machine {
        let bin = tempfile::tempdir().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for tool in REAL {
            let real = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|path| path.exists()).unwrap();
            symlink(real, bin.path().join(tool)).unwrap();
        }
        let machine = Machine { bin };
        machine.tool("cargo", "echo 'cargo 1.95.0 (abc 2026-03-21)'");
        machine.tool("cargo-fmt", "true");
        machine.tool("cargo-clippy", "true");
        machine.tool("c++", "true");
        machine.tool("pgbouncer", "true");
        machine.tool("id", &format!("echo {uid}"));
        let listed: String = packages.iter().map(|name| format!("installed {name}\\n")).collect();
        machine.tool("dpkg-query", &format!("printf '{listed}not-installed libgone\\n'"));
        // Notes how it was called, and whether a PostgreSQL installed now would start a cluster of its own.
        let root = machine.bin.path().display();
        let files = format!("{root}{DROP_IN} {root}{POLICY}");
        machine.tool("apt-get", &format!("echo \"$* | $(cat {files} 2>/dev/null)\" >> {root}/apt.log"));
        machine.postgres(15);
        machine
    }

    fn tool(&self, name: &str, body: &str) {
        let path = self.bin.path().join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// As Debian lays a server out.
    fn postgres(&self, major: u32) {
        let programs = format!("usr/lib/postgresql/{major}/bin");
        fs::create_dir_all(self.bin.path().join(&programs)).unwrap();
        self.tool(&format!("{programs}/postgres"), &format!("echo 'postgres (PostgreSQL) {major}.14 (Debian)'"));
        self.tool(&format!("{programs}/initdb"), "true");
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.bin.path().join(name)).unwrap();
        self
    }

    fn packages(&self, purpose: &str) -> (Option<i32>, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/packages");
        let Output { status, stderr, stdout } = Command::new("bash")
            .arg(script)
            .arg(purpose)
            .env_clear()
            .env("PATH", self.bin.path())
            .env("PACKAGES_ROOT", self.bin.path())
            .output()
            .unwrap();
        assert!(stdout.is_empty());
        (status.code(), String::from_utf8(stderr).unwrap())
    }

    fn apt_calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.bin.path().join("apt.log")).unwrap_or_default();
        log.lines().map(str::to_string).collect()
    }
}

#[test]
fn a_complete_machine_is_left_alone() {
    let machine = Machine::new(0, &ALL_FOR_BUILD);
    assert_eq!(machine.packages("build"), (Some(0), String::new()));
    let lighter = ["libclang1-14", "libclang-common-14-dev", "libssl-dev", "zlib1g-dev", "pkgconf"];
    assert_eq!(Machine::new(1000, &lighter).packages("build"), (Some(0), String::new()));
    assert!(machine.apt_calls().is_empty());
}

#[test]
fn missing_and_old_rust_are_told_apart_and_name_rustup() {
    let machine = Machine::new(0, &ALL_FOR_BUILD).without("cargo");
    let (code, said) = machine.packages("build");
    assert_eq!(code, Some(2));
    assert!(said.contains("cargo is missing") && said.contains("rustup"), "{said}");

    machine.tool("cargo", "echo 'cargo 1.89.0 (abc 2025-07-01)'");
    let (code, said) = machine.packages("build");
    assert_eq!(code, Some(2));
    assert!(said.contains("1.89.0 is too old") && said.contains("rustup update"), "{said}");

    machine.tool("cargo", "echo 'cargo 1.100.0'"); // newer, though not as text
    assert_eq!(machine.packages("build").0, Some(0));

    machine.tool("cargo-clippy", "exit 1"); // rustup's proxy of a component that is not there
    assert!(machine.packages("test").1.contains("rustup component add"));
}

#[test]
fn a_missing_compiler_is_told() {
    let (code, said) = Machine::new(0, &ALL_FOR_BUILD).without("c++").packages("build");
    assert_eq!(code, Some(2));
    assert!(said.contains("C++"), "{said}");
}

#[test]
fn without_rights_the_exact_list_is_printed() {
    let machine = Machine::new(1000, &["libssl-dev"]);
    let (code, said) = machine.packages("test");
    assert_eq!(code, Some(2));
    let wanted = "apt-get install libclang-dev zlib1g-dev pkg-config default-jdk-headless maven\n";
    assert!(said.contains(wanted), "{said}");
    assert!(machine.apt_calls().is_empty());

    machine.tool("sudo", "[ \"$1\" = -n ] || exit 9; shift; exit 1"); // asks for a password
    assert_eq!(machine.packages("test").0, Some(2));
}

#[test]
fn root_and_sudo_install_only_what_is_missing() {
    for uid in [0, 1000] {
        let machine = Machine::new(uid, &["libclang-dev", "libssl-dev", "pkg-config"]);
        machine.tool("sudo", "[ \"$1\" = -n ] || exit 9; shift; exec \"$@\"");
        machine.tool("java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2");
        let (code, said) = machine.packages("test");
        assert_eq!((code, said.as_str()), (Some(0), "afterimage: installing zlib1g-dev maven\n"));
        let calls = machine.apt_calls();
        assert_eq!(calls.len(), 2);
        assert!(calls[0].ends_with(" update | ") && calls[1].ends_with(" zlib1g-dev maven | "), "{calls:?}");
    }
}

#[test]
fn a_newly_installed_postgres_makes_no_cluster() {
    let machine = Machine::new(0, &ALL_FOR_BUILD);
    fs::remove_dir_all(machine.bin.path().join("usr")).unwrap();
    machine.postgres(13); // too old
    assert_eq!(machine.packages("build").0, Some(0));
    let calls = machine.apt_calls();
    assert!(calls[1].ends_with(" postgresql | create_main_cluster = false"), "{calls:?}");
    assert!(
        !Path::new(&format!("{}{DROP_IN}", machine.bin.path().display())).exists(),
        "the machine's policy is its own"
    );
}

#[test]
fn a_newly_installed_pgbouncer_is_not_started() {
    let machine = Machine::new(0, &ALL_FOR_BUILD).without("pgbouncer");
    machine.tool("mvn", "true");
    machine.tool("java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2");
    assert_eq!(machine.packages("build"), (Some(0), String::new()), "building does without it");
    assert_eq!(machine.packages("test").0, Some(0));
    let log = machine.apt_calls().join("\n");
    assert!(log.ends_with(" pgbouncer | #!/bin/sh\nexit 101"), "{log}");
    let policy = machine.bin.path().join(&POLICY[1..]);
    assert!(!policy.exists(), "the machine's policy is its own");
    // One that the machine has is neither asked nor taken away.
    fs::write(&policy, "exit 0\n").unwrap();
    assert_eq!(machine.packages("test").0, Some(0));
    assert_eq!(fs::read_to_string(&policy).unwrap(), "exit 0\n");
    // Where a user's PATH does not lead.
    machine.tool("usr/sbin/pgbouncer", "true");
    assert_eq!(machine.packages("test"), (Some(0), String::new()));
}

#[test]
fn the_demo_on_real_kafka_needs_java_and_maven_but_no_formatter() {
    let machine = Machine::new(1000, &ALL_FOR_BUILD).without("cargo-fmt");
    assert_eq!(machine.packages("build").0, Some(0));
    let (code, said) = machine.packages("demo-real");
    assert_eq!(code, Some(2));
    assert!(said.contains("apt-get install default-jdk-headless maven\n"), "{said}");
    machine.tool("mvn", "true");
    machine.tool("java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2");
    assert_eq!(machine.packages("demo-real"), (Some(0), String::new()));
}

#[test]
fn a_failing_apt_is_told() {
    let machine = Machine::new(0, &["libssl-dev"]);
    machine.tool("apt-get", "exit 100");
    let (code, said) = machine.packages("build");
    assert_eq!(code, Some(2));
    assert!(said.contains("apt-get install libclang-dev zlib1g-dev pkg-config\n"), "{said}");
}

#[test]
fn an_old_java_does_not_count() {
    let machine = Machine::new(1000, &ALL_FOR_BUILD);
    machine.tool("mvn", "true");
    machine.tool("java", "echo 'openjdk version \"11.0.20\" 2023-07-18' >&2");
    assert!(machine.packages("test").1.contains("apt-get install default-jdk-headless\n"));
    machine.tool("java", "echo 'openjdk version \"21\" 2023-09-19' >&2");
    assert_eq!(machine.packages("test").0, Some(0));
}
