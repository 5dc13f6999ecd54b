//! Owns [`Producer`]: publishes tasks, many in flight, until each one is confirmed or its time
//! is up; across lost connections.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{at, never, select_biased};
use log::{info, warn};

use crate::backoff::Backoff;
use crate::broker::Broker;
use crate::cause::Cause;
use crate::channel::{Channel, PublishEnds, Verdict, read_confirm, read_return};
use crate::confirms::Confirms;
use crate::connection::{Connection, Notice, read_notice};
use crate::error::Error;
use crate::queue::{Declaration, Queue};
use crate::shutdown::{Shutdown, Signal, is_closed};
use crate::task::Task;

/// Puts tasks on one queue, each mandatory and confirmed by the broker.
///
/// [`publish`](Producer::publish) is for one task. For many, [`send`](Producer::send) keeps a
/// window of them in flight, and every task handed in comes back in exactly one [`Receipt`],
/// from `send` or from [`flush`](Producer::flush).
///
/// When the connection dies, a new one is made, and what was not confirmed is published again
/// under the same message id: a task may then be on the queue twice, and is never silently lost.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use rabbit_work::{Broker, Outcome, Producer, Queue, Task};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let mut producer = Producer::new(&broker, &Queue::new("task_queue"));
/// let mut receipts = Vec::new();
/// for n in 0..1000 {
///     receipts.extend(producer.send(Task::new(format!("task {n}"))));
/// }
/// receipts.extend(producer.flush());
/// assert!(receipts.iter().all(|receipt| receipt.outcome == Outcome::Confirmed));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Producer {
    broker: Broker,
    queue: Queue,
    window: usize,
    timeout: Duration,
    shutdown: Option<Shutdown>,
    link: Option<Link>,
    /// What is to be published, oldest first.
    backlog: VecDeque<Pending>,
    receipts: Vec<Receipt>,
    backoff: Backoff,
    /// No connection is tried before this moment.
    not_before: Option<Instant>,
    ever_connected: bool,
    /// Why no connection will ever be had.
    refusal: Option<String>,
}

/// What became of one task.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Receipt {
    /// The task, with the id it was published under.
    pub task: Task,
    /// What became of it.
    pub outcome: Outcome,
}

/// What the broker did with a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is on the queue, and the broker answers for it
    /// (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>).
    Confirmed,
    /// The broker refused it: the queue is full, or an internal error occurred.
    Nacked,
    /// It could not be routed: there is no such queue.
    #[non_exhaustive]
    Returned {
        /// The broker's code and text.
        reason: String,
    },
    /// Nothing is known: it may be on the queue or not.
    #[non_exhaustive]
    Unconfirmed {
        /// Why the wait for a confirm ended.
        reason: String,
    },
}

/// A connection with the publishes that are in flight on it.
struct Link {
    connection: Connection,
    channel: Channel,
    ends: PublishEnds,
    confirms: Confirms<Pending>,
    /// The bytes of the bodies in flight.
    in_flight: usize,
    /// The reasons of returns whose confirm has not come yet, by message id.
    returned: HashMap<String, String>,
    /// Why the broker takes no publishes at present.
    blocked: Option<String>,
}

/// A task on its way, and the moment until when it is tried.
#[derive(Debug)]
struct Pending {
    task: Task,
    deadline: Instant,
}

/// Until when to go on.
#[derive(Clone, Copy)]
enum Until {
    Published,
    Settled,
}

/// The most bytes of bodies in flight, unless it is a single one: below the mark of 16 MiB at
/// which the client library stops reading our channel (amiquip 0.4.2 connection.rs:96).
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// What a call of the client library gets at least, so that a task that is all but out of time
/// does not take the connection with it.
const SHORTEST_CALL: Duration = Duration::from_secs(1);

