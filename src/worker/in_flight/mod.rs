//! Tracks the unacked deliveries of one channel: which are with the handler, being republished,
//! paused, kept or to be requeued, and which ack or nack covers how many of them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::amqp::channel::Settlement;
use crate::worker::event::Event;
use crate::worker::job::Job;
use crate::worker::kept::{Kept, Others, pause_after};

/// The unacked deliveries of one channel, by delivery tag. `D` is what a delivery is settled with.
pub(crate) struct InFlight<D> {
    /// How many unacked deliveries the present subscription may have; 0 is no limit.
    prefetch: u16,
    last_tag: u64,
    unacked: BTreeMap<u64, UnackedDelivery<D>>,
    /// Those of earlier subscriptions.
    earlier: BTreeSet<u64>,
    /// Failed tasks that are being published elsewhere, each with its event.
    republishing: HashMap<u64, Event>,
    /// Tasks that could not be tried, by the end of their pause.
    paused: BTreeSet<(Instant, u64)>,
    /// How many pauses there were in a row in which no task was done.
    pauses_in_a_row: u32,
    /// Tasks that could not be published elsewhere, or still run here.
    kept: Kept,
    /// Tasks that are to be requeued; with the job of those that were not started.
    requeuing: BTreeMap<u64, Option<Job>>,
    stalled_since: Option<Instant>,
}

/// One unacked delivery.
pub(crate) struct UnackedDelivery<D> {
    /// `None` with automatic acks.
    pub(crate) duty: Option<D>,
    /// What an observer is notified of if the task is requeued while the handler has it.
    pub(crate) event: Option<Event>,
}

/// One nack, for one delivery or for many.
pub(crate) struct Nack<D> {
    pub(crate) duty: Option<D>,
    pub(crate) how: Settlement,
    /// How many deliveries it settles.
    pub(crate) count: u64,
    /// Those of its jobs that were not started. The other tasks are in the journal already.
    pub(crate) unstarted: Vec<Job>,
}

/// One ack, for one delivery or for many.
pub(crate) struct Ack<D, T> {
    pub(crate) duty: Option<D>,
    pub(crate) how: Settlement,
    /// How many deliveries it settles.
    pub(crate) count: u64,
    /// What the caller keeps of each, in the order of their tags.
    pub(crate) done: BTreeMap<u64, T>,
}

/// Whether the broker can send nothing more, because failed tasks take up the whole prefetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    No,
    /// It cannot. From this moment on, another subscription is to bring other tasks.
    Until(Instant),
    /// It cannot, and as many failed tasks are kept as may be.
    Full,
}

/// How many deliveries of earlier subscriptions a consumer keeps before it takes no others: some
/// 10 MB. Others that stand behind more have no turn before these can be published.
pub(crate) const MOST_KEPT: usize = 20_000;

/// How long a task may take to be republished before it counts as stalled. A new delay queue is
/// used after 1.5 s.
const REPUBLISH_TIME: Duration = Duration::from_secs(3);

impl<D> InFlight<D> {
    pub(crate) fn new() -> InFlight<D> {
        InFlight {
            prefetch: 0,
            last_tag: 0,
            unacked: BTreeMap::new(),
            earlier: BTreeSet::new(),
            republishing: HashMap::new(),
            paused: BTreeSet::new(),
            pauses_in_a_row: 0,
            kept: Kept::default(),
            requeuing: BTreeMap::new(),
            stalled_since: None,
        }
    }

    /// Begins a subscription with a prefetch of its own; 0 is no limit.
    pub(crate) fn begin_subscription(&mut self, prefetch: u16) {
        self.prefetch = prefetch;
        // Called for each task that is kept: adds only what is new.
        let next = self.earlier.last().map_or(0, |tag| tag + 1);
        self.earlier.extend(self.unacked.range(next..).map(|(tag, _)| *tag));
        self.stalled_since = None;
    }

    /// Takes a delivery. An error says what the broker did wrong.
    pub(crate) fn take(&mut self, tag: u64, delivery: UnackedDelivery<D>) -> Result<(), String> {
        // Tags count up. If two deliveries had the same tag, which one would an ack settle?
        if tag <= self.last_tag {
            return Err(format!("the broker sent delivery tag {tag} after {}", self.last_tag));
        }
        self.last_tag = tag;
        // A settled delivery is removed before the broker can know of it. A broker that sends more
        // ignores the prefetch, and nothing else limits how much is in memory.
        let prefetch = self.prefetch;
        let of_this = self.unacked.len().saturating_sub(self.earlier.len());
        if prefetch > 0 && of_this >= usize::from(prefetch) {
            return Err(format!(
                "the broker sent more deliveries than the prefetch of {prefetch} allows"
            ));
        }
        self.unacked.insert(tag, delivery);
        Ok(())
    }

