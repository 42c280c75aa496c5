//! The Java side: real Kafka and real Debezium. Jars come from Maven by the POMs beside this file, once; JVMs are
//! bound to this process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child::{self, LastSignal};
use super::patience::{Stop, wait};
use super::simulator::Debezium;

/// Settings of the broker; `@…@` are filled in.
pub const SERVER_PROPERTIES: &str = include_str!("server.properties");
/// Settings of the Connect worker; `@…@` are filled in.
pub const WORKER_PROPERTIES: &str = include_str!("worker.properties");
/// What all connectors share.
pub const CONNECTOR_PROPERTIES: &str = include_str!("connector.properties");

const RUNTIME_POM: &str = include_str!("runtime/pom.xml");
const DEBEZIUM_POM: &str = include_str!("debezium/pom.xml");
const LOG4J2: &str = include_str!("log4j2.xml");

/// The oldest Java that Kafka 4 runs on.
const OLDEST_JAVA: u32 = 17;
/// How long Maven may take to fetch what is missing, some 100 MB the first time.
const DOWNLOAD: Duration = Duration::from_secs(900);

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

/// Java and Maven, and the directory that remembers where the jars are.
#[derive(Debug, Clone)]
pub struct Java {
    cache: PathBuf,
}

impl Java {
    /// Keeps its findings in `cache`; looks for nothing yet.
    pub fn new(cache: PathBuf) -> Java {
        Java { cache }
    }

    /// Keeps its findings in the user's cache directory.
    pub fn of_user() -> Java {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        Java::new(caches.join("afterimage").join("java"))
    }

    /// Whether this machine can run Kafka: a quick look, before anything is started.
    ///
    /// # Errors
    /// When Java or Maven is missing or too old, saying what to install.
    pub fn check(&self) -> Result<()> {
        let install =
            "`make demo-real` installs what is missing; on Debian by hand: apt-get install default-jdk-headless maven";
        // java prints its version to stderr.
        let version = output("java", "-version").map(|(_, stderr)| java_version(&stderr));
        match version {
            None => bail!("Java is missing; {OLDEST_JAVA} or newer is needed. {install}"),
            Some(Some(found)) if found < OLDEST_JAVA => {
                bail!("Java {found} is too old; {OLDEST_JAVA} or newer is needed. {install}")
            }
            Some(_) => {}
        }
        if output("mvn", "--version").is_none() {
            bail!("Maven (the command mvn) is missing; it fetches Kafka's and Debezium's jars. {install}");
        }
        Ok(())
    }

    /// The class path of broker, Connect worker and converters.
    ///
    /// # Errors
    /// When Maven can't bring the jars.
    pub fn runtime(&self, stop: &Stop) -> Result<String> {
        let _lock = self.lock(stop)?;
        self.class_path("runtime", RUNTIME_POM, None, stop)
    }

    /// A Connect plugin path that holds the Debezium connector of this release.
    ///
    /// # Errors
    /// When Maven can't bring the jars, or the folder can't be made.
    pub fn plugins(&self, release: Debezium, stop: &Stop) -> Result<PathBuf> {
        let _lock = self.lock(stop)?;
        let version = release.version();
        let jars = self.class_path("debezium", DEBEZIUM_POM, Some(version), stop)?;
        let path = self.cache.join(format!("plugins-{version}-{}", hash(&jars)));
        if !path.exists() {
            let unfinished = self.cache.join("plugins-unfinished");
            let _ = fs::remove_dir_all(&unfinished);
            let folder = unfinished.join("debezium-postgres");
            fs::create_dir_all(&folder)?;
            for jar in jars.split(':').map(Path::new) {
                let name = jar.file_name().and_then(|name| name.to_str()).context("a jar without a name")?;
                if !WORKERS_OWN.iter().any(|own| name.starts_with(own)) {
                    std::os::unix::fs::symlink(jar, folder.join(name))?;
                }
            }
            fs::rename(&unfinished, &path)?;
        }
        Ok(path)
    }

