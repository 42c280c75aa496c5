//! A second look at work that may take long: is the server process that does it alive, and whom does it wait for?
//!
//! A migration takes as long as it takes, so its silence alone says nothing. A second connection tells more: what the
//! process waits for, its locks, how far an index is built; and where the server runs on this machine, the kernel says
//! whether the process is stopped, and whether it computes. One that is stopped, or a server that answers no second
//! connection either, is given up soon; one of which nothing changes only after a long while.

use std::fs;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::client::{ANSWER_TIME, ConnectError, SinkSettings};

/// Work that takes longer is looked at, and told of: after this long, then after twice as long …
const TELL: Duration = Duration::from_secs(10);
/// … up to this.
const TELL_SELDOM: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A look that takes longer has failed.
const LOOK_TIME: Duration = Duration::from_secs(12);
/// A process that the kernel calls stopped, or that the server no longer has, is given up after this long.
const STOPPED: Duration = ANSWER_TIME;
/// A server that answers no second connection is given up after this long: it may be starting again.
const MUTE: Duration = Duration::from_secs(60);
/// A process of which nothing at all has changed is given up after this long. One that lives and works shows something
/// in hundreds of looks: a wait, a lock, a step of an index.
const UNCHANGED: Duration = Duration::from_secs(600);

/// Why work is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The system has stopped the process (SIGSTOP, a debugger).
    Stopped,
    /// The server has no such process any more, and our connection was not told.
    Gone,
    /// The server answers no second connection either.
    Mute,
    /// Nothing about the process changes.
    Unchanged,
}

impl Silence {
    /// How long it is borne.
    pub fn limit(self) -> Duration {
        match self {
            Self::Stopped | Self::Gone => STOPPED,
            Self::Mute => MUTE,
            Self::Unchanged => UNCHANGED,
        }
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.limit().as_secs();
        match self {
            Self::Stopped => write!(f, "is stopped, and has been for {seconds} s (SIGSTOP, a debugger)"),
            Self::Gone => write!(f, "is gone, and the connection to it has said nothing for {seconds} s"),
            Self::Mute => write!(f, "says nothing, and the server has answered no other connection for {seconds} s"),
            Self::Unchanged => write!(f, "has given no sign of life for {seconds} s"),
        }
    }
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    /// A silence that is known for what it is.
    Silent(Silence),
    /// What changes while a process works, and whom it waits for.
    Seen { signs: String, waits: Option<String> },
}

/// Since when there is silence, and of which kind.
#[derive(Debug)]
struct Watch {
    signs: String,
    kind: Silence,
    since: Instant,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Watch { signs: String::new(), kind: Silence::Unchanged, since: now }
    }

    /// Takes note of a look; whether it is time to give up.
    fn saw(&mut self, look: &Look, now: Instant) -> Option<Silence> {
        let kind = match look {
            Look::Silent(kind) => *kind,
            Look::Seen { signs, .. } => {
                if *signs != self.signs {
                    self.signs.clone_from(signs);
                    self.since = now;
                }
                Silence::Unchanged
            }
        };
        if kind != self.kind {
            (self.kind, self.since) = (kind, now);
        }
        (now.duration_since(self.since) >= kind.limit()).then_some(kind)
    }
}

/// Does the work to its end, looking after the server process `pid` that does it, and telling from time to time what
/// keeps it.
///
/// # Errors
/// [`Silence`] when there is no hope left. The process was asked to end then, so that it commits nothing should it go on.
pub async fn over<T>(sink: &SinkSettings, pid: i32, what: &str, work: impl Future<Output = T>) -> Result<T, Silence> {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(TELL, &mut work).await {
        return Ok(done);
    }
    let begun = Instant::now();
    let (mut watch, mut client) = (Watch::new(begun), None);
    let (mut tell_at, mut pause) = (begun, TELL);
    loop {
        let look = tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            look = look(sink, &mut client, pid) => look,
        };
        let now = Instant::now();
        if let Some(silence) = watch.saw(&look, now) {
            if let Some(client) = &client {
                let pid: [(&(dyn ToSql + Sync), Type); 1] = [(&pid, Type::INT4)];
                let end = client.query_typed("select pg_catalog.pg_terminate_backend($1)", &pid);
                let _ = tokio::time::timeout(LOOK, end).await;
            }
            return Err(silence);
        }
        if now >= tell_at {
            tell(what, pid, (TELL + now.duration_since(begun)).as_secs(), &look);
            tell_at = now + pause;
            pause = (pause * 2).min(TELL_SELDOM);
        }
        if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
            return Ok(done);
        }
    }
}

fn tell(what: &str, pid: i32, seconds: u64, look: &Look) {
    match look {
        Look::Seen { waits: Some(whom), .. } => {
            tracing::warn!("{what}: for {seconds} s; server process {pid} waits for {whom}");
        }
        Look::Seen { waits: None, .. } => tracing::info!("{what}: for {seconds} s; server process {pid} is at work"),
        Look::Silent(Silence::Stopped) => tracing::warn!("{what}: for {seconds} s; server process {pid} is stopped"),
        Look::Silent(Silence::Gone) => tracing::warn!("{what}: for {seconds} s; server process {pid} is gone"),
        Look::Silent(_) => tracing::warn!("{what}: for {seconds} s; the server gives no second connection"),
    }
}

