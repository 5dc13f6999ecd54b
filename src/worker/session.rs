//! Owns one connection's life in a worker: opens its channels, starts a consumer on each, ends
//! them all at the first death or at a stop, joins them, and closes the connection last.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, never, select_biased, unbounded};
use log::{debug, info, warn};

use crate::amqp::call_timeout::PATIENCE;
use crate::amqp::channel::{Acks, Channel};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::{Connection, Notice};
use crate::amqp::heartbeat::Heartbeat;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::model::retry::RetryPolicy;
use crate::topology::open::open_queue;
use crate::util::deadline::deadline_after;
use crate::util::panic::caught;
use crate::util::shutdown::{Closer, Shutdown, Signal, closer, is_closed};
use crate::worker::consumer::{End, InHand, Post, Redelivered, Report};
use crate::worker::drain::{Drain, Seen};
use crate::worker::pool::{Crew, Work};
use crate::worker::republish::Handover;

/// What a session has to know.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) queue: Queue,
    pub(crate) prefetch: u16,
    pub(crate) acks: Acks,
    pub(crate) grace: Duration,
    pub(crate) policy: RetryPolicy,
    pub(crate) until: RunUntil,
    /// The name of this machine, for dead letters.
    pub(crate) host: String,
}

/// When a worker ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunUntil {
    Stopped,
    Drained,
}

/// What a worker's sessions have in common.
pub(crate) struct Session<'a> {
    pub(crate) broker: &'a Broker,
    pub(crate) settings: &'a Settings,
    pub(crate) work: &'a Work,
    pub(crate) crew: &'a Crew,
    pub(crate) shutdown: &'a Shutdown,
    /// Closes when no further task may be started.
    pub(crate) exhausted: &'a Signal,
}

/// How a session went.
pub(crate) struct Course {
    /// Whether any consumer stood: what refuses us now has worked before.
    pub(crate) consumed: bool,
    /// Until when the broker may not have noticed that the connection is lost, and keep tasks for
    /// it.
    pub(crate) unnoticed: Option<Instant>,
    /// Until when what still runs may go on, if a stop was asked for.
    pub(crate) deadline: Option<Instant>,
    pub(crate) end: SessionEnd,
}

/// Why the channels of a session could not be opened, and which queue was asked for.
struct Refused {
    target: Target,
    cause: CloseReason,
}

pub(crate) enum SessionEnd {
    /// Asked to stop, before anything else ended it.
    Stopped,
    /// No further task may be started.
    Exhausted,
    /// The queue is empty, and nothing is on its way back to it.
    Drained,
    /// There is more to do: the next session does it.
    Again,
    /// Something died, and why.
    Lost(Error),
}

/// How long consumers may take to give back what they have before the socket is shut under
/// them. A second signal has to end the process within two seconds.
const LEAVING: Duration = Duration::from_secs(1);

/// How long the other consumers may finish what they run when one is lost and the connection
/// still stands, so that it can be acked: nothing new is taken until all of them have ended.
const MENDING: Duration = Duration::from_secs(10);

/// How long a broker may take a lost connection for a living one: it looks once in a heartbeat,
/// and ends one that it has not heard since the look before the last
/// (<https://www.rabbitmq.com/docs/heartbeats>). Without heartbeats the system's own limits hold,
/// which nobody tells.
fn noticed_within(heartbeat: &Heartbeat) -> Duration {
    const WITHOUT: Duration = Duration::from_secs(60);
    const SLACK: Duration = Duration::from_secs(1);
    heartbeat.limit().map_or(WITHOUT, |two_heartbeats| two_heartbeats * 3 / 2) + SLACK
}

impl From<CloseReason> for Refused {
    fn from(cause: CloseReason) -> Refused {
        Refused { target: Target::Main, cause }
    }
}

