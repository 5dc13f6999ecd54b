//! Remembers which addresses failed: they are tried after the others.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The addresses that failed, in the order of their last failures. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures(Arc<Mutex<Vec<(String, Failure)>>>);

/// How an address failed. The order is that in which they are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// It refused a connection, or lost one. To try it again takes no time.
    Lost,
    /// It did not answer. To try it again takes until a time limit.
    Silent,
}

impl Failures {
    /// Notes that a connection to this address failed, or was lost.
    pub(crate) fn note(&self, address: &str, failure: Failure) {
        let mut failed = self.lock();
        failed.retain(|(it, _)| it != address);
        failed.push((address.to_owned(), failure));
    }

    /// Sorts the addresses: first those that have not failed, then those that refused or lost a
    /// connection, then those that did not answer. Within each kind, the last to fail is last.
    pub(crate) fn sort<T: Display>(&self, addresses: &mut [T]) {
        let failed = self.lock();
        addresses.sort_by_cached_key(|it| {
            let address = it.to_string();
            let place = failed.iter().position(|(it, _)| *it == address)?;
            Some((failed[place].1, place))
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Failure)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Failure::{Lost, Silent};
    use super::*;

    fn sorted(failures: &Failures) -> String {
        let mut addresses = ["a", "b", "c", "d"];
        failures.sort(&mut addresses);
        addresses.concat()
    }

    #[test]
    fn the_last_to_fail_is_the_last_to_be_tried() {
        let failures = Failures::default();
        assert_eq!(sorted(&failures), "abcd");
        failures.note("b", Lost);
        assert_eq!(sorted(&failures), "acdb");
        failures.note("a", Lost);
        assert_eq!(sorted(&failures), "cdba");
        failures.note("b", Lost);
        assert_eq!(sorted(&failures), "cdab");
    }

    #[test]
    fn when_all_have_failed_it_is_a_round() {
        let failures = Failures::default();
        "abcd".chars().for_each(|it| failures.note(&it.to_string(), Lost));
        assert_eq!(sorted(&failures), "abcd");
        failures.note("a", Lost);
        assert_eq!(sorted(&failures), "bcda");
    }

    #[test]
    fn one_that_was_silent_is_tried_after_those_that_answer_in_some_way() {
        let failures = Failures::default();
        failures.note("a", Silent);
        failures.note("b", Lost);
        assert_eq!(sorted(&failures), "cdba");
        failures.note("c", Silent);
        failures.note("d", Lost);
        assert_eq!(sorted(&failures), "bdac");
        failures.note("a", Lost);
        assert_eq!(sorted(&failures), "bdac");
        failures.note("b", Lost);
        assert_eq!(sorted(&failures), "dabc");
    }

    #[test]
    fn clones_share_what_failed() {
        let failures = Failures::default();
        failures.clone().note("a", Lost);
        assert_eq!(sorted(&failures), "bcda");
    }
}
