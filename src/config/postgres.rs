//! The sink's settings, and how well its connection is protected.
//!
//! TLS is verified unless there is a reason not to. `sslmode` decides, and where nothing sets it:
//! - this machine (a socket or a loopback address): `prefer`, there is no wire to listen on;
//! - a CA file is configured: `verify-full`;
//! - Heroku's own variable on a dyno: `require`. Heroku's default certificates can't be verified publicly,
//!   and Heroku documents `require`; with its Enhanced Certificates set `verify-full`;
//! - any other host: `verify-full`.

use std::path::PathBuf;

use super::keys::nearest;
use super::secret::{MASK, Secret};

/// What a connection string may say besides user, password, hosts and database: the driver's own parameters, and the two
/// that are read here.
pub const PARAMETERS: &[&str] = &[
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslmode",
    "sslrootcert",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];

/// How the connection to Postgres is encrypted and whether the server is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Plain text.
    Disable,
    /// Encrypted if the server can, not verified.
    Prefer,
    /// Encrypted, not verified: safe from listeners, not from a server in the middle.
    Require,
    /// Encrypted; the certificate and the host name are verified.
    VerifyFull,
}

impl SslMode {
    /// The spelling in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }

    /// All of them by their spelling.
    pub(super) const CHOICES: [(&'static str, Self); 4] = [
        ("disable", Self::Disable),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-full", Self::VerifyFull),
    ];
}

/// How to reach the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// The connection string without `sslmode` and `sslrootcert`, which are in the fields below
    /// (the driver does not know `verify-full`).
    pub url: Secret,
    /// The same with the password masked, for messages.
    pub shown: String,
    /// The sink's name in the default group name.
    pub name: String,
    /// Encryption and verification; TLS itself is set up where the connection is made.
    pub sslmode: SslMode,
    /// CA file for [`SslMode::VerifyFull`]; `None` = the system's CAs.
    pub ca: Option<PathBuf>,
    /// Whether a pooler in transaction mode stands before the server.
    pub pooled: bool,
}

/// Why a connection string can't be used; holds no value of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub reason: String,
    pub next: String,
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self { reason: reason.to_owned(), next: "write postgres://user:password@host:5432/database".to_owned() }
    }
}

/// What a connection string says, taken apart without a driver.
#[derive(Debug, Default)]
pub(super) struct Dsn {
    /// Without `sslmode` and `sslrootcert`.
    pub text: String,
    pub database: Option<String>,
    pub sslmode: Option<String>,
    pub ca: Option<String>,
    /// Every host is a socket directory or a loopback name.
    pub local: bool,
}

impl Dsn {
    /// Takes a connection string apart. The reason never holds a part of it, but for the name of a parameter.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let text = text.trim();
        match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => Self::url(&text[..text.len() - rest.len()], rest),
            None if text.contains("://") => Err("its scheme is not postgres:// or postgresql://".into()),
            None => Self::pairs(text),
        }
    }

    fn url(scheme: &str, rest: &str) -> Result<Self, Fault> {
        let (address, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
        // A raw `@`, `/` or `?` in a password moves everything behind it into the host; drivers then
        // print it as one.
        let (userinfo, place) = address.split_once('@').map_or((None, address), |(u, p)| (Some(u), p));
        if place.contains('@') || query.is_some_and(|query| userinfo.is_none() && query.contains('@')) {
            return Err("it holds more than one `@`: percent-encode those in the user name and password".into());
        }
        let (hosts, database) = place.split_once('/').map_or((place, ""), |(h, d)| (h, d));
        if userinfo.is_some_and(|user| user.contains('/')) || database.contains('/') {
            return Err("it holds a stray `/`: percent-encode those in the user name and password".into());
        }
        let mut dsn = Self { database: Some(percent_decode(database)).filter(|d| !d.is_empty()), ..Self::default() };
        let mut local = Vec::new();
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            let (name, port) = match host.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
                Some((name, rest)) => (name, rest.strip_prefix(':')),
                None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
            };
            check_port(port.unwrap_or_default())?;
            local.push(is_local(&percent_decode(name)));
        }
        let mut kept = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Behind an `@` there may stand the end of a password.
            let quotable = query.is_some_and(|query| !query.contains('@'));
            if dsn.take(&percent_decode(name), &percent_decode(value), &mut local, quotable)? {
                kept.push(pair);
            }
        }
        dsn.local = all_local(&local)?;
        dsn.text = format!("{scheme}{address}");
        if !kept.is_empty() {
            dsn.text.push('?');
            dsn.text.push_str(&kept.join("&"));
        }
        Ok(dsn)
    }

    fn pairs(text: &str) -> Result<Self, Fault> {
        let mut dsn = Self::default();
        let mut local = Vec::new();
        for (name, value) in split_pairs(text).ok_or("it is neither a postgres:// URL nor key=value pairs")? {
            if dsn.take(&name, &value, &mut local, false)? {
                let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
                dsn.text.push_str(&format!("{}{name}='{quoted}'", if dsn.text.is_empty() { "" } else { " " }));
            }
        }
        dsn.local = all_local(&local)?;
        Ok(dsn)
    }

    /// Takes note of a parameter; false = it is not for the driver.
    fn take(&mut self, name: &str, value: &str, local: &mut Vec<bool>, quotable: bool) -> Result<bool, Fault> {
        match name {
            _ if !PARAMETERS.contains(&name) => return Err(unknown(name, quotable)),
            "port" => value.split(',').try_for_each(check_port)?,
            "sslmode" => self.sslmode = Some(value.to_owned()),
            "sslrootcert" => self.ca = Some(value.to_owned()),
            "host" | "hostaddr" => local.extend(value.split(',').map(is_local)),
            "dbname" => self.database = Some(value.to_owned()),
            _ => {}
        }
        Ok(!matches!(name, "sslmode" | "sslrootcert"))
    }
}

