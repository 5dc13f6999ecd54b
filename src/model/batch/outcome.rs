//! [`BatchOutcome`]: how a task of a batch ended, as a worker reports it, in JSON. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::model::failure_record::cut_reason;
use crate::util::text::drop_part_of_letter;

/// How a task of a batch ended, as the worker reported it that ran it last.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BatchOutcome {
    /// The number of the task in its batch, from 1.
    pub n: u64,
    /// The task's id.
    pub task: String,
    /// How it ended.
    pub end: TaskEnd,
    /// How often it was tried.
    pub attempts: u32,
    /// The exit status of its program, if it had one.
    pub exit: Option<i32>,
    /// The signal that ended its program, if one did.
    pub signal: Option<i32>,
    /// Why it failed, if it did; at most 4,500 bytes.
    pub reason: Option<String>,
    /// The host of the worker.
    pub host: String,
    /// When its last attempt started, by that host's clock, to the millisecond.
    pub started: SystemTime,
    /// How long its last attempt took, to the millisecond.
    pub elapsed: Duration,
    /// What its program wrote to standard output, if the batch asked for it.
    pub output: Option<TaskOutput>,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// The handler returned `Ok`.
    Done,
    /// It failed for good, and is a dead letter.
    Dead,
}

/// What a program wrote to standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskOutput {
    /// The first 64 KiB, without a part of a letter at their end.
    pub bytes: Vec<u8>,
    /// How many bytes there were, if that is more.
    pub cut_from: Option<u64>,
}

/// What an outcome's AMQP `type` and JSON `type` are.
pub(crate) const TYPE: &str = "rabbit-work.outcome";

/// How much of a program's standard output comes back.
pub(crate) const LONGEST_OUTPUT: usize = 64 * 1024;

impl TaskOutput {
    /// The start of an output that had so many bytes.
    pub(crate) fn start_of(mut bytes: Vec<u8>, written: u64) -> TaskOutput {
        if written <= bytes.len() as u64 {
            return TaskOutput { bytes, cut_from: None };
        }
        drop_part_of_letter(&mut bytes);
        TaskOutput { bytes, cut_from: Some(written) }
    }
}

impl BatchOutcome {
    /// The outcome as one line of JSON, without a line end. What is absent has no key. Output that is
    /// not UTF-8 is in base64, under `output_base64`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        let mut set = |name: &str, value: Value| {
            object.insert(name.into(), value);
        };
        set("type", TYPE.into());
        set("n", self.n.into());
        set("task", self.task.as_str().into());
        set("outcome", self.end.name().into());
        set("attempts", self.attempts.into());
        let since = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        set("host", self.host.as_str().into());
        set("started", json!(in_seconds(since)));
        set("seconds", json!(in_seconds(self.elapsed)));
        for (name, number) in [("exit", self.exit), ("signal", self.signal)] {
            number.into_iter().for_each(|number| set(name, number.into()));
        }
        if let Some(reason) = &self.reason {
            set("reason", cut_reason(reason).into());
        }
        if let Some(TaskOutput { bytes, cut_from }) = &self.output {
            match std::str::from_utf8(bytes) {
                Ok(text) => set("output", text.into()),
                Err(_) => set("output_base64", BASE64.encode(bytes).into()),
            }
            cut_from.iter().for_each(|bytes| set("output_bytes", (*bytes).into()));
        }
        Value::Object(object).to_string()
    }

    /// Reads an outcome. `None` if it is none: anybody can publish to the queue of outcomes.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<BatchOutcome> {
        let object: Value = serde_json::from_slice(bytes).ok()?;
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let number = |name: &str| object.get(name)?.as_i64()?.try_into().ok();
        let seconds = |name: &str| {
            let seconds = object.get(name).and_then(Value::as_f64).unwrap_or_default();
            let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            Duration::from_millis((duration.as_secs_f64() * 1000.0).round() as u64)
        };
        if text("type") != Some(TYPE) {
            return None;
        }
        Some(BatchOutcome {
            n: object.get("n")?.as_u64().filter(|n| *n > 0)?,
            task: text("task").unwrap_or_default().into(),
            end: TaskEnd::named(text("outcome")?)?,
            attempts: object.get("attempts")?.as_u64()?.try_into().ok()?,
            exit: number("exit"),
            signal: number("signal"),
            reason: text("reason").map(cut_reason),
            host: text("host").unwrap_or_default().into(),
            started: UNIX_EPOCH.checked_add(seconds("started")).unwrap_or(UNIX_EPOCH),
            elapsed: seconds("seconds"),
            output: output_of(&object),
        })
    }
}

impl TaskEnd {
    /// Its name in JSON.
    fn name(self) -> &'static str {
        match self {
            TaskEnd::Done => "done",
            TaskEnd::Dead => "dead",
        }
    }

    fn named(name: &str) -> Option<TaskEnd> {
        [TaskEnd::Done, TaskEnd::Dead].into_iter().find(|end| end.name() == name)
    }
}

/// To the millisecond, so that nobody takes a clock for more exact than it is.
fn in_seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

