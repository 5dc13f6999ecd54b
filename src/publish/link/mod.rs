//! [`Link`]: a publisher's connection and channel: sends tasks, handles confirms and returns.

mod blocked;
mod queues;
mod renew;
mod round;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, TryRecvError, at, never, select_biased};

use self::queues::Queues;
use self::renew::NackingQueues;
use crate::amqp::call_timeout::SLOW_AFTER;
use crate::amqp::channel::{Channel, PublishEvents, Verdict};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::{Connection, Notice};
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::publish::backlog::Backlog;
use crate::publish::config::PublisherConfig;
use crate::publish::in_flight::InFlight;
use crate::publish::pending::Pending;
use crate::publish::refusal::{LastRefusal, OnRefusal, Refusal};
use crate::topology::DerivedQueues;
use crate::topology::open::open_queue;
use crate::util::shutdown::Signal;

/// A connection with the publishes that are in flight on it.
pub(crate) struct Link<T> {
    connection: Connection,
    channel: Channel,
    answers: PublishEvents,
    in_flight: InFlight<T>,
    queues: Queues,
    /// The own queue with the type that the broker has given it, as far as is known.
    queue: Queue,
    /// When the next new queue that tasks wait for is durable.
    durable_at: Option<Instant>,
    /// When to publish the next of the refused tasks again.
    again_at: Option<Instant>,
    last_refusal: LastRefusal,
    nacking: NackingQueues,
    /// The delay whose queue did not respond, which is why the connection is lost.
    silent_delay: Option<(Arc<Queue>, Duration)>,
    /// Why no further confirm is believed.
    protocol_error: Option<CloseReason>,
    /// Why the broker blocks publishers at present.
    blocked: Option<String>,
    /// When to warn that no confirm has come.
    slow_confirm_at: Option<Instant>,
    /// When the last confirm came, the first of the tasks in flight was published, or publishers were
    /// unblocked.
    progress_at: Instant,
    /// When other tasks may overtake one that waits until nothing is in flight.
    stuck_at: Option<Instant>,
    /// Whether the broker has answered any publish.
    has_confirmed: bool,
}

/// What ended a wait.
pub(crate) enum Woken<W> {
    Confirm(Verdict),
    Notice(Notice),
    Wake(Result<W, RecvError>),
    Lost,
    Time,
}

/// A channel in confirm mode, to a queue that exists.
struct Opened {
    channel: Channel,
    answers: PublishEvents,
    /// The queue with the type that the broker has given it.
    queue: Queue,
}

/// How a link ended.
pub(crate) struct LinkEnd {
    pub(crate) address: String,
    pub(crate) cause: CloseReason,
    /// The delay whose queue did not respond, or sent what cannot be parsed.
    pub(crate) silent_delay: Option<(Arc<Queue>, Duration)>,
}

impl<T> Link<T> {
    /// Opens a channel in confirm mode, and declares the queue.
    pub(crate) fn open(
        mut connection: Connection,
        config: &PublisherConfig,
    ) -> Result<Link<T>, Error> {
        let mut queues = DerivedQueues::default().predeclare(config.delays.clone());
        match open_channel(&mut connection, &config.queue, &mut queues) {
            Ok(opened) => {
                let queues = Queues::new(&config.queue, queues);
                Ok(Link::new(connection, opened, queues))
            }
            Err(cause) => {
                let address = connection.address().to_string();
                let cause = connection.end(Some(cause));
                Err(Error::from_queue_use(config.queue.name(), &address, cause))
            }
        }
    }

    fn new(connection: Connection, opened: Opened, queues: Queues) -> Link<T> {
        let Opened { channel, answers, queue } = opened;
        Link {
            connection,
            channel,
            answers,
            in_flight: InFlight::new(),
            queues,
            queue,
            durable_at: None,
            again_at: None,
            last_refusal: LastRefusal::default(),
            nacking: NackingQueues::default(),
            silent_delay: None,
            protocol_error: None,
            blocked: None,
            slow_confirm_at: None,
            progress_at: Instant::now(),
            stuck_at: None,
            has_confirmed: false,
        }
    }

    /// How many tasks are in flight.
    pub(crate) fn tasks_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn has_confirmed(&self) -> bool {
        self.has_confirmed
    }

    pub(crate) fn counts_deliveries(&self) -> bool {
        self.queue.counts_deliveries()
    }

    /// Whether the priorities of tasks have an effect in the own queue, as far as is known.
    pub(crate) fn has_priorities(&self) -> bool {
        self.queue.has_priorities(self.connection.broker_version())
    }