fn unknown(name: &str, quotable: bool) -> Fault {
    let plain = |c: char| c.is_ascii_alphabetic() || c == '_';
    let near = nearest(name, PARAMETERS.iter().copied());
    let quoted = match name {
        // Near to a known one it is none of a password.
        name if (quotable || near.is_some()) && name.len() <= 40 && name.chars().all(plain) => format!(" `{name}`"),
        _ => String::new(),
    };
    Fault {
        reason: format!("it has a parameter{quoted} that is not known"),
        next: match near {
            Some(near) => format!("did you mean {near}?"),
            None => format!("remove it; known are {}", PARAMETERS.join(", ")),
        },
    }
}

/// Whether every host is on this machine. The driver, other than psql, takes no host for granted.
fn all_local(hosts: &[bool]) -> Result<bool, Fault> {
    if hosts.is_empty() {
        return Err(Fault {
            reason: "it names no host".to_owned(),
            next: "write postgres://user@localhost/database, or for a socket postgres:///database?host=/var/run/postgresql"
                .to_owned(),
        });
    }
    Ok(hosts.iter().all(|local| *local))
}

/// Empty = the default one.
fn check_port(port: &str) -> Result<(), Fault> {
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ if port.is_empty() => Ok(()),
        _ => Err("its port is not one from 1 to 65535".into()),
    }
}

fn is_local(host: &str) -> bool {
    host.is_empty()
        || host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// libpq's `name = value 'quoted value'` form.
fn split_pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return None;
        }
        let mut chars = after.trim_start().chars();
        let mut value = String::new();
        if let Some(quoted) = after.trim_start().strip_prefix('\'') {
            chars = quoted.chars();
            loop {
                match chars.next()? {
                    '\'' => break,
                    '\\' => value.push(chars.next()?),
                    c => value.push(c),
                }
            }
        } else {
            loop {
                match chars.next() {
                    None => break,
                    Some(c) if c.is_whitespace() => break,
                    Some('\\') => value.push(chars.next()?),
                    Some(c) => value.push(c),
                }
            }
        }
        pairs.push((name.to_owned(), value));
        rest = chars.as_str().trim_start();
    }
    (!pairs.is_empty()).then_some(pairs)
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A connection string with its password masked. Masks too much rather than too little: in a URL all
/// between the user name and the last `@`, so a password with raw reserved characters is covered too;
/// a string of unknown form entirely.
pub fn masked_url(text: &str) -> String {
    let text = text.trim();
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        let start = text.find("://").map_or(0, |at| at + 3);
        let (scheme, rest) = text.split_at(start);
        let rest = match rest.rsplit_once('@') {
            Some((userinfo, place)) => match userinfo.split_once(':') {
                Some((user, _)) => format!("{user}:{MASK}@{place}"),
                None => rest.to_owned(),
            },
            None => rest.to_owned(),
        };
        let (address, query) = rest.split_once('?').map_or((rest.as_str(), None), |(a, q)| (a, Some(q)));
        // A password whose `@` was mistyped or encoded would stand where host and port are expected.
        if !address.contains('@') && !is_place(address) {
            return format!("{scheme}{MASK}");
        }
        let query = query.map(|query| {
            let pairs = query.split('&').map(|pair| match pair.split_once('=') {
                Some((name, _)) if percent_decode(name).to_ascii_lowercase().contains("pass") => {
                    format!("{name}={MASK}")
                }
                _ => pair.to_owned(),
            });
            format!("?{}", pairs.collect::<Vec<_>>().join("&"))
        });
        return format!("{scheme}{address}{}", query.unwrap_or_default());
    }
    match split_pairs(text) {
        Some(pairs) if !text.contains("://") => {
            let shown = pairs.iter().map(|(name, value)| {
                if name.to_ascii_lowercase().contains("pass") {
                    format!("{name}={MASK}")
                } else {
                    format!("{name}={value}")
                }
            });
            shown.collect::<Vec<_>>().join(" ")
        }
        _ => MASK.to_owned(),
    }
}