    /// Starts a JVM that dies with this process; its output goes to the end of `log`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, heap: &str, class_path: &str, main: &str, args: &[&Path], log: &Path) -> Result<Child> {
        self.spawn_as(Jvm::Quick, heap, class_path, main, args, log)
    }

    /// [`Self::spawn`] of another kind of JVM.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_as(
        &self,
        jvm: Jvm,
        heap: &str,
        class_path: &str,
        main: &str,
        args: &[&Path],
        log: &Path,
    ) -> Result<Child> {
        let logging = self.file("log4j2.xml", LOG4J2)?;
        let out = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("java");
        command.args(jvm.options()).arg("-Djava.awt.headless=true").arg(format!("-Xmx{heap}"));
        command.arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.arg("-cp").arg(class_path).arg(main).args(args);
        // The directory may go before the JVM does; Ctrl-C is for the demo, which then ends its servers in order.
        command.current_dir("/");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        child::spawn_bound(command, LastSignal::Kill).context("cannot start java")
    }

    /// Runs a JVM to its end.
    ///
    /// # Errors
    /// When it fails, with the end of its log.
    pub fn run(&self, class_path: &str, main: &str, args: &[&Path], log: &Path, stop: &Stop) -> Result<()> {
        let mut jvm = child::Running(self.spawn("256m", class_path, main, args, log)?);
        let status = wait(main, Duration::from_secs(60), stop, || Ok(jvm.0.try_wait()?))?;
        if !status.success() {
            bail!("{main} ended with {status}:\n{}", child::tail(log, 60));
        }
        Ok(())
    }

    /// Remembered under the POM's hash. What is remembered is good as long as all its jars are there. The caller holds
    /// the lock.
    fn class_path(&self, name: &str, pom: &str, debezium: Option<&str>, stop: &Stop) -> Result<String> {
        let label = debezium.unwrap_or("all");
        let known = self.cache.join(format!("{name}-{label}-{}.cp", hash(pom)));
        if let Ok(found) = fs::read_to_string(&known)
            && found.split(':').all(|jar| Path::new(jar).is_file())
        {
            return Ok(found);
        }
        let project = self.file(&format!("{name}.xml"), pom)?;
        let (unfinished, log) = (self.cache.join("unfinished.cp"), self.cache.join("mvn.log"));
        let said = File::create(&log)?;
        let mut mvn = Command::new("mvn");
        mvn.args(["-q", "-B", "-ntp", "-f"]).arg(&project).arg("dependency:build-classpath");
        mvn.arg(format!("-Dmdep.outputFile={}", unfinished.display())).arg("-Dmdep.includeScope=runtime");
        if let Some(version) = debezium {
            mvn.arg(format!("-Ddebezium.version={version}"));
        }
        mvn.current_dir(&self.cache).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let mvn = child::spawn_bound(mvn, LastSignal::Terminate);
        let mut mvn = child::Running(mvn.context("cannot run mvn; on Debian: apt-get install maven")?);
        let status = wait("Maven's download", DOWNLOAD, stop, || Ok(mvn.0.try_wait()?))?;
        if !status.success() {
            bail!("Maven could not fetch the jars of {name} ({status}):\n{}", child::tail(&log, 20));
        }
        let found = fs::read_to_string(&unfinished)?.trim().to_string();
        fs::write(&unfinished, &found)?;
        fs::rename(&unfinished, &known)?;
        Ok(found)
    }

    /// A file of this program, on disk, where Java and Maven can read it.
    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.cache.join(format!("{}-{name}", hash(text)));
        if !path.exists() {
            fs::create_dir_all(&self.cache).with_context(|| format!("cannot make {}", self.cache.display()))?;
            // Two processes may write it at once: each its own, and the last one stays.
            let unfinished = self.cache.join(format!("{}-{name}", std::process::id()));
            fs::write(&unfinished, text)?;
            fs::rename(&unfinished, &path)?;
        }
        Ok(path)
    }

    /// Several processes may want the same class path at the same time; one resolves, the others find it done. The
    /// kernel frees the lock with its holder.
    fn lock(&self, stop: &Stop) -> Result<File> {
        fs::create_dir_all(&self.cache).with_context(|| format!("cannot make {}", self.cache.display()))?;
        let lock = File::create(self.cache.join("lock"))?;
        wait("another program that fetches the jars", DOWNLOAD, stop, || match lock.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error.into()),
        })?;
        Ok(lock)
    }
}

fn hash(text: &str) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

/// (stdout, stderr) of a program that could be run.
fn output(program: &str, argument: &str) -> Option<(String, String)> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    output.status.success().then(|| (text(&output.stdout), text(&output.stderr)))
}

/// `openjdk version "17.0.15" 2025-04-15` → 17.
fn java_version(said: &str) -> Option<u32> {
    let (_, version) = said.split_once("version \"")?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_java_says() {
        assert_eq!(java_version("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime…"), Some(17));
        assert_eq!(java_version("java version \"1.8.0_401\""), Some(1));
        assert_eq!(java_version("openjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(java_version("what?"), None);
    }

    #[test]
    fn a_file_of_the_program_is_put_where_java_can_read_it() {
        let dir = crate::demo::scratch::ScratchDir::create("afterimage-test-java").unwrap();
        let java = Java::new(dir.path().join("cache"));
        let path = java.file("x.xml", "one").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(java.file("x.xml", "one").unwrap(), path);
        assert_ne!(java.file("x.xml", "two").unwrap(), path, "another text is another file");
    }
}