impl Session<'_> {
    /// Works until the connection is lost or the worker is told to stop; is not drained before
    /// the end of `unnoticed`.
    ///
    /// # Blocking
    /// After a stop, at most for the grace and the time that leaving and closing may take.
    pub(crate) fn run(&self, mut connection: Connection, unnoticed: Option<Instant>) -> Course {
        let guard = connection.call_guard().clone();
        let stopping = self.shutdown.stopping();
        let doing = format!("setting up the channels at {}", connection.address());
        // Nothing is in hand yet: a stop need not wait for anything here.
        let set_up = || guard.abort_on(stopping, || self.open_channels(&mut connection));
        let (channels, queue) = match guard.warn_after(PATIENCE, stopping, &doing, set_up).0 {
            Ok(opened) => opened,
            Err(Refused { target, cause }) => {
                let lost = self.end(connection, target, Some(cause));
                let (deadline, end) = if is_closed(stopping) {
                    (Some(deadline_after(self.settings.grace)), SessionEnd::Stopped)
                } else {
                    (None, SessionEnd::Lost(lost))
                };
                return Course { consumed: false, unnoticed: None, deadline, end };
            }
        };
        let noticed_within = noticed_within(connection.heartbeat());
        let heard = connection.peer_state();
        self.work.tickets.share_out();
        self.work.late.begin_session();
        let mut watch = Watch::new(self, &connection);
        watch.consume(channels, &queue, unnoticed);
        let Watch { standing, told, deadline, lost, in_hand, .. } = watch;
        let end = self.wind_up(connection, told, deadline, lost, in_hand.taken());
        let unnoticed = match &end {
            SessionEnd::Lost(_) if !heard.is_closed() => Some(deadline_after(noticed_within)),
            _ => None,
        };
        Course { consumed: !standing.is_empty(), unnoticed, deadline, end }
    }

    /// All of them up front: opening one needs the connection to itself. Returns the queue as the
    /// broker has it, too.
    fn open_channels(&self, connection: &mut Connection) -> Result<(Vec<Channel>, Queue), Refused> {
        let mut channels = Vec::new();
        for _ in self.crew.runners().iter().skip(1) {
            channels.push(connection.open_channel()?);
        }
        let ready = open_queue(connection, &self.settings.queue)?;
        let ready = ready.with_dead_letters(connection);
        let ready = ready.map_err(|cause| Refused { target: Target::Dead, cause })?;
        channels.push(ready.channel);
        // Who finds us consuming relies on the queue.
        if let Some(durable_at) = ready.durable_at {
            let _ = self.shutdown.wait(durable_at.saturating_duration_since(Instant::now()));
        }
        Ok((channels, ready.queue))
    }

    /// `taken` is what the consumers have seen by their end: all that the broker has sent them
    /// came before the end of their subscriptions.
    fn wind_up(
        &self,
        connection: Connection,
        told: Option<Told>,
        deadline: Option<Instant>,
        lost: Lost,
        taken: u64,
    ) -> SessionEnd {
        let address = connection.address().to_string();
        let error = match lost {
            Lost::Nothing => {
                if let Err(cause) = connection.close() {
                    debug!("the connection did not close in order: {cause}");
                }
                None
            }
            Lost::Consumer(cause) => Some(self.end(connection, Target::Main, cause)),
        };
        let is_exhausted = is_closed(self.exhausted);
        match (error, told) {
            (Some(error), _) if deadline.is_some() => {
                warn!("while stopping: {}", error.chain());
                if is_exhausted { SessionEnd::Exhausted } else { SessionEnd::Stopped }
            }
            (Some(error), _) => SessionEnd::Lost(error),
            (None, Some(Told::Drained { before })) if taken <= before => SessionEnd::Drained,
            (None, _) if is_exhausted => SessionEnd::Exhausted,
            (None, _) if deadline.is_some() => SessionEnd::Stopped,
            (None, Some(Told::Drained { .. })) => {
                info!("tasks were on their way all the same: works on");
                SessionEnd::Again
            }
            // Each has taken its share, and some of it was not to be run.
            (None, None) if self.work.tickets.are_limited() => SessionEnd::Again,
            (None, _) => {
                let cause = CloseReason::Lost("the consumers ended by themselves".into());
                SessionEnd::Lost(Error::session_lost(&address, cause))
            }
        }
    }

    fn end(&self, connection: Connection, target: Target, cause: Option<CloseReason>) -> Error {
        let address = connection.address().to_string();
        let cause = connection.end(cause);
        if cause == CloseReason::NoChannelLeft {
            return Error::setting("threads", "the broker allows fewer channels on a connection");
        }
        Error::from_queue_use(&self.settings.queue.name_of(target), &address, cause)
    }
}

/// Why the session ends by itself.
#[derive(Clone, Copy)]
enum Told {
    Exhausted,
    /// When this many deliveries had been taken.
    Drained {
        before: u64,
    },
}

/// What the session has lost.
enum Lost {
    Nothing,
    Consumer(Option<CloseReason>),
}

/// The session's own thread while its consumers work.
struct Watch<'a> {
    session: &'a Session<'a>,
    connection: &'a Connection,
    stop: (Closer, Signal),
    hurry: (Closer, Signal),
    leave: (Closer, Signal),
    /// How many consumer threads have not ended.
    alive: usize,
    /// The threads that have consumed so far.
    standing: HashSet<usize>,
    told: Option<Told>,
    /// Until when what runs may go on, once a stop was asked for.
    deadline: Option<Instant>,
    lost: Lost,
    in_hand: Arc<InHand>,
}

