//! Owns the queues beside a queue: declares its delay queues and its queue of dead letters when
//! they are needed, and keeps delay queues that are in use from expiring.

pub(crate) mod census;
pub(crate) mod durability;
pub(crate) mod queue_type;
pub(crate) mod silent_delays;

use std::collections::{HashMap, HashSet};
use std::sync::Once;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::amqp::channel::{Channel, Count};
use crate::amqp::close_reason::{CloseReason, INTERNAL_ERROR};
use crate::amqp::connection::Connection;
use crate::amqp::heartbeat::are_more_than_heartbeats;
use crate::model::queue::{Queue, QueueDeclaration, Target};
use crate::topology::durability::{REPLICATED, settle};

/// What one connection knows of the queues beside its queue.
#[derive(Default)]
pub(crate) struct DerivedQueues {
    /// Not the channel that publishes: a refused declaration takes its channel with it.
    side: Option<Channel>,
    declared: HashMap<Target, Declared>,
    /// Those that are published to. The others were made ahead only.
    in_use: HashSet<Target>,
    /// The delays that follow one another; see [`DerivedQueues::predeclare`].
    delays: Vec<Duration>,
    /// Those of them whose queues were made ahead, or tried to.
    foreseen: HashSet<Duration>,
    /// The delay whose queue is being looked at.
    probing: Option<Duration>,
}

/// A place that was declared on this connection.
#[derive(Clone, Copy)]
struct Declared {
    at: Instant,
    /// From when on it may be trusted.
    settled_at: Instant,
}

/// Why a place cannot be published to.
pub(crate) enum NotReady {
    /// It was made just now, and is to be trusted from this moment on only.
    Settling(Instant),
    /// The broker does not allow it.
    Refused(String),
    /// What waited in it would come to a queue that is not there.
    NoTarget(String),
    /// The queue of this delay gives no answer, and the connection is lost for it.
    Silent(Duration, CloseReason),
    /// The connection is lost.
    Lost(CloseReason),
}

/// How often a place in use is declared and renewed again: far below the week by which a delay
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

impl Declared {
    /// Whether its expiry is still far enough away.
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < RENEWED_EVERY
    }
}

impl DerivedQueues {
    /// Has the queue of a delay made together with that of the one before, so that it has settled
    /// when it is needed: a task that failed once may fail again.
    pub(crate) fn predeclare(mut self, delays: Vec<Duration>) -> DerivedQueues {
        self.delays = delays;
        self
    }

    /// What can be said of `target` without asking the broker; `None` when it has to be asked.
    pub(crate) fn known(&self, target: Target) -> Option<Result<(), NotReady>> {
        let declared = self.declared.get(&target).filter(|it| it.is_fresh());
        let settling = declared.map(|it| it.settled_at).filter(|at| Instant::now() < *at);
        if let Some(settled_at) = settling {
            return Some(Err(NotReady::Settling(settled_at)));
        }
        (target == Target::Main || self.is_in_use(target)).then_some(Ok(()))
    }

    /// Notes that a queue was declared elsewhere just now, and is trusted from this moment on.
    pub(crate) fn made(&mut self, target: Target, settled_at: Instant) {
        self.declared.insert(target, Declared { at: Instant::now(), settled_at });
    }

    /// Sees to it that `target` exists, and goes on to exist for longer than what is published now
    /// waits in it. Waits for some answers of the broker.
    pub(crate) fn prepare(
        &mut self,
        connection: &mut Connection,
        queue: &Queue,
        target: Target,
    ) -> Result<(), NotReady> {
        if matches!(target, Target::Delay(_)) {
            self.check_target(connection, queue)?;
        }
        let settled_at = self.make(connection, queue, target)?;
        if let Target::Delay(delay) = target {
            self.make_next(connection, queue, delay)?;
        }
        if Instant::now() < settled_at {
            return Err(NotReady::Settling(settled_at));
        }
        self.in_use.insert(target);
        Ok(())
    }

    /// Has `target` declared again before it is published to again: it was not there.
    pub(crate) fn forget(&mut self, target: Target) {
        self.declared.remove(&target);
        self.in_use.remove(&target);
    }

    fn is_in_use(&self, target: Target) -> bool {
        self.in_use.contains(&target) && self.declared.get(&target).is_some_and(Declared::is_fresh)
    }

    /// Looks for the queue behind the delays, where it was not declared: a broker returns what has
    /// no queue to go to, and takes what waits for one that is not there.
    fn check_target(&mut self, connection: &mut Connection, queue: &Queue) -> Result<(), NotReady> {
        let name = queue.name();
        if !queue.is_passive() || self.is_there(connection, name)? {
            return Ok(());
        }
        Err(NotReady::NoTarget(format!("there is no queue '{name}' to come to after the delay")))
    }

    /// Declares `target` where that was not done within the hour; says from when on it may be
    /// trusted.
    fn make(
        &mut self,
        connection: &mut Connection,
        queue: &Queue,
        target: Target,
    ) -> Result<Instant, NotReady> {
        if let Some(declared) = self.declared.get(&target).filter(|it| it.is_fresh()) {
            return Ok(declared.settled_at);
        }
        self.in_use.remove(&target);
        let found = self.find(connection, &queue.name_of(target))?;
        let plan = self.declare(connection, queue, target)?;
        let at = Instant::now();
        let settled_at = match found {
            None => self.settle(connection, &plan)?,
            // Another connection may have made it a moment ago.
            Some(count) if plan.is_quorum() && count.is_unused() => at + REPLICATED,
            Some(_) => at,
        };
        self.declared.insert(target, Declared { at, settled_at });
        Ok(settled_at)
    }

