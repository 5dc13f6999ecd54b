//! One connection's life in a worker: opens its channels, has their consumers supervised, and closes
//! the connection after the last of them has ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::amqp::call_timeout::SLOW_AFTER;
use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::amqp::heartbeat::Heartbeat;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::topology::open::open_queue;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Shutdown, is_closed};
use crate::worker::pool::HandlerPool;
use crate::worker::run_context::RunContext;
use crate::worker::supervision::{OwnEnd, Supervised, Supervision};
use crate::worker::supervisor::supervise;

/// What the sessions of one run share.
pub(crate) struct Session<'a> {
    pub(crate) run: &'a Arc<RunContext>,
    pub(crate) pool: &'a HandlerPool,
    pub(crate) shutdown: &'a Shutdown,
}

/// How a session went.
pub(crate) struct SessionReport {
    /// Whether any thread consumed. A later refusal may pass then, because this worked before.
    pub(crate) consumed: bool,
    /// Until when the broker may not have noticed that the connection is lost, and keep tasks for
    /// it.
    pub(crate) broker_holds_until: Option<Instant>,
    /// Until when running tasks may go on, if a stop was asked for.
    pub(crate) deadline: Option<Instant>,
    pub(crate) end: SessionEnd,
}

pub(crate) enum SessionEnd {
    /// It was asked to stop.
    Stopped,
    /// No further task may be started.
    Exhausted,
    /// The queue and its delay queues are empty.
    Drained,
    /// There is more to do, for another session.
    Again,
    /// A consumer or the connection was lost.
    Lost(Error),
}

/// Why the channels of a session could not be opened, and for which queue.
struct NotOpened {
    target: Target,
    cause: CloseReason,
}

impl From<CloseReason> for NotOpened {
    fn from(cause: CloseReason) -> NotOpened {
        NotOpened { target: Target::Main, cause }
    }
}

/// How long a broker may take to notice that a connection is lost. It checks once in a heartbeat
/// interval, and closes a connection from which it received nothing since the check before the last
/// (<https://www.rabbitmq.com/docs/heartbeats>). Without heartbeats the limits of its system count,
/// which we cannot know.
fn noticed_within(heartbeat: &Heartbeat) -> Duration {
    const WITHOUT: Duration = Duration::from_secs(60);
    const SLACK: Duration = Duration::from_secs(1);
    heartbeat.limit().map_or(WITHOUT, |two_heartbeats| two_heartbeats * 3 / 2) + SLACK
}

impl Session<'_> {
    /// Works until the connection is lost or the worker stops. A drain does not end before
    /// `broker_holds_until`.
    ///
    /// # Blocking
    /// After a stop, at most for the grace and the time to requeue tasks and close the connection.
    pub(crate) fn run(
        &self,
        mut connection: Connection,
        broker_holds_until: Option<Instant>,
    ) -> SessionReport {
        let (channels, queue) = match self.set_up(&mut connection) {
            Ok(opened) => opened,
            Err(not_opened) => return self.report_not_opened(connection, not_opened),
        };
        let noticed_within = noticed_within(connection.heartbeat());
        let peer_state = connection.peer_state();
        self.run.budget.share_out();
        self.run.late_tasks.begin_session();
        let supervised = Supervised {
            run: self.run,
            pool: self.pool,
            shutdown: self.shutdown,
            connection: &connection,
            queue: &queue,
            broker_holds_until,
        };
        let supervision = supervise(&supervised, channels);
        let (consumed, deadline) = (supervision.consumed, supervision.deadline);
        let end = self.finish(connection, supervision);
        let is_unnoticed = matches!(end, SessionEnd::Lost(_)) && !peer_state.is_closed();
        let broker_holds_until = is_unnoticed.then(|| deadline_after(noticed_within));
        SessionReport { consumed, broker_holds_until, deadline, end }
    }

    /// Opens the channels. A stop interrupts that: no task is in flight yet.
    fn set_up(&self, connection: &mut Connection) -> Result<(Vec<Channel>, Queue), NotOpened> {
        let guard = connection.call_guard().clone();
        let stopping = self.shutdown.stopping();
        let doing = format!("setting up the channels at {}", connection.address());
        let open = || guard.abort_on(stopping, || self.open_channels(connection));
        guard.warn_after(SLOW_AFTER, stopping, &doing, open).0
    }

    /// Opens one channel for each thread. Returns the queue as the broker has it, too.
    fn open_channels(
        &self,
        connection: &mut Connection,
    ) -> Result<(Vec<Channel>, Queue), NotOpened> {
        let mut channels = Vec::new();
        for _ in 1..self.pool.size() {
            channels.push(connection.open_channel()?);
        }
        let ready = open_queue(connection, &self.run.settings.queue)?;
        let ready = ready.with_dead_letters(connection);
        let ready = ready.map_err(|cause| NotOpened { target: Target::Dead, cause })?;
        channels.push(ready.channel);
        // Another program that sees our consumers takes the queue for an old one.
        if let Some(durable_at) = ready.durable_at {
            let _ = self.shutdown.wait(durable_at.saturating_duration_since(Instant::now()));
        }
        Ok((channels, ready.queue))
    }

    fn report_not_opened(&self, connection: Connection, not_opened: NotOpened) -> SessionReport {
        let NotOpened { target, cause } = not_opened;
        let lost = self.end_lost(connection, target, cause);
        let (deadline, end) = if self.shutdown.is_stopping() {
            (Some(deadline_after(self.run.settings.grace)), SessionEnd::Stopped)
        } else {
            (None, SessionEnd::Lost(lost))
        };
        SessionReport { consumed: false, broker_holds_until: None, deadline, end }
    }

    /// Ends the connection, and says how the session ended.
    fn finish(&self, connection: Connection, supervision: Supervision) -> SessionEnd {
        let Supervision { own_end, deadline, lost, taken, .. } = supervision;
        let is_exhausted = || is_closed(&self.run.exhausted);
        let is_stopped = deadline.is_some();
        if let Some(cause) = lost {
            let error = self.end_lost(connection, Target::Main, cause);
            if !is_stopped {
                return SessionEnd::Lost(error);
            }
            warn!("while stopping: {}", error.chain());
            return if is_exhausted() { SessionEnd::Exhausted } else { SessionEnd::Stopped };
        }
        let address = connection.address().to_string();
        connection.close();
        match own_end {
            Some(OwnEnd::Drained { taken: before }) if taken <= before => SessionEnd::Drained,
            _ if is_exhausted() => SessionEnd::Exhausted,
            _ if is_stopped => SessionEnd::Stopped,
            Some(OwnEnd::Drained { .. }) => {
                info!("tasks arrived during the drain; the worker continues");
                SessionEnd::Again
            }
            // Each consumer has taken its share of the budget, and some of that was not run.
            None if self.run.budget.is_limited() => SessionEnd::Again,
            _ => {
                let cause = CloseReason::Lost("all consumers ended unexpectedly".into());
                SessionEnd::Lost(Error::session_lost(&address, cause))
            }
        }
    }

    fn end_lost(&self, connection: Connection, target: Target, cause: CloseReason) -> Error {
        let address = connection.address().to_string();
        let cause = connection.end(Some(cause));
        if cause == CloseReason::NoChannelLeft {
            return Error::setting(
                "threads",
                "the broker allows fewer channels on a connection; use fewer threads",
            );
        }
        Error::from_queue_use(&self.run.settings.queue.name_of(target), &address, cause)
    }
}