async fn look(sink: &SinkSettings, client: &mut Option<Client>, pid: i32) -> Look {
    match tokio::time::timeout(LOOK_TIME, ask(sink, client, pid)).await {
        Ok(Some(look)) => look,
        Ok(None) | Err(_) => {
            *client = None;
            Look::Silent(Silence::Mute)
        }
    }
}

/// `None` = no answer.
async fn ask(sink: &SinkSettings, slot: &mut Option<Client>, pid: i32) -> Option<Look> {
    let client = match slot {
        Some(client) if !client.is_closed() => client,
        slot => match sink.connect().await {
            Ok(client) => slot.insert(client),
            // A refusal is an answer, though it tells nothing of the process.
            Err(ConnectError::Refused { source, .. }) if source.as_db_error().is_some() => {
                return Some(Look::Silent(Silence::Unchanged));
            }
            Err(_) => return None,
        },
    };
    let rows = client
        .query_typed(
            "select coalesce(a.client_port, 0),
               pg_catalog.concat_ws(' ', a.state, a.wait_event_type, a.wait_event, a.backend_xid, a.backend_xmin,
                 (select pg_catalog.count(*) from pg_catalog.pg_locks l where l.pid = a.pid),
                 (select pg_catalog.concat_ws(' ', i.phase, i.blocks_done, i.tuples_done)
                  from pg_catalog.pg_stat_progress_create_index i where i.pid = a.pid)),
               (select pg_catalog.string_agg(pg_catalog.format('server process %s%s%s%s', b.pid, ' of role ' || b.usename,
                   ' (' || nullif(b.application_name, '') || ')',
                   ', in a transaction for '
                     || extract(epoch from pg_catalog.clock_timestamp() - b.xact_start)::bigint || ' s'), '; ')
                from pg_catalog.pg_stat_activity b where b.pid = any (pg_catalog.pg_blocking_pids(a.pid)))
             from pg_catalog.pg_stat_activity a where a.pid = $1",
            &[(&pid, Type::INT4)],
        )
        .await
        .ok()?;
    let Some(row) = rows.first() else { return Some(Look::Silent(Silence::Gone)) };
    let port: i32 = row.try_get(0).ok()?;
    let signs: String = row.try_get(1).ok()?;
    let (state, ticks) = here(pid, port).unwrap_or_default();
    if matches!(state, 'T' | 't') {
        return Some(Look::Silent(Silence::Stopped));
    }
    Some(Look::Seen { signs: format!("{signs} {ticks}"), waits: row.try_get(2).ok()? })
}

/// State and used processor time of the server process, if it runs on this machine: its title names the client's port.
fn here(pid: i32, client_port: i32) -> Option<(char, u64)> {
    let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let title = String::from_utf8_lossy(&title);
    let peer = if client_port > 0 { format!("({client_port})") } else { "[local]".to_owned() };
    let ours = title.starts_with("postgres: ") && title.contains(&peer);
    ours.then(|| state_and_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))?
}

/// From the line of `/proc/<pid>/stat`: the letter of the state, and ticks spent in the program and in the kernel.
fn state_and_time(stat: &str) -> Option<(char, u64)> {
    // The name before it may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut times = fields.skip(10).map_while(|field| field.parse::<u64>().ok());
    Some((state, times.next()? + times.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(signs: &str) -> Look {
        Look::Seen { signs: signs.to_owned(), waits: None }
    }

    #[test]
    fn what_changes_lives_however_long_it_takes_and_each_silence_has_its_own_limit() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(start);
        for second in 0..10_000 {
            // Once in five minutes is enough.
            assert_eq!(watch.saw(&seen(&format!("active {}", second / 300)), at(second)), None, "{second}");
        }
        let changed = 9_900;
        assert_eq!(watch.saw(&seen("active 33"), at(changed + 599)), None);
        assert_eq!(watch.saw(&seen("active 33"), at(changed + 600)), Some(Silence::Unchanged));
        for (kind, limit) in [(Silence::Stopped, 20), (Silence::Gone, 20), (Silence::Mute, 60)] {
            let mut watch = Watch::new(start);
            watch.saw(&seen("active"), at(500));
            assert_eq!(watch.saw(&Look::Silent(kind), at(1_000)), None, "{kind}");
            assert_eq!(watch.saw(&Look::Silent(kind), at(1_000 + limit - 1)), None, "{kind}");
            assert_eq!(watch.saw(&seen("active"), at(1_000 + limit - 1)), None, "it lives");
            assert_eq!(watch.saw(&Look::Silent(kind), at(1_000 + limit)), None, "{kind}, anew");
            assert_eq!(watch.saw(&Look::Silent(kind), at(1_000 + 2 * limit)), Some(kind));
        }
    }

    #[test]
    fn the_kernels_line_is_read_whatever_the_name_holds() {
        let line = "812 (post) gres: x) T 1 812 812 0 -1 4194304 100 0 0 0 17 5 0 0 20 0 1 0 12345 1 2";
        assert_eq!(state_and_time(line), Some(('T', 22)));
        assert_eq!(state_and_time("812 (postgres) R 1"), None);
        assert_eq!(here(i32::try_from(std::process::id()).unwrap(), 1), None, "this is no server process");
    }
}