    fn settle(
        &mut self,
        connection: &mut Connection,
        plan: &QueueDeclaration,
    ) -> Result<Instant, CloseReason> {
        let side = self.take_side(connection)?;
        let (side, settled_at) = settle(connection, side, plan)?;
        self.side = Some(side);
        Ok(settled_at)
    }

    /// Makes the queue of the delay behind `delay`, once for a connection.
    fn make_next(
        &mut self,
        connection: &mut Connection,
        queue: &Queue,
        delay: Duration,
    ) -> Result<(), NotReady> {
        let next = self.delays.iter().skip_while(|it| **it != delay).nth(1).copied();
        let Some(next) = next.filter(|next| self.foreseen.insert(*next)) else { return Ok(()) };
        match self.make(connection, queue, Target::Delay(next)) {
            // It is told when the queue is needed.
            Err(NotReady::Refused(_)) => Ok(()),
            made => made.map(drop),
        }
    }

    fn is_there(&mut self, connection: &mut Connection, name: &str) -> Result<bool, NotReady> {
        Ok(self.find(connection, name)?.is_some())
    }

    /// What is in a queue; `None` where it is not there.
    fn find(&mut self, connection: &mut Connection, name: &str) -> Result<Option<Count>, NotReady> {
        match self.side(connection)?.count(name) {
            Ok(count) => Ok(Some(count)),
            Err(cause) if cause.is_not_there() => {
                self.side = None;
                Ok(None)
            }
            Err(cause) => {
                self.side = None;
                Err(cause.into())
            }
        }
    }

    /// Declares `target` in the best way that the broker takes; says which that is.
    fn declare(
        &mut self,
        connection: &mut Connection,
        queue: &Queue,
        target: Target,
    ) -> Result<QueueDeclaration, NotReady> {
        let mut refusals = Vec::new();
        for plan in queue.declarations(target) {
            match self.declare_as(connection, &plan) {
                Ok(()) if !refusals.is_empty() => say_once_that_it_is_simple(&plan, &refusals),
                Ok(()) => {}
                Err(NotReady::Refused(reason)) => {
                    refusals.push(reason);
                    continue;
                }
                Err(lost) => return Err(lost),
            }
            if let Target::Delay(delay) = target {
                self.renew(connection, &plan, delay)?;
            }
            return Ok(plan);
        }
        let name = queue.name_of(target);
        let reason = format!("'{name}' cannot be declared: {}", refusals.join("; "));
        if target == Target::Dead && self.side(connection)?.count(&name).is_ok() {
            info!("{reason}; it is there, and used as it is");
            return Ok(queue.best_declaration(target));
        }
        self.side = None;
        Err(NotReady::Refused(reason))
    }

    fn declare_as(
        &mut self,
        connection: &mut Connection,
        plan: &QueueDeclaration,
    ) -> Result<(), NotReady> {
        let declared = self.side(connection)?.declare_as(plan);
        if declared.is_err() {
            self.side = None;
        }
        Ok(declared?)
    }

    /// Puts off the expiry of a delay queue. To declare a quorum queue again does not do that,
    /// unlike with a classic one (measured on RabbitMQ 3.10.8); to take a message from it does,
    /// also when there is none. What was taken goes back to its place and keeps its time.
    ///
    /// A delay queue that no node leads gives neither a message nor word that there is none, while
    /// heartbeats go on: so may one be for good whose broker was killed just after it was made
    /// (measured on RabbitMQ 3.10.8).
    fn renew(
        &mut self,
        connection: &mut Connection,
        plan: &QueueDeclaration,
        delay: Duration,
    ) -> Result<(), NotReady> {
        let (guard, heartbeat) = (connection.call_guard().clone(), connection.heartbeat().clone());
        let call_limit = connection.call_limit();
        self.probing = Some(delay);
        let channel = self.side(connection)?;
        let before = heartbeat.bytes();
        channel.look(&plan.name).map(drop).map_err(|cause| {
            self.side = None;
            let came = heartbeat.bytes() - before;
            // Without a heartbeat to be expected meanwhile, the queue and the broker look the same.
            let beats = heartbeat.limit().is_some_and(|limit| limit <= call_limit);
            let is_alive = came > 0 || !beats;
            let is_silent =
                guard.cause().is_some() && is_alive && !are_more_than_heartbeats(came, call_limit);
            // What the broker says where the queue's process is not there.
            let is_broken =
                matches!(cause, CloseReason::ConnectionClosed { code: INTERNAL_ERROR, .. });
            if is_silent || is_broken { NotReady::Silent(delay, cause) } else { cause.into() }
        })?;
        self.probing = None;
        Ok(())
    }

    /// The delay whose queue was being looked at when the connection was lost.
    pub(crate) fn probing(&self) -> Option<Duration> {
        self.probing
    }

    fn side(&mut self, connection: &mut Connection) -> Result<&Channel, CloseReason> {
        let side = self.take_side(connection)?;
        Ok(self.side.insert(side))
    }

    fn take_side(&mut self, connection: &mut Connection) -> Result<Channel, CloseReason> {
        self.side.take().map_or_else(|| connection.open_channel(), Ok)
    }
}

fn say_once_that_it_is_simple(plan: &QueueDeclaration, refusals: &[String]) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        warn!(
            "'{}' and queues like it are classic queues, because the broker refused better ones \
             ({}): a crash of the broker while a task leaves one can lose that task",
            plan.name,
            refusals.join("; ")
        );
    });
}
