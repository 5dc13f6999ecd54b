//! [`Ledger`]: which tasks of a batch are published, and how each ended; each counts once. Pure.

use std::collections::BTreeMap;

use crate::model::batch::outcome::TaskEnd;

/// The tasks of a batch by their numbers. A million of them take some 250 KiB.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    published: Numbers,
    ended: Numbers,
    done: u64,
    dead: u64,
    /// How many are published and have not ended.
    left: u64,
    /// How many are published, or have ended, which they can only if they were published.
    known: u64,
}

/// A set of numbers: a bit for each, in pieces, so that a large number costs one piece.
#[derive(Debug, Default)]
struct Numbers(BTreeMap<u64, [u64; WORDS]>);

const WORDS: usize = 64;
const BITS: u64 = u64::BITS as u64;

impl Ledger {
    /// Notes that the broker has confirmed a task.
    pub(crate) fn publish(&mut self, n: u64) {
        if self.published.insert(n) && !self.ended.contains(n) {
            self.left += 1;
            self.known += 1;
        }
    }

    /// Notes how a task ended. Returns whether that is news: a task may run twice, and an outcome may
    /// come twice.
    pub(crate) fn end(&mut self, n: u64, end: TaskEnd) -> bool {
        if !self.ended.insert(n) {
            return false;
        }
        *self.count(end) += 1;
        if self.published.contains(n) {
            self.left -= 1;
        } else {
            self.known += 1;
        }
        true
    }

    /// Takes back what [`end`](Ledger::end) has noted as news.
    pub(crate) fn forget_end(&mut self, n: u64, end: TaskEnd) {
        if !self.ended.remove(n) {
            return;
        }
        *self.count(end) -= 1;
        if self.published.contains(n) {
            self.left += 1;
        } else {
            self.known -= 1;
        }
    }

    fn count(&mut self, end: TaskEnd) -> &mut u64 {
        match end {
            TaskEnd::Done => &mut self.done,
            TaskEnd::Dead => &mut self.dead,
        }
    }

    /// Whether a task is published, or has ended.
    pub(crate) fn knows(&self, n: u64) -> bool {
        self.published.contains(n) || self.ended.contains(n)
    }

    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn dead(&self) -> u64 {
        self.dead
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// How many of so many tasks are not published, as far as is known.
    pub(crate) fn unknown_of(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.known)
    }
}

impl Numbers {
    /// The piece, the word in it, and the bit in that.
    fn place(n: u64) -> (u64, usize, u64) {
        let word = n / BITS;
        (word / WORDS as u64, (word % WORDS as u64) as usize, 1 << (n % BITS))
    }

    /// Whether it is new.
    fn insert(&mut self, n: u64) -> bool {
        let (piece, word, bit) = Numbers::place(n);
        let word = &mut self.0.entry(piece).or_insert([0; WORDS])[word];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn contains(&self, n: u64) -> bool {
        let (piece, word, bit) = Numbers::place(n);
        self.0.get(&piece).is_some_and(|words| words[word] & bit != 0)
    }

    /// Whether it was there.
    fn remove(&mut self, n: u64) -> bool {
        let was_there = self.contains(n);
        let (piece, word, bit) = Numbers::place(n);
        if let Some(words) = self.0.get_mut(&piece) {
            words[word] &= !bit;
        }
        was_there
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Publish(u64),
        End(u64, TaskEnd),
        Forget(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let n = prop_oneof![9 => 1..30_u64, 1 => Just(5000), 1 => Just(u64::MAX)];
        let end = prop_oneof![Just(TaskEnd::Done), Just(TaskEnd::Dead)];
        prop_oneof![
            3 => n.clone().prop_map(Step::Publish),
            3 => (n.clone(), end).prop_map(|(n, end)| Step::End(n, end)),
            1 => n.prop_map(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn property_each_task_counts_once(steps in proptest::collection::vec(step(), 0..80)) {
            let mut ledger = Ledger::default();
            let (mut published, mut ended) = (BTreeSet::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Publish(n) => {
                        ledger.publish(n);
                        published.insert(n);
                    }
                    Step::End(n, end) => {
                        prop_assert_eq!(ledger.end(n, end), !ended.contains_key(&n));
                        ended.entry(n).or_insert(end);
                    }
                    Step::Forget(n) => {
                        if let Some(end) = ended.remove(&n) {
                            ledger.forget_end(n, end);
                        }
                    }
                }
                let count = |end| ended.values().filter(|it| **it == end).count() as u64;
                prop_assert_eq!(ledger.done(), count(TaskEnd::Done));
                prop_assert_eq!(ledger.dead(), count(TaskEnd::Dead));
                let left = published.iter().filter(|n| !ended.contains_key(n)).count() as u64;
                prop_assert_eq!(ledger.left(), left);
                prop_assert_eq!(ledger.unknown_of(200), 200 - left - ended.len() as u64);
                prop_assert!(published.iter().chain(ended.keys()).all(|n| ledger.knows(*n)));
            }
        }
    }

    #[test]
    fn a_million_tasks_take_little_memory() {
        let mut ledger = Ledger::default();
        (1..=1_000_000).for_each(|n| ledger.publish(n));
        assert_eq!((ledger.left(), ledger.unknown_of(1_000_000)), (1_000_000, 0));
        assert!(ledger.published.0.len() * size_of::<[u64; WORDS]>() < 150_000);
        assert!((1..=1_000_000).all(|n| ledger.end(n, TaskEnd::Done)));
        assert_eq!((ledger.left(), ledger.done()), (0, 1_000_000));
    }
}
