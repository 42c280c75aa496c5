//! Typed views and lookups, kept up to date beside the stream. Convenience, not truth: nothing here holds up a commit,
//! and whatever fails is tried again later.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::postgres::Client;
use crate::postgres::client::{SinkSettings, describe};
use crate::postgres::search::{self, Progress};

/// Longest wait between two tries while a session has the view open.
const MOST_BUSY: Duration = Duration::from_secs(15);
/// Wait after any other failure.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// Tells the keeper which objects' views may be out of date.
#[derive(Debug, Clone)]
pub struct Views(mpsc::UnboundedSender<i16>);

impl Views {
    /// Starts the keeper on the current runtime. It ends when the last handle is dropped.
    pub fn start(sink: &SinkSettings) -> Self {
        let (sender, stale) = mpsc::unbounded_channel();
        let keeper = Keeper { sink: sink.clone(), client: None, due: BTreeMap::new(), said: BTreeMap::new() };
        tokio::spawn(keeper.run(stale));
        Views(sender)
    }

    /// The view of an object may be out of date, or its lookups unfinished.
    pub fn refresh(&self, object_id: i16) {
        // The keeper ends only with its handles.
        let _ = self.0.send(object_id);
    }
}

struct Keeper {
    sink: SinkSettings,
    client: Option<Client>,
    /// Object → when to try (again), and how often it was tried in vain.
    due: BTreeMap<i16, (Instant, u32)>,
    /// What was said of an object last, to say it once.
    said: BTreeMap<i16, String>,
}

impl Keeper {
    async fn run(mut self, mut stale: mpsc::UnboundedReceiver<i16>) {
        loop {
            let next = self.due.values().map(|(at, _)| *at).min();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                object = stale.recv() => match object {
                    Some(object_id) => drop(self.due.insert(object_id, (Instant::now(), 0))),
                    None => return,
                },
                () = wait => self.try_due().await,
            }
        }
    }

    async fn try_due(&mut self) {
        let now = Instant::now();
        let Some((object_id, tries)) =
            self.due.iter().find(|(_, (at, _))| *at <= now).map(|(object_id, (_, tries))| (*object_id, *tries))
        else {
            return;
        };
        match self.attempt(object_id).await {
            Ok(Progress::Idle) => drop(self.due.remove(&object_id)),
            Ok(Progress::More | Progress::Changed) => drop(self.due.insert(object_id, (now, 0))),
            Err(Trouble { busy: true, reason }) => {
                if tries == 3 {
                    let view = self.view(object_id).await;
                    self.say(object_id, format!("typed view {view} waits for a session that has it open: {reason}"));
                }
                let pause = Duration::from_millis(250 << tries.min(8)).min(MOST_BUSY);
                self.due.insert(object_id, (now + pause, tries.saturating_add(1)));
            }
            Err(Trouble { busy: false, reason }) => {
                let view = self.view(object_id).await;
                if let Some(client) = &self.client {
                    // Whoever looks at the view looks there; if that can't be written either, the log has it.
                    let _ = search::note_view(client, object_id, &format!("not up to date: {reason}")).await;
                }
                self.client = None;
                self.say(object_id, format!("typed view {view} is not up to date: {reason}"));
                self.due.insert(object_id, (now + AFTER_FAILURE, tries));
            }
        }
        if self.due.is_empty() {
            // A connection is dear, and the next change of columns may be weeks away.
            self.client = None;
        }
    }

    async fn attempt(&mut self, object_id: i16) -> Result<Progress, Trouble> {
        let client = match &mut self.client {
            Some(client) if !client.is_closed() => client,
            slot => {
                let client = self.sink.connect().await;
                slot.insert(client.map_err(|error| Trouble { busy: false, reason: error.to_string() })?)
            }
        };
        let view = search::refresh_view(client, object_id).await?;
        let progress = search::work(client, object_id).await?;
        match view.note {
            None => drop(self.said.remove(&object_id)),
            Some(note) => self.say(object_id, format!("typed view {} is not as it should be: {note}", view.name)),
        }
        Ok(progress)
    }

    /// The view's name, or the object's number if the sink does not tell.
    async fn view(&self, object_id: i16) -> String {
        let name = match &self.client {
            Some(client) => search::view_name(client, object_id).await.ok(),
            None => None,
        };
        name.unwrap_or_else(|| format!("of object {object_id}"))
    }

    fn say(&mut self, object_id: i16, what: String) {
        if self.said.get(&object_id) != Some(&what) {
            tracing::warn!(object_id, "{what}");
            self.said.insert(object_id, what);
        }
    }
}

/// Why a view could not be brought up to date.
struct Trouble {
    /// Someone holds what it needs: soon over.
    busy: bool,
    reason: String,
}

impl From<crate::postgres::Error> for Trouble {
    fn from(error: crate::postgres::Error) -> Self {
        let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
        Trouble { busy: ["55P03", "40P01", "40001", "57014"].contains(&&*code), reason: describe(&error) }
    }
}
