//! Stands between a worker and PostgreSQL and can tell a COMMIT when it sees one.
//!
//! PostgreSQL's protocol, as far as it matters here: a client begins with a message of length and content, and from then on
//! each message is one letter, a length that counts itself, and content. A simple query is `Q` and a text that ends in
//! zero. The server's messages have the same form; `Z` says that it waits for the next query.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::support::wait::let_pass;

/// What is to happen at the next COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtCommit {
    /// It never arrives, and the connection breaks.
    CutBefore,
    /// It arrives, and the connection breaks before the answer.
    CutAfter,
    /// The client's connection breaks now; the server gets it after this time.
    Hold(Duration),
    /// It is carried out; the answer is thrown away, then the connection ends.
    DropAnswer,
    /// It is carried out; nothing more is said for this time, then the connection ends.
    Mute(Duration),
}

struct Shared {
    server: u16,
    armed: Mutex<Option<AtCommit>>,
    /// How many armed faults have met their COMMIT.
    met: AtomicU64,
    open: Mutex<Vec<AbortHandle>>,
    /// Whether bytes pass.
    passes: watch::Sender<bool>,
}

/// One worker's way to the server.
#[derive(Clone)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port of this machine, on the current runtime.
    pub async fn start(server: u16) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let shared = Arc::new(Shared {
            server,
            armed: Mutex::default(),
            met: AtomicU64::new(0),
            open: Mutex::default(),
            passes: watch::Sender::new(true),
        });
        let proxy = Proxy { port: listener.local_addr()?.port(), shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let task = tokio::spawn(serve(client, Arc::clone(&shared))).abort_handle();
                let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.retain(|task| !task.is_finished());
                open.push(task);
            }
        });
        Ok(proxy)
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next COMMIT meets this.
    pub fn arm(&self, fault: AtCommit) {
        *self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// How many armed faults have met their COMMIT.
    pub fn met(&self) -> u64 {
        self.shared.met.load(Ordering::Acquire)
    }

    /// Nothing happens at the next COMMIT; whether something was to.
    pub fn disarm(&self) -> bool {
        self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Breaks all connections.
    pub fn cut_all(&self) {
        for task in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// Lets bytes pass, or holds them up.
    pub fn let_pass(&self, passes: bool) {
        self.shared.passes.send_replace(passes);
    }
}

impl Shared {
    fn take(&self) -> Option<AtCommit> {
        let taken = self.armed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if taken.is_some() {
            self.met.fetch_add(1, Ordering::AcqRel);
        }
        taken
    }

    async fn gate(&self) {
        let mut passes = self.passes.subscribe();
        let _ = passes.wait_for(|passes| *passes).await;
    }
}

/// One connection. Both ends close when this returns or is aborted.
async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let fault = tokio::select! {
        fault = requests(&mut from_client, &mut to_server, &shared) => fault.unwrap_or_default(),
        _ = answers(&mut from_server, &mut to_client, &shared) => None,
    };
    // A COMMIT has been read, and not yet passed on.
    let Some((commit, fault)) = fault else { return };
    match fault {
        AtCommit::CutBefore => {}
        AtCommit::CutAfter => {
            let _ = to_server.write_all(&commit).await;
        }
        AtCommit::Hold(time) => {
            drop((from_client, to_client));
            let_pass(time).await;
            let _ = to_server.write_all(&commit).await;
            let _ = answered(&mut from_server).await;
        }
        AtCommit::DropAnswer => {
            let _ = to_server.write_all(&commit).await;
            let _ = answered(&mut from_server).await;
        }
        AtCommit::Mute(time) => {
            let _ = to_server.write_all(&commit).await;
            let _ = answered(&mut from_server).await;
            let_pass(time).await;
        }
    }
}

/// Passes the client's messages on until one is a COMMIT with which something is to happen.
async fn requests(
    client: &mut OwnedReadHalf,
    server: &mut OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<Option<(Vec<u8>, AtCommit)>> {
    let mut begun = false;
    let mut message = Vec::new();
    loop {
        message.clear();
        let letters = usize::from(begun);
        message.resize(letters + 4, 0);
        client.read_exact(&mut message).await?;
        let length = u32::from_be_bytes(message[letters..].try_into().expect("four bytes")) as usize;
        message.resize(letters + length.max(4), 0);
        client.read_exact(&mut message[letters + 4..]).await?;
        // Requests for encryption would come before the first message: the workers make none here.
        begun = true;
        shared.gate().await;
        if is_commit(&message)
            && let Some(fault) = shared.take()
        {
            return Ok(Some((message, fault)));
        }
        server.write_all(&message).await?;
    }
}

fn is_commit(message: &[u8]) -> bool {
    matches!(message, [b'Q', _, _, _, _, text @ .., 0] if text.trim_ascii().eq_ignore_ascii_case(b"COMMIT"))
}

async fn answers(server: &mut OwnedReadHalf, client: &mut OwnedWriteHalf, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = server.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        shared.gate().await;
        client.write_all(&buffer[..read]).await?;
    }
}

/// Reads the server's messages away until it waits for the next query.
async fn answered(server: &mut OwnedReadHalf) -> io::Result<()> {
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut content = vec![0; length.saturating_sub(4)];
        server.read_exact(&mut content).await?;
        if head[0] == b'Z' {
            return Ok(());
        }
    }
}
