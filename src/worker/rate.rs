//! [`StartRate`]: lets tasks start at most so often, spread evenly, in all threads together.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, at, bounded};

use crate::model::error::Error;
use crate::util::deadline::UNLIMITED;
use crate::util::shutdown::Signal;

/// The schedule of the starts. One turn goes from thread to thread: only the thread that has it
/// waits for the next start, and if it gives up, another one gets the turn.
#[derive(Debug)]
pub(crate) struct StartRate {
    tasks: u32,
    per: Duration,
    /// Holds the moment of the next start while no thread waits for it.
    turn: (Sender<Instant>, Receiver<Instant>),
}

/// How much of a start's delay the next one may make up for. Threads wake up some tenths of a
/// millisecond late, which would slow down a high rate. More would be a burst.
const SLACK: Duration = Duration::from_millis(1);

impl StartRate {
    /// The first start is due now.
    pub(crate) fn new(tasks: u32, per: Duration) -> StartRate {
        let turn = bounded(1);
        // Never blocks nor fails: the only turn is in our hands, and we hold the receiver.
        let _ = turn.0.send(Instant::now());
        StartRate { tasks, per, turn }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.tasks == 0 || self.per.is_zero() {
            return Err(Error::setting("rate", "0 would start no task; write 1 or more"));
        }
        Ok(())
    }

    fn interval(&self) -> Duration {
        self.per.min(UNLIMITED) / self.tasks.max(1)
    }

    /// Waits until a task may start, which then has to start at once; `false` if one of these signals
    /// closed before.
    pub(crate) fn wait(&self, signals: &[&Signal]) -> bool {
        let Some(due) = receive(&self.turn.1, signals) else { return false };
        let may_start = receive(&at(due), signals).is_some();
        let next = if may_start { next_start(due, Instant::now(), self.interval()) } else { due };
        let _ = self.turn.0.send(next);
        may_start
    }
}

/// When the next task may start, if one that was due then starts now. Time without tasks is not
/// saved up for a burst.
fn next_start(due: Instant, now: Instant, interval: Duration) -> Instant {
    let earliest = now.checked_sub(SLACK).unwrap_or(now).max(due);
    earliest.checked_add(interval).unwrap_or(earliest)
}

/// Receives a moment; `None` if one of these signals is closed, or closes before.
fn receive(moment: &Receiver<Instant>, signals: &[&Signal]) -> Option<Instant> {
    let mut select = Select::new_biased();
    for signal in signals {
        select.recv(signal);
    }
    select.recv(moment);
    let ready = select.select();
    match signals.get(ready.index()) {
        Some(signal) => {
            let _ = ready.recv(signal);
            None
        }
        None => ready.recv(moment).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::util::shutdown::closer;

    const SECOND: Duration = Duration::from_secs(1);
    const SOON: Duration = Duration::from_secs(20);

    /// The starts of tasks that come at these milliseconds, each as soon as it may.
    fn starts(interval: u64, coming: &[u64]) -> Vec<u64> {
        late_starts(interval, coming, Duration::ZERO)
    }

    /// The same if each thread wakes up so much later.
    fn late_starts(interval: u64, coming: &[u64], late: Duration) -> Vec<u64> {
        let begin = Instant::now();
        let mut due = begin;
        let mut start = |coming: &u64| {
            let now = due.max(begin + Duration::from_millis(*coming)) + late;
            due = next_start(due, now, Duration::from_millis(interval));
            (now - begin).as_millis() as u64
        };
        coming.iter().map(&mut start).collect()
    }

    #[test]
    fn starts_are_spread_evenly() {
        assert_eq!(starts(200, &[0; 6]), [0, 200, 400, 600, 800, 1000]);
        assert_eq!(starts(200, &[0, 0, 1000, 1000, 1000]), [0, 200, 1000, 1199, 1399]);
    }

    #[test]
    fn fifty_starts_at_five_a_second_take_ten_seconds() {
        let took = |late| {
            let starts = late_starts(200, &[0; 50], Duration::from_micros(late));
            starts[49] - starts[0]
        };
        assert_eq!(took(0), 9800);
        assert_eq!(took(900), 9800, "the next start makes up for as much as the slack");
        // A busy machine.
        assert!((9800..11_000).contains(&took(20_000)), "{}", took(20_000));
    }

    #[test]
    fn time_without_tasks_is_not_saved_up() {
        let starts = starts(100, &[0, 60_000, 60_000, 60_000, 60_000]);
        assert!(starts[1..].windows(2).all(|pair| pair[1] - pair[0] >= 99), "{starts:?}");
    }

    #[test]
    fn a_start_that_is_late_by_less_than_a_millisecond_delays_no_other() {
        let due = Instant::now() + SECOND;
        let late = due + Duration::from_micros(900);
        assert_eq!(next_start(due, late, SECOND), due + SECOND);
    }

    #[test]
    fn a_closed_signal_ends_the_wait_and_another_thread_gets_the_turn() {
        let rate = Arc::new(StartRate::new(1, 100 * SECOND));
        let (close, closed) = closer();
        assert!(rate.wait(&[&closed]), "the first may start at once");
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (rate, closed) = (Arc::clone(&rate), closed.clone());
                thread::spawn(move || rate.wait(&[&closed]))
            })
            .collect();
        let begun = Instant::now();
        close.close();
        for thread in waiting {
            assert!(!thread.join().expect("no panic"));
        }
        assert!(begun.elapsed() < SOON);
        let due = rate.turn.1.try_recv().expect("nobody has kept the turn");
        assert!(due > begun + 50 * SECOND, "what did not start used up no turn");
    }

    #[test]
    fn several_threads_share_one_rate() {
        let rate = Arc::new(StartRate::new(100, SECOND));
        let (_close, closed) = closer();
        let begun = Instant::now();
        let starting: Vec<_> = (0..4)
            .map(|_| {
                let (rate, closed) = (Arc::clone(&rate), closed.clone());
                thread::spawn(move || (0..5).for_each(|_| assert!(rate.wait(&[&closed]))))
            })
            .collect();
        starting.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(begun.elapsed() >= 19 * Duration::from_millis(9), "{:?}", begun.elapsed());
    }

    #[test]
    fn no_rate_is_too_low_or_too_high_for_the_clock() {
        for (tasks, per) in [(1, Duration::MAX), (u32::MAX, Duration::from_nanos(1))] {
            let rate = StartRate::new(tasks, per);
            assert!(rate.validate().is_ok());
            assert!(rate.wait(&[]));
        }
        assert!(StartRate::new(0, SECOND).validate().is_err());
        assert!(StartRate::new(1, Duration::ZERO).validate().is_err());
    }
}
