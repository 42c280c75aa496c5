//! One private PostgreSQL per test binary, and a database of its own for each test that asks.

use std::sync::OnceLock;

use afterimage::demo::postgres::{PostgresOptions, PrivatePostgres};
use tokio_postgres::{Client, NoTls};

use super::names;
use super::wait::{LONG, wait_for};

/// The server all tests of this binary share: `wal_level=logical`, so that it can be a connector's source as well as
/// the sink. It is never dropped; it and its files go when the process does.
///
/// # Panics
/// When no PostgreSQL of version 14 or newer is installed, or it does not start.
pub fn shared() -> &'static PrivatePostgres {
    static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let options = PostgresOptions::logical().set("max_replication_slots", "64").set("max_wal_senders", "64");
        PrivatePostgres::start(options).unwrap_or_else(|error| panic!("no private PostgreSQL: {error:#}"))
    })
}

/// An empty database on the shared server.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name, unique in the machine.
    pub name: String,
    /// Its connection URL.
    pub url: String,
}

impl Database {
    /// A new session. Its driver task belongs to the calling test's runtime.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }
}

impl Database {
    /// A copy of it, once nobody uses it.
    pub async fn copy(&self) -> Database {
        let name = names::unique("copy");
        let admin = connect(&shared().url("postgres")).await;
        wait_for("the end of all sessions of the original", LONG, async || {
            let made = admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {}", self.name)).await;
            made.map_err(|error| format!("{error:?}"))
        })
        .await;
        Database { url: shared().url(&name), name }
    }
}

/// Makes an empty database for one test.
pub async fn fresh_database() -> Database {
    let name = names::unique("test");
    shared().create_database(&name).await.unwrap_or_else(|error| panic!("{error:#}"));
    Database { url: shared().url(&name), name }
}

/// Connects without TLS.
///
/// # Panics
/// When the server refuses.
pub async fn connect(url: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    // A connection that breaks shows as an error of the next query.
    tokio::spawn(connection);
    client
}
