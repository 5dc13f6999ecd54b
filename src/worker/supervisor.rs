//! Supervises the consumers of one connection: starts a thread for each, asks them to stop when
//! something happens, and waits until the last of them has ended.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, never, unbounded};
use log::{info, warn};

use crate::amqp::call_timeout::SLOW_AFTER;
use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Notice;
use crate::model::error::Error;
use crate::util::deadline::deadline_after;
use crate::util::panic::caught;
use crate::worker::consumer::Consumer;
use crate::worker::consumer::context::{
    Closers, ConsumerContext, ConsumerEnd, ConsumerSignals, Report, closers,
};
use crate::worker::consumer::own_thread::{HandlerCall, Whereabouts};
use crate::worker::drain::{Drain, Traffic};
use crate::worker::event::Event;
use crate::worker::in_flight::InFlightCount;
use crate::worker::journal::RedeliveryLog;
use crate::worker::pool::RunnerSlot;
use crate::worker::republish::Republisher;
use crate::worker::run_context::RunUntil;
use crate::worker::session_events::{SessionEvent, SessionEvents};
use crate::worker::supervision::{OwnEnd, Supervised, Supervision};

/// How long consumers may take to requeue what they have before the socket is shut. A second signal
/// has to end the process within two seconds.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the other consumers may finish what they run after one was lost, to ack it while the
/// connection lasts. None of them takes anything new until all have ended.
const FINISH_AFTER_LOSS: Duration = Duration::from_secs(10);

/// Runs one consumer thread for each channel, until the last of them has ended.
pub(crate) fn supervise(session: &Supervised<'_>, channels: Vec<Channel>) -> Supervision {
    let in_flight = Arc::default();
    let (closers, signals) = closers();
    let (republisher, drain) = match start_helpers(session, &signals, &in_flight) {
        Ok(started) => started,
        Err(error) => {
            let lost = Some(CloseReason::Lost(error.chain()));
            return Supervision { lost, ..Supervision::default() };
        }
    };
    let drained = drain.as_ref().map_or_else(never, |drain| drain.drained.clone());
    let (reports, reported) = unbounded();
    let context = Arc::new(ConsumerContext {
        run: Arc::clone(session.run),
        connection: session.connection.share(),
        queue: session.queue.clone(),
        consumers: session.pool.size(),
        in_flight: Arc::clone(&in_flight),
        republisher: republisher.requests(),
        reports,
        signals,
        is_blocked: AtomicBool::new(false),
        redeliveries: RedeliveryLog::default(),
    });
    let mut supervisor = Supervisor::new(session, context, closers, reported, drained);
    supervisor.run(channels);
    let (supervision, closers) = supervisor.end();
    republisher.end(ABORT_TIMEOUT);
    drop(closers);
    supervision
}

/// Starts the threads that work for the consumers.
fn start_helpers(
    session: &Supervised<'_>,
    signals: &ConsumerSignals,
    in_flight: &Arc<InFlightCount>,
) -> Result<(Republisher, Option<Drain>), Error> {
    let Supervised { run, connection, queue, broker_holds_until, .. } = *session;
    let republisher = Republisher::start(run, connection, queue, &signals.abort)?;
    let drain = match run.settings.until {
        RunUntil::Stopped => None,
        RunUntil::Drained => {
            let traffic = Traffic {
                in_flight: Arc::clone(in_flight),
                heartbeat: connection.heartbeat().clone(),
                health: run.health.clone(),
                broker_holds_until,
            };
            Some(Drain::start(connection.lend(), queue, traffic, &run.drain)?)
        }
    };
    Ok((republisher, drain))
}

struct Supervisor<'a> {
    session: &'a Supervised<'a>,
    closers: Closers,
    events: SessionEvents<'a>,
    context: Arc<ConsumerContext>,
    /// The consumers that the session waits for, by thread number.
    alive: HashMap<usize, Arc<HandlerCall>>,
    /// The numbers of the threads that have consumed.
    consuming: HashSet<usize>,
    own_end: Option<OwnEnd>,
    deadline: Option<Instant>,
    lost: Option<CloseReason>,
}

/// What the supervisor does about an event.
enum Action {
    Nothing,
    /// Has the consumers finish what runs and what is paused.
    Stop,
    /// Has the consumers finish what runs, and requeue what is paused.
    StopAndSkipPauses,
    /// Cancels the running tasks.
    CancelTasks,
    /// Has the consumers requeue everything, within this time; `None` if the connection is dead already.
    RequeueAll(Option<Duration>),
    /// Replaces the consumers whose channels have ended while they call the handler.
    ReplaceConsumers,
    /// Shuts the socket under them.
    CutConnection,
}

