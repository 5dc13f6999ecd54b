//! Keeps which publishes of one channel still wait for the broker's confirm. Pure.
//!
//! The client library's own smoother is not used: it turns a nack that came out of order into
//! an ack (amiquip 0.4.2 confirm.rs:190).

use std::collections::{BTreeMap, VecDeque};

use crate::amqp::channel::Reach;

/// The publishes of one channel that have neither been acked nor nacked, by delivery tag.
///
/// Tags count from 1 in the order of publishing
/// (<https://www.rabbitmq.com/docs/confirms#publisher-confirms>).
#[derive(Debug)]
pub(crate) struct Confirms<T, K> {
    last_tag: u64,
    /// From the oldest one that is outstanding to the last tag; `None` for each that is resolved.
    outstanding: VecDeque<Option<T>>,
    /// How many are outstanding.
    count: usize,
    /// Publishes that we no longer wait for, and the key that identifies a late confirm.
    unawaited: BTreeMap<u64, K>,
}

impl<T, K> Confirms<T, K> {
    pub(crate) fn new() -> Confirms<T, K> {
        Confirms { last_tag: 0, outstanding: VecDeque::new(), count: 0, unawaited: BTreeMap::new() }
    }

    /// Notes the next publish on the channel.
    pub(crate) fn publish(&mut self, item: T) {
        self.last_tag += 1;
        self.count += 1;
        self.outstanding.push_back(Some(item));
    }

    /// Takes out the publishes that a confirm resolves, in the order of publishing; apart from them
    /// the keys of those that were given up. None is resolved twice.
    pub(crate) fn resolve(&mut self, reach: Reach) -> (Vec<T>, Vec<K>) {
        let resolved = match reach {
            Reach::One(tag) => self.take_one(tag).into_iter().collect(),
            Reach::UpTo(tag) => self.take_up_to(tag),
        };
        self.count -= resolved.len();
        (resolved, take(&mut self.unawaited, reach))
    }

    /// Whether a confirm can speak of these tags: all were published, resolved by now or not.
    pub(crate) fn allows(&self, reach: Reach) -> bool {
        let (Reach::One(tag) | Reach::UpTo(tag)) = reach;
        (1..=self.last_tag).contains(&tag)
    }

    /// The publishes that are still awaited, in the order of publishing.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = &T> {
        self.outstanding.iter().flatten()
    }

    /// The same, to be changed.
    pub(crate) fn outstanding_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.outstanding.iter_mut().flatten()
    }

    /// Whether this key identifies a publish that was given up.
    pub(crate) fn has_unawaited(&self, key: &K) -> bool
    where
        K: PartialEq,
    {
        self.unawaited.values().any(|it| it == key)
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether each publish was acked or nacked, also those that were given up.
    pub(crate) fn owes_none(&self) -> bool {
        self.is_empty() && self.unawaited.is_empty()
    }

    /// The publish that has waited longest.
    pub(crate) fn oldest(&self) -> Option<&T> {
        self.outstanding.front()?.as_ref()
    }

    /// Everything still outstanding, in the order of publishing.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.count = 0;
        self.outstanding.drain(..).flatten().collect()
    }

    /// Gives up the outstanding ones that `expired` picks, and takes them out in the order of
    /// publishing. Of each, its key is kept.
    pub(crate) fn give_up(
        &mut self,
        expired: impl Fn(&T) -> bool,
        key: impl Fn(&T) -> K,
    ) -> Vec<T> {
        let mut given_up = Vec::new();
        for (tag, place) in (self.first_tag()..).zip(&mut self.outstanding) {
            if let Some(item) = place.take_if(|item| expired(item)) {
                self.unawaited.insert(tag, key(&item));
                given_up.push(item);
            }
        }
        self.count -= given_up.len();
        self.drop_resolved();
        given_up
    }

    /// The tag of the first place.
    fn first_tag(&self) -> u64 {
        self.last_tag + 1 - self.outstanding.len() as u64
    }

    fn take_one(&mut self, tag: u64) -> Option<T> {
        let place = usize::try_from(tag.checked_sub(self.first_tag())?).ok()?;
        let item = self.outstanding.get_mut(place)?.take();
        self.drop_resolved();
        item
    }

    fn take_up_to(&mut self, tag: u64) -> Vec<T> {
        let places = (tag.saturating_add(1)).saturating_sub(self.first_tag());
        let places = usize::try_from(places).unwrap_or(usize::MAX).min(self.outstanding.len());
        let resolved = self.outstanding.drain(..places).flatten().collect();
        self.drop_resolved();
        resolved
    }

    /// The first place always has an item.
    fn drop_resolved(&mut self) {
        while let Some(None) = self.outstanding.front() {
            self.outstanding.pop_front();
        }
    }
}

fn take<K>(by_tag: &mut BTreeMap<u64, K>, reach: Reach) -> Vec<K> {
    if by_tag.is_empty() {
        return Vec::new();
    }
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
