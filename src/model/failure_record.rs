//! Writes failures into a task's headers, and reads them: how many, when, why and where. Pure.

use std::time::SystemTime;

use crate::model::task::{Headers, SET_ASIDE, Task, USUAL_FRAME, Value};

/// A task's failures since it was published, or last replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureRecord {
    /// The queue from which a worker took it.
    pub queue: String,
    /// How many attempts failed.
    pub attempts: u64,
    /// How often the task was deferred, which counts as no attempt.
    pub deferrals: u64,
    /// When the first attempt failed, to the second.
    pub first_failure: Option<SystemTime>,
    /// When the last attempt failed, to the second.
    pub last_failure: Option<SystemTime>,
    /// Why the last attempt failed; at most 4,500 bytes.
    pub reason: String,
    /// The host of the worker of the last attempt; empty if the broker made the dead letter.
    pub host: String,
    /// The version of that worker; empty if the broker made the dead letter.
    pub version: String,
}

/// Where and when a failure occurred.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailureContext<'a> {
    pub(crate) queue: &'a str,
    pub(crate) host: &'a str,
    pub(crate) now: SystemTime,
}

/// A task after its record was cut to the room in a frame.
pub(crate) enum Fitted {
    Recorded(Task),
    /// There is no room, and the task has no record.
    Truncated(Task),
}

/// All headers of ours begin with this.
const PREFIX: &str = "x-rabbit-work-";
const ATTEMPTS: &str = "x-rabbit-work-attempts";
const DEFERRALS: &str = "x-rabbit-work-deferrals";
const QUEUE: &str = "x-rabbit-work-queue";
const FIRST: &str = "x-rabbit-work-first-failure";
const LAST: &str = "x-rabbit-work-last-failure";
const REASON: &str = "x-rabbit-work-reason";
const HOST: &str = "x-rabbit-work-host";
const VERSION: &str = "x-rabbit-work-version";
const HISTORY: &str = "x-rabbit-work-history";
const OWN_HEADERS: [&str; 8] = [ATTEMPTS, DEFERRALS, QUEUE, FIRST, LAST, REASON, HOST, VERSION];
/// Headers that only a dead letter has.
const DEAD_LETTER_HEADERS: [&str; 4] = [QUEUE, LAST, HOST, VERSION];

/// The header in which the broker records what it dead-letters
/// (<https://www.rabbitmq.com/docs/dlx>).
const X_DEATH: &str = "x-death";
/// The headers of the broker's record. It is about a message that we have acked, and we remove it from
/// the task: otherwise RabbitMQ takes the next dead letter for the same message, and drops messages
/// that it has dead-lettered in a circle.
const BROKER_HEADERS: [&str; 9] = [
    X_DEATH,
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
];

/// Room for the last 4 KiB of a program's output, and for its exit status.
const LONGEST_REASON: usize = 4500;
/// The length of a reason if the headers leave little room.
const SHORT_REASON: usize = 200;
/// How many earlier failures a history keeps.
const LONGEST_HISTORY: usize = 10;

/// Whether a header is not the producer's: it is ours, or the broker's on a dead letter.
pub(crate) fn is_internal_header(name: &str) -> bool {
    name.starts_with(PREFIX) || BROKER_HEADERS.contains(&name)
}

/// The number of a task's next attempt, from 1. If the counter cannot be read, it is the last
/// attempt: a task must not be tried for ever because its header was damaged.
pub(crate) fn attempt_of(task: &Task, max_attempts: u32) -> u32 {
    match task.value(ATTEMPTS) {
        None => 1,
        Some(count) => small(count).map_or(max_attempts, |failures| failures.saturating_add(1)),
    }
}

/// How often a task was deferred. If the counter cannot be read, it is as often as allowed, for the
/// same reason.
pub(crate) fn deferrals_of(task: &Task, max_defers: u32) -> u32 {
    task.value(DEFERRALS).map_or(0, |count| small(count).unwrap_or(max_defers))
}

