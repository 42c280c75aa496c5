//! What `afterimage demo` can be told.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use super::simulator::Debezium;

/// The demo was told something that cannot be; nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Options of the demo; every one has a default.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// Row events, about [default: 60000; 12000 with --capture debezium]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(500..=20_000_000))]
    pub events: Option<u64>,

    /// Seed of the simulation: the same seed gives the same rows.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Names of the simulated orgs, separated by commas. The first one holds the article's account.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "emea,apac", value_parser = org_name)]
    pub orgs: Vec<String>,

    /// Worker processes that share the topics. One of them is killed with kill -9 on the way, and comes back.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub workers: u8,

    /// embedded (in this process), kafka (a private Apache Kafka; needs Java and Maven), or HOST:PORT of a running one,
    /// on which the demo's topics have a prefix of their own and are removed at the end, or by the next demo if it is killed
    /// [default: embedded; kafka with --capture debezium]
    #[arg(long, value_name = "WHICH", value_parser = broker_choice)]
    pub broker: Option<BrokerChoice>,

    /// Where the messages come from: simulated, or real Debezium reading tables that the simulator writes to.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = CaptureChoice::Simulated)]
    pub capture: CaptureChoice,

    /// Release of Debezium: of the real one, or the one that is simulated.
    #[arg(long, value_name = "RELEASE", value_enum, default_value_t = Debezium::V2_7)]
    pub debezium: Debezium,

    /// Leave everything running at the end, until Ctrl-C: to look around with psql. What dies meanwhile is told.
    #[arg(long)]
    pub keep: bool,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which broker the messages go through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerChoice {
    /// Inside the demo's process.
    Embedded,
    /// An Apache Kafka that the demo starts.
    Kafka,
    /// `HOST:PORT`, or several with commas between them, of a running one.
    Given(String),
}

/// Where the messages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureChoice {
    /// The simulator writes Debezium's envelopes itself.
    Simulated,
    /// Real Debezium captures a real Postgres.
    Debezium,
}

impl Default for DemoOptions {
    fn default() -> Self {
        DemoOptions {
            events: None,
            seed: 1,
            orgs: vec!["emea".to_string(), "apac".to_string()],
            workers: 2,
            broker: None,
            capture: CaptureChoice::Simulated,
            debezium: Debezium::default(),
            keep: false,
            json: false,
        }
    }
}

impl DemoOptions {
    /// Checks what a single value's parser can't see.
    ///
    /// # Errors
    /// [`Usage`] when an org is named twice, there are more than eight, or Debezium is to write to the embedded broker.
    pub fn check(&self) -> Result<(), Usage> {
        let mut names = self.orgs.clone();
        names.sort_unstable();
        names.dedup();
        if names.len() != self.orgs.len() {
            return Err(Usage("--orgs names an org twice".to_string()));
        }
        if names.is_empty() || names.len() > 8 {
            return Err(Usage("--orgs takes one to eight names".to_string()));
        }
        if self.capture == CaptureChoice::Debezium && self.broker == Some(BrokerChoice::Embedded) {
            let reason = "real Debezium needs a real Kafka: --broker kafka, or HOST:PORT of a running one";
            return Err(Usage(reason.to_string()));
        }
        Ok(())
    }

    /// How many row events there will be, about.
    pub fn events(&self) -> u64 {
        self.events.unwrap_or(match self.capture {
            CaptureChoice::Simulated => 60_000,
            CaptureChoice::Debezium => 12_000,
        })
    }

    /// The broker that is used.
    pub fn broker(&self) -> BrokerChoice {
        self.broker.clone().unwrap_or(match self.capture {
            CaptureChoice::Simulated => BrokerChoice::Embedded,
            CaptureChoice::Debezium => BrokerChoice::Kafka,
        })
    }
}

/// An org's name becomes a schema's and a part of topics' names.
fn org_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let is_name = text.len() <= 32 && text.starts_with(|first: char| first.is_ascii_lowercase());
    if is_name && text.bytes().all(plain) {
        Ok(text.to_string())
    } else {
        Err("an org's name is lower case letters, digits and _, a letter first, at most 32".to_string())
    }
}

fn broker_choice(text: &str) -> Result<BrokerChoice, String> {
    match text {
        "embedded" => return Ok(BrokerChoice::Embedded),
        "kafka" => return Ok(BrokerChoice::Kafka),
        _ => {}
    }
    let is_address = |address: &str| {
        let Some((host, port)) = address.rsplit_once(':') else { return false };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        !host.is_empty() && host.chars().all(is_host) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if text.split(',').all(is_address) {
        Ok(BrokerChoice::Given(text.to_string()))
    } else {
        Err("it is embedded, kafka, or HOST:PORT of a running Kafka without TLS".to_string())
    }
}

/// How the demo starts `afterimage` itself: workers and `migrate` are processes of their own, as in earnest.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The `afterimage` binary.
    pub program: PathBuf,
}

impl WorkerCommand {
    /// The binary that is running now.
    ///
    /// # Errors
    /// When the system does not say which that is.
    pub fn current() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find the running binary to start workers from it")?;
        Ok(WorkerCommand { program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        demo: DemoOptions,
    }

    fn parse(arguments: &[&str]) -> Result<DemoOptions, String> {
        let arguments = ["demo"].into_iter().chain(arguments.iter().copied());
        let options = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.demo;
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn everything_has_a_default() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.events(), options.seed, options.workers), (60_000, 1, 2));
        assert_eq!(options.orgs, ["emea", "apac"]);
        assert_eq!((options.broker(), options.capture), (BrokerChoice::Embedded, CaptureChoice::Simulated));
        assert!(!options.keep && !options.json);
        assert_eq!(format!("{options:?}"), format!("{:?}", DemoOptions::default()));
        let real = parse(&["--capture", "debezium", "--debezium", "3.7"]).unwrap();
        assert_eq!((real.events(), real.broker(), real.debezium), (12_000, BrokerChoice::Kafka, Debezium::V3_7));
    }

    #[test]
    fn a_broker_is_a_word_or_an_address() {
        let broker = |text: &str| parse(&["--broker", text]).map(|options| options.broker());
        assert_eq!(broker("kafka"), Ok(BrokerChoice::Kafka));
        for address in ["localhost:9092", "10.0.0.1:9092,10.0.0.2:9092", "[::1]:9092"] {
            assert_eq!(broker(address), Ok(BrokerChoice::Given(address.to_string())));
        }
        for bad in ["localhost", "kafka+ssl://h:1", "h:0", "h:99999", ":9092", "h:1,", "user@h:1", ""] {
            assert!(broker(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        assert_eq!(parse(&["--orgs", "a,b,c"]).unwrap().orgs, ["a", "b", "c"]);
        for bad in [["--orgs", "emea,emea"], ["--orgs", "Emea"], ["--orgs", ""], ["--workers", "9"], ["--events", "5"]]
        {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
        assert!(parse(&["--capture", "debezium", "--broker", "embedded"]).unwrap_err().contains("real Kafka"));
    }
}