impl Producer {
    /// A producer for this queue. Connects when it is first used.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Producer {
        Producer {
            broker: broker.clone(),
            queue: queue.clone(),
            window: 1000,
            timeout: Duration::from_secs(30),
            shutdown: None,
            link: None,
            backlog: VecDeque::new(),
            receipts: Vec::new(),
            backoff: Backoff::new(),
            not_before: None,
            ever_connected: false,
            refusal: None,
        }
    }

    /// Sets how many tasks may be in flight; their bodies may also have 8 MiB together.
    /// Default: 1000 tasks.
    #[must_use]
    pub fn window(mut self, tasks: usize) -> Producer {
        self.window = tasks.max(1);
        self
    }

    /// Sets how long each task is tried, from when it was handed in. Default: 30 s.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Producer {
        self.timeout = limit;
        self
    }

    /// Heeds this shutdown: a stop ends [`connect`](Producer::connect); an
    /// [abort](crate::Trigger::abort) ends every wait, and what is in flight then is
    /// [`Outcome::Unconfirmed`]. Default: waits end at the timeout only.
    #[must_use]
    pub fn heed(mut self, shutdown: &Shutdown) -> Producer {
        self.shutdown = Some(shutdown.clone());
        self
    }

    /// Connects and declares the queue, where that has not been done yet.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when no broker was reached within the timeout; at once, whatever
    /// a person has to act on: [`Error::LoginRefused`], [`Error::VhostRefused`],
    /// [`Error::QueueMismatch`], [`Error::QueueRefused`], [`Error::Tls`],
    /// [`Error::InvalidSetting`].
    ///
    /// # Blocking
    /// At most for the timeout.
    pub fn connect(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        let mut last = None;
        while self.link.is_none() {
            match self.try_connect(deadline, &self.stopping()) {
                Ok(true) => {}
                Err(error) if error.is_transient() => last = Some(error),
                Err(error) => return Err(error),
                Ok(false) => {
                    let attempts = vec![format!("{}: no answer in time", self.broker)];
                    return Err(last.unwrap_or(Error::Unreachable { attempts }));
                }
            }
        }
        Ok(())
    }

    /// Publishes one task and waits until the broker has confirmed it. Returns its id.
    ///
    /// # Errors
    /// As [`connect`](Producer::connect); [`Error::NotConfirmed`] when the broker refused or
    /// returned the task or did not answer in time; [`Error::InvalidSetting`] for a task that
    /// AMQP cannot carry.
    ///
    /// # Blocking
    /// At most for the timeout to connect and the timeout again to publish. To be called when
    /// nothing else is in flight; receipts of earlier [`send`](Producer::send)s are kept for
    /// the next [`flush`](Producer::flush).
    pub fn publish(&mut self, task: Task) -> Result<String, Error> {
        task.validate()?;
        self.connect()?;
        let task = task.stamped(SystemTime::now());
        let id = task.id().unwrap_or_default().to_string();
        self.accept(task);
        self.pump(Until::Settled);
        let mine = self.receipts.iter().rposition(|it| it.task.id() == Some(id.as_str()));
        match mine.map(|place| self.receipts.remove(place).outcome) {
            Some(Outcome::Confirmed) => Ok(id),
            Some(outcome) => Err(Error::NotConfirmed { outcome }),
            None => Err(Error::NotConfirmed { outcome: unconfirmed("its receipt is missing") }),
        }
    }

    /// Publishes a task without waiting for its confirm, and returns the receipts that have
    /// come in, of this task or others.
    ///
    /// # Blocking
    /// While the window is full, the broker blocks publishers or the connection is being made
    /// again; at most until the oldest task in flight is out of time.
    #[must_use = "a receipt may say that a task was not confirmed"]
    pub fn send(&mut self, task: Task) -> Vec<Receipt> {
        match task.validate() {
            Ok(()) => {
                self.accept(task.stamped(SystemTime::now()));
                self.pump(Until::Published);
            }
            Err(error) => {
                self.receipts.push(Receipt { task, outcome: unconfirmed(error.to_string()) });
            }
        }
        mem::take(&mut self.receipts)
    }

    /// Waits until every task that was handed in has its receipt, and returns those that had
    /// not been returned yet.
    ///
    /// # Blocking
    /// At most for the timeout.
    #[must_use = "a receipt may say that a task was not confirmed"]
    pub fn flush(&mut self) -> Vec<Receipt> {
        self.pump(Until::Settled);
        mem::take(&mut self.receipts)
    }

    fn accept(&mut self, task: Task) {
        let deadline = Instant::now() + self.timeout;
        self.backlog.push_back(Pending { task, deadline });
    }

    /// Publishes, collects confirms and connects again as needed, until `until` is reached or
    /// every task concerned is out of time.
    fn pump(&mut self, until: Until) {
        loop {
            self.give_up_expired();
            self.progress();
            if self.has_reached(until) {
                return;
            }
            self.wait();
        }
    }

    fn has_reached(&self, until: Until) -> bool {
        let settled = self.link.as_ref().is_none_or(|link| link.confirms.is_empty());
        match until {
            Until::Published => self.backlog.is_empty(),
            Until::Settled => self.backlog.is_empty() && settled,
        }
    }

    /// Does what can be done without waiting.
    fn progress(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.collect(&mut self.receipts);
        if let Err(cause) = link.publish(&mut self.backlog, self.queue.name(), self.window) {
            self.lose_link(Some(cause));
        }
    }

    /// Waits for the next thing that can happen.
    fn wait(&mut self) {
        let Some(deadline) = self.oldest_deadline() else { return };
        match &self.link {
            None => {
                // What failed was logged; what it means for each task is in its receipt.
                let _ = self.try_connect(deadline, &self.aborting());
            }
            Some(link) => match link.wait(deadline, &self.aborting()) {
                Woken::Confirm(verdict) => self.apply(verdict),
                Woken::Notice(notice) => self.note(notice),
                Woken::Lost => self.lose_link(None),
                Woken::Time => {}
            },
        }
    }

    fn apply(&mut self, verdict: Verdict) {
        if let Some(link) = &mut self.link {
            link.apply(verdict, &mut self.receipts);
        }
    }

    fn note(&mut self, notice: Notice) {
        let Some(link) = &mut self.link else { return };
        match notice {
            Notice::Blocked(reason) => {
                warn!("the broker blocks publishers: {reason}; publishing waits");
                link.blocked = Some(reason);
            }
            Notice::Unblocked => {
                info!("the broker takes publishes again");
                link.blocked = None;
            }
        }
    }

    /// Tries once to connect, after the pause that is due. `Ok(false)`: no time was left.
    fn try_connect(&mut self, deadline: Instant, interrupt: &Signal) -> Result<bool, Error> {
        if let Some(not_before) = self.not_before.take() {
            select_biased! {
                recv(interrupt) -> _ => return Ok(false),
                recv(at(not_before.min(deadline))) -> _ => {},
            }
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        let opened = self.queue.validate().and_then(|()| self.open(interrupt, deadline));
        match opened {
            Ok(Some(link)) => {
                self.link = Some(link);
                self.ever_connected = true;
                self.backoff = Backoff::new();
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.note_failed_connect(&error);
                Err(error)
            }
        }
    }

    fn open(&self, interrupt: &Signal, deadline: Instant) -> Result<Option<Link>, Error> {
        let opened = Connection::open(&self.broker, interrupt, Some(deadline))?;
        let Some(connection) = opened else { return Ok(None) };
        let leash = connection.leash().clone();
        let left = deadline.saturating_duration_since(Instant::now()).max(SHORTEST_CALL);
        let set_up = || leash.unless(interrupt, || Link::open(connection, &self.queue));
        leash.within(left, "setting up the channel", set_up).map(Some)
    }

    fn note_failed_connect(&mut self, error: &Error) {
        if !error.is_transient() && !self.ever_connected {
            self.refusal = Some(error.chain());
            return;
        }
        let pause = self.backoff.next_pause();
        warn!("{}; next try in {:.1} s", error.chain(), pause.as_secs_f64());
        self.not_before = Some(Instant::now() + pause);
    }

    /// Takes back what was in flight, to be published again under the same ids.
    fn lose_link(&mut self, known: Option<Cause>) {
        let Some(mut link) = self.link.take() else { return };
        link.collect(&mut self.receipts);
        let outstanding = link.confirms.take_all();
        let again = outstanding.len();
        for pending in outstanding.into_iter().rev() {
            self.backlog.push_front(pending);
        }
        let (address, cause) = link.bury(known);
        if let Some(limit) = cause.size_limit() {
            // Published again, it would end every channel, and nothing behind it get through.
            self.give_up(&cause.to_string(), |pending| pending.task.body().len() > limit);
        }
        let error = Error::session_lost(&address, cause);
        let pause = self.backoff.next_pause();
        warn!(
            "{}; {again} tasks in flight are published again in {:.1} s",
            error.chain(),
            pause.as_secs_f64()
        );
        self.not_before = Some(Instant::now() + pause);
    }

    fn give_up_expired(&mut self) {
        if self.refusal.is_some() || is_closed(&self.aborting()) {
            let stopped = || "stopped before it was confirmed".to_string();
            let reason = self.refusal.clone().unwrap_or_else(stopped);
            self.give_up(&reason, |_| true);
            return;
        }
        let now = Instant::now();
        if self.oldest_deadline().is_some_and(|deadline| deadline <= now) {
            let reason = self.why_waiting();
            self.give_up(&reason, |pending| pending.deadline <= now);
        }
    }

    fn why_waiting(&self) -> String {
        let wait = format!("not confirmed within {:?}", self.timeout);
        match &self.link {
            None => format!("{wait}: no connection"),
            Some(Link { blocked: Some(reason), .. }) => {
                format!("{wait}: the broker blocks publishers: {reason}")
            }
            Some(_) => wait,
        }
    }

    fn give_up(&mut self, reason: &str, which: impl Fn(&Pending) -> bool) {
        if let Some(link) = &mut self.link {
            for pending in link.confirms.take_if(&which) {
                link.in_flight -= pending.task.body().len();
                pending.give_up(reason, &mut self.receipts);
            }
        }
        let (over, left) = mem::take(&mut self.backlog).into_iter().partition(&which);
        self.backlog = left;
        let over: VecDeque<Pending> = over;
        for pending in over {
            pending.give_up(reason, &mut self.receipts);
        }
    }

    fn oldest_deadline(&self) -> Option<Instant> {
        let in_flight = self.link.as_ref().and_then(|link| link.confirms.oldest());
        let waiting = self.backlog.front();
        in_flight.into_iter().chain(waiting).map(|pending| pending.deadline).min()
    }

    fn stopping(&self) -> Signal {
        self.shutdown.as_ref().map_or_else(never, |shutdown| shutdown.stopping().clone())
    }

    fn aborting(&self) -> Signal {
        self.shutdown.as_ref().map_or_else(never, |shutdown| shutdown.aborting().clone())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("address", &self.connection.address())
            .field("in_flight", &self.confirms.len())
            .field("blocked", &self.blocked)
            .finish_non_exhaustive()
    }
}

