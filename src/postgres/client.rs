//! Connections to the sink.

use std::path::PathBuf;
use std::time::Duration;

use postgres_native_tls::MakeTlsConnector;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;

/// A question that a server answers at once, if it answers at all, is waited for this long: connecting included, where
/// somebody sits before it. One that is alive needs a fraction of a second.
pub const ANSWER_TIME: Duration = Duration::from_secs(20);
/// A connection has this long for each of its hosts, TLS and authentication included: a server that is frozen still
/// takes connections, and says nothing.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How far the server's certificate is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Plain text: for a server on this machine.
    Disable,
    /// Encrypted if the server can, certificate not checked: for a server on this machine.
    Prefer,
    /// Encrypted, certificate not checked: what Heroku Postgres needs by default.
    Require,
    /// Encrypted, certificate and host name checked.
    VerifyFull,
}

/// Where the sink is and how to reach it.
#[derive(Clone)]
pub struct SinkSettings {
    /// Connection URL; holds a password, never printed.
    pub url: String,
    /// TLS.
    pub tls: Tls,
    /// Extra certificate authority, PEM.
    pub ca: Option<PathBuf>,
    /// This process in claims and logs.
    pub worker: String,
    /// Shown in `pg_stat_activity`: `afterimage/<worker>` of a worker, by which others see that it lives, and something
    /// else of whoever only asks, or stands behind a pooler. Always begins with `afterimage`.
    pub application: String,
    /// A pooler in transaction mode stands before the server: no session lasts, and none tells who lives.
    pub pooled: bool,
}

/// The server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL or the certificate file cannot be read.
    #[error("{0}")]
    Settings(String),
    /// The server refused, or is not there.
    #[error("cannot connect to Postgres at {place}: {}", describe(.source))]
    Refused {
        /// Host, port and database, without credentials.
        place: String,
        /// The driver's reason.
        source: tokio_postgres::Error,
    },
    /// It takes connections, and says nothing.
    #[error("cannot connect to Postgres at {place}: no answer within {} s", within.as_secs())]
    Silent {
        /// Host, port and database, without credentials.
        place: String,
        /// How long it was waited for.
        within: Duration,
    },
}

/// A driver error with the server's message, SQLSTATE and detail, without parameters or values.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let detail = db.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("{}: {}{detail} [SQLSTATE {}]", db.severity(), db.message(), db.code().code())
        }
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        }
    }
}

/// What a refusal is told by, where it may last: its SQLSTATE. The text of the same trouble can name another file each time.
pub fn kind(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| describe(error), |code| code.code().to_owned())
}

/// Whether the server has no room on a disk of its own.
pub fn is_full(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::DISK_FULL)
}

impl SinkSettings {
    /// Host, port and database, without credentials.
    pub fn place(&self) -> String {
        let Ok(config) = self.url.parse::<tokio_postgres::Config>() else { return "an unreadable URL".into() };
        let host = config
            .get_hosts()
            .first()
            .map(|host| match host {
                tokio_postgres::config::Host::Tcp(name) => name.clone(),
                tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
            })
            .unwrap_or_else(|| "localhost".into());
        let port = config.get_ports().first().copied().unwrap_or(5432);
        format!("{host}:{port}/{}", config.get_dbname().unwrap_or("postgres"))
    }

    /// Opens a connection; its driver runs as a task of its own until the client is dropped.
    ///
    /// # Errors
    /// When the settings cannot be read, or the server cannot be reached within ten seconds (for each host of the URL).
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let mut config: tokio_postgres::Config =
            self.url.parse().map_err(|_| ConnectError::Settings("the URL of the database cannot be read".into()))?;
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
        let within = CONNECT_TIME * u32::try_from(hosts).unwrap_or(1);
        tokio::time::timeout(within, self.open(&mut config))
            .await
            .unwrap_or_else(|_| Err(ConnectError::Silent { place: self.place(), within }))
    }

    async fn open(&self, config: &mut tokio_postgres::Config) -> Result<Client, ConnectError> {
        config.ssl_mode(match self.tls {
            Tls::Disable => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require | Tls::VerifyFull => SslMode::Require,
        });
        config
            .application_name(&self.application)
            .connect_timeout(CONNECT_TIME)
            .tcp_user_timeout(Duration::from_secs(10))
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        let refused = |source| ConnectError::Refused { place: self.place(), source };
        if self.tls == Tls::Disable {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(refused)?;
            drive(connection);
            return Ok(client);
        }
        let mut tls = native_tls::TlsConnector::builder();
        if matches!(self.tls, Tls::Prefer | Tls::Require) {
            // The certificates of Heroku's default databases cannot be verified by anyone: this is what
            // `sslmode=require` means there, and the user has to ask for it.
            tls.danger_accept_invalid_certs(true).danger_accept_invalid_hostnames(true);
        }
        if let Some(path) = &self.ca {
            let unreadable =
                |reason: String| ConnectError::Settings(format!("certificate {}: {reason}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
            let certificate = native_tls::Certificate::from_pem(&pem).map_err(|error| unreadable(error.to_string()))?;
            tls.add_root_certificate(certificate);
        }
        let tls = tls.build().map_err(|error| ConnectError::Settings(format!("TLS: {error}")))?;
        let (client, connection) = config.connect(MakeTlsConnector::new(tls)).await.map_err(refused)?;
        drive(connection);
        Ok(client)
    }
}

/// Why the driver can't read a connection string, if it can't. It names a parameter at most, and quotes nothing.
pub fn unreadable(url: &str) -> Option<String> {
    let error = url.parse::<tokio_postgres::Config>().err()?;
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    Some(match cause.strip_prefix("invalid value for option ") {
        Some(name) => format!("the value of {} can't be used", name.replace('`', "")),
        None => "the driver can't read it".to_owned(),
    })
}

fn drive<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %describe(&error), "a connection to Postgres ended");
        }
    });
}