/// The task for another try, after the attempt of this number has failed. It has no more headers than
/// the next attempt needs: the broker reads and sorts them several times on the way back, and four
/// more made the whole way a fifth longer (RabbitMQ 3.10.8).
pub(crate) fn to_retry(
    task: Task,
    attempt: u32,
    reason: &str,
    context: FailureContext<'_>,
) -> Task {
    let first = task.value(FIRST).and_then(Value::as_time).unwrap_or(context.now);
    let written = [
        (ATTEMPTS, Some(Value::I64(attempt.into()))),
        (FIRST, Value::time(first)),
        (REASON, Some(Value::Text(cut_reason(reason)))),
    ];
    let removed = BROKER_HEADERS.into_iter().chain(DEAD_LETTER_HEADERS).map(|name| (name, None));
    task.prepare_for_republish().with_values(removed.chain(written))
}

/// The task to be tried again, after it was deferred so often. Its failures stay as they are.
pub(crate) fn to_deferred(task: Task, deferrals: u32) -> Task {
    let removed = BROKER_HEADERS.into_iter().chain(DEAD_LETTER_HEADERS).map(|name| (name, None));
    let written = (DEFERRALS, Some(Value::I64(deferrals.into())));
    task.prepare_for_republish().with_values(removed.chain([written]))
}

/// The task as a dead letter, after the attempt of this number has failed.
pub(crate) fn to_dead_letter(
    task: Task,
    attempt: u32,
    reason: &str,
    context: FailureContext<'_>,
) -> Task {
    let written = [
        (QUEUE, Some(Value::Text(context.queue.into()))),
        (LAST, Value::time(context.now)),
        (HOST, Some(Value::Text(context.host.into()))),
        (VERSION, Some(Value::Text(env!("CARGO_PKG_VERSION").into()))),
    ];
    to_retry(task, attempt, reason, context).with_values(written)
}

/// The dead letter as a task again: it has no failures yet, and its earlier failures are in its
/// history. Its expiration stays set aside: the task could expire again before a worker takes it.
pub(crate) fn reset_for_replay(letter: Task) -> Task {
    let mut history = history_of(&letter);
    history.push(record_of(&letter));
    let skipped = history.len().saturating_sub(LONGEST_HISTORY);
    let history = history.into_iter().skip(skipped).map(written).collect();
    let removed = BROKER_HEADERS.into_iter().chain(OWN_HEADERS).map(|name| (name, None));
    let written = (HISTORY, Some(Value::List(history)));
    let task = letter.prepare_for_republish().with_values(removed.chain([written]));
    match fitted(task, USUAL_FRAME) {
        Fitted::Recorded(task) | Fitted::Truncated(task) => task,
    }
}

/// Takes one step towards a task without our record.
fn shortened(task: Task) -> Fitted {
    match (task.value(HISTORY), task.value(REASON)) {
        (Some(Value::List(deaths)), _) if !deaths.is_empty() => {
            let rest = &deaths[1..];
            let rest = (!rest.is_empty()).then(|| Value::List(rest.to_vec()));
            Fitted::Recorded(task.with_value(HISTORY, rest))
        }
        (_, Some(Value::Text(reason))) if reason.len() > SHORT_REASON => {
            let reason = Value::Text(cut(reason, SHORT_REASON));
            Fitted::Recorded(task.with_value(REASON, Some(reason)))
        }
        _ => {
            let ours = OWN_HEADERS.into_iter().chain(SET_ASIDE);
            Fitted::Truncated(task.with_values(ours.map(|name| (name, None))))
        }
    }
}

/// The task with as much of our record as its own headers leave room for: the newest failures of
/// the history, and the beginning and the end of the reason.
pub(crate) fn fitted(mut task: Task, largest_frame: usize) -> Fitted {
    while !task.fits_a_frame(largest_frame) {
        match shortened(task) {
            Fitted::Recorded(shorter) => task = shorter,
            bare => return bare,
        }
    }
    Fitted::Recorded(task)
}

