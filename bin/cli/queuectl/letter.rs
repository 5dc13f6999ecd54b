//! Formats a dead letter: as a row, as a JSON object, as a record.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rabbit_work::{DeadLetter, FailureRecord, Task};
use serde_json::{Value, json};

use crate::cli::common::base64::set_text_or_base64;
use crate::cli::common::text::one_line;

/// How many bytes of a body a row reads: enough for its 40 characters.
const ROW_BYTES: usize = 1024;

/// How many bytes of a body a record shows.
const RECORD_BYTES: usize = 64 * 1024;

pub(crate) fn heading() -> String {
    format!("{:<36}  {:<20}  {:>8}  {:<40}  {}", "ID", "DIED", "ATTEMPTS", "BODY", "REASON")
}

pub(crate) fn row(letter: &DeadLetter) -> String {
    let record = letter.record();
    format!(
        "{:<36}  {:<20}  {:>8}  {:<40}  {}",
        printable(letter.task().id().unwrap_or("-"), 255),
        time(record.last_failure).unwrap_or_else(|| "-".into()),
        record.attempts,
        printable(&beginning(letter.task(), ROW_BYTES), 40),
        both_ends(&record.reason, 200),
    )
}

/// A body that is not UTF-8 becomes `body_base64`.
pub(crate) fn as_object(letter: &DeadLetter) -> Value {
    let task = letter.task();
    let mut object = record_as_object(&letter.record());
    object["id"] = json!(task.id());
    object["enqueued_at"] = json!(time(task.enqueued_at()));
    set_text_or_base64(&mut object, "body", task.body());
    object["bytes"] = json!(task.body().len());
    object["history"] = letter.history().iter().map(record_as_object).collect();
    object
}

/// Everything about a letter, one line each, its body last.
pub(crate) fn record(letter: &DeadLetter) -> Vec<String> {
    let task = letter.task();
    let mut lines = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        lines.extend(value.map(|it| format!("{name:<15} {}", printable(&it, usize::MAX))));
    };
    add("id", task.id().map(str::to_owned));
    add_record(&letter.record(), &mut add);
    for death in letter.history() {
        let died = time(death.last_failure).unwrap_or_else(|| "-".into());
        let text = format!("{died}, after {} attempts: {}", death.attempts, death.reason);
        add("died before", Some(text));
    }
    add("enqueued at", time(task.enqueued_at()));
    add("content type", task.content_type().map(str::to_owned));
    add("encoding", task.content_encoding().map(str::to_owned));
    add("type", task.type_name().map(str::to_owned));
    add("priority", task.priority().map(|it| it.to_string()));
    add("correlation id", task.correlation_id().map(str::to_owned));
    add("reply to", task.reply_to().map(str::to_owned));
    for (name, value) in task.headers_as_text() {
        add("header", Some(format!("{name}: {value}")));
    }
    add("bytes", Some(task.body().len().to_string()));
    add("body", Some(beginning(task, RECORD_BYTES).into_owned()));
    lines
}

fn add_record(record: &FailureRecord, add: &mut impl FnMut(&str, Option<String>)) {
    let written = |text: &String| Some(text.clone()).filter(|it| !it.is_empty());
    add("queue", written(&record.queue));
    add("attempts", Some(record.attempts.to_string()));
    add("deferrals", Some(record.deferrals).filter(|it| *it > 0).map(|it| it.to_string()));
    add("first failure", time(record.first_failure));
    add("last failure", time(record.last_failure));
    add("reason", written(&record.reason));
    add("host", written(&record.host));
    add("version", written(&record.version));
}

fn record_as_object(record: &FailureRecord) -> Value {
    json!({
        "queue": record.queue,
        "attempts": record.attempts,
        "deferrals": record.deferrals,
        "first_failure": time(record.first_failure),
        "last_failure": time(record.last_failure),
        "reason": record.reason,
        "host": record.host,
        "version": record.version,
    })
}

fn beginning(task: &Task, bytes: usize) -> Cow<'_, str> {
    let body = task.body();
    String::from_utf8_lossy(&body[..body.len().min(bytes)])
}

/// On one line, without anything a terminal would act on, at most `width` characters.
pub(crate) fn printable(text: &str, width: usize) -> String {
    shortened(text, width.saturating_sub(1), 0)
}

/// Like [`printable`], but leaves out the middle: a reason begins with what happened, and ends with
/// the end of a command's standard error.
fn both_ends(text: &str, width: usize) -> String {
    let begin = width / 4;
    shortened(text.trim_end(), begin, width.saturating_sub(begin + 1))
}

fn shortened(text: &str, begin: usize, end: usize) -> String {
    let plain: Vec<char> = one_line(text).chars().collect();
    match plain.len().checked_sub(end) {
        Some(tail) if tail > begin + 1 => {
            plain[..begin].iter().chain(&['…']).chain(&plain[tail..]).collect()
        }
        _ => plain.into_iter().collect(),
    }
}

fn time(time: Option<SystemTime>) -> Option<String> {
    // The calendar of humantime ends with the year 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = time.filter(|it| it.duration_since(UNIX_EPOCH).is_ok_and(|since| since <= LAST))?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_in_its_middle() {
        assert_eq!(both_ends("short\n", 200), "short");
        let long = both_ends(&format!("first{}last", "x".repeat(500)), 20);
        assert!(long.starts_with("first…") && long.ends_with("last"), "{long}");
        assert_eq!(long.chars().count(), 20);
        assert_eq!(printable("a\tb\u{202e}c", 40), "a b c");
    }
}