/// Whether this is what stands behind `user@` in a URL: hosts, each with a port if any, and a database.
fn is_place(address: &str) -> bool {
    let hosts = address.split_once('/').map_or(address, |(hosts, _)| hosts);
    hosts.split(',').all(|host| {
        let (name, port) = match host.rsplit_once(']') {
            Some((name, port)) => (name.trim_start_matches('['), port.strip_prefix(':')),
            None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
        };
        // An ellipsis stands in our own hints: `host:9096,…`.
        let named = |c: char| c.is_ascii_alphanumeric() || ".-_:…".contains(c);
        (name.chars().all(named) || name.to_ascii_lowercase().starts_with("%2f"))
            && port.is_none_or(|port| port.chars().all(|c| c.is_ascii_digit()))
    })
}

/// Text that may quote what a user typed, without the passwords of URLs and of `user:password@host` in it.
pub fn without_passwords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at].rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |before| before + 1);
        let end = rest[at + 3..].find(ends_a_word).map_or(rest.len(), |end| at + 3 + end);
        let (before, url) = rest[..end].split_at(start);
        shown.push_str(&without_userinfo(before));
        let secret = url.contains('@') || !is_place(&url[at + 3 - start..]);
        shown.push_str(&if secret || url.contains('?') { masked_url(url) } else { url.to_owned() });
        rest = &rest[end..];
    }
    shown + &without_userinfo(rest)
}

fn ends_a_word(c: char) -> bool {
    c.is_whitespace() || "'\"`<>".contains(c)
}

fn without_userinfo(text: &str) -> String {
    let mask = |word: &str| match word.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
        Some((user, host)) => format!("{user}:{MASK}@{host}"),
        None => word.to_owned(),
    };
    text.split_inclusive(ends_a_word)
        .map(|word| match word.chars().next_back().filter(|last| ends_a_word(*last)) {
            Some(last) => mask(&word[..word.len() - last.len_utf8()]) + &last.to_string(),
            None => mask(word),
        })
        .collect()
}

