//! Serializes a [`Summary`], for programs that keep or send it.

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::worker::summary::{StopReason, Summary};

/// The keys and words of `worker --json`, with all counts: `returned` are all tasks that were requeued,
/// also after a failure that does not count; `doubtful` are dead letters that may exist; `seconds` is
/// how long the worker ran; `ended` is the [`name`](StopReason::name) of what ended it.
impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Summary", 11)?;
        object.serialize_field("done", &self.done)?;
        object.serialize_field("retried", &self.retried)?;
        object.serialize_field("deferred", &self.deferred)?;
        object.serialize_field("dead", &self.dead)?;
        object.serialize_field("doubtful", &self.dead_unconfirmed)?;
        object.serialize_field("lost", &self.lost)?;
        object.serialize_field("returned", &(self.requeued + self.failed))?;
        object.serialize_field("orphaned", &self.orphaned)?;
        object.serialize_field("running", &self.running)?;
        object.serialize_field("seconds", &self.elapsed.as_secs_f64())?;
        object.serialize_field("ended", &self.ended)?;
        object.end()
    }
}

/// Its [`name`](StopReason::name).
impl Serialize for StopReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::worker::summary::Tally;

    #[test]
    fn a_summary_is_an_object_of_its_counts() {
        let tally = Tally::default();
        tally.done();
        let summary = tally.sum_up(2, Duration::from_millis(1500), StopReason::MaxTasks);
        let object = serde_json::to_value(summary).expect("JSON");
        assert_eq!(object.as_object().map(serde_json::Map::len), Some(11));
        let some = ["done", "dead", "running", "seconds", "ended"].map(|it| object[it].clone());
        assert_eq!(some, [json!(1), json!(0), json!(2), json!(1.5), json!("max-tasks")]);
    }
}