impl Drop for Producer {
    /// Closes the connection; waits for the broker, at most the close limit.
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.close();
        }
    }
}

/// What ended a wait.
enum Woken {
    Confirm(Verdict),
    Notice(Notice),
    Lost,
    Time,
}

impl Link {
    fn open(mut connection: Connection, queue: &Queue) -> Result<Link, Error> {
        let set_up = |connection: &mut Connection| {
            let channel = connection.open_channel()?;
            if queue.declaration() == Declaration::Declare {
                channel.declare(queue)?;
            }
            let ends = channel.confirm_publishes()?;
            Ok((channel, ends))
        };
        match set_up(&mut connection) {
            Ok((channel, ends)) => Ok(Link {
                connection,
                channel,
                ends,
                confirms: Confirms::new(),
                in_flight: 0,
                returned: HashMap::new(),
                blocked: None,
            }),
            Err(cause) => {
                let address = connection.address().to_string();
                let cause = connection.end(Some(cause));
                Err(Error::from_queue_use(queue.name(), &address, cause))
            }
        }
    }

    /// Publishes from the front of the backlog while the window has room.
    fn publish(
        &mut self,
        backlog: &mut VecDeque<Pending>,
        queue: &str,
        window: usize,
    ) -> Result<(), Cause> {
        while self.has_room(backlog.front(), window) {
            let Some(pending) = backlog.pop_front() else { break };
            let left = pending.deadline.saturating_duration_since(Instant::now());
            let limit = left.max(SHORTEST_CALL);
            let published = self.channel.publish(queue, &pending.task, limit);
            // Also when it failed: part of it may be on its way.
            self.in_flight += pending.task.body().len();
            self.confirms.publish(pending);
            published?;
        }
        Ok(())
    }

