//! `/metrics`, `/healthz` and `/readyz` over HTTP, on a thread of its own: it answers also while the workers' threads are all busy,
//! which is when one wants to look.
//!
//! The exporter's own listener is not used because it can't say which port it took for port 0. What a
//! scrape needs of HTTP/1.1 is one request and one answer per connection.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::health::Health;
use super::names::{ALL, Form, describe};

/// A client has this long for its whole request; the next one waits meanwhile.
const REQUEST_TIME: Duration = Duration::from_secs(2);
/// Longest request head.
const REQUEST_BYTES: usize = 8 * 1024;
/// How often samples of histograms are folded into their buckets if nobody scrapes: they would pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// The metrics endpoint could not be set up.
#[derive(Debug)]
pub enum MetricsError {
    /// The address can't be listened on, most often because another process does.
    Listen(SocketAddr, std::io::Error),
    /// The exporter refused its settings, or a recorder is installed already.
    Install(String),
    /// A thread could not be started.
    Thread(std::io::Error),
}

impl MetricsError {
    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::Listen(..) => {
                "stop what listens there, or set metrics.listen (--metrics-listen): another port, 127.0.0.1:0 for a free one, or off"
            }
            Self::Install(_) => "install metrics once per process",
            Self::Thread(_) => "raise the limit of threads of this user",
        }
    }
}

impl fmt::Display for MetricsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, error) => write!(f, "{address} can't be listened on: {error}"),
            Self::Install(reason) => f.write_str(reason),
            Self::Thread(error) => write!(f, "no thread for the metrics endpoint: {error}"),
        }
    }
}

impl std::error::Error for MetricsError {}

/// The running endpoint; dropping it closes the port.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl MetricsServer {
    /// The address that it listens on, with the port that was really taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // `accept` has no time-out: a connection of our own ends it.
        let mut own = self.address;
        if own.ip().is_unspecified() {
            own.set_ip(if own.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let reached = TcpStream::connect_timeout(&own, Duration::from_secs(1)).is_ok();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if reached {
                // A thread that panicked has said so; there is nothing to add while closing.
                let _ = thread.join();
            }
        }
    }
}

/// A recorder with the histograms' bounds.
fn recorder() -> Result<PrometheusRecorder, MetricsError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Form::Histogram(bounds) = metric.form {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                .map_err(|error| MetricsError::Install(error.to_string()))?;
        }
    }
    Ok(builder.build_recorder())
}

/// Installs the process's recorder and serves it. `None` = metrics are off: nothing is recorded at all.
/// Keep the server for as long as it is to answer.
pub fn install(listen: Option<SocketAddr>, health: &Health) -> Result<Option<MetricsServer>, MetricsError> {
    let Some(address) = listen else { return Ok(None) };
    let recorder = recorder()?;
    // The port first: if it is taken nothing has been installed yet.
    let server = serve(address, recorder.handle(), health.clone())?;
    metrics::set_global_recorder(recorder)
        .map_err(|_| MetricsError::Install("a metrics recorder is installed already".to_owned()))?;
    describe();
    tracing::info!(address = %server.address, "metrics are served at http://{}/metrics", server.address);
    Ok(Some(server))
}

/// Serves what a recorder holds, and how the process is.
pub fn serve(address: SocketAddr, handle: PrometheusHandle, health: Health) -> Result<MetricsServer, MetricsError> {
    let listener = TcpListener::bind(address).map_err(|error| MetricsError::Listen(address, error))?;
    let address = listener.local_addr().map_err(|error| MetricsError::Listen(address, error))?;
    let stop = Arc::new(AtomicBool::new(false));
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let (upkeep_handle, upkeep_stop) = (handle.clone(), Arc::clone(&stop));
    let upkeep = thread("metrics-upkeep")
        .spawn(move || {
            while !upkeep_stop.load(Ordering::Acquire) {
                upkeep_handle.run_upkeep();
                std::thread::park_timeout(UPKEEP);
            }
        })
        .map_err(MetricsError::Thread)?;
    let mut server = MetricsServer { address, stop: Arc::clone(&stop), threads: vec![upkeep] };
    let accept = thread("metrics")
        .spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                match stream.and_then(|stream| answer(stream, &handle, &health)) {
                    Ok(()) => {}
                    // A scraper that hung up, or no descriptor left: the next one may do better. The pause
                    // keeps a lasting error from spinning.
                    Err(error) => {
                        tracing::debug!(%error, "a metrics request was not answered");
                        if error.kind() == std::io::ErrorKind::Other || error.raw_os_error() == Some(libc::EMFILE) {
                            std::thread::park_timeout(Duration::from_millis(100));
                        }
                    }
                }
            }
        })
        .map_err(MetricsError::Thread)?;
    server.threads.push(accept);
    Ok(server)
}

