//! What `afterimage demo` can be told.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Options of the demo; every one has a default.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// Row events that the simulated connectors emit.
    #[arg(long, value_name = "N", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(500..=20_000_000))]
    pub events: u64,

    /// Seed of the simulation: the same seed gives the same messages.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Names of the simulated orgs, separated by commas. The first one holds the article's account.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "emea,apac", value_parser = org_name)]
    pub orgs: Vec<String>,

    /// Worker processes that share the topics.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub workers: u8,

    /// Leave everything running at the end, until Ctrl-C: to look around with psql.
    #[arg(long)]
    pub keep: bool,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

impl DemoOptions {
    /// Checks what a single value's parser can't see.
    ///
    /// # Errors
    /// When an org is named twice, or there are more than eight.
    pub fn check(&self) -> Result<()> {
        let mut names = self.orgs.clone();
        names.sort_unstable();
        names.dedup();
        if names.len() != self.orgs.len() {
            bail!("--orgs names an org twice");
        }
        if names.is_empty() || names.len() > 8 {
            bail!("--orgs takes one to eight names");
        }
        Ok(())
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
        assert_eq!((options.events, options.seed, options.workers), (60_000, 1, 2));
        assert_eq!(options.orgs, ["emea", "apac"]);
        assert!(!options.keep && !options.json);
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        assert_eq!(parse(&["--orgs", "a,b,c"]).unwrap().orgs, ["a", "b", "c"]);
        for bad in [["--orgs", "emea,emea"], ["--orgs", "Emea"], ["--orgs", ""], ["--workers", "3"], ["--events", "5"]]
        {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
