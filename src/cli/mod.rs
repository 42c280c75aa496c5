//! The command line: parse, load the configuration, start telemetry, hand over to the verb.
//!
//! Nothing here decides anything about data. Errors come out in one form (see [`Failure`]), exit codes
//! are those of [`Exit`], results go to stdout and everything else to stderr.

mod args;
mod dead_letters;
mod failure;
mod hint;
mod offsets;
mod operator_args;
mod print;
mod reach;
mod seam;
mod settings;
mod state;
mod status;
mod terminal;
mod verbs;

pub use args::{Cli, Command, ConfigCommand, GlobalArgs, MigrateArgs, RunArgs, StatusArgs, TypesArgs};
pub use failure::{Exit, Failure};

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, Sources};
use crate::telemetry;

/// The program: parses the process's arguments and runs the verb.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // It quotes what was typed, in colours if somebody sees them.
            let typed: Vec<String> =
                std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
            print::stderr(&hint::refusal(error, std::io::stderr().is_terminal(), &typed));
            return Exit::Usage.into();
        }
        // Help and the version.
        Err(error) => {
            let text = error.render();
            let text = if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
            return match print::stdout(&text) {
                Ok(()) => Exit::Ok.into(),
                Err(failure) => {
                    print::stderr(&failure.to_string());
                    failure.exit.into()
                }
            };
        }
    };
    // Before the configuration is read, only these can tell that logs are to be JSON.
    let variable = std::env::var("AFTERIMAGE_LOG__FORMAT").ok();
    let json = cli.global.log_format.as_ref().or(variable.as_ref()).is_some_and(|format| format == "json");
    match dispatch(cli) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            print::stderr(&if json || telemetry::is_json() { failure.json() } else { failure.to_string() });
            failure.exit.into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completions { shell } => print::completions(shell),
        Command::Config { command } => match command {
            ConfigCommand::Show { json } => print::config(&load(&cli.global)?, json),
            ConfigCommand::Init { output, force } => settings::init(&output, force),
            ConfigCommand::Types(args) => verbs::types(&args),
        },
        Command::Run(args) => {
            let config = load(&cli.global)?;
            // Both before anything is started, so that a missing setting is an error of usage.
            config.kafka()?;
            config.postgres()?;
            verbs::run(config, args)
        }
        Command::Migrate(args) => {
            let config = load(&cli.global)?;
            config.postgres()?;
            verbs::migrate(config, args)
        }
        Command::Status(args) => {
            let config = load(&cli.global)?;
            config.postgres()?;
            verbs::status(config, args)
        }
        Command::Offsets(args) => {
            let config = load(&cli.global)?;
            config.postgres()?;
            verbs::offsets(config, args)
        }
        Command::DeadLetters(args) => {
            let config = load(&cli.global)?;
            config.postgres()?;
            verbs::dead_letters(config, args)
        }
        Command::State(args) => verbs::state(load(&cli.global)?, args),
        Command::Demo(args) => verbs::demo(&cli.global, args),
    }
}

/// The effective configuration of this process.
fn load(global: &GlobalArgs) -> Result<Config, Failure> {
    let mut sources = Sources::from_process();
    global.apply(&mut sources)?;
    let config = Config::load(&sources)?;
    seam::check_url(&config)?;
    seam::check_properties(&config)?;
    Ok(config)
}
