//! `queuectl dead`: lists, shows, replays and purges dead letters.

use std::ops::ControlFlow;

use log::error;
use rabbit_work::{DeadLetterFilter, DeadLetters};

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::stdio::write_out;
use crate::cli::queuectl::letter::{as_object, heading, record, row};
use crate::cli::queuectl::output::{exit_as_printed, print, report_missing, report_purged};

/// How one letter is shown.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Raw,
    Record,
}

/// Prints rows only when all letters are requeued: a reader may take a long time.
pub(crate) fn list(letters: &DeadLetters, filter: &DeadLetterFilter) -> Result<Exit, CommandError> {
    let (rows, missing) = rows(letters, filter)?;
    let printed = print([heading()].into_iter().chain(rows));
    Ok(printed.then(|| report_missing(&missing)))
}

fn rows(
    letters: &DeadLetters,
    filter: &DeadLetterFilter,
) -> Result<(Vec<String>, Vec<String>), CommandError> {
    let mut rows = Vec::new();
    let missing = letters.for_each(filter, |letter| {
        rows.push(row(&letter));
        ControlFlow::Continue(())
    })?;
    Ok((rows, missing))
}

/// Prints letter by letter: JSON has whole bodies, too many for memory.
pub(crate) fn list_as_json(
    letters: &DeadLetters,
    filter: &DeadLetterFilter,
) -> Result<Exit, CommandError> {
    let (mut before, mut printed) = ("[", Ok(()));
    let missing = letters.for_each(filter, |letter| {
        printed = write_out(format!("{before}{}", as_object(&letter)).as_bytes());
        before = ",\n";
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let end = if before == "[" { "[]\n" } else { "]\n" };
    let printed = printed.and_then(|()| write_out(end.as_bytes()));
    Ok(exit_as_printed(printed).then(|| report_missing(&missing)))
}

pub(crate) fn show(letters: &DeadLetters, id: &str, form: Form) -> Result<Exit, CommandError> {
    let mut printed = Exit::Success;
    let missing = letters.for_each(&DeadLetterFilter::all().id(id).limit(1), |letter| {
        printed = match form {
            Form::Raw => exit_as_printed(write_out(letter.task().body())),
            Form::Record => print(record(&letter)),
        };
        ControlFlow::Break(())
    })?;
    Ok(printed.then(|| report_missing(&missing)))
}

pub(crate) fn preview_replay(
    letters: &DeadLetters,
    filter: &DeadLetterFilter,
) -> Result<Exit, CommandError> {
    let (rows, missing) = rows(letters, filter)?;
    let count = format!("{} would be replayed", rows.len());
    let printed = print([heading()].into_iter().chain(rows).chain([count]));
    Ok(printed.then(|| report_missing(&missing)))
}

pub(crate) fn replay(
    letters: &DeadLetters,
    filter: &DeadLetterFilter,
) -> Result<Exit, CommandError> {
    let summary = letters.replay(filter)?;
    let printed = print([format!("{} replayed", summary.replayed)]);
    if let Some(reason) = &summary.stopped {
        error!("a task was not confirmed; its letter and those after it stay: {reason}");
        return Ok(Exit::Failed);
    }
    Ok(printed.then(|| report_missing(&summary.missing)))
}

pub(crate) fn purge(
    letters: &DeadLetters,
    filter: &DeadLetterFilter,
) -> Result<Exit, CommandError> {
    let summary = letters.purge(filter)?;
    Ok(report_purged(summary.purged, &summary.missing))
}
