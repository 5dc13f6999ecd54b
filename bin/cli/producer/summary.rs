//! [`Totals`]: the counts of a producer, and its JSON summary.

use rabbit_work::BatchSummary;
use serde_json::{Value, json};

/// How many tasks were published, and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) published: u64,
    pub(crate) confirmed: u64,
    pub(crate) nacked: u64,
    pub(crate) returned: u64,
    pub(crate) unconfirmed: u64,
    /// How they have ended, if --wait has waited for that.
    pub(crate) ended: Option<BatchSummary>,
}

impl Totals {
    pub(crate) fn not_confirmed(&self) -> u64 {
        self.nacked + self.returned + self.unconfirmed
    }

    /// The summary of --json. `read` is the number of tasks read, if the input was not read to its
    /// end.
    pub(crate) fn as_json(&self, seconds: f64, read: Option<u64>) -> Value {
        let mut object = json!({
            "published": self.published,
            "confirmed": self.confirmed,
            "nacked": self.nacked,
            "returned": self.returned,
            "unconfirmed": self.unconfirmed,
            "seconds": seconds,
        });
        if let Some(read) = read {
            object["read"] = json!(read);
        }
        if let Some(BatchSummary { done, dead, left, .. }) = self.ended {
            object["done"] = json!(done);
            object["dead"] = json!(dead);
            object["left"] = json!(left);
        }
        object
    }
}