    /// Removes a delivery that is about to be settled.
    pub(crate) fn finish(&mut self, tag: u64) -> Option<UnackedDelivery<D>> {
        self.earlier.remove(&tag);
        self.unacked.remove(&tag)
    }

    /// The event of the first delivery, in case it is requeued while the handler has it.
    pub(crate) fn first_event(&self) -> Option<Event> {
        self.unacked.values().next().and_then(|it| it.event.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.unacked.len()
    }

    /// Whether the broker may send another delivery once this one is acked.
    pub(crate) fn makes_room(&self, tag: u64) -> bool {
        !self.earlier.contains(&tag)
    }

    /// Notes that the republisher has this failed task.
    pub(crate) fn hand_over(&mut self, tag: u64, event: Event) {
        self.republishing.insert(tag, event);
    }

    /// Notes that the republisher has finished with it. Returns its event.
    pub(crate) fn take_back(&mut self, tag: u64) -> Option<Event> {
        self.republishing.remove(&tag)
    }

    pub(crate) fn take_republishing(&mut self) -> HashMap<u64, Event> {
        mem::take(&mut self.republishing)
    }

    /// Keeps a task that could not be tried, for the returned time.
    pub(crate) fn pause(&mut self, tag: u64, now: Instant) -> Duration {
        // Tasks that fail while others are paused share their cause, and their pause.
        if self.paused.is_empty() {
            self.pauses_in_a_row = self.pauses_in_a_row.saturating_add(1);
        }
        let pause = pause_after(self.pauses_in_a_row);
        self.paused.insert((now + pause, tag));
        pause
    }

    /// Keeps a task that cannot be published elsewhere, at least for the returned time.
    pub(crate) fn keep(&mut self, tag: u64, now: Instant) -> Duration {
        // The journal has an entry of it.
        self.unacked.entry(tag).and_modify(|it| it.event = None);
        self.kept.add(tag, now)
    }

    /// Notes that a task was done.
    pub(crate) fn note_done(&mut self) {
        self.pauses_in_a_row = 0;
        self.kept.another_ended();
    }

    /// Notes that a failed task was published elsewhere.
    pub(crate) fn note_republished(&mut self) {
        self.note_done();
        self.kept.reset_pause();
    }

    /// When the next tasks are to be requeued.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let first = self.paused.first().map(|(until, _)| *until);
        first.into_iter().chain(self.kept_until()).min()
    }

    fn kept_until(&self) -> Option<Instant> {
        let kept = self.kept.len() + self.paused.len() + self.requeuing.len();
        let others = if self.unacked.len() > kept { Others::InFlight } else { Others::None };
        self.kept.due_at(others)
    }

    /// Whether the broker may send others once those that are due are requeued.
    pub(crate) fn due_makes_room(&self) -> bool {
        !self.paused.is_empty() || self.kept.last().is_some_and(|tag| self.makes_room(tag))
    }

    /// Requeues those that are due.
    pub(crate) fn requeue_due(&mut self, now: Instant) {
        if self.kept_until().is_some_and(|until| until <= now) {
            self.requeue_kept();
        }
        let later = self.paused.split_off(&(now, u64::MAX));
        let due = mem::replace(&mut self.paused, later);
        self.requeuing.extend(due.into_iter().map(|(_, tag)| (tag, None)));
    }

    /// Requeues those that are paused or kept, due or not.
    pub(crate) fn skip_pauses(&mut self) {
        self.requeue_kept();
        let paused = mem::take(&mut self.paused);
        self.requeuing.extend(paused.into_iter().map(|(_, tag)| (tag, None)));
    }

    fn requeue_kept(&mut self) {
        self.requeuing.extend(self.kept.take().into_iter().map(|tag| (tag, None)));
    }

    /// Requeues tasks that were not started.
    pub(crate) fn requeue_unstarted(&mut self, jobs: impl IntoIterator<Item = Job>) {
        self.requeuing.extend(jobs.into_iter().map(|job| (job.tag, Some(job))));
    }

    /// The next nack for those that are to be requeued, until there is nothing to nack. One nack
    /// covers as many as possible: it settles everything unacked up to its tag, so it must not reach
    /// a delivery that stays. The rest go one by one if they are at most `few`, and else stay until
    /// one nack covers them.
    pub(crate) fn next_nack(&mut self, few: usize) -> Option<Nack<D>> {
        let covered = covered_by_one(self.unacked.keys(), self.requeuing.keys());
        if let Some(last) = last_of_first(covered, &self.requeuing) {
            return Some(self.nack_up_to(last));
        }
        if self.requeuing.len() > few {
            return None;
        }
        let (tag, job) = self.requeuing.pop_first()?;
        let finished = self.finish(tag);
        Some(Nack {
            count: u64::from(finished.is_some()),
            duty: finished.and_then(|it| it.duty),
            how: Settlement::Requeue,
            unstarted: job.into_iter().collect(),
        })
    }

