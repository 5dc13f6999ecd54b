//! Keeps which publishes of one channel still wait for the broker's confirm. Pure.
//!
//! The client library's own smoother is not used: it turns a nack that came out of order into
//! an ack (amiquip 0.4.2 confirm.rs:190).

use std::collections::BTreeMap;

use crate::amqp::channel::Reach;

/// The publishes of one channel that have neither been acked nor nacked, by delivery tag.
///
/// Tags count from 1 in the order of publishing
/// (<https://www.rabbitmq.com/docs/confirms#publisher-confirms>).
#[derive(Debug)]
pub(crate) struct Confirms<T, K> {
    last_tag: u64,
    outstanding: BTreeMap<u64, T>,
    /// Publishes that we no longer wait for, and the key that identifies a late confirm.
    unawaited: BTreeMap<u64, K>,
}

impl<T, K> Confirms<T, K> {
    pub(crate) fn new() -> Confirms<T, K> {
        Confirms { last_tag: 0, outstanding: BTreeMap::new(), unawaited: BTreeMap::new() }
    }

    /// Notes the next publish on the channel.
    pub(crate) fn publish(&mut self, item: T) {
        self.last_tag += 1;
        self.outstanding.insert(self.last_tag, item);
    }

    /// Takes out the publishes that a confirm resolves, in the order of publishing; apart from them
    /// the keys of those that were given up. None is resolved twice.
    pub(crate) fn resolve(&mut self, reach: Reach) -> (Vec<T>, Vec<K>) {
        (take(&mut self.outstanding, reach), take(&mut self.unawaited, reach))
    }

    /// Whether a confirm can speak of these tags: all were published, resolved by now or not.
    pub(crate) fn allows(&self, reach: Reach) -> bool {
        let (Reach::One(tag) | Reach::UpTo(tag)) = reach;
        (1..=self.last_tag).contains(&tag)
    }

    /// The publishes that are still awaited, in the order of publishing.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = &T> {
        self.outstanding.values()
    }

    /// The same, to be changed.
    pub(crate) fn outstanding_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.outstanding.values_mut()
    }

    /// Whether this key identifies a publish that was given up.
    pub(crate) fn has_unawaited(&self, key: &K) -> bool
    where
        K: PartialEq,
    {
        self.unawaited.values().any(|it| it == key)
    }

    pub(crate) fn len(&self) -> usize {
        self.outstanding.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Whether each publish was acked or nacked, also those that were given up.
    pub(crate) fn owes_none(&self) -> bool {
        self.is_empty() && self.unawaited.is_empty()
    }

    /// The publish that has waited longest.
    pub(crate) fn oldest(&self) -> Option<&T> {
        self.outstanding.first_key_value().map(|(_, item)| item)
    }

    /// Everything still outstanding, in the order of publishing.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.outstanding).into_values().collect()
    }

    /// Gives up the outstanding ones that `expired` picks, and takes them out in the order of
    /// publishing. Of each, its key is kept.
    pub(crate) fn give_up(
        &mut self,
        expired: impl Fn(&T) -> bool,
        key: impl Fn(&T) -> K,
    ) -> Vec<T> {
        let (out, keep) =
            std::mem::take(&mut self.outstanding).into_iter().partition(|(_, item)| expired(item));
        self.outstanding = keep;
        let out: BTreeMap<u64, T> = out;
        self.unawaited.extend(out.iter().map(|(tag, item)| (*tag, key(item))));
        out.into_values().collect()
    }
}

fn take<V>(by_tag: &mut BTreeMap<u64, V>, reach: Reach) -> Vec<V> {
    match reach {
        Reach::One(tag) => by_tag.remove(&tag).into_iter().collect(),
        Reach::UpTo(tag) => {
            let later = by_tag.split_off(&tag.saturating_add(1));
            std::mem::replace(by_tag, later).into_values().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn five() -> Confirms<char, char> {
        let mut confirms = Confirms::new();
        "abcde".chars().for_each(|item| confirms.publish(item));
        confirms
    }

    #[test]
    fn a_single_confirm_resolves_one() {
        let mut confirms = five();
        assert_eq!(confirms.resolve(Reach::One(3)).0, ['c']);
        assert!(confirms.resolve(Reach::One(3)).0.is_empty());
        assert_eq!(confirms.take_all(), ['a', 'b', 'd', 'e']);
    }

    #[test]
    fn a_multiple_resolves_only_what_is_still_outstanding() {
        let mut confirms = five();
        assert_eq!(confirms.resolve(Reach::One(3)).0, ['c'], "nacked out of order");
        assert_eq!(confirms.resolve(Reach::UpTo(5)).0, ['a', 'b', 'd', 'e'], "acked, without c");
        assert!(confirms.is_empty());
    }

    #[test]
    fn tags_go_on_counting_after_a_gap() {
        let mut confirms = five();
        assert_eq!(confirms.resolve(Reach::UpTo(4)).0.len(), 4);
        confirms.publish('f');
        assert_eq!(confirms.resolve(Reach::One(6)).0, ['f']);
        assert_eq!(confirms.oldest(), Some(&'e'));
    }

    #[test]
    fn unknown_tags_resolve_nothing() {
        let mut confirms = five();
        assert!(confirms.resolve(Reach::One(0)).0.is_empty());
        assert!(confirms.resolve(Reach::One(6)).0.is_empty());
        assert!(confirms.resolve(Reach::UpTo(0)).0.is_empty());
        assert_eq!(confirms.resolve(Reach::UpTo(u64::MAX)).0.len(), 5);
    }

    #[test]
    fn the_given_up_are_taken_out_and_the_rest_keep_their_tags() {
        let mut confirms = five();
        let given_up = confirms.give_up(|item| "bd".contains(*item), char::to_ascii_uppercase);
        assert_eq!(given_up, ['b', 'd']);
        assert_eq!(confirms.resolve(Reach::One(5)), (vec!['e'], vec![]));
        assert_eq!(confirms.len(), 2);
    }

    #[test]
    fn a_late_confirm_is_reported_apart_and_once() {
        let mut confirms = five();
        confirms.give_up(|item| "bd".contains(*item), char::to_ascii_uppercase);
        assert_eq!(confirms.resolve(Reach::One(2)), (vec![], vec!['B']));
        assert_eq!(confirms.resolve(Reach::UpTo(4)), (vec!['a', 'c'], vec!['D']));
        assert_eq!(confirms.resolve(Reach::UpTo(4)), (vec![], vec![]));
    }
}
