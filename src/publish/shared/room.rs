//! [`Room`]: the window that all callers of a shared producer share.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::publish::in_flight::WINDOW_BYTES;

/// How many tasks may be unresolved at a time, and how many are.
#[derive(Debug)]
pub(super) struct Room {
    window: usize,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    tasks: usize,
    bytes: usize,
    /// The callers that wait for room, by the numbers that they drew, in this order.
    waiting: VecDeque<u64>,
    next_number: u64,
}

/// The room that one task takes. Dropping it frees the room.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(super) fn new(window: usize) -> Room {
        Room { window, used: Mutex::default(), freed: Condvar::new() }
    }

    /// Takes room for a task of so many bytes, and waits for it; `None` if the deadline comes first.
    pub(super) fn take(self: &Arc<Room>, bytes: usize, deadline: Instant) -> Option<Place> {
        let mut used = self.lock();
        let number = used.draw_number();
        while !used.is_turn_of(number) || !used.has_room_for(bytes, self.window) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.leave(&mut used, number);
                return None;
            }
            let woken = self.freed.wait_timeout(used, left);
            used = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        used.tasks += 1;
        used.bytes += bytes;
        self.leave(&mut used, number);
        Some(Place { room: Arc::clone(self), bytes })
    }

    /// Takes a caller out of the line, and gives the next one its turn.
    fn leave(&self, used: &mut Used, number: u64) {
        used.waiting.retain(|it| *it != number);
        if !used.waiting.is_empty() {
            self.freed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    /// First come, first served: small tasks would otherwise keep a large one waiting for ever.
    fn draw_number(&mut self) -> u64 {
        self.next_number += 1;
        self.waiting.push_back(self.next_number);
        self.next_number
    }

    fn is_turn_of(&self, number: u64) -> bool {
        self.waiting.front() == Some(&number)
    }

    /// A single task may be larger than the window.
    fn has_room_for(&self, bytes: usize, window: usize) -> bool {
        self.tasks == 0 || self.tasks < window && self.bytes + bytes <= WINDOW_BYTES
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut used = self.room.lock();
        used.tasks -= 1;
        used.bytes -= self.bytes;
        // All of them: the system does not wake the first one first.
        if !used.waiting.is_empty() {
            self.room.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn room_is_for_a_window_of_tasks_and_for_one_that_is_larger_than_any_window() {
        let room = Arc::new(Room::new(2));
        let large = room.take(2 * WINDOW_BYTES, soon()).expect("a single task");
        assert!(room.take(1, soon()).is_none());
        drop(large);
        let places = [room.take(1, soon()), room.take(1, soon())];
        assert!(places.iter().all(Option::is_some));
        assert!(room.take(1, soon()).is_none());
        drop(places);
        assert!(room.take(WINDOW_BYTES, soon()).is_some());
    }

    #[test]
    fn a_large_task_has_its_turn_before_those_that_came_later() {
        let room = Arc::new(Room::new(10));
        let place = room.take(1, soon()).expect("room");
        let far = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let large = scope.spawn(|| room.take(2 * WINDOW_BYTES, far));
            while room.lock().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(room.take(1, soon()).is_none(), "it came later");
            drop(place);
            assert!(large.join().expect("no panic").is_some());
        });
    }

    #[test]
    fn a_caller_that_waits_has_the_room_that_another_frees() {
        let room = Arc::new(Room::new(1));
        let place = room.take(1, soon()).expect("room");
        let far = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| room.take(1, far).is_some());
            drop(place);
            assert!(waiting.join().expect("no panic"));
        });
    }
}
