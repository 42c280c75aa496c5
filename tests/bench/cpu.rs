//! What the kernel says of processes: their CPU, their threads' CPU, their memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Milliseconds in the unit of times in `/proc/…/stat`, the same on every Linux that the project runs on. The kernel adds
/// exact times; only what is shown is cut.
const TICK: u64 = 10;

/// What of `/proc/<pid>/stat` is used here.
#[derive(Debug, Clone, Copy, Default)]
struct Stat {
    state: char,
    parent: u32,
    own: Duration,
    /// Of children that ended and were waited for.
    ended: Duration,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |from: usize| -> Option<Duration> {
        let (user, system): (u64, u64) = (fields.get(from)?.parse().ok()?, fields.get(from + 1)?.parse().ok()?);
        Some(Duration::from_millis((user + system) * TICK))
    };
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        own: ticks(11)?,
        ended: ticks(13)?,
    })
}

/// User and system time of a process, its ended threads included; none once it is gone. A process that ended and was not
/// waited for still has it.
pub fn of_process(pid: u32) -> Duration {
    stat(pid).map_or(Duration::ZERO, |stat| stat.own)
}

/// Whether a process has ended, waited for or not.
pub fn has_ended(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat.state == 'Z')
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|stat| stat.parent)
}

/// A process with all its children, ended ones too: a PostgreSQL server.
pub fn of_family(pid: u32) -> Duration {
    loop {
        let Some(before) = stat(pid) else { return Duration::ZERO };
        let children = processes().filter_map(stat).filter(|child| child.parent == pid);
        let living: Duration = children.map(|child| child.own + child.ended).sum();
        // A child that ended while the others were looked at would count twice, or not at all.
        if stat(pid).is_some_and(|after| after.ended == before.ended) {
            return before.own + before.ended + living;
        }
    }
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// CPU that the whole machine has used since it started, the host's other guests included where they took ours.
pub fn of_machine() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = ticks.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests use is part of user and nice.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    Duration::from_millis(busy * TICK)
}

/// CPU of a process's living threads by name, in the kernel's exact times.
pub fn of_threads(pid: u32) -> BTreeMap<String, Duration> {
    let mut all = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name| fs::read_to_string(thread.path().join(name)).ok();
        let Some(name) = read("comm") else { continue };
        let Some(nanos) = read("schedstat").and_then(|text| text.split(' ').next()?.parse().ok()) else { continue };
        *all.entry(name.trim().to_string()).or_default() += Duration::from_nanos(nanos);
    }
    all
}

/// The most memory that a process has had resident, in bytes.
pub fn peak_memory(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

/// Memory that a process has resident now, in bytes.
pub fn resident(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

/// The part of [`resident`] that is the process's own, neither program nor mapped file.
pub fn anonymous(pid: u32) -> u64 {
    memory(pid, "RssAnon:")
}

fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kilobytes| kilobytes * 1024)
}
