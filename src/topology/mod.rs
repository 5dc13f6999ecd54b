//! The queues derived from a queue: its delay queues and its dead-letter queue. They are declared when
//! they are needed, and delay queues in use are kept from expiring.

pub(crate) mod admin_channel;
pub(crate) mod batch_queue;
pub(crate) mod census;
pub(crate) mod declare;
pub(crate) mod default_type;
pub(crate) mod durability;
pub(crate) mod open;
pub(crate) mod queue_type;
pub(crate) mod silent_delays;

use std::collections::{HashMap, HashSet};
use std::sync::Once;
use std::time::{Duration, Instant};

use log::warn;

use crate::amqp::close_reason::{CloseReason, INTERNAL_ERROR};
use crate::amqp::connection::Connection;
use crate::amqp::heartbeat::are_more_than_heartbeats;
use crate::model::queue::{Queue, QueueDeclaration, Target};
use crate::topology::admin_channel::AdminChannel;
use crate::topology::declare::{Declared, NotDeclared, declare};
use crate::topology::durability::{REPLICATED, make_durable};
use crate::topology::queue_type::Kind;

/// What one connection knows of the queues derived from its queue.
#[derive(Default)]
pub(crate) struct DerivedQueues {
    /// Not the channel that publishes: a refused declaration closes its channel.
    admin_channel: AdminChannel,
    declared: HashMap<Target, DeclaredAt>,
    /// The queues that are published to. The others were only declared ahead.
    in_use: HashSet<Target>,
    /// The delays that follow one another; see [`DerivedQueues::predeclare`].
    delays: Vec<Duration>,
    /// Those of them whose queues were declared ahead, or refused.
    predeclared: HashSet<Duration>,
    /// The delay whose queue is being asked.
    probing: Option<Duration>,
}

/// When a queue was declared on this connection.
#[derive(Clone, Copy)]
struct DeclaredAt {
    at: Instant,
    /// From when on it outlives a crash of the broker.
    durable_at: Instant,
}

/// Why a queue cannot be published to.
pub(crate) enum NotReady {
    /// It was created just now, and is durable only from this moment on.
    NotDurable(Instant),
    /// The broker does not allow it.
    Refused(String),
    /// The main queue, to which a delay queue returns its tasks, does not exist.
    NoTarget(String),
    /// The queue of this delay does not respond, and the connection is lost because of it.
    Silent(Duration, CloseReason),
    /// The connection is lost.
    Lost(CloseReason),
}

/// How often a queue in use is declared and renewed again: far below the week by which a delay
/// queue outlives its delay.
const RENEWED_EVERY: Duration = Duration::from_secs(3600);

impl From<CloseReason> for NotReady {
    fn from(cause: CloseReason) -> NotReady {
        match cause {
            cause if cause.is_channel_error() => NotReady::Refused(cause.to_string()),
            cause => NotReady::Lost(cause),
        }
    }
}

impl DeclaredAt {
    /// Whether its expiry is still far enough away.
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < RENEWED_EVERY
    }
}

impl DerivedQueues {
    /// Has the queue of a delay declared together with that of the delay before, so that it is
    /// durable when it is needed: a task that failed once may fail again.
    pub(crate) fn predeclare(mut self, delays: Vec<Duration>) -> DerivedQueues {
        self.delays = delays;
        self
    }

    /// Whether `target` is ready, if that is known; `None` if the broker has to be asked.
    pub(crate) fn known(&self, target: Target) -> Option<Result<(), NotReady>> {
        let declared = self.declared.get(&target).filter(|it| it.is_fresh());
        let durable_at = declared.map(|it| it.durable_at).filter(|at| Instant::now() < *at);
        if let Some(durable_at) = durable_at {
            return Some(Err(NotReady::NotDurable(durable_at)));
        }
        // A worker does not create a queue of outcomes: if it does not exist, nobody waits.
        let is_never_declared = matches!(target, Target::Main | Target::Batch(_));
        (is_never_declared || self.is_in_use(target)).then_some(Ok(()))
    }