    fn has_room(&self, next: Option<&Pending>, window: usize) -> bool {
        let Some(next) = next else { return false };
        let fits = self.in_flight + next.task.body().len() <= WINDOW_BYTES;
        self.blocked.is_none() && self.confirms.len() < window && (fits || self.confirms.is_empty())
    }

    /// Takes the confirms that have come in.
    fn collect(&mut self, receipts: &mut Vec<Receipt>) {
        while let Ok(confirm) = self.ends.confirms.try_recv() {
            self.apply(read_confirm(confirm), receipts);
        }
    }

    fn apply(&mut self, verdict: Verdict, receipts: &mut Vec<Receipt>) {
        self.collect_returns();
        let (reach, acked) = match verdict {
            Verdict::Acked(reach) => (reach, Outcome::Confirmed),
            Verdict::Nacked(reach) => (reach, Outcome::Nacked),
        };
        for Pending { task, .. } in self.confirms.settle(reach) {
            self.in_flight -= task.body().len();
            let returned = task.id().and_then(|id| self.returned.remove(id));
            let outcome = match returned {
                Some(reason) => Outcome::Returned { reason },
                None => acked.clone(),
            };
            receipts.push(Receipt { task, outcome });
        }
    }

    /// The broker sends a return before the confirm of the same task, and one thread passes both
    /// on: whatever was returned is here before its confirm is.
    fn collect_returns(&mut self) {
        while let Ok(returned) = self.ends.returns.try_recv() {
            if let (Some(id), reason) = read_return(returned) {
                self.returned.insert(id, reason);
            }
        }
    }

