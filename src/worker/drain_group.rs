//! [`DrainGroup`]: the drains of several queues, which end together: when all of the queues were
//! empty at one moment. Pure.
//!
//! A task of one queue may publish to another, so a queue that is empty may have tasks again as long
//! as any task runs. Each drain checks its own queue. A check that finds it empty says nothing about
//! the other queues, whose checks take place at other times. But between two such checks with nothing
//! taken in between, the queue was empty all the time. If these times of all queues have a moment in
//! common, then no task was in any queue, and none ran that could publish one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;

/// The place of one queue in its group. Clones are the same place.
#[derive(Clone, Debug)]
pub(crate) struct DrainSeat {
    group: Arc<DrainGroup>,
    number: usize,
}

#[derive(Debug)]
struct DrainGroup(Mutex<Vec<Seat>>);

/// What is known of one queue.
#[derive(Debug)]
struct Seat {
    state: SeatState,
    /// Receives how many deliveries the present session had taken when all queues were empty.
    done: Option<Sender<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeatState {
    /// It has tasks, or may have.
    Busy,
    Quiet(Quiet),
    /// The same, and its worker has no connection, because the broker allows no more.
    Unconnected,
    /// The broker refuses it. It holds up no other queue.
    Refused,
    /// Its worker has ended or is about to.
    Ended,
}

/// A queue that was empty at each check in a row, with the same deliveries taken and settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quiet {
    pub(crate) taken: u64,
    /// The end of the first of these checks.
    pub(crate) since: Instant,
    /// The begin of the last of them that counted all delay queues.
    pub(crate) counted_all: Option<Instant>,
}

impl DrainSeat {
    /// The seats of a group of so many queues.
    pub(crate) fn group(size: usize) -> Vec<DrainSeat> {
        let seat = || Seat { state: SeatState::Busy, done: None };
        let group = Arc::new(DrainGroup(Mutex::new((0..size).map(|_| seat()).collect())));
        (0..size).map(|number| DrainSeat { group: Arc::clone(&group), number }).collect()
    }

    /// Begins anew with a session of this queue.
    pub(crate) fn begin(&self, done: &Sender<u64>) {
        self.lock()[self.number] = Seat { state: SeatState::Busy, done: Some(done.clone()) };
    }

    /// Notes what the session with this `done` found last; `None` if tasks are left, or may be.
    /// Notifies all sessions if all queues were empty at one moment.
    pub(crate) fn note(&self, done: &Sender<u64>, quiet: Option<Quiet>) {
        let mut seats = self.lock();
        let seat = &mut seats[self.number];
        let is_present = seat.done.as_ref().is_some_and(|it| it.same_channel(done));
        if !is_present || seat.state == SeatState::Ended {
            return;
        }
        seat.state = quiet.map_or(SeatState::Busy, SeatState::Quiet);
        end_if_empty(&mut seats);
    }

    /// Whether to count all delay queues: only that is left to be known.
    pub(crate) fn is_last_check(&self) -> bool {
        let seats = self.lock();
        let needs = |seat: &Seat| match (seat.state, latest_since(&seats)) {
            (SeatState::Quiet(quiet), Some(latest)) => quiet.counted_all < Some(latest),
            _ => false,
        };
        !seats.iter().any(Seat::may_have_tasks) && needs(&seats[self.number])
    }

    /// Notes that the broker refuses the queue. Returns whether all that its worker could wait for
    /// has ended.
    pub(crate) fn refuse(&self) -> bool {
        let mut seats = self.lock();
        seats[self.number].state = SeatState::Refused;
        end_if_empty(&mut seats);
        let is_active =
            |seat: &Seat| seat.may_have_tasks() || matches!(seat.state, SeatState::Quiet(_));
        !seats.iter().any(is_active) && seats.iter().any(|seat| seat.state == SeatState::Ended)
    }

    /// Notes that its worker gets no connection, because the broker allows no more. Returns whether
    /// the others hold theirs only because they wait for this queue, or for others without one.
    pub(crate) fn wait_for_connection(&self) -> bool {
        let mut seats = self.lock();
        seats[self.number].state = SeatState::Unconnected;
        !seats.iter().any(|seat| seat.state == SeatState::Busy)
            && seats.iter().any(|seat| matches!(seat.state, SeatState::Quiet(_)))
    }