    /// Notes that a queue was declared elsewhere just now, and is durable from this moment on.
    pub(crate) fn mark_declared(&mut self, target: Target, durable_at: Instant) {
        self.declared.insert(target, DeclaredAt { at: Instant::now(), durable_at });
    }

    /// Forgets when a queue that is not declared for its publishes becomes durable, once it is: each of
    /// them would read the clock for that.
    pub(crate) fn forget_durable(&mut self) {
        if let Some(declared) = self.declared.get(&Target::Main) {
            if declared.durable_at <= Instant::now() {
                self.declared.remove(&Target::Main);
            }
        }
    }

    /// Makes `target` ready: it exists, and stays longer than the tasks that are published to it now.
    /// Waits for some answers of the broker.
    pub(crate) fn prepare(
        &mut self,
        connection: &Connection,
        queue: &Queue,
        target: Target,
    ) -> Result<(), NotReady> {
        if matches!(target, Target::Delay(_)) {
            self.check_target(connection, queue)?;
        }
        let durable_at = self.ensure_declared(connection, queue, target)?;
        if let Target::Delay(delay) = target {
            self.predeclare_next(connection, queue, delay)?;
        }
        if Instant::now() < durable_at {
            return Err(NotReady::NotDurable(durable_at));
        }
        self.in_use.insert(target);
        Ok(())
    }

    /// Has `target` declared again before the next publish to it: it did not exist.
    pub(crate) fn forget(&mut self, target: Target) {
        self.declared.remove(&target);
        self.in_use.remove(&target);
    }

    /// The delay whose queue was being asked when the connection was lost.
    pub(crate) fn probing(&self) -> Option<Duration> {
        self.probing
    }

    fn is_in_use(&self, target: Target) -> bool {
        let is_fresh = self.declared.get(&target).is_some_and(DeclaredAt::is_fresh);
        is_fresh && self.in_use.contains(&target)
    }

    /// Checks that the main queue exists, unless we have declared it: the broker drops delayed tasks
    /// whose main queue does not exist when their delay ends.
    fn check_target(&mut self, connection: &Connection, queue: &Queue) -> Result<(), NotReady> {
        let name = queue.name();
        if !queue.is_passive() || self.admin_channel.count(connection, name)?.is_some() {
            return Ok(());
        }
        Err(NotReady::NoTarget(format!(
            "queue '{name}' does not exist, so the broker would drop the task after its delay"
        )))
    }

    /// Declares `target`, unless that was done within the hour; returns from when on it is durable.
    fn ensure_declared(
        &mut self,
        connection: &Connection,
        queue: &Queue,
        target: Target,
    ) -> Result<Instant, NotReady> {
        if let Some(declared) = self.declared.get(&target).filter(|it| it.is_fresh()) {
            return Ok(declared.durable_at);
        }
        self.in_use.remove(&target);
        let existing = self.admin_channel.count(connection, &queue.name_of(target))?;
        let declaration = self.declare(connection, queue, target)?;
        let at = Instant::now();
        let durable_at = match existing {
            None => make_durable(&mut self.admin_channel, connection, &declaration)?,
            // Another connection may have created it a moment ago.
            Some(count) if declaration.is_quorum() && count.is_unused() => at + REPLICATED,
            Some(_) => at,
        };
        self.declared.insert(target, DeclaredAt { at, durable_at });
        Ok(durable_at)
    }

    /// Declares the queue of the delay after `delay`, once on each connection.
    fn predeclare_next(
        &mut self,
        connection: &Connection,
        queue: &Queue,
        delay: Duration,
    ) -> Result<(), NotReady> {
        let next = self.delays.iter().skip_while(|it| **it != delay).nth(1).copied();
        let Some(next) = next.filter(|next| self.predeclared.insert(*next)) else { return Ok(()) };
        match self.ensure_declared(connection, queue, Target::Delay(next)) {
            // It is reported when the queue is needed.
            Err(NotReady::Refused(_)) => Ok(()),
            declared => declared.map(drop),
        }
    }

