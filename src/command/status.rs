//! What the exit status of a program says of its task, in the words of a failure's reason.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::command::process::Ended;
use crate::model::handler::Failure;

/// `EX_DATAERR` of sysexits.h.
const NEVER_RETRY: i32 = 65;
/// `EX_TEMPFAIL` of sysexits.h.
const NOT_NOW: i32 = 75;

/// What an exit status says of the task.
pub(crate) fn verdict_of_status(ended: &Ended) -> Result<(), Failure> {
    match ended.status.code() {
        Some(0) => Ok(()),
        Some(NEVER_RETRY) => Err(Failure::reject(with_tail("exit status 65", ended))),
        Some(NOT_NOW) => Err(Failure::defer(with_tail("exit status 75", ended), None)),
        Some(code) => Err(Failure::retry(with_tail(&format!("exit status {code}"), ended))),
        None => Err(Failure::retry(with_tail(&signal_in_words(ended.status), ended))),
    }
}

fn signal_in_words(status: ExitStatus) -> String {
    let core = if status.core_dumped() { ", core dumped" } else { "" };
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}{core}"),
        None => status.to_string(),
    }
}

/// What happened, and the end of the program's standard error.
pub(crate) fn with_tail(what: &str, ended: &Ended) -> String {
    let tail = ended.kept.stderr_tail.trim_ascii_end();
    if tail.is_empty() {
        return what.to_string();
    }
    format!("{what}; the end of its standard error: {}", String::from_utf8_lossy(tail))
}