impl<'a> Watch<'a> {
    fn new(session: &'a Session<'a>, connection: &'a Connection) -> Watch<'a> {
        Watch {
            session,
            connection,
            stop: closer(),
            hurry: closer(),
            leave: closer(),
            alive: 0,
            standing: HashSet::new(),
            told: None,
            deadline: None,
            lost: Lost::Nothing,
            in_hand: Arc::default(),
        }
    }

    /// Runs one consumer thread for each channel, until the last of them has ended.
    fn consume(&mut self, channels: Vec<Channel>, queue: &Queue, unnoticed: Option<Instant>) {
        let Session { settings, work, crew, .. } = *self.session;
        let [stop, hurry, leave] =
            [&self.stop, &self.hurry, &self.leave].map(|(_, signal)| signal.clone());
        let (reports, reported) = unbounded();
        let in_hand = Arc::clone(&self.in_hand);
        let (handover, drain) = match self.start_helpers(queue, unnoticed) {
            Ok(started) => started,
            Err(error) => {
                self.consumer_lost(Some(CloseReason::Lost(error.chain())));
                return;
            }
        };
        let connection = self.connection;
        let redelivered = Redelivered::default();
        let is_blocked = AtomicBool::new(false);
        thread::scope(|scope| {
            for (runner, channel) in crew.runners().iter().zip(channels) {
                let post = Post {
                    queue,
                    prefetch: settings.prefetch,
                    acks: settings.acks,
                    policy: &settings.policy,
                    host: &settings.host,
                    runner,
                    in_hand: &in_hand,
                    orders: handover.orders(),
                    tally: &work.tally,
                    observer: &work.observer,
                    stop: &stop,
                    hurry: &hurry,
                    leave: &leave,
                    cancellation: &work.cancellation,
                    heartbeat: connection.heartbeat(),
                    health: &work.health,
                    late: &work.late,
                    tickets: &work.tickets,
                    sharers: crew.runners().len(),
                    connection,
                    is_blocked: &is_blocked,
                    redelivered: &redelivered,
                    reports: reports.clone(),
                };
                let thread = thread::Builder::new().name(format!("rw-consumer-{}", runner.number));
                let consume = move || {
                    let worked = caught(|| post.work(channel));
                    let end = worked.unwrap_or_else(|panicked| {
                        CloseReason::Lost(format!("a consumer {panicked}")).into()
                    });
                    let _ = post.reports.send(Report::Ended(end));
                };
                match thread.spawn_scoped(scope, consume) {
                    Ok(_) => self.alive += 1,
                    Err(error) => {
                        let cause = CloseReason::Lost(format!(
                            "the system gave no further thread: {error}"
                        ));
                        self.consumer_lost(Some(cause));
                    }
                }
            }
            let drained = drain.as_ref().map_or_else(never, |drain| drain.drained.clone());
            self.until_all_ended(&reported, drained, &is_blocked);
        });
        if self.has_lost() {
            // Nobody is left to ack what it still hands over.
            self.leave.0.close();
        }
        handover.end(LEAVING);
    }

    /// Starts what the consumers have done by others.
    fn start_helpers(
        &self,
        queue: &Queue,
        unnoticed: Option<Instant>,
    ) -> Result<(Handover, Option<Drain>), Error> {
        let Session { broker, settings, work, .. } = self.session;
        let policy = &settings.policy;
        let handover =
            Handover::start(broker, self.connection, queue, policy, &work.tally, &self.leave.1)?;
        let drain = match settings.until {
            RunUntil::Stopped => None,
            RunUntil::Drained => {
                let seen = Seen {
                    in_hand: Arc::clone(&self.in_hand),
                    heartbeat: self.connection.heartbeat().clone(),
                    unnoticed,
                };
                Some(Drain::start(self.connection.lend(), queue, seen)?)
            }
        };
        Ok((handover, drain))
    }

    /// Watches over the consumers: passes on what they have to know, and notes what happens.
    fn until_all_ended(
        &mut self,
        reported: &Receiver<Report>,
        mut drained: Receiver<u64>,
        is_blocked: &AtomicBool,
    ) {
        let mut notices = self.connection.notices().clone();
        let mut stopping = self.session.shutdown.stopping().clone();
        let mut aborting = self.session.shutdown.aborting().clone();
        let mut exhausted = self.session.exhausted.clone();
        // A thread that the system did not give is lost before this begins.
        let mut mending = if self.has_lost() { after(MENDING) } else { never() };
        let (mut out_of_grace, mut out_of_time) = (never(), never());
        let (mut idle, mut wound_down) = (never(), never());
        let out_of_patience = after(PATIENCE);
        while self.alive > 0 {
            select_biased! {
                recv(reported) -> report => match report {
                    Ok(Report::Consumes { number }) => self.consumer_stands(number),
                    Ok(Report::Ended(End::Lost(cause))) => {
                        self.alive -= 1;
                        if !self.has_lost() {
                            mending = after(MENDING);
                        }
                        self.consumer_lost(cause);
                    }
                    Ok(Report::Ended(End::Told)) | Err(_) => self.alive -= 1,
                },
                recv(aborting) -> _ => {
                    (aborting, out_of_grace) = (never(), never());
                    (idle, wound_down) = self.cancel();
                },
                recv(stopping) -> _ => {
                    stopping = never();
                    let deadline = deadline_after(self.session.settings.grace);
                    self.deadline = Some(deadline);
                    self.stop_in_a_hurry();
                    out_of_grace = at(deadline);
                },
                recv(exhausted) -> _ => {
                    exhausted = never();
                    self.told.get_or_insert(Told::Exhausted);
                    if self.session.work.tickets.are_void() {
                        self.stop_in_a_hurry();
                    }
                    // Otherwise pauses are kept: whoever starts the next worker at once is not
                    // to spin on a task that cannot be tried.
                    self.stop.0.close();
                },
                recv(drained) -> taken => {
                    drained = never();
                    if let Ok(before) = taken {
                        self.told.get_or_insert(Told::Drained { before });
                        self.stop_in_a_hurry();
                    }
                },
                recv(notices) -> notice => match notice {
                    Ok(notice) => note(&notice.into(), is_blocked),
                    Err(_) => {
                        notices = never();
                        self.leave.0.close();
                    }
                },
                recv(out_of_patience) -> _ => self.tell_who_is_missing(),
                recv(mending) -> _ => out_of_time = self.leave_now(),
                recv(out_of_grace) -> _ => (idle, wound_down) = self.cancel(),
                recv(idle) -> _ => {
                    idle = never();
                    out_of_time = self.leave_now();
                },
                recv(wound_down) -> _ => out_of_time = self.leave_now(),
                recv(out_of_time) -> _ => self.connection.call_guard().abort(),
            }
        }
    }

    fn stop_in_a_hurry(&self) {
        self.hurry.0.close();
        self.stop.0.close();
    }

    /// Cancels what runs. What comes first says when to leave: the last of it has ended, or it
    /// has had its time.
    fn cancel(&self) -> (Receiver<()>, Receiver<Instant>) {
        let Session { crew, work, .. } = self.session;
        match crew.cancel(work) {
            Some(idle) => (idle.clone(), after(work.cancel_timeout())),
            None => (never(), after(Duration::ZERO)),
        }
    }

    /// Has the consumers leave, and returns the end of their time for that.
    fn leave_now(&self) -> Receiver<Instant> {
        self.leave.0.close();
        after(LEAVING)
    }

    fn has_lost(&self) -> bool {
        matches!(self.lost, Lost::Consumer(_))
    }

    fn consumer_stands(&mut self, number: usize) {
        let threads = self.session.crew.runners().len();
        if self.standing.insert(number) && self.standing.len() == threads {
            let queue = self.session.settings.queue.name();
            let address = self.connection.address();
            info!("consuming from '{queue}' at {address} with {threads} threads");
        }
    }

    fn tell_who_is_missing(&self) {
        let threads = self.session.crew.runners().len();
        let ends = self.told.is_some() || self.deadline.is_some() || self.has_lost();
        if self.standing.len() == threads || ends {
            return;
        }
        info!(
            "{} of {threads} threads consume at {} after {PATIENCE:?}; the others wait for the \
             broker, or for their tasks of a lost session",
            self.standing.len(),
            self.connection.address()
        );
    }

    /// The others finish what they run: where the connection still stands, it can be acked.
    fn consumer_lost(&mut self, cause: Option<CloseReason>) {
        self.stop_in_a_hurry();
        let first = cause.as_ref().filter(|_| !self.has_lost());
        if let Some(cause) = first.filter(|cause| cause.is_channel_error()) {
            if let Some(advice) = cause.advice() {
                warn!("a consumer was lost: {advice}");
            }
            info!("the other threads have {MENDING:?} to end what they run, then all begin anew");
        }
        if !matches!(self.lost, Lost::Consumer(Some(_))) {
            self.lost = Lost::Consumer(cause);
        }
    }
}

fn note(notice: &Notice, is_blocked: &AtomicBool) {
    is_blocked.store(matches!(notice, Notice::Blocked(_)), Ordering::Release);
    match notice {
        Notice::Blocked(reason) => warn!("the broker blocks this connection: {reason}"),
        Notice::Unblocked => info!("the broker no longer blocks this connection"),
    }
}