/// The failures of a dead letter.
pub(crate) fn record_of(letter: &Task) -> FailureRecord {
    let mut record = read(|name| letter.value(name));
    if let Some(death) = last_death(letter) {
        apply_x_death(&mut record, death);
    }
    record
}

/// The failures before the last replay, oldest first.
pub(crate) fn history_of(letter: &Task) -> Vec<FailureRecord> {
    let Some(Value::List(entries)) = letter.value(HISTORY) else { return Vec::new() };
    entries.iter().map(|entry| read(|name| entry.entry(name))).collect()
}

fn read<'a>(get: impl Fn(&str) -> Option<&'a Value>) -> FailureRecord {
    let text = |name| get(name).and_then(Value::as_text).unwrap_or_default().to_owned();
    let time = |name| get(name).and_then(Value::as_time);
    let count = |name| get(name).and_then(number).and_then(|it| it.try_into().ok()).unwrap_or(0);
    FailureRecord {
        queue: text(QUEUE),
        attempts: count(ATTEMPTS),
        deferrals: count(DEFERRALS),
        first_failure: time(FIRST),
        last_failure: time(LAST),
        reason: text(REASON),
        host: text(HOST),
        version: text(VERSION),
    }
}

fn written(record: FailureRecord) -> Value {
    let mut entries = Headers::from([
        (QUEUE.into(), Value::Text(record.queue)),
        (ATTEMPTS.into(), Value::I64(record.attempts.try_into().unwrap_or(i64::MAX))),
        (REASON.into(), Value::Text(record.reason)),
        (HOST.into(), Value::Text(record.host)),
        (VERSION.into(), Value::Text(record.version)),
    ]);
    if record.deferrals > 0 {
        let deferrals = record.deferrals.try_into().unwrap_or(i64::MAX);
        entries.insert(DEFERRALS.into(), Value::I64(deferrals));
    }
    for (name, time) in [(FIRST, record.first_failure), (LAST, record.last_failure)] {
        entries.extend(time.and_then(Value::time).map(|time| (name.to_string(), time)));
    }
    Value::Table(entries)
}

/// The last entry of the broker's own record, if the broker made the dead letter. Ours carry none:
/// see [`BROKER_HEADERS`].
fn last_death(letter: &Task) -> Option<&Value> {
    match letter.value(X_DEATH) {
        Some(Value::List(deaths)) => deaths.first(),
        _ => None,
    }
}

/// Replaces what an earlier failure recorded with the broker's own record of a dead letter.
fn apply_x_death(record: &mut FailureRecord, death: &Value) {
    let text = |name| death.entry(name).and_then(Value::as_text);
    if let Some(queue) = text("queue") {
        record.queue = queue.into();
    }
    if let Some(time) = death.entry("time").and_then(Value::as_time) {
        record.last_failure = Some(time);
        record.first_failure.get_or_insert(time);
    }
    record.reason = match text("reason").unwrap_or_default() {
        "delivery_limit" => format!(
            "delivery limit: the broker delivered it more often than the queue allows, and each \
             time the worker crashed, lost its connection or requeued it ({} failures were \
             counted, too)",
            record.attempts
        ),
        "expired" => "expired: no worker took it in time".into(),
        "maxlen" => "the queue was full".into(),
        "rejected" => "rejected by a consumer".into(),
        other => format!("dead-lettered by the broker: {other}"),
    };
}

/// A whole number, or a text that is one.
fn number(value: &Value) -> Option<i64> {
    value.as_number().or_else(|| value.as_text()?.parse().ok())
}

/// The same, if it can be a count of ours.
fn small(value: &Value) -> Option<u32> {
    number(value)?.try_into().ok()
}

/// A reason in at most [`LONGEST_REASON`] bytes.
pub(crate) fn cut_reason(reason: &str) -> String {
    cut(reason, LONGEST_REASON)
}

