//! Passes on the trace that this program is part of, as OpenTelemetry's programs do
//! (<https://opentelemetry.io/docs/specs/otel/context/env-carriers/>). A worker's command gets it back.

use std::env;
use std::sync::OnceLock;

use rabbit_work::Task;

/// The names of the headers; the variables have them in upper case.
const HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// The task with the headers of our own trace. A header that the task has already stays.
pub(crate) fn with_trace(task: Task) -> Task {
    static TRACE: OnceLock<Vec<(&'static str, String)>> = OnceLock::new();
    let trace = TRACE.get_or_init(|| {
        let values = HEADERS.map(|name| (name, env::var(name.to_ascii_uppercase()).ok()));
        values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    });
    let is_given = |task: &Task, name| task.headers_as_text().any(|(given, _)| given == name);
    trace.iter().fold(task, |task, (name, value)| {
        if is_given(&task, *name) { task } else { task.with_header(*name, value) }
    })
}
