//! [`DeadLetterFilter`]: selects dead letters. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use crate::model::failure_record::{FailureRecord, record_of};
use crate::model::task::Task;

/// Selects the dead letters to read, replay or purge: those that meet every condition.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    limit: Option<u64>,
    ids: Option<BTreeSet<String>>,
    reason: Option<String>,
    died_before: Option<SystemTime>,
    died_since: Option<SystemTime>,
    correlation_id: Option<String>,
}

impl DeadLetterFilter {
    /// All dead letters.
    #[must_use]
    pub fn all() -> DeadLetterFilter {
        DeadLetterFilter::default()
    }

    /// At most this many, the first ones in their queue.
    #[must_use]
    pub fn limit(mut self, letters: u64) -> DeadLetterFilter {
        self.limit = Some(letters);
        self
    }

    /// Only those whose task has this id, or another id of this filter.
    #[must_use]
    pub fn id(self, id: impl Into<String>) -> DeadLetterFilter {
        self.ids([id.into()])
    }

    /// Only those whose task has one of these ids. Without any id, this selects nothing.
    #[must_use]
    pub fn ids(mut self, ids: impl IntoIterator<Item = String>) -> DeadLetterFilter {
        self.ids.get_or_insert_default().extend(ids);
        self
    }

    /// Only those whose [reason](FailureRecord::reason) contains this text.
    #[must_use]
    pub fn reason(mut self, text: impl Into<String>) -> DeadLetterFilter {
        self.reason = Some(text.into());
        self
    }

    /// Only those that died at least this long ago. A letter without a time of death is left out.
    #[must_use]
    pub fn older(mut self, age: Duration) -> DeadLetterFilter {
        self.died_before =
            Some(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
        self
    }

    /// Only those that died at this time or later. A letter without a time of death is left out.
    #[must_use]
    pub fn since(mut self, time: SystemTime) -> DeadLetterFilter {
        self.died_since = Some(time);
        self
    }

    /// Only those whose task has this correlation id.
    #[must_use]
    pub fn correlation_id(mut self, id: impl Into<String>) -> DeadLetterFilter {
        self.correlation_id = Some(id.into());
        self
    }

    /// Whether a letter must be read to decide whether it is selected.
    pub(crate) fn needs_content(&self) -> bool {
        self.ids.is_some()
            || self.reason.is_some()
            || self.died_before.is_some()
            || self.died_since.is_some()
            || self.correlation_id.is_some()
    }

    /// Whether every letter is selected.
    pub(crate) fn is_all(&self) -> bool {
        !self.needs_content() && self.limit.is_none()
    }

    pub(crate) fn takes(&self, task: &Task) -> bool {
        let is_one = |ids: &BTreeSet<String>| task.id().is_some_and(|id| ids.contains(id));
        let is_named = self.ids.as_ref().is_none_or(is_one);
        let is_of = |id: &String| task.correlation_id() == Some(id);
        let is_correlated = self.correlation_id.as_ref().is_none_or(is_of);
        is_named && is_correlated && self.takes_record(&record_of(task))
    }

    fn takes_record(&self, record: &FailureRecord) -> bool {
        let has_reason = self.reason.as_ref().is_none_or(|text| record.reason.contains(text));
        let is_old = self
            .died_before
            .is_none_or(|before| record.last_failure.is_some_and(|death| death <= before));
        let is_new = self
            .died_since
            .is_none_or(|since| record.last_failure.is_some_and(|death| death >= since));
        has_reason && is_old && is_new
    }

    /// How many more letters may be selected after `selected`.
    pub(crate) fn left(&self, selected: u64) -> u64 {
        if self.ids.as_ref().is_some_and(BTreeSet::is_empty) {
            return 0;
        }
        self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(selected))
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = &String> {
        self.ids.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(ago: u64, reason: &str) -> FailureRecord {
        let last_failure = Some(SystemTime::now() - Duration::from_secs(ago));
        FailureRecord { last_failure, reason: reason.into(), ..FailureRecord::default() }
    }

    #[test]
    fn one_of_several_ids_is_enough() {
        let selection = DeadLetterFilter::all().id("1").id("2");
        let taken = ["1", "2", "3"].map(|id| selection.takes(&Task::new("").with_id(id)));
        assert_eq!(taken, [true, true, false]);
        assert!(!DeadLetterFilter::all().id("-").takes(&Task::new("")));
    }

    #[test]
    fn every_condition_must_be_met() {
        let selection = DeadLetterFilter::all().reason("disk").older(Duration::from_secs(60));
        assert!(selection.takes_record(&died(100, "the disk is full")));
        assert!(!selection.takes_record(&died(100, "no")));
        assert!(!selection.takes_record(&died(10, "the disk is full")));
        assert!(!selection.clone().id("1").takes(&Task::new("").with_id("1")));
    }

    #[test]
    fn what_has_no_time_of_death_is_not_chosen_by_its_age() {
        assert!(
            !DeadLetterFilter::all().older(Duration::ZERO).takes_record(&FailureRecord::default())
        );
        assert!(!DeadLetterFilter::all().older(Duration::MAX).takes_record(&died(10, "")));
        assert!(DeadLetterFilter::all().takes_record(&FailureRecord::default()));
    }

    #[test]
    fn since_and_older_make_a_span() {
        let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        let span = DeadLetterFilter::all().since(ago(100)).older(Duration::from_secs(50));
        let taken = [150, 70, 20].map(|age| span.takes_record(&died(age, "")));
        assert_eq!(taken, [false, true, false]);
        assert!(!span.takes_record(&FailureRecord::default()), "without a time of death");
        assert!(span.needs_content());
    }

    #[test]
    fn a_correlation_id_must_be_the_same() {
        let selection = DeadLetterFilter::all().correlation_id("order 7");
        let taken = ["order 7", "order 77"]
            .map(|id| selection.takes(&Task::new("").with_correlation_id(id)));
        assert_eq!(taken, [true, false]);
        assert!(!selection.takes(&Task::new("")) && selection.needs_content());
    }

    #[test]
    fn only_a_filter_by_content_reads_letters() {
        assert!(!DeadLetterFilter::all().needs_content() && DeadLetterFilter::all().is_all());
        let some = DeadLetterFilter::all().limit(3);
        assert!(!some.needs_content() && !some.is_all());
        assert_eq!((some.left(1), some.left(5)), (2, 0));
        assert_eq!(DeadLetterFilter::all().ids([]).left(0), 0);
        assert!(DeadLetterFilter::all().ids([]).needs_content());
        assert!(DeadLetterFilter::all().reason("x").needs_content());
        assert!(DeadLetterFilter::all().older(Duration::ZERO).needs_content());
    }
}