/// Reads one request and answers it.
fn answer(mut stream: TcpStream, handle: &PrometheusHandle, health: &Health) -> std::io::Result<()> {
    stream.set_write_timeout(Some(REQUEST_TIME))?;
    let head = read_head(&mut stream)?;
    let mut words = head.split(|byte| byte.is_ascii_whitespace());
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let json = |(well, body): (bool, serde_json::Value)| {
        let status = if well { "200 OK" } else { "503 Service Unavailable" };
        (status, "application/json", format!("{body}\n"))
    };
    let (status, kind, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/healthz") => json(health.healthz()),
        (b"GET" | b"HEAD", b"/readyz") => json(health.readyz()),
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", handle.render()),
        (b"GET" | b"HEAD", b"/") => {
            ("200 OK", "text/plain; charset=utf-8", "afterimage: see /metrics, /healthz, /readyz\n".to_owned())
        }
        (b"GET" | b"HEAD", _) => {
            ("404 Not Found", "text/plain; charset=utf-8", "see /metrics, /healthz, /readyz\n".to_owned())
        }
        _ => ("405 Method Not Allowed", "text/plain; charset=utf-8", "GET /metrics\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    if method != b"HEAD" {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}

/// A request up to its empty line, within bounded time and bytes.
fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let end = Instant::now() + REQUEST_TIME;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") && head.len() < REQUEST_BYTES {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            n => head.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::super::names::{BATCH_EVENTS, COMMIT_SECONDS, EVENTS_DECODED, FENCED_COMMITS};
    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.write_all(request.as_bytes()).expect("sends");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answers");
        text
    }

    #[test]
    fn a_scrape_shows_counters_histograms_and_help() {
        let recorder = recorder().expect("a recorder");
        let server = serve(any(), recorder.handle(), Health::default()).expect("serves");
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!(EVENTS_DECODED, "topic" => "t", "op" => "update").increment(3);
            metrics::histogram!(COMMIT_SECONDS, "step" => "whole").record(0.03);
            metrics::histogram!(BATCH_EVENTS).record(700.0);
        });
        let text = get(server.address(), "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("text/plain; version=0.0.4"), "{text}");
        for line in [
            "# TYPE afterimage_events_decoded_total counter",
            "# HELP afterimage_events_decoded_total Events decoded; op: create, update, delete, read.",
            "afterimage_events_decoded_total{topic=\"t\",op=\"update\"} 3",
            "afterimage_commit_duration_seconds_bucket{step=\"whole\",le=\"0.02\"} 0",
            "afterimage_commit_duration_seconds_bucket{step=\"whole\",le=\"0.05\"} 1",
            "afterimage_batch_events_bucket{le=\"1000\"} 1",
            "afterimage_batch_events_count 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\nis not in\n{text}");
        }
        assert!(text.lines().any(|line| line == format!("{FENCED_COMMITS} 0")), "zero from the start: {text}");
        assert!(text.contains("afterimage_build_info{version="), "{text}");
        for line in [
            "afterimage_state_cleared_total{reason=\"log_gone\"} 0",
            "afterimage_state_invalidated_records_total{reason=\"catch_up\"} 0",
        ] {
            assert!(text.lines().any(|have| have == line), "zero from the start: {line}\n{text}");
        }
    }

    #[test]
    fn other_requests_are_answered_shortly_and_the_endpoint_lives_on() {
        let recorder = recorder().expect("a recorder");
        let server = serve(any(), recorder.handle(), Health::default()).expect("serves");
        let status = |request: &str| get(server.address(), request).split("\r\n").next().unwrap_or_default().to_owned();
        assert_eq!(status("GET /other HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
        assert_eq!(status("\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
        assert_eq!(status(&"x".repeat(REQUEST_BYTES)), "HTTP/1.1 405 Method Not Allowed");
        drop(TcpStream::connect(server.address()).expect("connects"));
        assert_eq!(status("HEAD /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET /healthz HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET /readyz HTTP/1.1\r\n\r\n"), "HTTP/1.1 503 Service Unavailable", "it has not started");
    }

    #[test]
    fn a_taken_port_is_a_clear_error_and_a_dropped_server_frees_it() {
        let recorder = recorder().expect("a recorder");
        let server = serve(any(), recorder.handle(), Health::default()).expect("serves");
        let address = server.address();
        assert_ne!(address.port(), 0);
        let error = serve(address, recorder.handle(), Health::default()).expect_err("taken");
        assert!(error.to_string().starts_with(&format!("{address} can't be listened on: ")), "{error}");
        assert!(error.next().contains("metrics.listen"));
        drop(server);
        serve(address, recorder.handle(), Health::default()).expect("free again");
    }

    #[test]
    fn metrics_that_are_off_record_nothing() {
        assert!(install(None, &Health::default()).expect("off").is_none());
    }
}