/// What a user typed, if it may hold a password, without that: whatever characters are in it.
pub fn masked_argument(typed: &str) -> Option<String> {
    let Some((before, place)) = typed.rsplit_once('@') else {
        return typed.contains("://").then(|| masked_url(typed));
    };
    let user = before.find("://").map_or(0, |scheme| scheme + 3);
    let password = before[user..].find(':')?;
    Some(format!("{}:{MASK}@{place}", &before[..user + password]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_taken_apart() {
        let table = [
            // (string, database, local, text for the driver)
            ("postgres://u:p@db.example.com:5432/d1", Some("d1"), false, "postgres://u:p@db.example.com:5432/d1"),
            ("postgresql://u@127.0.0.1/d", Some("d"), true, "postgresql://u@127.0.0.1/d"),
            ("postgres://u@[::1]:5433/d?sslmode=disable", Some("d"), true, "postgres://u@[::1]:5433/d"),
            ("postgres://u@localhost,db.example.com/d", Some("d"), false, "postgres://u@localhost,db.example.com/d"),
            ("postgres://u@%2Fvar%2Frun/d", Some("d"), true, "postgres://u@%2Fvar%2Frun/d"),
            ("postgres:///d?host=/tmp&sslmode=prefer&port=1", Some("d"), true, "postgres:///d?host=/tmp&port=1"),
            (
                "postgres://u@localhost/d?hostaddr=10.0.0.1",
                Some("d"),
                false,
                "postgres://u@localhost/d?hostaddr=10.0.0.1",
            ),
            (
                "host=/tmp user=u dbname='my db' sslmode=disable",
                Some("my db"),
                true,
                "host='/tmp' user='u' dbname='my db'",
            ),
            ("host = db.example.com password='it''s'", None, false, ""),
            ("postgres://u@h:0/d", None, false, ""),
            ("postgres://u@h:65536/d", None, false, ""),
            ("postgres://u@[::1]:70000/d", None, false, ""),
            ("postgres://u@h/d?port=0", None, false, ""),
            ("host=h port=5432,99999", None, false, ""),
            ("postgres://u@h1:,h2:1/d", Some("d"), false, "postgres://u@h1:,h2:1/d"),
            ("postgres:///d", None, false, ""),
            ("postgres://u:p@/d", None, false, ""),
            ("postgres://", None, false, ""),
            ("dbname=d user=u", None, false, ""),
        ];
        for (string, database, local, text) in table {
            if text.is_empty() {
                assert!(Dsn::parse(string).is_err(), "{string}");
                continue;
            }
            let dsn = Dsn::parse(string).expect(string);
            assert_eq!((dsn.database.as_deref(), dsn.local, dsn.text.as_str()), (database, local, text), "{string}");
        }
    }

    #[test]
    fn an_unreadable_connection_string_is_refused_without_being_quoted() {
        for string in [
            "mysql://u:hunter2@h/d",
            "hunter2",
            "postgres://u:hun@ter2@h/d",
            "postgres://u:hun/ter2@h/d",
            "a='hunter2",
            "postgres://u:h@un?hunted&hunter2@h/d",
            "host=h hunter2=x",
            "postgres://u:hunter2@h:hunter2/d",
        ] {
            let Fault { reason, next } = Dsn::parse(string).expect_err(string);
            assert!(!reason.contains("hunt") && !reason.contains("ter2") && !next.contains("hunt"), "{reason}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_told_its_nearest() {
        for (string, reason, next) in [
            (
                "postgres://u@h/d?sslmod=require",
                "it has a parameter `sslmod` that is not known",
                "did you mean sslmode?",
            ),
            (
                "host=h conect_timeout=3",
                "it has a parameter `conect_timeout` that is not known",
                "did you mean connect_timeout?",
            ),
            (
                "postgres://u@h/d?gssencmode=disable",
                "it has a parameter `gssencmode` that is not known",
                "remove it; known are user",
            ),
            ("host=h gssencmode=disable", "it has a parameter that is not known", "remove it; known are user"),
        ] {
            let fault = Dsn::parse(string).expect_err(string);
            assert!(fault.reason == reason && fault.next.starts_with(next), "{fault:?}");
        }
    }

    #[test]
    fn a_masked_connection_string_holds_no_part_of_the_password() {
        let table = [
            ("postgres://u:hunter2@h:5432/d", "postgres://u:****@h:5432/d"),
            ("postgres://u:hunter2@at@slash/hunter2@h/d?x=1", "postgres://u:****@h/d?x=1"),
            ("postgres://h/d?user=u&password=hunter2", "postgres://h/d?user=u&password=****"),
            ("postgres://h/d?p%61ssword=hunter2", "postgres://h/d?p%61ssword=****"),
            ("postgres://h/d", "postgres://h/d"),
            ("host=h password='hunter2 x' user=u", "host=h password=**** user=u"),
            ("hunter2", "****"),
            ("mysql://u:hunter2@h", "****"),
            ("postgres://u:hunter2#h/d", "postgres://****"),
            ("postgres://u:hunter2%40h/d?x=1", "postgres://****"),
            ("postgres://u:hunter2 h/d", "postgres://****"),
            ("postgres://h1:5432,h2:5433/d", "postgres://h1:5432,h2:5433/d"),
            ("postgres://[::1]:5432/d", "postgres://[::1]:5432/d"),
            ("postgres://%2Fvar%2Frun/d", "postgres://%2Fvar%2Frun/d"),
        ];
        for (string, shown) in table {
            assert_eq!(masked_url(string), shown);
        }
    }

    #[test]
    fn a_quoted_url_loses_its_password_and_nothing_else_changes() {
        for (text, shown) in [
            ("invalid value 'postgres://u:hunter2@h/d' for", "invalid value 'postgres://u:****@h/d' for"),
            ("'postgres://u:hunter2 h/d' and", "'postgres://**** h/d' and"),
            ("(kafka://u:hunter2@h:1) ż", "(**** ż"),
            ("see http://127.0.0.1:9464/metrics, ż", "see http://127.0.0.1:9464/metrics, ż"),
            ("write h:9092 or kafka+ssl://host:9096,… ż", "write h:9092 or kafka+ssl://host:9096,… ż"),
            ("set --url postgres://…, or", "set --url postgres://…, or"),
            ("invalid value 'u:hunter2@h:9092' for ż", "invalid value 'u:****@h:9092' for ż"),
            ("u:hun:ter2@x@h, see postgres://h/d", "u:****@h, see postgres://h/d"),
            ("me@h:9092 at 12:30:00", "me@h:9092 at 12:30:00"),
            ("nothing of the kind", "nothing of the kind"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
        for (typed, shown) in [
            ("u:hun ter'2@h:9092", Some("u:****@h:9092")),
            ("postgres://u:hun ter'2@h/d", Some("postgres://u:****@h/d")),
            ("mysql://hunter2", Some("****")),
            ("me@h:9092", None),
            ("plain", None),
        ] {
            assert_eq!(masked_argument(typed).as_deref(), shown);
        }
    }
}
