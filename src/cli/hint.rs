//! The nearest flag, where clap names none: its measure finds nothing near a short name with two letters swapped.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::args::Cli;
use crate::config::nearest;

/// The same error, with the flag that was likely meant.
pub(super) fn with_nearest(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument
        && error.get(ContextKind::SuggestedArg).is_none()
        && let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidArg)
        && let Some(name) = typed.strip_prefix("--")
    {
        // What was typed may go on with a value.
        let name = name.split('=').next().unwrap_or_default();
        let flags = flags(&verb(&std::env::args().skip(1).collect::<Vec<_>>()));
        if let Some(near) = nearest(name, flags.iter().map(String::as_str)) {
            error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{near}")));
        }
    }
    error
}

/// The verb that a command line names, as far as it is one.
fn verb(line: &[String]) -> Command {
    let mut command = Cli::command();
    command.build();
    for word in line {
        // Owned: the next step replaces what it was found in.
        if let Some(below) = command.find_subcommand(word).cloned() {
            command = below;
        }
    }
    command
}

fn flags(command: &Command) -> Vec<String> {
    command.get_arguments().filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_mistyped_flag_is_told_its_nearest_with_and_without_a_value() {
        for (line, near) in [
            (&["afterimage", "run", "--ulr=postgres://u:hunter2@h/d"][..], "--url"),
            (&["afterimage", "run", "--ulr", "x"], "--url"),
            (&["afterimage", "--gruop=g", "run"], "--group"),
        ] {
            let error = with_nearest(Cli::try_parse_from(line).expect_err("no such flag"));
            let text = error.render().to_string();
            assert!(
                text.contains(&format!("a similar argument exists: '{near}'")) && !text.contains("hunter2"),
                "{text}"
            );
        }
    }

    #[test]
    fn each_verb_has_its_own_flags_and_those_of_all() {
        let of = |line: &[&str]| flags(&verb(&line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()));
        let types = of(&["--url", "x", "config", "types"]);
        assert!(["from", "org", "url"].iter().all(|flag| types.iter().any(|name| name == flag)), "{types:?}");
        assert!(!of(&["run"]).iter().any(|name| name == "from"));
    }
}