    pub(crate) fn shared_connection(&self) -> Connection {
        self.connection.share()
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.connection.is_lent()
    }

    pub(crate) fn oldest_deadline(&self) -> Option<Instant> {
        self.in_flight.oldest_deadline()
    }

    /// Leaves no task in flight more time than until this deadline.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        self.in_flight.end_by(deadline);
    }

    /// Waits for the next event, at most until the deadline or until something here is due.
    pub(crate) fn wait<W>(
        &self,
        deadline: Option<Instant>,
        aborting: &Signal,
        wake: &Receiver<W>,
    ) -> Woken<W> {
        let due = [self.durable_at, self.again_at, self.slow_confirm_at, self.stuck_at];
        let deadlines = due.into_iter().chain([deadline]);
        let deadline = deadlines.flatten().min();
        select_biased! {
            recv(aborting) -> _ => Woken::Time,
            recv(self.answers.confirms()) -> confirm => {
                confirm.map_or(Woken::Lost, |confirm| Woken::Confirm(confirm.into()))
            },
            recv(self.connection.notices()) -> notice => {
                notice.map_or(Woken::Lost, |notice| Woken::Notice(notice.into()))
            },
            recv(wake) -> woken => Woken::Wake(woken),
            recv(deadline.map_or_else(never, at)) -> _ => Woken::Time,
        }
    }

    /// Takes the confirms that have come in. An error if none can come any more.
    pub(crate) fn collect(
        &mut self,
        config: &PublisherConfig,
        backlog: &mut Backlog<T>,
    ) -> Result<(), CloseReason> {
        loop {
            match self.answers.confirms().try_recv() {
                Ok(confirm) => self.apply(confirm.into(), config, backlog)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(CloseReason::Disconnected),
            }
        }
    }

    /// Resolves the tasks that a confirm speaks of, or has them published again.
    pub(crate) fn apply(
        &mut self,
        verdict: Verdict,
        config: &PublisherConfig,
        backlog: &mut Backlog<T>,
    ) -> Result<(), CloseReason> {
        self.collect_returns()?;
        let (Verdict::Acked(reach) | Verdict::Nacked(reach)) = verdict;
        if !self.in_flight.allows(reach) {
            return Err(self.distrust("the broker confirmed what was not published"));
        }
        let (answered, given_up) = self.in_flight.resolve(reach);
        self.has_confirmed |= !answered.is_empty();
        for mut pending in answered {
            match (self.in_flight.take_return(&mut pending), verdict) {
                (Some(reason), _) => {
                    self.queues.forget(&pending);
                    self.refuse(pending, Refusal::Returned(reason), config, backlog);
                }
                (None, Verdict::Acked(_)) => {
                    self.nacking.acked(&pending);
                    backlog.resolve(pending, Outcome::Confirmed);
                }
                (None, Verdict::Nacked(_)) => {
                    self.nacking.nacked(&pending.name(), Instant::now());
                    self.refuse(pending, Refusal::Nack, config, backlog);
                }
            }
        }
        self.progress_at = Instant::now();
        self.slow_confirm_at = (!self.in_flight.is_empty()).then(|| self.progress_at + SLOW_AFTER);
        // After the others: if one confirm is for both, the return may be of either. A confirmed
        // task that counts as returned runs twice; a returned one that counts as confirmed, never.
        self.in_flight.forget_returns(&given_up);
        Ok(())
    }

    /// Records the returns that have come in. The broker sends a return before the confirm of the
    /// same task, and one thread passes both on: before each confirm, all returns are here.
    ///
    /// A return of nothing in flight ends the link: the task that it is of would count as
    /// confirmed. The confirm of that task may have come as well, so no later confirm counts.
    fn collect_returns(&mut self) -> Result<(), CloseReason> {
        if let Some(cause) = &self.protocol_error {
            return Err(cause.clone());
        }
        while let Some(returned) = self.answers.next_return() {
            if self.in_flight.record_return(returned).is_err() {
                return Err(self.distrust("the broker returned what was not published"));
            }
        }
        Ok(())
    }

    fn distrust(&mut self, text: &str) -> CloseReason {
        self.protocol_error.insert(CloseReason::Lost(text.into())).clone()
    }

    /// Puts a refused task back into the backlog, or resolves it, as the publisher is set.
    fn refuse(
        &mut self,
        mut pending: Pending<T>,
        refusal: Refusal,
        config: &PublisherConfig,
        backlog: &mut Backlog<T>,
    ) {
        // The outcome of a task is tried again here, with pauses: it is all that its task waits for.
        let gives_up = match config.on_refusal {
            OnRefusal::GiveUp => !matches!(pending.target, Target::Batch(_)),
            OnRefusal::TryAgain => false,
        };
        match refusal {
            refusal if gives_up => {
                let outcome = pending.outcome_after(&refusal);
                return backlog.resolve(pending, outcome);
            }
            // Whether the queue is missing or only down is asked before the next publish.
            Refusal::Returned(reason) => {
                pending.refusal = Some(Refusal::Returned(reason));
            }
            refusal => {
                pending.retry_later(refusal, &mut self.last_refusal);
            }
        }
        backlog.insert(pending);
    }

    /// Resolves the tasks in flight that `which` picks. They may arrive all the same.
    pub(crate) fn give_up(
        &mut self,
        outcome: &Outcome,
        which: impl Fn(&Pending<T>) -> bool,
        backlog: &mut Backlog<T>,
    ) {
        for pending in self.in_flight.give_up(which) {
            // The next task for its queue asks whether that still responds.
            self.queues.forget(&pending);
            backlog.resolve(pending, outcome.clone());
        }
    }

    /// Takes what came before the connection was lost: confirms, and notices, which may say why
    /// the broker did not answer. Returns the error if the broker's words made no sense.
    pub(crate) fn collect_last(
        &mut self,
        config: &PublisherConfig,
        backlog: &mut Backlog<T>,
    ) -> Option<CloseReason> {
        let protocol_error = self.collect(config, backlog).err();
        while let Ok(notice) = self.connection.notices().try_recv() {
            self.note(&notice.into());
        }
        protocol_error
    }

    /// Takes out everything in flight, in the order of publishing.
    pub(crate) fn take_in_flight(&mut self) -> Vec<Pending<T>> {
        self.in_flight.take_all()
    }

    /// Ends a link that has failed.
    pub(crate) fn end(self, known: Option<CloseReason>) -> LinkEnd {
        let (silent_delay, probing) = (self.silent_delay, self.queues.probing());
        let Link { connection, channel, .. } = self;
        let address = connection.address().to_string();
        // A closed channel gives its reason once, to the first call that fails.
        let known = known.filter(|cause| *cause != CloseReason::Disconnected);
        let cause = match known {
            // Before the channel, whose end waits for the broker.
            Some(known) => connection.end(Some(known)),
            None => connection.end(channel.close_reason()),
        };
        let is_malformed = matches!(cause, CloseReason::Malformed(_));
        let silent_delay = silent_delay.or(probing.filter(|_| is_malformed));
        LinkEnd { address, cause, silent_delay }
    }

    /// Closes a healthy link, at most within the close limit; not at all once `aborting` closes.
    pub(crate) fn close(self, aborting: &Signal) {
        let guard = self.connection.call_guard().clone();
        guard.abort_on(aborting, || self.close_in_order());
    }

    /// Leaves the connection for other uses. `None`, and it is closed, if the broker does not read from
    /// it, or owes confirms.
    pub(crate) fn into_connection(self, aborting: &Signal) -> Option<Connection> {
        if self.blocked.is_some() || !self.in_flight.is_all_confirmed() {
            self.close(aborting);
            return None;
        }
        let Link { connection, channel, .. } = self;
        let guard = connection.call_guard().clone();
        let closed = guard.abort_on(aborting, || channel.close());
        closed.is_ok().then_some(connection)
    }

    /// Closes the connection first: nothing that matters is queued on the channel, and its close
    /// then waits for nobody.
    fn close_in_order(self) {
        let Link { connection, channel, in_flight, .. } = self;
        // A broker that owes confirms may not answer a close either.
        if in_flight.is_all_confirmed() {
            connection.close();
        } else {
            drop(connection);
        }
        drop(channel);
    }
}

/// Opens a channel in confirm mode, and declares the queue unless it is used as it is.
fn open_channel(
    connection: &mut Connection,
    queue: &Queue,
    queues: &mut DerivedQueues,
) -> Result<Opened, CloseReason> {
    let (channel, queue) = if queue.is_passive() {
        (connection.open_channel()?, queue.clone())
    } else {
        let ready = open_queue(connection, queue)?;
        ready.durable_at.iter().for_each(|at| queues.mark_declared(Target::Main, *at));
        (ready.channel, ready.queue)
    };
    let answers = channel.confirm_publishes()?;
    Ok(Opened { channel, answers, queue })
}
