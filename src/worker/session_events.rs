//! [`SessionEvent`]: the events of one session that its supervisor waits for.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, never, select_biased};

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::{Connection, Notice};
use crate::util::shutdown::{Shutdown, Signal};
use crate::worker::consumer::context::{ConsumerEnd, Report};

/// The sources of events. A source that is not armed, or has fired, never fires.
pub(crate) struct SessionEvents<'a> {
    /// `None` once it is dead.
    connection: Option<&'a Connection>,
    reports: Receiver<Report>,
    ended_channels: Receiver<()>,
    aborting: Signal,
    stopping: Signal,
    exhausted: Signal,
    drained: Receiver<u64>,
    slow_start: Receiver<Instant>,
    pub(crate) finish_over: Receiver<Instant>,
    pub(crate) grace_over: Receiver<Instant>,
    pub(crate) handlers_idle: Receiver<()>,
    pub(crate) cancel_over: Receiver<Instant>,
    pub(crate) abort_over: Receiver<Instant>,
}

pub(crate) enum SessionEvent {
    /// The consumer of this thread number has subscribed.
    Consuming(usize),
    ConsumerStopped(usize),
    ConsumerLost(usize, CloseReason),
    AbortAsked,
    StopAsked,
    /// No further task may be started.
    Exhausted,
    /// The queue and its delay queues were empty when so many deliveries had been taken.
    Drained(u64),
    /// The thread that waits for that has ended for another reason.
    DrainEnded,
    Notice(Notice),
    ChannelEnded,
    ConnectionDead,
    /// By now all threads should consume.
    SlowStart,
    /// The time to finish running tasks after a loss is over.
    FinishOver,
    GraceOver,
    /// The last cancelled task has ended.
    HandlersIdle,
    /// The time of the cancelled tasks is over.
    CancelOver,
    /// The time of the consumers to requeue everything is over.
    AbortOver,
}

impl<'a> SessionEvents<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        shutdown: &Shutdown,
        exhausted: &Signal,
        reports: Receiver<Report>,
        drained: Receiver<u64>,
        slow_start: Duration,
    ) -> SessionEvents<'a> {
        SessionEvents {
            reports,
            ended_channels: connection.ended_channels().noticed().clone(),
            connection: Some(connection),
            aborting: shutdown.aborting().clone(),
            stopping: shutdown.stopping().clone(),
            exhausted: exhausted.clone(),
            drained,
            slow_start: after(slow_start),
            finish_over: never(),
            grace_over: never(),
            handlers_idle: never(),
            cancel_over: never(),
            abort_over: never(),
        }
    }

    /// Waits for the next event.
    pub(crate) fn next(&mut self) -> SessionEvent {
        use SessionEvent as Event;
        let notices = self.connection.map_or_else(never, |it| it.notices().clone());
        let event = select_biased! {
            recv(self.reports) -> report => match report {
                Ok(Report::Consuming(number)) => Event::Consuming(number),
                Ok(Report::Ended(number, ConsumerEnd::Lost(cause))) => {
                    Event::ConsumerLost(number, cause)
                }
                Ok(Report::Ended(number, ConsumerEnd::Stopped)) => Event::ConsumerStopped(number),
                Err(_) => Event::AbortOver,
            },
            recv(self.aborting) -> _ => Event::AbortAsked,
            recv(self.stopping) -> _ => Event::StopAsked,
            recv(self.exhausted) -> _ => Event::Exhausted,
            recv(self.drained) -> taken => taken.map_or(Event::DrainEnded, Event::Drained),
            recv(notices) -> notice => {
                notice.map_or(Event::ConnectionDead, |it| Event::Notice(it.into()))
            },
            recv(self.ended_channels) -> _ => Event::ChannelEnded,
            recv(self.slow_start) -> _ => Event::SlowStart,
            recv(self.finish_over) -> _ => Event::FinishOver,
            recv(self.grace_over) -> _ => Event::GraceOver,
            recv(self.handlers_idle) -> _ => Event::HandlersIdle,
            recv(self.cancel_over) -> _ => Event::CancelOver,
            recv(self.abort_over) -> _ => Event::AbortOver,
        };
        self.disarm(&event);
        event
    }

    /// A closed channel would fire again and again.
    fn disarm(&mut self, fired: &SessionEvent) {
        match fired {
            SessionEvent::AbortAsked => self.aborting = never(),
            SessionEvent::StopAsked => self.stopping = never(),
            SessionEvent::Exhausted => self.exhausted = never(),
            SessionEvent::Drained(_) | SessionEvent::DrainEnded => self.drained = never(),
            SessionEvent::ConnectionDead => self.connection = None,
            SessionEvent::HandlersIdle => self.handlers_idle = never(),
            _ => {}
        }
    }
}
