//! Formats the result of a worker's run: as a log line, as JSON, as an exit status.

use log::error;
use rabbit_work::{QueueSummary, StopReason, Summary, WorkersSummary};
use serde_json::{Value, json};

use crate::cli::common::exit::Exit;
use crate::cli::common::signals::is_interrupted;
use crate::cli::worker::options::Options;
use crate::cli::worker::output::WriteError;

/// The lines of the log about a run: one for each queue that has news, and one for all of them.
pub(crate) fn as_lines(summary: &WorkersSummary) -> Vec<String> {
    let queues = &summary.by_queue;
    let news: Vec<&QueueSummary> = queues.iter().filter(|it| has_news(it)).collect();
    let of_queue = |it: &&QueueSummary| format!("'{}': {}", it.queue, it.summary);
    let several = news.iter().filter(|_| queues.len() > 1);
    let total = (!news.is_empty()).then(|| summary.total().to_string());
    several.map(of_queue).chain(total).collect()
}

/// Whether the log gets a summary: not after a usage error before the first task.
fn has_news(QueueSummary { summary, error, .. }: &QueueSummary) -> bool {
    let Summary { done, retried, deferred, dead, failed, lost, requeued, orphaned, .. } = summary;
    let worked = done + retried + deferred + dead + failed + lost + requeued + orphaned > 0;
    error.as_ref().is_none_or(|error| worked || error.is_transient())
}

/// The summary of --json. A worker that never began has none.
pub(crate) fn as_json(summary: Option<&WorkersSummary>) -> Value {
    let mut object = counts_as_json(summary.map(WorkersSummary::total).as_ref());
    if let Some(several) = summary.filter(|it| it.by_queue.len() > 1) {
        let queues = several.by_queue.iter();
        let by_queue = queues.map(|it| (it.queue.clone(), queue_as_json(it))).collect();
        object["by_queue"] = Value::Object(by_queue);
    }
    object
}

fn queue_as_json(queue: &QueueSummary) -> Value {
    let mut object = counts_as_json(Some(&queue.summary));
    if let Some(error) = &queue.error {
        object["ended"] = json!(StopReason::Failed.name());
        object["error"] = json!(error.chain());
    }
    object
}

fn counts_as_json(summary: Option<&Summary>) -> Value {
    let count = |of: fn(&Summary) -> u64| summary.map_or(0, of);
    let mut object = json!({
        "done": count(|it| it.done),
        "retried": count(|it| it.retried),
        "dead": count(|it| it.dead),
        "returned": count(|it| it.requeued + it.failed),
        "seconds": summary.map_or(0.0, |it| it.elapsed.as_secs_f64()),
        "ended": summary.map_or(StopReason::Failed, |it| it.ended).name(),
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

/// The exit status of a run: the worst of its queues.
pub(crate) fn exit_of(
    summary: &WorkersSummary,
    options: &Options,
    unwritable: Option<&WriteError>,
) -> Exit {
    if let Some(error) = unwritable {
        error!("{error}");
    }
    let of_queue = |it: &QueueSummary| match &it.error {
        Some(error) => Exit::of(error),
        None => exit_of_counts(&it.summary, options, unwritable),
    };
    let exits = summary.by_queue.iter().map(of_queue);
    exits.fold(exit_of_max_tasks(&summary.total(), options), Exit::or_worse)
}

/// A task that could not be started, or may run twice, does not count as run.
fn exit_of_max_tasks(total: &Summary, options: &Options) -> Exit {
    let Summary { done, retried, deferred, dead, failed, lost, .. } = total;
    let ran = done + retried + deferred + dead + failed + lost;
    let is_short = options.max_tasks.is_some_and(|asked| ran < asked);
    if total.ended == StopReason::MaxTasks && is_short { Exit::Failed } else { Exit::Success }
}

/// The exit status of one queue that ended without an error of the library.
fn exit_of_counts(summary: &Summary, options: &Options, unwritable: Option<&WriteError>) -> Exit {
    let Summary { dead, dead_unconfirmed, lost, .. } = summary;
    let is_batch = options.drain || options.max_tasks.is_some();
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
        _ => Exit::Success,
    }
}

#[cfg(test)]
mod tests {
    /// A program that serializes its summary gets the keys and words of `worker --json`.
    #[test]
    #[cfg(feature = "json")]
    fn a_serialized_summary_has_the_keys_of_the_command_and_the_same_values() {
        use std::time::Duration;

        use super::*;

        let elapsed = Duration::from_millis(1500);
        let none = WorkersSummary { by_queue: Vec::new(), elapsed }.total();
        let summary = Summary { done: 1, retried: 2, deferred: 3, dead: 4, ..none };
        let summary = Summary { dead_unconfirmed: 5, failed: 6, lost: 7, ..summary };
        let summary = Summary { requeued: 8, orphaned: 9, running: 10, ..summary };
        for ended in [
            StopReason::Stopped,
            StopReason::MaxTasks,
            StopReason::MaxDead,
            StopReason::Drained,
            StopReason::HandlerStopped,
            StopReason::GraceExceeded,
            StopReason::Aborted,
            StopReason::Failed,
        ] {
            let summary = Summary { ended, ..summary };
            let serialized = serde_json::to_value(summary).expect("JSON");
            let queue = QueueSummary { queue: "q".into(), summary, error: None };
            let printed = as_json(Some(&WorkersSummary { by_queue: vec![queue], elapsed }));

            assert_eq!(printed["returned"], 14);
            for (key, value) in printed.as_object().expect("an object") {
                assert_eq!(serialized[key], *value, "{key}");
            }
        }
    }
}