    /// Notes that the queue is worked no more.
    pub(crate) fn end(&self) {
        let mut seats = self.lock();
        seats[self.number].state = SeatState::Ended;
        end_if_empty(&mut seats);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.group.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn may_have_tasks(&self) -> bool {
        matches!(self.state, SeatState::Busy | SeatState::Unconnected)
    }
}

impl Default for DrainSeat {
    /// A group of one.
    fn default() -> DrainSeat {
        DrainSeat::group(1).remove(0)
    }
}

/// When the last of the quiet queues became quiet.
fn latest_since(seats: &[Seat]) -> Option<Instant> {
    let since = |seat: &Seat| match seat.state {
        SeatState::Quiet(quiet) => Some(quiet.since),
        _ => None,
    };
    seats.iter().filter_map(since).max()
}

fn end_if_empty(seats: &mut [Seat]) {
    let latest = latest_since(seats);
    let was_empty_then = |seat: &Seat| match seat.state {
        SeatState::Busy | SeatState::Unconnected => false,
        SeatState::Quiet(quiet) => quiet.counted_all >= latest,
        SeatState::Refused | SeatState::Ended => true,
    };
    if !seats.iter().all(was_empty_then) {
        return;
    }
    for seat in seats {
        let SeatState::Quiet(Quiet { taken, .. }) = seat.state else { continue };
        seat.state = SeatState::Ended;
        // A session that has ended needs to know nothing.
        let _ = seat.done.as_ref().map(|done| done.try_send(taken));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::{Receiver, bounded};

    use super::*;

    /// A session that checks its queue.
    struct Session {
        seat: DrainSeat,
        done: Sender<u64>,
        drained: Receiver<u64>,
    }

    impl Session {
        fn begin(seat: DrainSeat) -> Session {
            let (done, drained) = bounded(1);
            seat.begin(&done);
            Session { seat, done, drained }
        }

        /// Empty since one time, all counted at another, both in seconds.
        fn empty(&self, zero: Instant, since: u64, counted_all: Option<u64>) {
            let at = |seconds| zero + Duration::from_secs(seconds);
            let counted_all = counted_all.map(at);
            self.seat.note(&self.done, Some(Quiet { taken: 7, since: at(since), counted_all }));
        }

        fn busy(&self) {
            self.seat.note(&self.done, None);
        }

        fn is_drained(&self) -> bool {
            self.drained.try_recv() == Ok(7)
        }
    }

    fn sessions(count: usize) -> (Instant, Vec<Session>) {
        let sessions = DrainSeat::group(count).into_iter().map(Session::begin).collect();
        (Instant::now(), sessions)
    }

    #[test]
    fn one_queue_is_drained_at_its_second_check() {
        let (zero, queues) = sessions(1);
        queues[0].empty(zero, 1, None);
        assert!(queues[0].seat.is_last_check());
        assert!(!queues[0].is_drained());
        queues[0].empty(zero, 1, Some(2));
        assert!(queues[0].is_drained());
    }

    #[test]
    fn a_queue_without_a_connection_is_awaited_until_only_that_holds_the_others_up() {
        let (zero, queues) = sessions(3);
        queues[0].empty(zero, 1, Some(2));
        assert!(!queues[1].seat.wait_for_connection(), "the third may end and free its own");
        assert!(queues[2].seat.wait_for_connection(), "no one will");
        assert!(!queues[0].is_drained() && !queues[0].seat.is_last_check());
        queues[1].seat.end();
        queues[2].seat.end();
        assert!(queues[0].is_drained());
    }

    #[test]
    fn without_any_empty_queue_a_connection_may_come_from_elsewhere() {
        let (_, queues) = sessions(2);
        assert!(!queues[0].seat.wait_for_connection());
        assert!(!queues[1].seat.wait_for_connection());
    }

    #[test]
    fn several_are_drained_only_if_all_were_empty_at_one_moment() {
        let (zero, queues) = sessions(2);
        queues[0].empty(zero, 1, Some(2));
        assert!(!queues[0].is_drained(), "the other one may publish to it");
        queues[1].empty(zero, 3, None);
        assert!(queues[0].seat.is_last_check(), "it was counted before the other one was empty");
        queues[1].empty(zero, 3, Some(4));
        assert!(!queues[1].seat.is_last_check());
        assert!(!queues[0].is_drained() && !queues[1].is_drained());
        queues[0].empty(zero, 1, Some(5));
        assert!(queues[0].is_drained() && queues[1].is_drained());
    }

    #[test]
    fn a_queue_that_has_tasks_again_holds_up_the_others() {
        let (zero, queues) = sessions(2);
        queues[0].empty(zero, 1, Some(2));
        queues[1].empty(zero, 3, None);
        queues[0].busy();
        assert!(!queues[1].seat.is_last_check());
        queues[1].empty(zero, 3, Some(4));
        assert!(!queues[0].is_drained() && !queues[1].is_drained());
        queues[0].empty(zero, 6, Some(7));
        assert!(!queues[0].is_drained(), "the other one was counted before");
        queues[1].empty(zero, 3, Some(8));
        assert!(queues[0].is_drained() && queues[1].is_drained());
    }

    #[test]
    fn a_queue_that_has_ended_or_is_refused_holds_up_no_other() {
        let (zero, queues) = sessions(3);
        assert!(!queues[2].seat.refuse(), "others work");
        queues[0].empty(zero, 1, Some(2));
        assert!(!queues[0].is_drained());
        queues[1].seat.end();
        assert!(queues[0].is_drained());
        assert!(queues[2].seat.refuse(), "nothing is left to wait for");
    }

    #[test]
    fn queues_that_are_all_refused_wait_for_the_broker() {
        let (_, queues) = sessions(2);
        assert!(!queues[0].seat.refuse());
        assert!(!queues[1].seat.refuse());
    }

    #[test]
    fn what_a_lost_session_reports_late_does_not_count() {
        let (zero, mut queues) = sessions(1);
        let lost = queues.remove(0);
        let next = Session::begin(lost.seat.clone());
        lost.empty(zero, 1, Some(2));
        assert!(!lost.is_drained() && !next.is_drained());
        next.empty(zero, 3, Some(4));
        assert!(next.is_drained());
    }

    #[test]
    fn a_queue_that_got_tasks_at_the_end_is_drained_again() {
        let (zero, mut queues) = sessions(2);
        queues.iter().for_each(|it| it.empty(zero, 1, Some(2)));
        assert!(queues.iter().all(Session::is_drained));
        let again = Session::begin(queues.remove(0).seat);
        again.empty(zero, 3, Some(4));
        assert!(again.is_drained());
    }
}