/// At most `limit` bytes: the beginning and the end, where error texts say the most.
fn cut(text: &str, limit: usize) -> String {
    const GAP: &str = " … ";
    if text.len() <= limit {
        return text.to_string();
    }
    let half = (limit - GAP.len()) / 2;
    let mut head = half;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - half;
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}{GAP}{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    use crate::model::task::Ids;

    /// So large a header of the producer's own that a frame has room for so many bytes more.
    fn crowded(room: usize) -> Task {
        let with = |bytes: usize| Task::new("").with_header("h", "x".repeat(bytes));
        let largest = (0..128 * 1024).rev().find(|bytes| with(*bytes).fits_a_frame(USUAL_FRAME));
        with(largest.expect("a size") - room)
    }

    fn context(second: u64) -> FailureContext<'static> {
        FailureContext { queue: "q", host: "h", now: UNIX_EPOCH + Duration::from_secs(second) }
    }

    fn death(reason: &str) -> Value {
        Value::List(vec![Value::Table(Headers::from([
            ("reason".into(), Value::Text(reason.into())),
            ("queue".into(), Value::Text("q".into())),
            ("time".into(), Value::Timestamp(9)),
        ]))])
    }

    #[test]
    fn the_first_attempt_is_one_and_each_failure_adds_one() {
        let mut task = Task::new("x");
        for attempt in 1..=6 {
            assert_eq!(attempt_of(&task, 5), attempt);
            task = to_retry(task, attempt, "no", context(attempt.into()));
        }
        let record = record_of(&to_dead_letter(task, 7, "never", context(7)));
        assert_eq!((record.attempts, record.reason.as_str()), (7, "never"));
        assert_eq!(record.first_failure, Some(context(1).now));
        assert_eq!(record.last_failure, Some(context(7).now));
        assert_eq!((record.queue.as_str(), record.host.as_str()), ("q", "h"));
    }

    #[test]
    fn deferrals_are_counted_apart_until_a_replay() {
        let mut task = to_retry(Task::new("x"), 2, "no", context(1));
        for deferrals in 1..=3 {
            task = to_deferred(task, deferrals);
            assert_eq!((attempt_of(&task, 5), deferrals_of(&task, 9)), (3, deferrals));
        }
        assert_eq!(record_of(&task).reason, "no", "the last failure's");
        let letter = to_dead_letter(task, 3, "never", context(2));
        assert_eq!((record_of(&letter).attempts, record_of(&letter).deferrals), (3, 3));
        let replayed = reset_for_replay(letter);
        assert_eq!(deferrals_of(&replayed, 9), 0);
        assert_eq!(history_of(&replayed)[0].deferrals, 3);
        assert_eq!(attempt_of(&to_deferred(Task::new("x"), 1), 5), 1, "no attempt failed");
        for damaged in [Value::Text("many".into()), Value::I64(-1), Value::I64(i64::MAX)] {
            let task = Task::new("x").with_value(DEFERRALS, Some(damaged));
            assert_eq!(deferrals_of(&task, 9), 9);
        }
    }

    #[test]
    fn a_retry_carries_less_than_a_letter() {
        let letter = to_dead_letter(Task::new("x"), 1, "no", context(1));
        let retry = to_retry(letter.clone(), 2, "not yet", context(2));
        let names =
            |task: &Task| OWN_HEADERS.into_iter().filter(|it| task.value(it).is_some()).count();
        assert_eq!((names(&letter), names(&retry)), (7, 3));
        assert_eq!(record_of(&retry).reason, "not yet");
    }

    #[test]
    fn a_counter_that_cannot_be_read_is_the_last_attempt() {
        let with = |value| Task::new("x").with_value(ATTEMPTS, Some(value));
        for damaged in [
            Value::Text("many".into()),
            Value::Text(String::new()),
            Value::I64(-1),
            Value::I64(i64::MAX),
            Value::List(vec![]),
            Value::Timestamp(0),
        ] {
            assert_eq!(attempt_of(&with(damaged.clone()), 5), 5, "{damaged:?}");
        }
        assert_eq!(attempt_of(&with(Value::Text("2".into())), 5), 3);
        assert_eq!(attempt_of(&with(Value::I64(u32::MAX.into())), 5), u32::MAX);
    }

    #[test]
    fn a_replay_resets_the_count_and_keeps_the_history() {
        let mut task = Task::new("x")
            .with_id("1")
            .with_header("h", "v")
            .stamped(context(0).now, &mut Ids::new());
        let sent = task.clone();
        for round in 1..=12 {
            task = reset_for_replay(to_dead_letter(
                task,
                5,
                &format!("round {round}"),
                context(round),
            ));
            assert_eq!(attempt_of(&task, 5), 1);
        }
        let reasons: Vec<String> = history_of(&task).into_iter().map(|it| it.reason).collect();
        let last_ten: Vec<String> = (3..=12).map(|round| format!("round {round}")).collect();
        assert_eq!(reasons, last_ten);
        assert_eq!(history_of(&task)[0].first_failure, Some(context(3).now));
        assert_eq!(task.with_value(HISTORY, None).properties(), sent.properties());
    }

    #[test]
    fn the_brokers_own_death_says_so_and_does_not_come_back_with_the_task() {
        let task = to_retry(Task::new("x"), 2, "no", context(1));
        let letter = task.with_value(X_DEATH, Some(death("delivery_limit")));
        let record = record_of(&letter);
        assert!(record.reason.starts_with("delivery limit"), "{}", record.reason);
        assert_eq!(record.last_failure, Some(context(9).now));
        assert_eq!(record.attempts, 2);
        let again = reset_for_replay(letter);
        assert_eq!(again.value(X_DEATH), None);
        assert!(history_of(&again)[0].reason.starts_with("delivery limit"));
        assert_eq!(to_dead_letter(again, 1, "no", context(2)).value(X_DEATH), None);
    }

    #[test]
    fn a_reason_keeps_its_beginning_and_its_end() {
        assert_eq!(cut("short", LONGEST_REASON), "short");
        for text in ["x".repeat(5000), "é".repeat(5000), "€".repeat(5000)] {
            let short = cut(&format!("first{text}last"), LONGEST_REASON);
            assert!(short.len() <= LONGEST_REASON, "{}", short.len());
            assert!(short.starts_with("first") && short.ends_with("last"), "{short}");
        }
    }

    fn recorded(task: Task) -> Task {
        match fitted(task, USUAL_FRAME) {
            Fitted::Recorded(task) => task,
            Fitted::Truncated(_) => panic!("there is room"),
        }
    }

    #[test]
    fn a_record_makes_room_for_the_task_s_own_headers() {
        let failed = |room, reason: &str| to_dead_letter(crowded(room), 3, reason, context(1));
        let long = "é".repeat(3000);

        let whole = recorded(failed(10_000, &long));
        let short = recorded(failed(1000, &long));
        let Fitted::Truncated(none) = fitted(failed(100, "no"), USUAL_FRAME) else {
            panic!("no room")
        };

        assert!(record_of(&whole).reason.len() > LONGEST_REASON - 10);
        let record = record_of(&short);
        assert!(record.reason.len() <= SHORT_REASON && record.reason.ends_with('é'));
        assert_eq!((record.attempts, record.host.as_str()), (3, "h"));
        assert_eq!(none.properties(), crowded(100).prepare_for_republish().properties());
    }

    #[test]
    fn a_history_makes_room_from_its_oldest_death_on() {
        let mut task = crowded(10_000);
        for round in 1..=12 {
            let reason = format!("{round} {}", "x".repeat(4000));
            task = reset_for_replay(to_dead_letter(task, 5, &reason, context(round)));
            assert!(task.fits_a_frame(USUAL_FRAME));
        }
        let youngest = |task: &Task| -> Vec<u64> {
            let seconds =
                |it: FailureRecord| it.last_failure.expect("a time").duration_since(UNIX_EPOCH);
            history_of(task).into_iter().map(|it| seconds(it).expect("after").as_secs()).collect()
        };
        assert_eq!(youngest(&task), [11, 12]);
        let again = recorded(to_dead_letter(task, 1, &"y".repeat(4000), context(13)));
        assert_eq!(youngest(&again), [12]);
        assert!(record_of(&again).reason.len() == 4000);
    }
}
