//! What one connection knows of the queues that it publishes to, and of those derived from them.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::publish::pending::Pending;
use crate::topology::open::open_queue;
use crate::topology::{DerivedQueues, NotReady};

/// The publisher's own queue, and others by their names, which are declared when they are needed.
pub(super) struct Queues {
    own: KnownQueue,
    others: HashMap<String, OtherQueue>,
    /// For the threads that declare the others.
    declared: (Sender<Declared>, Receiver<Declared>),
}

struct KnownQueue {
    queue: Arc<Queue>,
    derived: DerivedQueues,
}

enum OtherQueue {
    /// A thread waits for the broker's answer. If the leader of the queue stands still, none comes, and
    /// the tasks for other queues must not wait for it.
    Asked,
    Refused(String),
    Known(Box<KnownQueue>),
}

/// What the broker has answered to a declaration.
pub(super) struct Declared {
    queue: Arc<Queue>,
    derived: Result<DerivedQueues, NotReady>,
}

impl Queues {
    /// With a publisher's own queue, which exists.
    pub(super) fn new(queue: &Arc<Queue>, derived: DerivedQueues) -> Queues {
        let own = KnownQueue { queue: Arc::clone(queue), derived };
        Queues { own, others: HashMap::new(), declared: unbounded() }
    }

    fn is_own<T>(&self, pending: &Pending<T>) -> bool {
        pending.queue.name() == self.own.queue.name()
    }

    /// Whether a task's queue is ready, if that is known; see [`DerivedQueues::known`].
    pub(super) fn known<T>(&self, pending: &Pending<T>) -> Option<Result<(), NotReady>> {
        if self.is_own(pending) {
            return self.own.derived.known(pending.target);
        }
        match self.others.get(pending.queue.name())? {
            OtherQueue::Asked => Some(Err(NotReady::Asked)),
            OtherQueue::Refused(reason) => Some(Err(NotReady::Refused(reason.clone()))),
            OtherQueue::Known(known) => known.derived.known(pending.target),
        }
    }

    /// What is known of the queue of this task, if it is declared.
    fn derived<T>(&mut self, pending: &Pending<T>) -> Option<&mut DerivedQueues> {
        if self.is_own(pending) {
            return Some(&mut self.own.derived);
        }
        match self.others.get_mut(pending.queue.name())? {
            OtherQueue::Known(known) => Some(&mut known.derived),
            OtherQueue::Asked | OtherQueue::Refused(_) => None,
        }
    }

    /// See [`DerivedQueues::forget_durable`], of the queue of this task.
    pub(super) fn forget_durable<T>(&mut self, pending: &Pending<T>) {
        if let Some(derived) = self.derived(pending) {
            derived.forget_durable();
        }
    }

    /// Makes a task's queue ready. Waits for some answers of the broker, but not for the declaration of
    /// another queue.
    pub(super) fn prepare<T>(
        &mut self,
        connection: &Connection,
        pending: &Pending<T>,
    ) -> Result<(), NotReady> {
        let Some(derived) = self.derived(pending) else {
            return self.ask(connection, &pending.queue);
        };
        match derived.known(pending.target) {
            Some(ready) => ready,
            None => derived.prepare(connection, &pending.queue, pending.target),
        }
    }

    /// Has another queue declared in a thread.
    fn ask(&mut self, connection: &Connection, queue: &Arc<Queue>) -> Result<(), NotReady> {
        let (connection, asked) = (connection.lend_without_limit(), Arc::clone(queue));
        let declared = self.declared.0.clone();
        let ask = move || {
            let derived = declare(&connection, &asked);
            // The link may have ended.
            let _ = declared.send(Declared { queue: asked, derived });
        };
        if let Err(source) = thread::Builder::new().name("rw-declare".into()).spawn(ask) {
            return Err(NotReady::Refused(format!("no thread to declare its queue: {source}")));
        }
        self.others.insert(queue.name().to_owned(), OtherQueue::Asked);
        Err(NotReady::Asked)
    }

    /// The broker's answers.
    pub(super) fn declared(&self) -> &Receiver<Declared> {
        &self.declared.1
    }

    /// Records an answer.
    pub(super) fn note(&mut self, Declared { queue, derived }: Declared) {
        let name = queue.name().to_owned();
        match derived {
            Ok(derived) => {
                self.others
                    .insert(name, OtherQueue::Known(Box::new(KnownQueue { queue, derived })));
            }
            Err(NotReady::Refused(reason)) => {
                self.others.insert(name, OtherQueue::Refused(reason));
            }
            // The connection is lost, which the link learns in another way.
            Err(_) => drop(self.others.remove(&name)),
        }
    }

    /// Has the next task for a queue that was refused ask again.
    pub(super) fn forget_refused(&mut self) {
        self.others.retain(|_, it| !matches!(it, OtherQueue::Refused(_)));
    }

    /// Has a task's queue declared again before the next publish to it: it did not exist.
    pub(super) fn forget<T>(&mut self, pending: &Pending<T>) {
        if !self.is_own(pending) && pending.target == Target::Main {
            self.others
                .retain(|name, it| name != pending.queue.name() || matches!(it, OtherQueue::Asked));
        } else if let Some(derived) = self.derived(pending) {
            derived.forget(pending.target);
        }
    }

    /// The delay whose queue was being asked when the connection was lost, and its queue.
    pub(super) fn probing(&self) -> Option<(Arc<Queue>, Duration)> {
        let others = self.others.values().filter_map(|it| match it {
            OtherQueue::Known(known) => Some(&**known),
            OtherQueue::Asked | OtherQueue::Refused(_) => None,
        });
        let mut known = others.chain([&self.own]);
        known.find_map(|it| Some((Arc::clone(&it.queue), it.derived.probing()?)))
    }
}

/// Has a queue exist, unless it is used as it is.
fn declare(connection: &Connection, queue: &Queue) -> Result<DerivedQueues, NotReady> {
    let mut derived = DerivedQueues::default();
    if queue.is_passive() {
        return Ok(derived);
    }
    let ready = open_queue(connection, queue).map_err(|cause| refused(connection, queue, cause))?;
    ready.channel.close()?;
    ready.durable_at.iter().for_each(|at| derived.mark_declared(Target::Main, *at));
    Ok(derived)
}

fn refused(connection: &Connection, queue: &Queue, cause: CloseReason) -> NotReady {
    if !cause.is_channel_error() {
        return NotReady::Lost(cause);
    }
    let error = Error::from_queue_use(queue.name(), connection.address(), cause);
    NotReady::Refused(error.chain())
}