fn output_of(object: &Value) -> Option<TaskOutput> {
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    let bytes = match text("output") {
        Some(text) => text.as_bytes().to_vec(),
        None => BASE64.decode(text("output_base64")?).ok()?,
    };
    Some(TaskOutput { bytes, cut_from: object.get("output_bytes").and_then(Value::as_u64) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(n: u64, end: TaskEnd) -> BatchOutcome {
        BatchOutcome {
            n,
            task: "id".into(),
            end,
            attempts: 2,
            exit: None,
            signal: None,
            reason: None,
            host: "host".into(),
            started: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            elapsed: Duration::from_millis(1500),
            output: None,
        }
    }

    #[test]
    fn an_outcome_is_a_flat_object() {
        let dead = BatchOutcome {
            exit: Some(65),
            reason: Some("exit status 65".into()),
            ..outcome(7, TaskEnd::Dead)
        };
        let read: Value = serde_json::from_str(&dead.to_json()).expect("JSON");
        let expected = json!({
            "type": "rabbit-work.outcome", "n": 7, "task": "id", "outcome": "dead", "attempts": 2,
            "exit": 65, "reason": "exit status 65", "host": "host", "started": 1_700_000_000.123,
            "seconds": 1.5,
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn output_that_is_cut_in_a_letter_is_still_text() {
        let text = "é".as_bytes();
        let start = |bytes: &[u8], written| {
            let output = Some(TaskOutput::start_of(bytes.to_vec(), written));
            let json = BatchOutcome { output, ..outcome(7, TaskEnd::Done) }.to_json();
            let read: Value = serde_json::from_str(&json).expect("JSON");
            ["output", "output_base64", "output_bytes"].map(|key| read[key].clone())
        };
        assert_eq!(start(&[b"a", text].concat(), 3), ["aé".into(), Value::Null, Value::Null]);
        assert_eq!(start(&[b"a", &text[..1]].concat(), 3), ["a".into(), Value::Null, 3.into()]);
        assert_eq!(
            start(&text[..1], 1),
            [Value::Null, "ww==".into(), Value::Null],
            "not cut by us"
        );
    }

    #[test]
    fn a_long_reason_is_cut_as_that_of_a_dead_letter() {
        let reason = format!("first{}last", "x".repeat(1 << 20));
        let dead = BatchOutcome { reason: Some(reason), ..outcome(7, TaskEnd::Dead) };
        let json = dead.to_json();
        assert!(json.len() < 5000, "{}", json.len());
        let read = BatchOutcome::from_json(json.as_bytes()).expect("an outcome");
        let reason = read.reason.expect("a reason");
        assert!(reason.starts_with("first") && reason.ends_with("last"), "{reason}");
    }

    #[test]
    fn what_is_no_outcome_is_none() {
        let good = outcome(1, TaskEnd::Done).to_json();
        assert!(BatchOutcome::from_json(good.as_bytes()).is_some());
        for (what, instead) in [
            ("\"n\":1", "\"n\":0"),
            ("\"n\":1", "\"n\":-1"),
            ("\"n\":1", "\"n\":1.5"),
            ("\"done\"", "\"Done\""),
            ("rabbit-work.outcome", "other"),
            ("\"attempts\":2", "\"attempts\":99999999999"),
            ("{", "["),
        ] {
            let changed = good.replacen(what, instead, 1);
            assert_ne!(changed, good, "{what}");
            assert_eq!(BatchOutcome::from_json(changed.as_bytes()), None, "{changed}");
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert_eq!(BatchOutcome::from_json(&deep), None);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let text = outcome(1, TaskEnd::Done).to_json().replace("1700000000.123", "1e300");
        let read = BatchOutcome::from_json(text.as_bytes()).expect("an outcome");
        assert_eq!(read.started, UNIX_EPOCH);
    }

    fn any_outcome() -> impl Strategy<Value = BatchOutcome> {
        let output = proptest::option::of((
            proptest::collection::vec(any::<u8>(), 0..40),
            proptest::option::of(any::<u64>()),
        ));
        let numbers = (1..u64::MAX, any::<u32>(), any::<Option<i32>>(), any::<Option<i32>>());
        let times = (0..4_000_000_000_000_u64, 0..1_000_000_000_u64);
        let texts = (".{0,20}", proptest::option::of(".{0,20}"), any::<bool>());
        (numbers, times, texts, output).prop_map(|(numbers, times, texts, output)| BatchOutcome {
            n: numbers.0,
            task: texts.0.clone(),
            end: if texts.2 { TaskEnd::Done } else { TaskEnd::Dead },
            attempts: numbers.1,
            exit: numbers.2,
            signal: numbers.3,
            reason: texts.1,
            host: texts.0,
            started: UNIX_EPOCH + Duration::from_millis(times.0),
            elapsed: Duration::from_millis(times.1),
            output: output.map(|(bytes, cut_from)| TaskOutput { bytes, cut_from }),
        })
    }

    proptest! {
        #[test]
        fn property_an_outcome_comes_back_as_it_was(outcome in any_outcome()) {
            let line = outcome.to_json();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(BatchOutcome::from_json(line.as_bytes()), Some(outcome));
        }

        #[test]
        fn property_no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = BatchOutcome::from_json(&bytes);
        }
    }
}
