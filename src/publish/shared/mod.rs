//! [`SharedProducer`]: one producer for many threads.

pub(crate) mod pending;
mod room;
pub(crate) mod state;
mod thread;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{mem, process};

use crossbeam_channel::RecvTimeoutError;
use log::warn;

use self::pending::Pending;
use self::room::Room;
use self::state::ProducerState;
use self::thread::{Handle, Message};
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::Queue;
use crate::model::task::{Ids, Task};
use crate::publish::pending::unsent;
use crate::publish::publisher::Publisher;
use crate::publish::{self, config::Limits};
use crate::publish::{Producer, Ticket};
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Signal, is_closed};

/// A [`Producer`] for many threads: clone it, or share it behind a reference. All clones publish on
/// one connection, in a thread `rw-publisher`. Made by [`Producer::shared`].
///
/// [`publish`](SharedProducer::publish) is for one task. [`submit`](SharedProducer::submit) returns
/// before the confirm, and [`Pending::wait`] waits for it. The [window](Producer::window) bounds the
/// tasks of all callers together. The [timeout](Producer::timeout) of a task counts from its call.
///
/// Dropping the last clone publishes what was submitted, as [`close`](SharedProducer::close) does,
/// but at most for [`Producer::DROP_LIMIT`]. A warning then says how many tasks are not confirmed.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use std::thread;
///
/// use rabbit_work::{Broker, Producer, Queue, Task};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let mut producer = Producer::new(&broker, &Queue::new("photos"));
/// producer.connect()?; // reports at once what only a person can fix
/// let producer = producer.shared();
/// thread::scope(|scope| {
///     for number in 0..32 {
///         let producer = producer.clone();
///         scope.spawn(move || producer.publish(Task::new(format!("resize photo {number}"))));
///     }
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Processes
///
/// It does not work in a child that a fork makes, as a [`Producer`] does not: publishing fails there
/// at once, and a drop has no effect.
#[derive(Clone, Debug)]
pub struct SharedProducer {
    inner: Arc<Inner>,
    queue: Arc<Queue>,
}

/// What all clones share.
#[derive(Debug)]
struct Inner {
    /// `None` only in its drop.
    handle: Option<Handle>,
    room: Arc<Room>,
    ids: Mutex<Ids>,
    limits: Limits,
    stopping: Signal,
    /// The process that has the thread.
    process: u32,
    /// Whether the thread was asked to end.
    is_ended: AtomicBool,
}

/// How much longer than its timeout a caller waits for the producer's thread, as a part of the
/// timeout. The thread resolves each task at its timeout, unless it waits for the broker.
const GRACE: u32 = 20;

const PARENTS: &str =
    "this producer belongs to the parent process; make another one after the fork";

impl Producer {
    /// Makes it a producer for many threads, with the same settings and the same connection. The
    /// receipts of tasks that were sent are lost: call [`flush`](Producer::flush) first.
    ///
    /// If the system gives no thread, each task is [`Outcome::Unsent`].
    #[must_use]
    pub fn shared(mut self) -> SharedProducer {
        let ids = mem::replace(&mut self.ids, Ids::new());
        SharedProducer::new(self.publisher.take(), self.queue.clone(), ids)
    }
}

impl SharedProducer {
    fn new(publisher: Publisher<Ticket>, queue: Queue, ids: Ids) -> SharedProducer {
        let limits = publisher.limits();
        let inner = Inner {
            room: Arc::new(Room::new(limits.window)),
            ids: Mutex::new(ids),
            limits,
            stopping: publisher.stopping().clone(),
            process: process::id(),
            is_ended: AtomicBool::new(false),
            handle: Some(thread::start(publisher)),
        };
        SharedProducer { inner: Arc::new(inner), queue: Arc::new(queue) }
    }

    /// Publishes one task and waits until the broker has confirmed it. Returns its id.
    ///
    /// # Errors
    /// [`Error::NotConfirmed`] with the task and its id. Its outcome says why: [`Outcome::Unsent`] if there
    /// was no connection or no room in time, or after a stop or [`close`](SharedProducer::close);
    /// [`Outcome::Refused`] for a task that AMQP cannot carry; or what the broker answered.
    ///
    /// # Blocking
    /// At most for the timeout, and a twentieth of it.
    pub fn publish(&self, task: Task) -> Result<String, Error> {
        self.submit(task).wait_for_outcome().into_result()
    }

