//! Where and what was measured: without this, a figure is none.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// The machine, the versions and the build.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processor, cores, memory.
    pub hardware: String,
    /// Kernel and file system of the servers' data.
    pub system: String,
    /// Load over 1, 5 and 15 minutes before the first run: others may have been at work.
    pub load: String,
    /// Commit of the project.
    pub commit: String,
    /// How the program was built.
    pub build: String,
    /// Kafka's client library.
    pub librdkafka: String,
    /// Java, which runs Kafka.
    pub java: String,
    /// PostgreSQL and its settings.
    pub postgres: String,
}

impl Machine {
    /// Asks the machine.
    pub fn here(postgres: String, data: &std::path::Path) -> Machine {
        let processor = file("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_string()))
            .unwrap_or_else(|| std::env::consts::ARCH.to_string());
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = file("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let data = data.to_string_lossy().into_owned();
        let disk = said("df", &["--output=fstype,source", &data]);
        Machine {
            hardware: format!("{processor}, {cores} cores, {} GiB", (memory + (1 << 19)) >> 20),
            system: format!(
                "Linux {}, data on {}",
                file("/proc/sys/kernel/osrelease").trim(),
                disk.lines().last().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
            ),
            load: file("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            commit: commit(),
            build: build(),
            librdkafka: rdkafka::util::get_rdkafka_version().1,
            java: said("java", &["-version"]).lines().next().unwrap_or_default().to_string(),
            postgres,
        }
    }
}

/// Whether the project's own code was compiled for speed.
pub fn is_optimised() -> bool {
    !cfg!(debug_assertions) && option_env!("CARGO_PROFILE_DEV_OPT_LEVEL").is_some_and(|level| level == "3")
}

fn build() -> String {
    let level = option_env!("CARGO_PROFILE_DEV_OPT_LEVEL").unwrap_or("of the profile");
    let units = option_env!("CARGO_PROFILE_DEV_CODEGEN_UNITS").unwrap_or("of the profile");
    let checks = if cfg!(debug_assertions) { "with debug assertions" } else { "without debug assertions" };
    let own = format!("own code opt-level {level}, codegen-units {units}, {checks}; dependencies opt-level 3");
    if is_optimised() { own } else { format!("{own}: NOT A BUILD FOR FIGURES, use `make bench`") }
}

fn commit() -> String {
    let here = env!("CARGO_MANIFEST_DIR");
    let commit = said("git", &["-C", here, "rev-parse", "--short=12", "HEAD"]);
    let changed = said("git", &["-C", here, "status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.trim().is_empty() { "" } else { " with changes" };
    format!("{}{mark}", commit.trim())
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What a program prints, on either stream; nothing if it is not there.
fn said(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else { return String::new() };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).into_owned()
}
