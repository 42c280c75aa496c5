//! Verbs that only print.

use std::io::Write;

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::args::Cli;
use super::failure::{Exit, Failure};
use crate::config::{Config, LogFormat, without_passwords};

/// Writes to stdout. A reader that has seen enough (`| head`) is not a failure.
pub(super) fn stdout(text: &str) -> Result<(), Failure> {
    to_reader(text).map(drop)
}

/// Writes to stdout; whether somebody reads it. Whoever would write more can end when nobody does.
pub(super) fn to_reader(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(failed(&error)),
    }
}

/// What was to be written to stdout is not there as a whole.
pub(super) fn failed(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "stdout", error).next("make room where the output goes, or send it elsewhere")
}

/// Writes to stderr, without passwords. Nobody may be reading it: that changes no exit code.
pub(super) fn stderr(text: &str) {
    let _ = std::io::stderr().write_all(without_passwords(text).as_bytes());
}

/// `config show`.
pub(super) fn config(config: &Config, json: bool) -> Result<(), Failure> {
    for warning in &config.warnings {
        eprintln!("afterimage: warning: {warning}");
    }
    if json { stdout(&format!("{:#}\n", config.shown().json())) } else { stdout(&config.shown().toml()) }
}

/// `completions`.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    // Only here: what is typed is judged with the configuration, wherever it stands.
    let mut command = Cli::command()
        .mut_arg("log_format", |flag| flag.value_parser(LogFormat::CHOICES.map(|(name, _)| name)))
        .mut_arg("log_level", |flag| flag.value_parser(["error", "warn", "info", "debug", "trace", "off"]));
    clap_complete::generate(shell, &mut command, "afterimage", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Fish {
        // The generator has no values of arguments without a flag for it.
        let shells: Vec<String> = Shell::value_variants().iter().map(ToString::to_string).collect();
        let verb = "__fish_afterimage_using_subcommand completions";
        script.push_str(&format!("complete -c afterimage -n \"{verb}\" -f -a \"{}\"\n", shells.join(" ")));
    }
    stdout(&script)
}
