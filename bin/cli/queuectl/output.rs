//! Prints results, logs errors, and turns both into exit statuses.

use std::fmt;
use std::io;

use log::error;
use rabbit_work::Error;

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::stdio::print_line;
use crate::cli::queuectl::letter::printable;

/// Prints lines, up to the first that cannot be printed.
pub(crate) fn print(lines: impl IntoIterator<Item = impl fmt::Display>) -> Exit {
    exit_as_printed(lines.into_iter().try_for_each(print_line))
}

/// A reader that stops reading has read enough.
pub(crate) fn exit_as_printed(printed: io::Result<()>) -> Exit {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            error!("standard output cannot be written: {error}");
            Exit::Failed
        }
        _ => Exit::Success,
    }
}

pub(crate) fn report_purged(purged: u64, missing: &[String]) -> Exit {
    print([format!("{purged} thrown away")]).then(|| report_missing(missing))
}

/// Reports the ids that no dead letter has.
pub(crate) fn report_missing(ids: &[String]) -> Exit {
    if ids.is_empty() {
        return Exit::Success;
    }
    let ids: Vec<String> = ids.iter().map(|id| printable(id, 256)).collect();
    error!("no such dead letter: {}", ids.join(", "));
    Exit::Failed
}

pub(crate) fn log_error(error: CommandError) -> Exit {
    let (exit, advice) = match &error {
        CommandError::Usage { .. } => (Exit::Usage, ""),
        CommandError::Library(error) => (exit_of(error), advice(error)),
    };
    error!("{error}{advice}");
    exit
}

/// What to do, if the library's error does not say it.
pub(crate) fn advice(error: &Error) -> &'static str {
    match error {
        Error::QueueMissing { .. } => "; check --queue, or start a worker, which creates it",
        _ => "",
    }
}

/// The exit status for an error: 1 if the request was right, and the broker could not do it.
pub(crate) fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Blocked { .. } | Error::QueueMissing { .. } => Exit::Failed,
        error => Exit::of(error),
    }
}
