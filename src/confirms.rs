//! Owns which publishes of one channel still wait for the broker's confirm. Pure.
//!
//! The client library's own smoother is not used: it turns a nack that came out of order into
//! an ack (amiquip 0.4.2 confirm.rs:190).

use std::collections::BTreeMap;

/// The publishes of one channel that have neither been acked nor nacked, by delivery tag.
///
/// Tags count from 1 in the order of publishing
/// (<https://www.rabbitmq.com/docs/confirms#publisher-confirms>).
#[derive(Debug)]
pub(crate) struct Confirms<T> {
    last_tag: u64,
    outstanding: BTreeMap<u64, T>,
}

/// Which publishes a confirm speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The one with this tag.
    One(u64),
    /// Every outstanding one up to and with this tag.
    UpTo(u64),
}

impl<T> Confirms<T> {
    pub(crate) fn new() -> Confirms<T> {
        Confirms { last_tag: 0, outstanding: BTreeMap::new() }
    }

    /// Notes the next publish on the channel.
    pub(crate) fn publish(&mut self, item: T) {
        self.last_tag += 1;
        self.outstanding.insert(self.last_tag, item);
    }

    /// Takes out what a confirm settles, in the order of publishing. Unknown tags settle
    /// nothing.
    pub(crate) fn settle(&mut self, reach: Reach) -> Vec<T> {
        match reach {
            Reach::One(tag) => self.outstanding.remove(&tag).into_iter().collect(),
            Reach::UpTo(tag) => {
                let later = self.outstanding.split_off(&tag.saturating_add(1));
                std::mem::replace(&mut self.outstanding, later).into_values().collect()
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.outstanding.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The publish that has waited longest.
    pub(crate) fn oldest(&self) -> Option<&T> {
        self.outstanding.first_key_value().map(|(_, item)| item)
    }

    /// Everything still outstanding, in the order of publishing.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.outstanding).into_values().collect()
    }

    /// Takes out the outstanding ones that `expired` picks, in the order of publishing.
    pub(crate) fn take_if(&mut self, expired: impl Fn(&T) -> bool) -> Vec<T> {
        let (out, keep) =
            std::mem::take(&mut self.outstanding).into_iter().partition(|(_, item)| expired(item));
        self.outstanding = keep;
        let out: BTreeMap<u64, T> = out;
        out.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn five() -> Confirms<char> {
        let mut confirms = Confirms::new();
        "abcde".chars().for_each(|item| confirms.publish(item));
        confirms
    }

    #[test]
    fn a_single_confirm_settles_one() {
        let mut confirms = five();
        assert_eq!(confirms.settle(Reach::One(3)), ['c']);
        assert!(confirms.settle(Reach::One(3)).is_empty());
        assert_eq!(confirms.take_all(), ['a', 'b', 'd', 'e']);
    }

    #[test]
    fn a_multiple_settles_only_what_is_still_outstanding() {
        let mut confirms = five();
        assert_eq!(confirms.settle(Reach::One(3)), ['c'], "nacked out of order");
        assert_eq!(confirms.settle(Reach::UpTo(5)), ['a', 'b', 'd', 'e'], "acked, without c");
        assert!(confirms.is_empty());
    }

    #[test]
    fn tags_go_on_counting_after_a_gap() {
        let mut confirms = five();
        assert_eq!(confirms.settle(Reach::UpTo(4)).len(), 4);
        confirms.publish('f');
        assert_eq!(confirms.settle(Reach::One(6)), ['f']);
        assert_eq!(confirms.oldest(), Some(&'e'));
    }

    #[test]
    fn unknown_tags_settle_nothing() {
        let mut confirms = five();
        assert!(confirms.settle(Reach::One(0)).is_empty());
        assert!(confirms.settle(Reach::One(6)).is_empty());
        assert!(confirms.settle(Reach::UpTo(0)).is_empty());
        assert_eq!(confirms.settle(Reach::UpTo(u64::MAX)).len(), 5);
    }

    #[test]
    fn the_expired_are_taken_out_and_the_rest_keep_their_tags() {
        let mut confirms = five();
        assert_eq!(confirms.take_if(|item| "bd".contains(*item)), ['b', 'd']);
        assert_eq!(confirms.settle(Reach::One(5)), ['e']);
        assert_eq!(confirms.len(), 2);
    }
}
