//! Serializes a [`Summary`], for programs that keep or send it.

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::worker::summary::{StopReason, Summary};

/// The counts by their names, `elapsed` in seconds, and `ended` as a word such as `max_tasks`.
impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Summary", 12)?;
        object.serialize_field("done", &self.done)?;
        object.serialize_field("retried", &self.retried)?;
        object.serialize_field("deferred", &self.deferred)?;
        object.serialize_field("dead", &self.dead)?;
        object.serialize_field("dead_unconfirmed", &self.dead_unconfirmed)?;
        object.serialize_field("failed", &self.failed)?;
        object.serialize_field("lost", &self.lost)?;
        object.serialize_field("returned", &self.returned)?;
        object.serialize_field("orphaned", &self.orphaned)?;
        object.serialize_field("running", &self.running)?;
        object.serialize_field("elapsed", &self.elapsed.as_secs_f64())?;
        object.serialize_field("ended", &self.ended)?;
        object.end()
    }
}

impl Serialize for StopReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            StopReason::Stopped => "stopped",
            StopReason::MaxTasks => "max_tasks",
            StopReason::MaxDead => "max_dead",
            StopReason::Drained => "drained",
            StopReason::HandlerStopped => "handler_stopped",
            StopReason::GraceExceeded => "grace_exceeded",
            StopReason::Aborted => "aborted",
            StopReason::Failed => "failed",
        })
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
        assert_eq!(object.as_object().map(serde_json::Map::len), Some(12));
        let some = ["done", "dead", "running", "elapsed", "ended"].map(|it| object[it].clone());
        assert_eq!(some, [json!(1), json!(0), json!(2), json!(1.5), json!("max_tasks")]);
    }
}