    /// Declares `target` in the best way that the broker takes; returns which that is.
    fn declare(
        &mut self,
        connection: &Connection,
        queue: &Queue,
        target: Target,
    ) -> Result<QueueDeclaration, NotReady> {
        let name = queue.name_of(target);
        let declared = declare(&mut self.admin_channel, connection, queue, target);
        let declared = declared.map_err(|it| not_ready(&name, it))?;
        let declaration = match declared {
            Declared::By { declaration, refusals } => {
                if !refusals.is_empty() {
                    warn_once_of_classic_delay_queues(&name, &refusals);
                }
                declaration
            }
            Declared::UsedAsItIs { .. } => {
                let kind = Kind::ask(&mut self.admin_channel, connection, &name)?;
                if let Some(objection) = kind.objection() {
                    return Err(NotReady::Refused(format!("'{name}': {objection}")));
                }
                declared.log_use(&name);
                queue.best_declaration(target)
            }
        };
        if let Target::Delay(delay) = target {
            self.renew(connection, &name, delay)?;
        }
        Ok(declaration)
    }

    /// Puts off the expiry of a delay queue. To declare a quorum queue again does not do that,
    /// unlike with a classic one (measured on RabbitMQ 3.10.8); to take a message from it does,
    /// even if the queue is empty. The message is requeued to its place and keeps its time.
    ///
    /// A delay queue without a leader does not answer at all, while heartbeats go on. A queue can stay
    /// so for good if its broker was killed just after it was created (measured on RabbitMQ 3.10.8).
    fn renew(
        &mut self,
        connection: &Connection,
        name: &str,
        delay: Duration,
    ) -> Result<(), NotReady> {
        self.probing = Some(delay);
        self.admin_channel.open(connection)?;
        let before = connection.heartbeat().bytes();
        let peeked = self.admin_channel.ask(connection, |channel| channel.peek(name));
        peeked.map_err(|cause| {
            let received = connection.heartbeat().bytes() - before;
            if is_silent(connection, received) || is_broken(&cause) {
                NotReady::Silent(delay, cause)
            } else {
                cause.into()
            }
        })?;
        self.probing = None;
        Ok(())
    }
}

/// Whether the queue did not respond while the broker did, judged by the bytes that were received
/// while we waited.
fn is_silent(connection: &Connection, received: u64) -> bool {
    let call_limit = connection.call_limit();
    // If no heartbeat was due in that time, a silent queue and a silent broker look the same.
    let heartbeats = connection.heartbeat().limit().is_some_and(|limit| limit <= call_limit);
    let broker_is_alive = received > 0 || !heartbeats;
    let timed_out = connection.call_guard().cause().is_some();
    timed_out && broker_is_alive && !are_more_than_heartbeats(received, call_limit)
}

/// What the broker answers if the queue's process does not exist.
fn is_broken(cause: &CloseReason) -> bool {
    matches!(cause, CloseReason::ConnectionClosed { code: INTERNAL_ERROR, .. })
}

fn not_ready(name: &str, not_declared: NotDeclared) -> NotReady {
    if not_declared.cause.is_channel_error() {
        NotReady::Refused(format!("'{name}' cannot be declared: {not_declared}"))
    } else {
        NotReady::Lost(not_declared.cause)
    }
}

fn warn_once_of_classic_delay_queues(name: &str, refusals: &[CloseReason]) {
    static WARNED: Once = Once::new();
    let refusals: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    WARNED.call_once(|| {
        warn!(
            "delay queues such as '{name}' are classic queues, because the broker refused quorum \
             queues ({}): a crash of the broker can lose a task that is leaving one",
            refusals.join("; ")
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_queue_is_forgotten_once_it_is_durable() {
        let (mut queues, now) = (DerivedQueues::default(), Instant::now());
        queues.mark_declared(Target::Main, now + Duration::from_secs(60));
        queues.forget_durable();
        assert!(matches!(queues.known(Target::Main), Some(Err(NotReady::NotDurable(_)))));
        queues.mark_declared(Target::Main, now);
        queues.mark_declared(Target::Dead, now);
        queues.forget_durable();
        assert_eq!(queues.declared.keys().collect::<Vec<_>>(), [&Target::Dead]);
        assert!(matches!(queues.known(Target::Main), Some(Ok(()))));
    }
}
