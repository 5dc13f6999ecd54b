//! Parses a command line with clap, without showing a login in an error, and the values of options.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Parser};

use crate::cli::call::Call;
use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::variables::{explain, with_variables};

/// The parsed command line, completed by variables; ends the process on an error, or after --help and
/// --version.
pub(crate) fn parse<T: Parser>(call: &Call) -> T {
    let words: Vec<OsString> = call.words().collect();
    let command = with_variables(call.define(T::command()), &words);
    let runs_a_command = command.get_positionals().any(Arg::is_last_set);
    let matches = command.try_get_matches_from(words);
    let parsed = matches.and_then(|matches| T::from_arg_matches(&matches));
    parsed.unwrap_or_else(|mut error| {
        explain(&mut error);
        if runs_a_command {
            hint_at_dashes(&mut error);
        }
        exit_with(&error)
    })
}

/// Ends the process with this error, or after what --help and --version print. An error that repeats a
/// URL shows it without its login.
#[allow(clippy::exit)]
pub(crate) fn exit_with(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        // --help and --version repeat nothing that was given.
        error.exit();
    }
    let _ = write!(io::stderr(), "{}", without_logins(&error.render().to_string()));
    std::process::exit(i32::from(Exit::Usage.status()))
}

/// A word that is no option is most likely the command.
fn hint_at_dashes(error: &mut clap::Error) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return };
    if error.kind() == ErrorKind::UnknownArgument && !word.starts_with('-') {
        let hint = format!("put -- before the command: -- {word}").into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint]));
    }
}

/// The text without anything between `://` and the last `@` after it: a password may hold an `@`.
fn without_logins(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part.rsplit_once('@') {
            Some((_, after)) => shown += &format!("://…@{after}"),
            None => shown += &format!("://{part}"),
        }
    }
    shown
}

/// Whether the command line has a `--`, even if nothing follows: `-- $JOB` with an empty JOB.
pub(crate) fn has_two_dashes() -> bool {
    env::args_os().any(|word| word == "--")
}

/// Refuses `-`, which users write for standard output, and which would become a file of that name.
pub(crate) fn refuse_dash(option: &'static str, path: &Path) -> Result<(), CommandError> {
    let reason = "for standard output write /dev/stdout, and for a file of that name ./-";
    refuse_dash_because(reason, option, path)
}

/// The same for an option that writes to no stream.
pub(crate) fn refuse_dash_for_file(option: &'static str, path: &Path) -> Result<(), CommandError> {
    let reason = "it cannot be standard output; name a file, or write ./- for one of that name";
    refuse_dash_because(reason, option, path)
}

fn refuse_dash_because(
    reason: &str,
    option: &'static str,
    path: &Path,
) -> Result<(), CommandError> {
    if path == Path::new("-") {
        return Err(CommandError::usage(option, reason));
    }
    Ok(())
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    // humantime reads M as months.
    if text.contains('M') {
        return Err("M is for months; write 5m for minutes".into());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 500ms, 30s, 5m or 1h"))
}