    /// Publishes a task without waiting for its confirm.
    ///
    /// # Blocking
    /// While the window is full: at most for the timeout. The task is then [`Outcome::Unsent`].
    pub fn submit(&self, task: Task) -> Pending {
        let deadline = deadline_after(self.inner.limits.timeout);
        if self.inner.is_inherited() {
            return resolved(task, unsent(PARENTS));
        }
        let task = task.stamped(SystemTime::now(), &mut self.inner.ids());
        if let Err(error) = self.validate(&task) {
            return resolved(task, Outcome::Refused { reason: error.to_string() });
        }
        let is_stopped = || self.inner.state() == ProducerState::Stopped;
        let stopped = |task| resolved(task, unsent(Error::Stopped.to_string()));
        if is_stopped() {
            return stopped(task);
        }
        let Some(place) = self.inner.room.take(task.size_on_the_wire(), deadline) else {
            let limit = self.inner.limits.timeout;
            return resolved(task, unsent(format!("no room in the window within {limit:?}")));
        };
        // It may have ended while this caller waited for room.
        if is_stopped() {
            return stopped(task);
        }
        let latest = deadline + self.inner.limits.timeout / GRACE;
        let (pending, resolver) = Pending::new(task.clone(), latest, Some(place));
        let place = (Arc::clone(&self.queue), task.target());
        let accepted =
            publish::pending::Pending::new(task, place, deadline, Ticket::Submit(resolver));
        self.inner.send(Message::Publish(Box::new(accepted)));
        pending
    }

    /// A producer for another queue, over the same connection and with the same window, timeout and
    /// state. The queue is declared before its first task, and again on each new connection. If that
    /// fails, only the tasks of this queue fail. If the broker does not answer, as while the queue's
    /// leader stands still, the tasks of all queues wait until that first task is out of time. Use a
    /// [`Producer`] for each queue if that is too long.
    #[must_use]
    pub fn for_queue(&self, queue: &Queue) -> SharedProducer {
        SharedProducer { inner: Arc::clone(&self.inner), queue: Arc::new(queue.clone()) }
    }

    /// Whether it can publish now. For probes: waits for nothing.
    #[must_use]
    pub fn state(&self) -> ProducerState {
        if self.inner.is_inherited() { ProducerState::Stopped } else { self.inner.state() }
    }

    fn validate(&self, task: &Task) -> Result<(), Error> {
        self.queue.validate()?;
        task.validate_for(&self.queue)
    }

    /// Waits until each task that was submitted has its outcome, and closes the connection, whether or
    /// not clones are left: these publish nothing more.
    ///
    /// # Blocking
    /// At most for the timeout, and for the broker's answer to the close. If the broker does not answer
    /// a question meanwhile, at most [`Producer::DROP_LIMIT`] longer; a warning then says so.
    pub fn close(self) {
        if !self.inner.is_inherited() {
            self.inner.end_within(self.inner.limits.timeout);
        }
    }
}

impl Inner {
    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> ProducerState {
        let Some(handle) = self.handle.as_ref().filter(|handle| !is_closed(&handle.ended)) else {
            return ProducerState::Stopped;
        };
        match handle.state.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            ProducerState::Connecting { .. } if is_closed(&self.stopping) => ProducerState::Stopped,
            state => state,
        }
    }

    fn is_inherited(&self) -> bool {
        self.process != process::id()
    }

    /// A thread that has ended drops what it is sent, which gives each task an outcome.
    fn send(&self, message: Message) {
        if let Some(handle) = &self.handle {
            let _ = handle.messages.send(message);
        }
    }

    fn end_within(&self, limit: Duration) {
        if self.is_ended.swap(true, Ordering::SeqCst) {
            return;
        }
        self.send(Message::End(limit));
        let Some(handle) = &self.handle else { return };
        let ended = handle.ended.recv_timeout(limit.saturating_add(Producer::DROP_LIMIT));
        if ended == Err(RecvTimeoutError::Timeout) {
            warn!(
                "closed a shared producer without waiting longer, because the broker does not answer; \
                 its last tasks may not be confirmed"
            );
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.is_inherited() {
            // Its locks may be held by threads that do not exist here.
            return mem::forget(self.handle.take());
        }
        self.end_within(Producer::DROP_LIMIT);
    }
}

fn resolved(task: Task, outcome: Outcome) -> Pending {
    let id = task.id().unwrap_or_default().to_string();
    let (pending, resolver) = Pending::new(task, Instant::now(), None);
    resolver.resolve(&id, outcome);
    pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_producer_of_a_parent_process_publishes_nothing_and_is_left_alone() {
        let broker = "amqp://127.0.0.1:1".parse().expect("a URL");
        let mut shared = Producer::new(&broker, &Queue::new("q")).shared();
        let _pending = shared.submit(Task::new("of the parent"));
        Arc::get_mut(&mut shared.inner).expect("no clone").process = 0;
        let begun = Instant::now();
        let error = shared.publish(Task::new("x")).expect_err("not here");
        assert!(error.to_string().contains("after the fork"), "{error}");
        drop(shared);
        assert!(begun.elapsed() < Producer::DROP_LIMIT / 2, "it flushes nothing");
    }
}
