//! The Java side: class paths from Maven, resolved once per target directory, and JVMs bound to this process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use afterimage::demo::child::{self, LastSignal};

/// Jars that the Connect worker provides. A second copy in a plugin's folder makes two classes of one name.
const WORKERS_OWN: [&str; 7] =
    ["connect-api-", "kafka-clients-", "slf4j-api-", "jakarta.ws.rs-api-", "zstd-jni-", "lz4-java-", "snappy-java-"];

/// How a JVM is run, besides the size of its heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jvm {
    /// Small at the start and no second compiler tier: quick to start, and several fit on a small machine.
    Quick,
    /// As a server is run: both compilers, and the collector that Kafka's own scripts choose. For benches.
    Server,
}

impl Jvm {
    fn options(self) -> &'static [&'static str] {
        match self {
            Jvm::Quick => &["-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"],
            Jvm::Server => &["-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"],
        }
    }
}

/// The class path of broker, Connect worker and converters.
pub fn runtime_class_path() -> String {
    let _lock = lock();
    class_path("runtime", None)
}

/// A Connect plugin path that holds the Debezium connector of this exact version (`2.7.4.Final`).
pub fn debezium_plugins(version: &str) -> PathBuf {
    let _lock = lock();
    let jars = class_path("debezium", Some(version));
    let path = cache().join(format!("plugins-{version}-{:016x}", xxhash_rust::xxh3::xxh3_64(jars.as_bytes())));
    if !path.exists() {
        let unfinished = cache().join("plugins-unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        let folder = unfinished.join("debezium-postgres");
        fs::create_dir_all(&folder).unwrap();
        for jar in jars.split(':').map(Path::new) {
            let name = jar.file_name().unwrap().to_str().unwrap();
            if !WORKERS_OWN.iter().any(|own| name.starts_with(own)) {
                std::os::unix::fs::symlink(jar, folder.join(name)).unwrap();
            }
        }
        fs::rename(&unfinished, &path).unwrap();
    }
    path
}

/// Starts a JVM that dies with this process; its output goes to the end of `log`.
pub fn spawn(heap: &str, class_path: &str, main: &str, args: &[&Path], log: &Path) -> Child {
    spawn_as(Jvm::Quick, heap, class_path, main, args, log)
}

/// [`spawn`] of another kind of JVM.
pub fn spawn_as(jvm: Jvm, heap: &str, class_path: &str, main: &str, args: &[&Path], log: &Path) -> Child {
    child::spawn_bound(command(jvm, heap, class_path, main, args, log), LastSignal::Kill).expect("java")
}

/// Runs a JVM to its end.
///
/// # Panics
/// When it fails, with its log.
pub fn run(class_path: &str, main: &str, args: &[&str], log: &Path) {
    let args: Vec<&Path> = args.iter().map(Path::new).collect();
    let status = command(Jvm::Quick, "256m", class_path, main, &args, log).status().expect("java");
    assert!(status.success(), "{main} ended with {status}:\n{}", tail(log));
}

/// The end of a log, for the message of a failed test.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The files beside this module: POMs, properties, the logging configuration.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/java").join(name)
}

fn command(jvm: Jvm, heap: &str, class_path: &str, main: &str, args: &[&Path], log: &Path) -> Command {
    let out = File::options().create(true).append(true).open(log).expect("a log file");
    let mut command = Command::new("java");
    command.args(jvm.options()).arg("-Djava.awt.headless=true").arg(format!("-Xmx{heap}"));
    command.arg(format!("-Dlog4j2.configurationFile={}", file("log4j2.xml").display()));
    command.arg("-cp").arg(class_path).arg(main).args(args);
    command.stdin(Stdio::null()).stdout(out.try_clone().expect("a log file")).stderr(out);
    command
}

/// Cached in the target directory under the POM's hash. A cached path is good as long as all its jars are there.
/// The caller holds the lock.
fn class_path(pom: &str, debezium: Option<&str>) -> String {
    let pom_file = file(pom).join("pom.xml");
    let text = fs::read(&pom_file).unwrap_or_else(|error| panic!("{}: {error}", pom_file.display()));
    let label = debezium.unwrap_or("all");
    let cached = cache().join(format!("{pom}-{label}-{:016x}.cp", xxhash_rust::xxh3::xxh3_64(&text)));
    if let Ok(known) = fs::read_to_string(&cached)
        && known.split(':').all(|jar| Path::new(jar).is_file())
    {
        return known;
    }
    let unfinished = cache().join("unfinished.cp");
    let mut mvn = Command::new("mvn");
    // The -f form keeps Maven out of the project's own folder; build-classpath's version is pinned in the POM.
    mvn.args(["-q", "-B", "-ntp", "-f"]).arg(&pom_file).arg("dependency:build-classpath");
    mvn.arg(format!("-Dmdep.outputFile={}", unfinished.display())).arg("-Dmdep.includeScope=runtime");
    if let Some(version) = debezium {
        mvn.arg(format!("-Ddebezium.version={version}"));
    }
    let output = mvn.stdin(Stdio::null()).output().expect("mvn cannot be run; `make test` installs it");
    assert!(output.status.success(), "mvn failed for {pom}:\n{}", String::from_utf8_lossy(&output.stdout));
    let found = fs::read_to_string(&unfinished).unwrap().trim().to_string();
    fs::write(&unfinished, &found).unwrap();
    fs::rename(&unfinished, &cached).unwrap();
    found
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("java")
}

/// Several test binaries may want the same class path at the same time; one resolves, the others find it done. The
/// kernel frees the lock with its holder.
fn lock() -> File {
    fs::create_dir_all(cache()).unwrap();
    let lock = File::create(cache().join("lock")).unwrap();
    lock.lock().unwrap();
    lock
}
