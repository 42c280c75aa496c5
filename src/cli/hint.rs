//! Refusals of a command line. The nearest verb or flag is named where clap names none: its measure finds nothing near a
//! short name with two letters swapped.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::args::Cli;
use crate::config::{masked_argument, nearest};

/// How clap ends its refusals.
const MORE: &str = "For more information, try ";

/// A refusal as it is printed: with what was likely meant, the next step in the form of all others, and without what may be
/// a password in what was typed.
pub(super) fn refusal(error: clap::Error, in_colours: bool, typed: &[String]) -> String {
    let text = with_nearest(error, typed).render();
    let mut text = if in_colours { text.ansi().to_string() } else { text.to_string() };
    if let Some(at) = text.rfind(MORE) {
        let verb = verb(typed);
        text.replace_range(at.., &format!("  next: {} --help\n", verb.get_bin_name().unwrap_or("afterimage")));
    }
    for word in typed {
        for word in [Some(word.as_str()), word.split_once('=').map(|(_, value)| value)].into_iter().flatten() {
            if let Some(masked) = masked_argument(word) {
                text = text.replace(word, &masked);
            }
        }
    }
    text
}

/// The same error, with the verb or the flag that was likely meant.
fn with_nearest(mut error: clap::Error, typed: &[String]) -> clap::Error {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(typed)) => Some(typed.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument if error.get(ContextKind::SuggestedArg).is_none() => {
            let word = said(ContextKind::InvalidArg).unwrap_or_default();
            // What was typed may go on with a value.
            let name = word.strip_prefix("--").and_then(|name| name.split('=').next()).unwrap_or_default();
            if let Some(near) = nearest(name, flags(&verb(typed)).iter().map(String::as_str)) {
                error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{near}")));
            }
        }
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => {
            let word = said(ContextKind::InvalidSubcommand).unwrap_or_default();
            let verb = verb(typed);
            if let Some(near) = nearest(&word, verb.get_subcommands().map(Command::get_name)) {
                let near = ContextValue::Strings(vec![near.to_owned()]);
                error.insert(ContextKind::SuggestedSubcommand, near);
            }
        }
        _ => {}
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

    fn refused(line: &[&str]) -> String {
        let typed: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let error = Cli::try_parse_from(["afterimage"].iter().chain(line)).expect_err("no such line");
        refusal(error, false, &typed)
    }

    #[test]
    fn a_mistyped_word_is_told_its_nearest_and_where_to_read_more() {
        for (line, near, next) in [
            (&["run", "--ulr=postgres://u:hunter2@h/d"][..], "argument exists: '--url'", "run"),
            (&["run", "--ulr", "x"], "argument exists: '--url'", "run"),
            (&["--gruop=g", "run"], "argument exists: '--group'", "run"),
            (&["migarte"], "subcommand exists: 'migrate'", ""),
            (&["config", "shwo"], "subcommand exists: 'show'", "config"),
            (&["config", "nothing-like-it"], "unrecognized subcommand", "config"),
            (&["demo", "--workers", "9"], "9 is not in 1..=8", "demo"),
            (&["demo", "--wrokers", "3"], "'--workers'", "demo"),
        ] {
            let text = refused(line);
            let next = format!("\n  next: afterimage {next} --help\n").replace("  --help", " --help");
            assert!(text.contains(near) && text.ends_with(&next), "{near} {next}\n{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn no_refusal_quotes_a_password() {
        for line in [
            &["demo", "--broker", "u:hunter2@h:9092"][..],
            &["demo", "--broker=u:hunter2@h:9092"],
            &["demo", "--broker", "u:hun ter'2@h:9092"],
            &["demo", "--broker=kafka://u:hun ter'2@h:9092"],
            &["demo", "--broker", "kafka://hunter2"],
            &["demo", "u:hunter2@h:9092"],
            &["run", "postgres://u:hun ter2@h/d"],
            &["u:hunter2@h"],
            &["demo", "--seed", "postgres://u:hunter2@h/d"],
        ] {
            let text = refused(line);
            assert!(!text.contains("hun") && !text.contains("ter2"), "{text}");
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