impl<'a> Supervisor<'a> {
    fn new(
        session: &'a Supervised<'a>,
        context: Arc<ConsumerContext>,
        closers: Closers,
        reports: Receiver<Report>,
        drained: Receiver<u64>,
    ) -> Supervisor<'a> {
        let Supervised { run, shutdown, connection, .. } = *session;
        let exhausted = &run.exhausted;
        Supervisor {
            session,
            closers,
            events: SessionEvents::new(
                connection, shutdown, exhausted, reports, drained, SLOW_AFTER,
            ),
            context,
            alive: HashMap::new(),
            consuming: HashSet::new(),
            own_end: None,
            deadline: None,
            lost: None,
        }
    }

    fn run(&mut self, channels: Vec<Channel>) {
        for (slot, channel) in self.session.pool.slots().iter().zip(channels) {
            self.start_consumer(slot, move |consumer| consumer.run(channel));
        }
        while !self.alive.is_empty() {
            let event = self.events.next();
            let action = self.on(event);
            self.perform(&action);
        }
        if self.lost.is_some() {
            // No consumer is left to ack what the republisher still has.
            self.closers.abort.close();
        }
    }

    fn start_consumer(
        &mut self,
        slot: &RunnerSlot,
        run: impl FnOnce(&Consumer) -> ConsumerEnd + Send + 'static,
    ) {
        // The consumer before may still be in a late handler.
        self.context.run.health.consumes_no_more(slot.number);
        let consumer = Consumer::new(&self.context, slot);
        let call = consumer.handler_call();
        let consume = move || {
            let ended = caught(|| run(&consumer));
            consumer.report_end(ended.unwrap_or_else(|panicked| {
                ConsumerEnd::Lost(CloseReason::Lost(format!("a consumer {panicked}")))
            }));
        };
        match slot.start_thread("consumer", consume) {
            Ok(()) => drop(self.alive.insert(slot.number, call)),
            Err(error) => {
                let text = format!("the system cannot start another thread: {error}");
                let action = self.on_lost(CloseReason::Lost(text));
                self.perform(&action);
            }
        }
    }

    /// Has other threads go on for the consumers whose channels have ended while they call the
    /// handler.
    fn replace_consumers(&mut self) {
        let Supervised { pool, connection, .. } = *self.session;
        for slot in pool.slots() {
            let ended = connection.ended_channels();
            let call = self.alive.get(&slot.number);
            let Some(cause) = call.and_then(|call| call.forbid_on_end(ended)) else { continue };
            self.alive.remove(&slot.number);
            // The broker has requeued the task. A drain must not wait for its end.
            self.context.in_flight.add_settled(1);
            self.start_consumer(slot, |consumer| consumer.go_on_after(ConsumerEnd::Lost(cause)));
        }
    }

    fn on(&mut self, event: SessionEvent) -> Action {
        match event {
            SessionEvent::Consuming(number) => self.on_consuming(number),
            SessionEvent::ConsumerStopped(number) => {
                self.alive.remove(&number);
                Action::Nothing
            }
            SessionEvent::ConsumerLost(number, cause) => {
                self.alive.remove(&number);
                self.on_lost(cause)
            }
            SessionEvent::ChannelEnded => Action::ReplaceConsumers,
            SessionEvent::StopAsked => self.on_stop(),
            SessionEvent::AbortAsked => {
                self.events.grace_over = never();
                Action::CancelTasks
            }
            SessionEvent::GraceOver => Action::CancelTasks,
            SessionEvent::Exhausted => self.on_exhausted(),
            SessionEvent::Drained(taken) => self.on_drained(taken),
            SessionEvent::DrainEnded => Action::Nothing,
            SessionEvent::Notice(notice) => self.on_notice(&notice),
            SessionEvent::SlowStart => self.on_slow_start(),
            SessionEvent::ConnectionDead => {
                self.lost.get_or_insert(CloseReason::Disconnected);
                Action::RequeueAll(None)
            }
            SessionEvent::FinishOver | SessionEvent::HandlersIdle | SessionEvent::CancelOver => {
                Action::RequeueAll(Some(ABORT_TIMEOUT))
            }
            SessionEvent::AbortOver => Action::CutConnection,
        }
    }

    fn perform(&mut self, action: &Action) {
        match action {
            Action::Nothing => {}
            Action::Stop => self.closers.stop.close(),
            Action::StopAndSkipPauses => {
                self.closers.skip_pauses.close();
                self.closers.stop.close();
            }
            Action::CancelTasks => self.cancel(),
            Action::RequeueAll(limit) => {
                self.closers.abort.close();
                let requeued = self.leave_behind();
                if let Some(limit) = *limit {
                    self.events.abort_over = after(limit);
                    let journal = &self.session.run.journal;
                    requeued.into_iter().for_each(|event| journal.requeued_meanwhile(event));
                }
            }
            Action::ReplaceConsumers => self.replace_consumers(),
            Action::CutConnection => self.session.connection.call_guard().abort(),
        }
    }

    /// Cancels the running tasks. They have their time to end, and then the consumers abort.
    fn cancel(&mut self) {
        let Supervised { run, pool, .. } = *self.session;
        let (idle, time) = match pool.cancel(run) {
            Some(idle) => (idle.clone(), run.cancel_timeout()),
            None => (never(), Duration::ZERO),
        };
        (self.events.handlers_idle, self.events.cancel_over) = (idle, after(time));
    }

    /// Goes on without the consumers that call the handler: the end of the connection requeues their
    /// tasks. Returns the events of that.
    fn leave_behind(&mut self) -> Vec<Option<Event>> {
        let mut requeued = Vec::new();
        self.alive.retain(|_, call| match call.forbid() {
            Whereabouts::Loop => true,
            Whereabouts::Handler(event) => {
                self.context.in_flight.add_settled(1);
                requeued.push(event.map(|it| *it));
                false
            }
        });
        requeued
    }

    fn on_stop(&mut self) -> Action {
        let deadline = deadline_after(self.session.run.settings.grace);
        self.deadline = Some(deadline);
        self.events.grace_over = at(deadline);
        Action::StopAndSkipPauses
    }

    fn on_drained(&mut self, taken: u64) -> Action {
        info!("'{}' and its delay queues are empty", self.session.run.settings.queue.name());
        self.own_end.get_or_insert(OwnEnd::Drained { taken });
        Action::StopAndSkipPauses
    }

    fn on_exhausted(&mut self) -> Action {
        self.own_end.get_or_insert(OwnEnd::Exhausted);
        if self.session.run.budget.is_closed() {
            return Action::StopAndSkipPauses;
        }
        // Pauses last: if the next worker is started at once, it is not to spin on a task that
        // cannot be tried.
        Action::Stop
    }

    fn on_consuming(&mut self, number: usize) -> Action {
        let Supervised { run, pool, connection, .. } = *self.session;
        let threads = pool.size();
        if self.consuming.insert(number) && self.consuming.len() == threads {
            let (queue, address) = (run.settings.queue.name(), connection.address());
            info!("consuming from '{queue}' at {address} with {threads} threads");
        }
        Action::Nothing
    }

    fn on_slow_start(&self) -> Action {
        let threads = self.session.pool.size();
        let ends = self.own_end.is_some() || self.deadline.is_some() || self.lost.is_some();
        if self.consuming.len() < threads && !ends {
            info!(
                "{} of {threads} threads consume at {} after {SLOW_AFTER:?}; the others wait for the \
                 broker, or for their tasks of a lost session",
                self.consuming.len(),
                self.session.connection.address()
            );
        }
        Action::Nothing
    }

    fn on_notice(&self, notice: &Notice) -> Action {
        self.context.is_blocked.store(matches!(notice, Notice::Blocked(_)), Ordering::Release);
        match notice {
            Notice::Blocked(reason) => warn!("the broker blocks this connection: {reason}"),
            Notice::Unblocked => info!("the broker no longer blocks this connection"),
        }
        Action::Nothing
    }

    /// The others finish what they run: while the connection lasts, it can be acked.
    fn on_lost(&mut self, cause: CloseReason) -> Action {
        if self.lost.is_none() {
            self.events.finish_over = after(FINISH_AFTER_LOSS);
            log_loss(&cause);
        }
        if matches!(self.lost, None | Some(CloseReason::Disconnected)) {
            self.lost = Some(cause);
        }
        Action::StopAndSkipPauses
    }

    /// Sums up, and leaves the signals open.
    fn end(self) -> (Supervision, Closers) {
        let supervision = Supervision {
            consumed: !self.consuming.is_empty(),
            own_end: self.own_end,
            deadline: self.deadline,
            lost: self.lost,
            taken: self.context.in_flight.taken(),
        };
        (supervision, self.closers)
    }
}

fn log_loss(cause: &CloseReason) {
    if cause.is_channel_error() {
        if let Some(advice) = cause.advice() {
            warn!("a consumer was lost: {advice}");
        }
        info!(
            "the other threads have {FINISH_AFTER_LOSS:?} to finish their tasks; then the worker reconnects"
        );
    }
}