    fn wait(&self, deadline: Instant, aborting: &Signal) -> Woken {
        select_biased! {
            recv(aborting) -> _ => Woken::Time,
            recv(self.ends.confirms) -> confirm => {
                confirm.map_or(Woken::Lost, |confirm| Woken::Confirm(read_confirm(confirm)))
            },
            recv(self.connection.notices()) -> notice => {
                notice.map_or(Woken::Lost, |notice| Woken::Notice(read_notice(notice)))
            },
            recv(at(deadline)) -> _ => Woken::Time,
        }
    }

    /// Ends a link that has failed; tells where and why.
    fn bury(self, known: Option<Cause>) -> (String, Cause) {
        let Link { connection, channel, .. } = self;
        let address = connection.address().to_string();
        // The reason of a closed channel is told once, to the first call that fails.
        let cause = known.or_else(|| channel.last_words());
        (address, connection.end(cause))
    }

    /// Ends a healthy link. The connection goes first: nothing that matters is queued on the
    /// channel, and its close then waits for nobody.
    fn close(self) {
        let Link { connection, channel, confirms, .. } = self;
        if confirms.is_empty() {
            let _ = connection.close();
        } else {
            drop(connection);
        }
        drop(channel);
    }
}

impl Pending {
    fn give_up(self, reason: &str, receipts: &mut Vec<Receipt>) {
        receipts.push(Receipt { task: self.task, outcome: unconfirmed(reason) });
    }
}

fn unconfirmed(reason: impl Into<String>) -> Outcome {
    Outcome::Unconfirmed { reason: reason.into() }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Confirmed => write!(f, "confirmed"),
            Outcome::Nacked => write!(f, "nacked: the broker refused it; the queue may be full"),
            Outcome::Returned { reason } => write!(f, "returned: {reason}; is the queue there?"),
            Outcome::Unconfirmed { reason } => write!(f, "unconfirmed: {reason}"),
        }
    }
}