    /// The next ack for those that are done, which it removes from `done`, until that is empty. One
    /// ack covers as many as possible: like a [nack](InFlight::next_nack), it must not reach a
    /// delivery that stays. The rest go one by one.
    pub(crate) fn next_ack<T>(&mut self, done: &mut BTreeMap<u64, T>) -> Option<Ack<D, T>> {
        let covered = covered_by_one(self.unacked.keys(), done.keys());
        if let Some(last) = last_of_first(covered, done).filter(|_| covered > 1) {
            let duty = self.finish_up_to(last);
            let done = take_up_to(last, done);
            return Some(Ack { duty, how: Settlement::AckUpTo, count: done.len() as u64, done });
        }
        let (tag, first) = done.pop_first()?;
        let finished = self.finish(tag);
        Some(Ack {
            count: u64::from(finished.is_some()),
            duty: finished.and_then(|it| it.duty),
            how: Settlement::Ack,
            done: BTreeMap::from([(tag, first)]),
        })
    }

    fn nack_up_to(&mut self, last: u64) -> Nack<D> {
        let requeued = take_up_to(last, &mut self.requeuing);
        Nack {
            duty: self.finish_up_to(last),
            how: Settlement::RequeueUpTo,
            count: requeued.len() as u64,
            unstarted: requeued.into_values().flatten().collect(),
        }
    }

    /// Removes all deliveries up to this one. Returns what they are settled with.
    fn finish_up_to(&mut self, last: u64) -> Option<D> {
        self.earlier = self.earlier.split_off(&(last + 1));
        let mut finished = take_up_to(last, &mut self.unacked);
        finished.pop_last().and_then(|(_, it)| it.duty)
    }

    /// Takes all unacked deliveries, to be settled together.
    pub(crate) fn drain_all(&mut self) -> BTreeMap<u64, UnackedDelivery<D>> {
        mem::take(&mut self.unacked)
    }

    /// Forgets where a drained task was. Returns whether the journal has no entry of it yet: it has
    /// one of those that were paused or kept.
    pub(crate) fn forget(&mut self, tag: u64) -> bool {
        self.republishing.remove(&tag);
        !matches!(self.requeuing.remove(&tag), Some(None))
    }

    /// Whether any task waits for the republisher or for the end of a pause.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.republishing.is_empty() || !self.paused.is_empty() || !self.kept.is_empty()
    }

    /// Whether failed tasks keep the broker from sending others.
    pub(crate) fn stall(&mut self, now: Instant) -> Stall {
        let failed = self.republishing.len() + self.kept.len() + self.requeuing.len();
        let of_this = failed.saturating_sub(self.earlier.len());
        if of_this == 0 || self.prefetch == 0 || of_this < usize::from(self.prefetch) {
            self.stalled_since = None;
            return Stall::No;
        }
        let since = *self.stalled_since.get_or_insert(now);
        if self.earlier.len() >= MOST_KEPT {
            return Stall::Full;
        }
        let time = if self.kept.is_empty() { REPUBLISH_TIME } else { Duration::ZERO };
        Stall::Until(since + time)
    }
}

/// How many of those to be settled one ack or nack covers. Both are in the order of their tags.
fn covered_by_one<'a>(
    unacked: impl Iterator<Item = &'a u64>,
    settling: impl Iterator<Item = &'a u64>,
) -> usize {
    unacked.zip(settling).take_while(|(unacked, settling)| unacked == settling).count()
}

/// The tag of the last of the first `count`.
fn last_of_first<T>(count: usize, settling: &BTreeMap<u64, T>) -> Option<u64> {
    count.checked_sub(1).and_then(|before| settling.keys().nth(before).copied())
}

fn take_up_to<T>(last: u64, from: &mut BTreeMap<u64, T>) -> BTreeMap<u64, T> {
    let others = from.split_off(&(last + 1));
    mem::replace(from, others)
}

/// How many deliveries all consumers of a session have taken and settled.
#[derive(Debug, Default)]
pub(crate) struct InFlightCount {
    taken: AtomicU64,
    settled: AtomicU64,
}

impl InFlightCount {
    pub(crate) fn add_taken(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn add_settled(&self, count: u64) {
        self.settled.fetch_add(count, Ordering::AcqRel);
    }

    /// How many deliveries were taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// How many deliveries were taken so far, if all of them are settled.
    pub(crate) fn all_settled(&self) -> Option<u64> {
        // In this order: a delivery is taken before it is settled.
        let settled = self.settled.load(Ordering::Acquire);
        let taken = self.taken();
        (taken == settled).then_some(taken)
    }
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
