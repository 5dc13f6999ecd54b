//! Formats the result of a worker's run: as a log line, as JSON, as an exit status.

use std::io;

use log::error;
use rabbit_work::{Error, StopReason, Summary};
use serde_json::{Value, json};

use crate::cli::common::exit::Exit;
use crate::cli::common::signals::is_interrupted;
use crate::cli::worker::options::Options;

/// Whether the log gets a summary: not after a usage error before the first task.
pub(crate) fn has_news(summary: &Summary, ended: &Result<Summary, Error>) -> bool {
    let Summary { done, retried, deferred, dead, failed, lost, returned, orphaned, .. } = summary;
    let worked = done + retried + deferred + dead + failed + lost + returned + orphaned > 0;
    ended.as_ref().err().is_none_or(|error| worked || error.is_transient())
}

pub(crate) fn as_text(summary: &Summary) -> String {
    let Summary { done, retried, dead, failed, returned, orphaned, running, elapsed, .. } = summary;
    let returned = returned + failed;
    let if_any = |count: u64, what: &str| match count {
        0 => String::new(),
        _ => format!(" {count} {what},"),
    };
    let deferred = if_any(summary.deferred, "deferred");
    let (dead_unconfirmed, lost) =
        (if_any(summary.dead_unconfirmed, "maybe dead"), if_any(summary.lost, "lost"));
    format!(
        "{done} tasks done, {retried} retried,{deferred} {dead} dead,{dead_unconfirmed}{lost} {returned} \
         requeued, {orphaned} may run twice, {running} still running, in {:.1} s",
        elapsed.as_secs_f64()
    )
}

/// The summary of --json. A worker that never began has none.
pub(crate) fn as_json(summary: Option<&Summary>) -> Value {
    let count = |of: fn(&Summary) -> u64| summary.map_or(0, of);
    let mut object = json!({
        "done": count(|it| it.done),
        "retried": count(|it| it.retried),
        "dead": count(|it| it.dead),
        "returned": count(|it| it.returned + it.failed),
        "seconds": summary.map_or(0.0, |it| it.elapsed.as_secs_f64()),
        "ended": reason_in_json(summary.map_or(StopReason::Failed, |it| it.ended)),
    });
    // Rare; all but the first are causes of exit status 1.
    for (name, count) in [
        ("deferred", count(|it| it.deferred)),
        ("doubtful", count(|it| it.dead_unconfirmed)),
        ("lost", count(|it| it.lost)),
    ] {
        if count > 0 {
            object[name] = json!(count);
        }
    }
    object
}

fn reason_in_json(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Drained => "drained",
        StopReason::MaxTasks => "max-tasks",
        StopReason::MaxDead => "max-dead",
        StopReason::Stopped | StopReason::GraceExceeded | StopReason::Aborted => "signal",
        _ => "error",
    }
}

/// The exit status of a run that ended without an error of the library.
pub(crate) fn exit_of(
    summary: &Summary,
    options: &Options,
    unwritable: Option<&io::Error>,
) -> Exit {
    let Summary { done, retried, deferred, dead, dead_unconfirmed, failed, lost, .. } = summary;
    let ran = done + retried + deferred + dead + failed + lost;
    let is_batch = options.drain || options.max_tasks.is_some();
    if let Some(error) = unwritable {
        error!("standard output cannot be written: {error}");
    }
    match summary.ended {
        StopReason::Aborted if is_interrupted() => Exit::Interrupted,
        StopReason::Aborted | StopReason::GraceExceeded => Exit::GraceExceeded,
        StopReason::HandlerStopped => Exit::Usage,
        StopReason::MaxDead => Exit::Failed,
        _ if unwritable.is_some() => Exit::Failed,
        StopReason::Stopped if is_batch => Exit::Unfinished,
        StopReason::Drained | StopReason::MaxTasks if dead + dead_unconfirmed + lost > 0 => {
            Exit::Failed
        }
        // A task that could not be started, or may run twice, does not count as run.
        StopReason::MaxTasks if options.max_tasks.is_some_and(|asked| ran < asked) => Exit::Failed,
        _ => Exit::Success,
    }
}
