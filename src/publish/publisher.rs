//! Owns publishing with confirms: many in flight, each until it is confirmed or its time is up,
//! across lost connections. What a [`Producer`](crate::Producer) and a worker's hand-overs share.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, at, never, select_biased};
use log::{info, warn};

use crate::amqp::channel::{Channel, PublishEnds, Returned, Verdict, read_confirm, read_return};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connect::ConnectAttempt;
use crate::amqp::connection::{Connection, Notice, read_notice};
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::{Declaration, Queue, Target};
use crate::model::task::Task;
use crate::publish::confirms::Confirms;
use crate::topology::durability::open_channel_to;
use crate::topology::silent_delays::SilentDelays;
use crate::topology::{DerivedQueues, NotReady};
use crate::util::backoff::Backoff;
use crate::util::deadline::deadline_after;
use crate::util::patience::{PATIENCE, telling};
use crate::util::shutdown::{Signal, is_closed};

/// Publishes tasks to one queue and to those beside it. Each task that it accepts comes back
/// settled, with the ticket that it came with.
pub(crate) struct Publisher<T> {
    broker: Broker,
    queue: Queue,
    pub(crate) limits: Limits,
    /// Once closed, [`connect`](Publisher::connect) is given up.
    pub(crate) stopping: Signal,
    /// Once closed, everything is given up.
    pub(crate) aborting: Signal,
    /// The connection of somebody else, to publish on where there is none of its own to be had.
    pub(crate) lent: Option<Connection>,
    /// The delays that tasks may need one after the other.
    pub(crate) delays: Vec<Duration>,
    silent: SilentDelays,
    link: Option<Link<T>>,
    /// The connection that is being made; there is never a second one.
    attempt: Option<ConnectAttempt>,
    /// What is to be published, oldest first.
    backlog: VecDeque<Pending<T>>,
    settled: Vec<Settled<T>>,
    /// What becomes of a task that the broker refuses.
    on_refusal: OnRefusal,
    backoff: Backoff,
    /// No connection is tried before this moment.
    not_before: Option<Instant>,
    /// Whether this broker has ever taken us.
    proven: bool,
    /// Why no connection is to be had before `not_before`, whatever is tried.
    refusal: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many tasks may be in flight.
    pub(crate) window: usize,
    /// How long each task is tried.
    pub(crate) timeout: Duration,
}

/// What becomes of a task that the broker refuses, in a way that may pass.
#[derive(Clone, Copy, Debug)]
enum OnRefusal {
    /// It is published again, until its time is up.
    TryAgain,
    GiveUp,
}

/// How the broker refused a task.
#[derive(Debug)]
enum Refusal {
    /// By a nack, for which it gives no reason.
    Nack,
    /// It was returned with these words. Its queue may be down: that is to be asked.
    Returned(String),
    /// Its queue is down, in the broker's words.
    Down(String),
}

/// What has become of a queue to which a task could not be routed.
#[derive(Clone)]
enum Whereabouts {
    Here,
    Gone,
    Down(String),
}

/// A task, and what became of it.
pub(crate) struct Settled<T> {
    pub(crate) task: Task,
    pub(crate) outcome: Outcome,
    pub(crate) ticket: T,
    /// Whether any of it went to the broker.
    pub(crate) sent: bool,
}

/// Until when to go on.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Published,
    Settled,
}

/// A connection with the publishes that are in flight on it.
struct Link<T> {
    connection: Connection,
    channel: Channel,
    ends: PublishEnds,
    confirms: Confirms<Pending<T>, Address>,
    places: DerivedQueues,
    /// When to look again at what waits for a new queue to settle.
    settles_at: Option<Instant>,
    on_refusal: OnRefusal,
    /// What the broker has refused, to be published again.
    refused: Vec<Pending<T>>,
    /// When it refused a task last.
    refused_at: Option<Instant>,
    /// When to publish the next of those again that wait.
    again_at: Option<Instant>,
    /// Whether a task may be in flight behind others that have more time left.
    out_of_order: bool,
    /// The bytes in flight.
    in_flight: usize,
    /// How many returns of tasks that were given up, and why, whose confirms have not come yet.
    returned: HashMap<Address, (usize, String)>,
    /// Why nothing more is believed of what the broker says.
    objection: Option<CloseReason>,
    /// Why the broker takes no publishes at present.
    blocked: Option<String>,
    /// When to say that it does not confirm what it was sent.
    impatient_at: Option<Instant>,
    /// Whether any publish got through.
    has_confirmed: bool,
}

/// What a return is told by: a queue, a message id, and a hash of the body, which tells two tasks
/// with the same id apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Address {
    queue: String,
    id: Option<String>,
    body: u64,
}

impl Address {
    fn new(queue: String, id: Option<String>, body: &[u8]) -> Address {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        Address { queue, id, body: hasher.finish() }
    }
}

/// A task on its way, and the moment until when it is tried.
struct Pending<T> {
    task: Task,
    asked: Target,
    /// The same, or the way around it.
    target: Target,
    deadline: Instant,
    /// Why it was returned, if it was.
    returned: Option<String>,
    /// How often it was refused.
    refusals: u32,
    /// The last answer, if that was a refusal, and when to publish it again.
    refusal: Option<Refusal>,
    again_at: Option<Instant>,
    ticket: T,
    sent: bool,
}

/// The most bytes in flight, unless it is a single task: below the mark of 16 MiB at which the
/// client library stops reading our channel (amiquip 0.4.2 connection.rs:96).
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// A body up to this size is passed to the client library's thread without waiting for the broker,
/// also where the two agreed upon the smallest frames: 1024 of 4 KiB may wait there.
const PASSED_AT_ONCE: usize = 1024 * 1024;

/// What a call of the client library gets at least, so that a task that is all but out of time
/// does not take the connection with it.
const SHORTEST_CALL: Duration = Duration::from_secs(1);

/// How long a connection of its own may take where another one is lent.
const OWN_WITHIN: Duration = Duration::from_secs(5);

/// How long before the end of its time a task gets its last try, whatever the pause.
const LAST_TRY: Duration = Duration::from_secs(1);

/// How long a task waits after its first refusal. Each further one doubles that, up to the longest.
const SHORTEST_REFUSAL: Duration = Duration::from_millis(100);
const LONGEST_REFUSAL: Duration = Duration::from_secs(2);

/// How long no task may have been refused before a refusal is told again.
const QUIET: Duration = Duration::from_secs(60);

impl<T> Publisher<T> {
    /// A publisher that connects when it is first used.
    pub(crate) fn new(broker: &Broker, queue: &Queue, limits: Limits) -> Publisher<T> {
        Publisher {
            broker: broker.clone(),
            queue: queue.clone(),
            limits,
            stopping: never(),
            aborting: never(),
            lent: None,
            delays: Vec::new(),
            silent: SilentDelays::default(),
            link: None,
            attempt: None,
            backlog: VecDeque::new(),
            settled: Vec::new(),
            on_refusal: OnRefusal::TryAgain,
            backoff: Backoff::of_a_publisher(),
            not_before: None,
            proven: false,
            refusal: None,
        }
    }

    /// A publisher to a broker that has taken us already: what refuses us may pass.
    pub(crate) fn proven(mut self) -> Publisher<T> {
        self.proven = true;
        self
    }

    /// A publisher whose caller deals with refusals itself: the task is settled at once.
    pub(crate) fn giving_up_what_is_refused(mut self) -> Publisher<T> {
        self.on_refusal = OnRefusal::GiveUp;
        self
    }

    /// Connects, where it is not connected; see [`Producer::connect`](crate::Producer::connect).
    pub(crate) fn connect(&mut self) -> Result<(), Error> {
        let deadline = deadline_after(self.limits.timeout);
        if self.refusal.take().is_some() {
            // Whoever asks by name may have put it right.
            self.not_before = None;
        }
        let mut last = None;
        while self.link.is_none() {
            match self.try_connect(deadline, &self.stopping.clone()) {
                Ok(true) => {}
                Err(error) if error.is_transient() => last = Some(error),
                Err(error) => return Err(error),
                Ok(false) => return Err(last.unwrap_or_else(|| self.unreached())),
            }
        }
        Ok(())
    }

    pub(crate) fn accept(&mut self, task: Task, target: Target, ticket: T) {
        let deadline = deadline_after(self.limits.timeout);
        let asked = target;
        let target = self.silent.avoid(asked);
        self.backlog.push_back(Pending {
            task,
            asked,
            target,
            deadline,
            returned: None,
            refusals: 0,
            refusal: None,
            again_at: None,
            ticket,
            sent: false,
        });
    }

    /// Settles a task that was never on its way.
    pub(crate) fn refuse(&mut self, task: Task, reason: String, ticket: T) {
        let outcome = Outcome::Refused { reason };
        self.settled.push(Settled { task, outcome, ticket, sent: false });
    }

    /// What was settled since the last time.
    pub(crate) fn take_settled(&mut self) -> Vec<Settled<T>> {
        mem::take(&mut self.settled)
    }

    /// Publishes, collects confirms and connects again as needed, until `until` is reached or
    /// every task concerned is out of time.
    pub(crate) fn pump(&mut self, until: Until) {
        loop {
            self.collect();
            self.publish();
            if self.has_reached(until) {
                return;
            }
            self.wait(&never::<()>());
        }
    }

    /// How many tasks it has accepted and not settled.
    pub(crate) fn unsettled(&self) -> usize {
        self.backlog.len() + self.link.as_ref().map_or(0, |link| link.confirms.len())
    }

    /// Settles what can be settled without waiting: first what has been confirmed while nobody
    /// asked, however long ago its time was up.
    pub(crate) fn collect(&mut self) {
        let Publisher { link, queue, settled, .. } = self;
        if let Some(Err(cause)) = link.as_mut().map(|link| link.collect(queue, settled)) {
            self.lose_link(Some(cause));
        }
        let refused = self.link.as_mut().map(|link| mem::take(&mut link.refused));
        self.take_back(refused.unwrap_or_default());
        self.give_up_expired();
    }

    /// Publishes what there is room for. Waits for what it takes to have the queues there.
    pub(crate) fn publish(&mut self) {
        let Publisher { link, queue, limits, aborting, silent, backlog, settled, .. } = self;
        let Some(link) = link else { return };
        let published = link.publish(limits.window, queue, aborting, silent, backlog, settled);
        if let Err(cause) = published {
            self.lose_link(Some(cause));
        }
    }

    /// Waits for the next thing that can happen; for `wake`, too, which it then tells.
    pub(crate) fn wait<W>(&mut self, wake: &Receiver<W>) -> Option<Result<W, RecvError>> {
        let deadline = self.oldest_deadline();
        match (&self.link, deadline) {
            (None, None) => return Some(wake.recv()),
            (None, Some(deadline)) => {
                // What failed was logged; what it means for each task is in its outcome.
                let _ = self.try_connect(deadline, &self.aborting.clone());
            }
            (Some(link), deadline) => match link.wait(deadline, &self.aborting, wake) {
                Woken::Confirm(verdict) => self.apply(verdict),
                Woken::Notice(notice) => {
                    if let Some(link) = &mut self.link {
                        link.note(&notice);
                    }
                }
                Woken::Lost => self.lose_link(None),
                Woken::Time => {
                    if let Some(link) = &mut self.link {
                        link.tell_silence();
                    }
                }
                Woken::Wake(woken) => return Some(woken),
            },
        }
        None
    }

    /// Closes the connection; waits for the broker, at most the close limit, and not at all once
    /// `aborting` closes.
    pub(crate) fn close(&mut self) {
        if let Some(link) = self.link.take() {
            let guard = link.connection.call_guard().clone();
            guard.abort_on(&self.aborting, || link.close());
        }
    }

    fn has_reached(&self, until: Until) -> bool {
        match until {
            Until::Published => self.backlog.is_empty() || self.has_room_beside_refused(),
            Until::Settled => self.unsettled() == 0,
        }
    }

    /// Whether nothing but refused tasks waits, and more may join them: each has its own answer
    /// coming.
    fn has_room_beside_refused(&self) -> bool {
        let bytes: usize = self.backlog.iter().map(|it| it.task.size_on_the_wire()).sum();
        let waits_for_another_try = |it: &Pending<T>| it.again_at.is_some();
        self.link.is_some()
            && bytes < WINDOW_BYTES
            && self.unsettled() < self.limits.window
            && self.backlog.iter().all(waits_for_another_try)
    }

    fn apply(&mut self, verdict: Verdict) {
        let Some(link) = &mut self.link else { return };
        if let Err(cause) = link.apply(verdict, &self.queue, &mut self.settled) {
            self.lose_link(Some(cause));
        }
    }

    /// Takes back what was refused, to be published again in the order of the deadlines.
    fn take_back(&mut self, refused: Vec<Pending<T>>) {
        for pending in refused {
            let place = self.backlog.partition_point(|it| it.deadline <= pending.deadline);
            self.backlog.insert(place, pending);
        }
    }

    /// Tries once to connect, after the pause that is due. `Ok(false)`: no time was left.
    fn try_connect(&mut self, deadline: Instant, interrupt: &Signal) -> Result<bool, Error> {
        if let Some(not_before) = self.not_before {
            let not_before = next_try(Instant::now(), not_before, deadline);
            select_biased! {
                recv(interrupt) -> _ => return Ok(false),
                recv(at(not_before.min(deadline))) -> _ => {},
            }
            if Instant::now() < not_before {
                return Ok(false);
            }
            self.not_before = None;
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        let opened = self.queue.validate().and_then(|()| self.open(interrupt, deadline));
        match opened {
            Ok(Some(link)) => {
                self.link = Some(link);
                self.proven = true;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.note_failed_connect(&error);
                Err(error)
            }
        }
    }

    fn open(&mut self, interrupt: &Signal, deadline: Instant) -> Result<Option<Link<T>>, Error> {
        let Some(connection) = self.open_connection(interrupt, deadline)? else {
            return Ok(None);
        };
        let guard = connection.call_guard().clone();
        let left = deadline.saturating_duration_since(Instant::now()).max(SHORTEST_CALL);
        let places = DerivedQueues::default().predeclare(self.delays.clone());
        let doing = format!("setting up the channel at {}", connection.address());
        let set_up = || {
            guard.abort_on(interrupt, || {
                Link::open(connection, &self.queue, places, self.on_refusal)
            })
        };
        let bounded = || guard.with_timeout(left, "setting up the channel", set_up);
        telling(interrupt, &doing, bounded).0.map(Some)
    }

    /// Waits for the attempt that is under way, or for a new one; one that is not over by then
    /// is waited for the next time.
    fn open_connection(
        &mut self,
        interrupt: &Signal,
        deadline: Instant,
    ) -> Result<Option<Connection>, Error> {
        let attempt = match self.attempt.take() {
            Some(under_way) => under_way,
            // Each address has its turn before then; the attempt itself outlives it.
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                ConnectAttempt::start(&self.broker, left)?
            }
        };
        let Some(lent) = &self.lent else {
            let opened = attempt.wait(interrupt, Some(deadline))?;
            if opened.is_none() {
                self.attempt = Some(attempt);
            }
            return Ok(opened);
        };
        let soon = deadline.min(deadline_after(OWN_WITHIN));
        let why = match attempt.wait(interrupt, Some(soon)) {
            Ok(None) if is_closed(interrupt) => return Ok(None),
            Ok(None) => attempt.failures().join(", "),
            Ok(opened) => return Ok(opened),
            Err(error) => error.chain(),
        };
        warn!(
            "no second connection: {why}; tasks are published on the first one: during an alarm of \
             the broker, acks wait with them"
        );
        Ok(Some(lent.lend()))
    }

    /// Nothing was reached, in the time that there was.
    fn unreached(&self) -> Error {
        let tried = self.attempt.as_ref().map(ConnectAttempt::failures).unwrap_or_default();
        if tried.is_empty() {
            return Error::Unreachable { attempts: vec![format!("{}: not tried", self.broker)] };
        }
        Error::Unreachable { attempts: tried }
    }

    fn note_failed_connect(&mut self, error: &Error) {
        let pause = self.backoff.next_pause();
        if error.is_transient() || self.proven {
            warn!("{}; next try in {:.1} s", error.chain(), pause.as_secs_f64());
        } else {
            self.refusal = Some(error.chain());
        }
        self.not_before = Some(Instant::now() + pause);
    }

    /// Takes back what was in flight, to be published again under the same ids.
    fn lose_link(&mut self, known: Option<CloseReason>) {
        let Some(mut link) = self.link.take() else { return };
        let objection = link.collect(&self.queue, &mut self.settled).err();
        // What kept the broker from answering may be among them.
        while let Ok(notice) = link.connection.notices().try_recv() {
            link.note(&read_notice(notice));
        }
        let known = known.or(objection);
        if link.has_confirmed {
            self.backoff = Backoff::of_a_publisher();
        }
        let outstanding = link.confirms.take_all();
        let again = outstanding.len();
        for pending in outstanding.into_iter().rev() {
            self.backlog.push_front(Pending { returned: None, ..pending });
        }
        self.backlog.make_contiguous().sort_by_key(|pending| pending.deadline);
        self.take_back(mem::take(&mut link.refused));
        let looked_at = link.places.probing();
        let was_lent = link.connection.is_lent();
        let (address, cause) = link.bury(known);
        if let (Some(delay), CloseReason::Malformed(_)) = (looked_at, &cause) {
            avoid(delay, &self.queue, &mut self.silent);
        }
        for pending in &mut self.backlog {
            pending.target = self.silent.avoid(pending.asked);
        }
        if let Some(limit) = cause.size_limit() {
            // Published again, it would end every channel, and nothing behind it get through.
            let refused = Outcome::Refused { reason: cause.to_string() };
            self.give_up(&refused, |pending| pending.task.body().len() > limit);
        }
        let pause = self.backoff.next_pause();
        self.not_before = Some(Instant::now() + pause);
        if cause.is_no_permission() {
            self.refusal = Some(cause.to_string());
            return;
        }
        // Cut by us, or lost with the session, which says so: nothing is published again.
        if is_closed(&self.aborting) || was_lent {
            return;
        }
        let error = Error::session_lost(&address, cause);
        warn!(
            "{}; {again} tasks in flight are published again in {:.1} s",
            error.chain(),
            pause.as_secs_f64()
        );
    }

    fn give_up_expired(&mut self) {
        if self.not_before.is_none_or(|not_before| not_before <= Instant::now()) {
            self.refusal = None;
        }
        if self.refusal.is_some() || is_closed(&self.aborting) {
            return self.give_up_all();
        }
        let now = Instant::now();
        if self.oldest_deadline().is_some_and(|deadline| deadline <= now) {
            let reason = self.why_waiting();
            self.give_up(&unconfirmed(reason), |pending| pending.deadline <= now);
        }
    }

    /// Settles everything: what is in flight may arrive all the same.
    pub(crate) fn give_up_all(&mut self) {
        let stopped = || "stopped before it was confirmed".to_string();
        let reason = self.refusal.clone().unwrap_or_else(stopped);
        self.give_up(&unconfirmed(reason), |_| true);
    }

    fn why_waiting(&self) -> String {
        let wait = format!("not confirmed within {:?}", self.limits.timeout);
        match &self.link {
            None => format!("{wait}: no connection"),
            Some(Link { blocked: None, settles_at: Some(_), .. }) => {
                format!("{wait}: its queue was made just now, and is trusted a moment later")
            }
            Some(Link { blocked: Some(reason), .. }) => {
                format!("{wait}: the broker blocks publishers: {reason}")
            }
            Some(_) => format!("{wait}: the broker says nothing, as where no node leads the queue"),
        }
    }

    fn give_up(&mut self, outcome: &Outcome, which: impl Fn(&Pending<T>) -> bool) {
        if let Some(link) = &mut self.link {
            let address = |pending: &Pending<T>| pending.address(&self.queue);
            for pending in link.confirms.give_up(&which, address) {
                link.in_flight -= pending.task.size_on_the_wire();
                // Should its queue give no answer any more, the next to need it finds out.
                link.places.forget(pending.target);
                self.settled.push(pending.settled(outcome.clone()));
            }
        }
        let (over, left) = mem::take(&mut self.backlog).into_iter().partition(&which);
        self.backlog = left;
        let over: VecDeque<Pending<T>> = over;
        for pending in over {
            let refused = pending.refusal.as_ref().map(|it| pending.refused_with(it, &self.queue));
            let outcome = refused.unwrap_or_else(|| outcome.clone());
            self.settled.push(pending.settled(outcome));
        }
    }

    fn oldest_deadline(&self) -> Option<Instant> {
        let in_flight = self.link.as_ref().and_then(Link::oldest_deadline);
        let waiting = self.backlog.front().map(|pending| pending.deadline);
        in_flight.into_iter().chain(waiting).min()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Nack => write!(f, "nack, without a reason"),
            Refusal::Returned(text) | Refusal::Down(text) => write!(f, "{text}"),
        }
    }
}

impl<T> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("broker", &self.broker)
            .field("queue", &self.queue.name())
            .field("limits", &self.limits)
            .field("connected", &self.link.is_some())
            .field("unsettled", &self.unsettled())
            .finish_non_exhaustive()
    }
}

/// What ended a wait.
enum Woken<W> {
    Confirm(Verdict),
    Notice(Notice),
    Wake(Result<W, RecvError>),
    Lost,
    Time,
}

impl<T> Link<T> {
    fn open(
        mut connection: Connection,
        queue: &Queue,
        mut places: DerivedQueues,
        on_refusal: OnRefusal,
    ) -> Result<Link<T>, Error> {
        let mut set_up = |connection: &mut Connection| {
            let channel = match queue.declaration() {
                Declaration::Declare => {
                    let opened = open_channel_to(connection, queue)?;
                    opened.settled_at.iter().for_each(|at| places.made(Target::Main, *at));
                    opened.channel
                }
                Declaration::UseAsItIs => connection.open_channel()?,
            };
            let ends = channel.confirm_publishes()?;
            Ok((channel, ends))
        };
        match set_up(&mut connection) {
            Ok((channel, ends)) => Ok(Link {
                connection,
                channel,
                ends,
                confirms: Confirms::new(),
                places,
                settles_at: None,
                on_refusal,
                refused: Vec::new(),
                refused_at: None,
                again_at: None,
                out_of_order: false,
                in_flight: 0,
                returned: HashMap::new(),
                objection: None,
                blocked: None,
                impatient_at: None,
                has_confirmed: false,
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
        window: usize,
        queue: &Queue,
        aborting: &Signal,
        silent: &mut SilentDelays,
        backlog: &mut VecDeque<Pending<T>>,
        settled: &mut Vec<Settled<T>>,
    ) -> Result<(), CloseReason> {
        let mut held = Vec::new();
        let mut settles_at: Option<Instant> = None;
        let mut again_at: Option<Instant> = None;
        let mut asked = HashMap::new();
        let mut published = Ok(());
        while published.is_ok() && self.has_room(backlog.front(), window) {
            let Some(mut pending) = backlog.pop_front() else { break };
            if let Some(Refusal::Returned(reason)) = &pending.refusal {
                let reason = reason.clone();
                match self.whereabouts(&pending, queue, aborting, &mut asked) {
                    Ok(Whereabouts::Down(text)) => {
                        pending.refuse(Refusal::Down(text), queue, &mut self.refused_at);
                    }
                    // It was down a moment ago.
                    Ok(Whereabouts::Here) if is_recent(self.refused_at) => {}
                    Ok(Whereabouts::Here | Whereabouts::Gone) => {
                        settled.push(pending.settled(Outcome::Returned { reason }));
                        continue;
                    }
                    Err(cause) => {
                        held.push(pending);
                        published = Err(cause);
                        continue;
                    }
                }
            }
            if let Some(later) = pending.again_at.filter(|at| *at > Instant::now()) {
                again_at = again_at.into_iter().chain([later]).min();
                held.push(pending);
                continue;
            }
            if let Some(reason) = self.too_large(&pending.task) {
                settled.push(pending.settled(Outcome::Refused { reason }));
                continue;
            }
            match self.prepare(&pending, queue, aborting) {
                Ok(()) => published = self.publish_one(pending, queue, aborting),
                Err(NotReady::Settling(until)) => {
                    settles_at = settles_at.into_iter().chain([until]).min();
                    held.push(pending);
                }
                Err(NotReady::Refused(reason)) => {
                    settled.push(pending.settled(unconfirmed(reason)))
                }
                Err(NotReady::NoTarget(reason)) => {
                    settled.push(pending.settled(Outcome::Returned { reason }));
                }
                Err(NotReady::Silent(delay, cause)) => {
                    avoid(delay, queue, silent);
                    held.push(pending);
                    published = Err(cause);
                }
                Err(NotReady::Lost(cause)) => {
                    held.push(pending);
                    published = Err(cause);
                }
            }
        }
        self.settles_at = settles_at;
        self.again_at = again_at;
        for pending in held.into_iter().rev() {
            backlog.push_front(pending);
        }
        published
    }

    /// Why the broker would end the connection for it.
    fn too_large(&self, task: &Task) -> Option<String> {
        let largest = self.connection.largest_frame();
        (!task.fits_a_frame(largest)).then(|| {
            format!("its properties are larger than the broker's frame_max of {largest} bytes")
        })
    }

    /// Sees to it that the queue is there, as [`DerivedQueues::prepare`] does. Should `aborting` close
    /// meanwhile, or the task run out of time, the connection goes.
    fn prepare(
        &mut self,
        pending: &Pending<T>,
        queue: &Queue,
        aborting: &Signal,
    ) -> Result<(), NotReady> {
        if let Some(known) = self.places.known(pending.target) {
            return known;
        }
        let Link { connection, places, .. } = self;
        let guard = connection.call_guard().clone();
        let ask = || places.prepare(connection, queue, pending.target);
        let bounded = || guard.with_timeout(pending.call_limit(), "asking for its queue", ask);
        guard.abort_on(aborting, bounded)
    }

    fn publish_one(
        &mut self,
        mut pending: Pending<T>,
        queue: &Queue,
        aborting: &Signal,
    ) -> Result<(), CloseReason> {
        let name = queue.name_of(pending.target);
        let publish = || self.channel.publish(&name, &pending.task, pending.call_limit());
        let published = if pending.task.body().len() > PASSED_AT_ONCE {
            self.connection.call_guard().abort_on(aborting, publish)
        } else {
            publish()
        };
        // Also when it failed: part of it may be on its way.
        pending.sent = true;
        (pending.refusal, pending.again_at) = (None, None);
        let is_again = pending.refusals > 0;
        self.out_of_order = is_again || (self.out_of_order && !self.confirms.is_empty());
        self.in_flight += pending.task.size_on_the_wire();
        if self.confirms.is_empty() {
            self.impatient_at = Some(Instant::now() + PATIENCE);
        }
        self.confirms.publish(pending);
        published
    }

    fn has_room(&self, next: Option<&Pending<T>>, window: usize) -> bool {
        let Some(next) = next else { return false };
        let fits = self.in_flight + next.task.size_on_the_wire() <= WINDOW_BYTES;
        // Behind a publish, a broker in alarm reads nothing more: a question would wait in vain,
        // and the connection be given up, before the broker's notice is seen.
        let was_returned = matches!(next.refusal, Some(Refusal::Returned(_)));
        let need_not_ask = self.places.known(next.target).is_some() && !was_returned;
        self.blocked.is_none()
            && self.confirms.len() < window
            && (fits && need_not_ask || self.confirms.is_empty())
    }

    /// Takes the confirms that have come in.
    fn collect(&mut self, queue: &Queue, settled: &mut Vec<Settled<T>>) -> Result<(), CloseReason> {
        while let Ok(confirm) = self.ends.confirms.try_recv() {
            self.apply(read_confirm(confirm), queue, settled)?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        verdict: Verdict,
        queue: &Queue,
        settled: &mut Vec<Settled<T>>,
    ) -> Result<(), CloseReason> {
        self.collect_returns(queue)?;
        let (Verdict::Acked(reach) | Verdict::Nacked(reach)) = verdict;
        let is_acked = matches!(verdict, Verdict::Acked(_));
        if !self.confirms.allows(reach) {
            return Err(self.object("the broker confirmed what was not published"));
        }
        let (confirmed, unawaited) = self.confirms.settle(reach);
        self.has_confirmed |= !confirmed.is_empty();
        for mut pending in confirmed {
            self.in_flight -= pending.task.size_on_the_wire();
            let returned = pending.returned.take();
            let refusal = match returned.or_else(|| self.late_return_of(&pending, queue)) {
                Some(reason) => {
                    self.places.forget(pending.target);
                    Refusal::Returned(reason)
                }
                None if is_acked => {
                    settled.push(pending.settled(Outcome::Confirmed));
                    continue;
                }
                None => Refusal::Nack,
            };
            self.refuse(pending, refusal, queue, settled);
        }
        self.impatient_at = (!self.confirms.is_empty()).then(|| Instant::now() + PATIENCE);
        // After the others: where one confirm is for both, the return may be of either, and one
        // that is told of a confirmed task makes it run twice, not never.
        for address in unawaited {
            self.take_return(&address);
        }
        Ok(())
    }

    /// The broker sends a return before the confirm of the same task, and one thread passes both
    /// on: whatever was returned is here before its confirm is. One that is of nothing in flight
    /// ends the link: what it is of would count as confirmed. The confirm of that may be here as
    /// well, so no confirm behind such a return counts.
    fn collect_returns(&mut self, queue: &Queue) -> Result<(), CloseReason> {
        if let Some(cause) = &self.objection {
            return Err(cause.clone());
        }
        while let Ok(returned) = self.ends.returns.try_recv() {
            let Returned { queue: to, id, body, reason } = read_return(returned);
            let what = Address::new(to, id, &body);
            let is_late = what.id.is_some() && self.confirms.has_unawaited(&what);
            if is_late {
                let (times, why) = self.returned.entry(what).or_default();
                *times += 1;
                *why = reason;
            } else if !self.mark_returned(&what, &reason, queue) {
                return Err(self.object("the broker returned what was not published"));
            }
        }
        Ok(())
    }

    fn refuse(
        &mut self,
        mut pending: Pending<T>,
        refusal: Refusal,
        queue: &Queue,
        settled: &mut Vec<Settled<T>>,
    ) {
        match (self.on_refusal, refusal) {
            (OnRefusal::GiveUp, refusal) => {
                let outcome = pending.refused_with(&refusal, queue);
                settled.push(pending.settled(outcome));
                return;
            }
            (OnRefusal::TryAgain, Refusal::Returned(reason)) => {
                pending.refusal = Some(Refusal::Returned(reason));
            }
            (OnRefusal::TryAgain, refusal) => pending.refuse(refusal, queue, &mut self.refused_at),
        }
        self.refused.push(pending);
    }

    /// Asks what has become of the queue to which a task could not be routed, once for all tasks
    /// that were returned together.
    fn whereabouts(
        &mut self,
        pending: &Pending<T>,
        queue: &Queue,
        aborting: &Signal,
        asked: &mut HashMap<Target, Whereabouts>,
    ) -> Result<Whereabouts, CloseReason> {
        if let Some(known) = asked.get(&pending.target) {
            return Ok(known.clone());
        }
        let guard = self.connection.call_guard().clone();
        let ask = || find(&mut self.connection, &queue.name_of(pending.target));
        let bounded = || guard.with_timeout(pending.call_limit(), "asking for its queue", ask);
        let found = guard.abort_on(aborting, bounded)?;
        asked.insert(pending.target, found.clone());
        Ok(found)
    }

    fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::Blocked(reason) => {
                warn!("the broker blocks publishers: {reason}; publishing waits");
                self.blocked = Some(reason.clone());
            }
            Notice::Unblocked => {
                info!("the broker takes publishes again");
                self.blocked = None;
                self.impatient_at = Some(Instant::now() + PATIENCE);
            }
        }
    }

    /// Says, once for each silence, what is waited for.
    fn tell_silence(&mut self) {
        if self.impatient_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.impatient_at = None;
        let count = self.confirms.len();
        if count > 0 && self.blocked.is_none() {
            warn!(
                "no confirm for {PATIENCE:?}: {count} tasks are on their way, or wait for the broker"
            );
        }
    }

    fn oldest_deadline(&self) -> Option<Instant> {
        if self.out_of_order {
            return self.confirms.outstanding().map(|pending| pending.deadline).min();
        }
        self.confirms.oldest().map(|pending| pending.deadline)
    }

    fn object(&mut self, text: &str) -> CloseReason {
        self.objection.insert(CloseReason::Lost(text.into())).clone()
    }

    /// Marks all that a return may be of, where several have the same id, or none: run twice is
    /// better than never. Says whether there is any.
    fn mark_returned(&mut self, what: &Address, reason: &str, queue: &Queue) -> bool {
        let Address { queue: name, id, .. } = what;
        let mut is_any = self.confirms.has_unawaited(what);
        for pending in self.confirms.outstanding_mut() {
            if pending.task.id() == id.as_deref() && queue.name_of(pending.target) == *name {
                pending.returned = Some(reason.to_owned());
                is_any = true;
            }
        }
        is_any
    }

    /// Why a task was returned that was given up before and published again, under the same id:
    /// it is the same task twice, and it does not matter which of the two was returned.
    fn late_return_of(&mut self, pending: &Pending<T>, queue: &Queue) -> Option<String> {
        if self.returned.is_empty() {
            return None;
        }
        self.take_return(&pending.address(queue))
    }

    fn take_return(&mut self, address: &Address) -> Option<String> {
        let (times, reason) = self.returned.get_mut(address)?;
        let reason = reason.clone();
        *times -= 1;
        if *times == 0 {
            self.returned.remove(address);
        }
        Some(reason)
    }

    fn wait<W>(
        &self,
        deadline: Option<Instant>,
        aborting: &Signal,
        wake: &Receiver<W>,
    ) -> Woken<W> {
        let deadlines = [deadline, self.settles_at, self.again_at, self.impatient_at];
        let deadline = deadlines.into_iter().flatten().min();
        select_biased! {
            recv(aborting) -> _ => Woken::Time,
            recv(self.ends.confirms) -> confirm => {
                confirm.map_or(Woken::Lost, |confirm| Woken::Confirm(read_confirm(confirm)))
            },
            recv(self.connection.notices()) -> notice => {
                notice.map_or(Woken::Lost, |notice| Woken::Notice(read_notice(notice)))
            },
            recv(wake) -> woken => Woken::Wake(woken),
            recv(deadline.map_or_else(never, at)) -> _ => Woken::Time,
        }
    }

    /// Ends a link that has failed; tells where and why.
    fn bury(self, known: Option<CloseReason>) -> (String, CloseReason) {
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
        // A broker that owes confirms may answer nothing else either.
        if confirms.owes_none() {
            let _ = connection.close();
        } else {
            drop(connection);
        }
        drop(channel);
    }
}

impl<T> Pending<T> {
    /// How long a call of the client library for this task may take.
    fn call_limit(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(SHORTEST_CALL)
    }

    fn address(&self, queue: &Queue) -> Address {
        let id = self.task.id().map(str::to_string);
        Address::new(queue.name_of(self.target), id, self.task.body())
    }

    /// Notes a refusal that may pass, and when to try again. Says so, unless it was said and has
    /// gone on since.
    fn refuse(&mut self, refusal: Refusal, queue: &Queue, last: &mut Option<Instant>) {
        if !is_recent(*last) {
            warn!(
                "queue '{}' takes no tasks at present: {refusal}; each is published again until its \
                 timeout",
                queue.name_of(self.target)
            );
        }
        let now = Instant::now();
        *last = Some(now);
        self.refusals += 1;
        self.again_at = Some(publish_again(now, pause_after(self.refusals), self.deadline));
        self.refusal = Some(refusal);
    }

    /// What becomes of it, if this refusal is the last answer.
    fn refused_with(&self, refusal: &Refusal, queue: &Queue) -> Outcome {
        if let Refusal::Returned(reason) = refusal {
            return Outcome::Returned { reason: reason.clone() };
        }
        let times = match self.refusals {
            0 | 1 => String::new(),
            times => format!(" {times} times"),
        };
        let name = queue.name_of(self.target);
        let reason = format!("the broker refused it for queue '{name}'{times}: {refusal}");
        Outcome::Nacked { reason }
    }

    fn settled(self, outcome: Outcome) -> Settled<T> {
        Settled { task: self.task, outcome, ticket: self.ticket, sent: self.sent }
    }
}

/// When to try to connect next: after the pause, but once more before the time is up.
fn next_try(now: Instant, not_before: Instant, deadline: Instant) -> Instant {
    match deadline.checked_sub(LAST_TRY) {
        Some(last) if now < last => not_before.min(last),
        _ => not_before,
    }
}

fn find(connection: &mut Connection, name: &str) -> Result<Whereabouts, CloseReason> {
    // Not the channel that publishes: a refusal takes its channel with it.
    let channel = connection.open_channel()?;
    match channel.count(name) {
        Ok(_) => channel.close().map(|()| Whereabouts::Here),
        Err(lost) if !lost.is_channel_error() => Err(lost),
        Err(cause) if cause.is_transient() => Ok(Whereabouts::Down(cause.to_string())),
        Err(_) => Ok(Whereabouts::Gone),
    }
}

/// Whether a refusal is part of one that was told.
fn is_recent(refused_at: Option<Instant>) -> bool {
    refused_at.is_some_and(|at| at.elapsed() < QUIET)
}

/// When to publish a refused task again: after a pause, and once more just before its time is up,
/// but not so late that its time is up before the answer.
fn publish_again(now: Instant, pause: Duration, deadline: Instant) -> Instant {
    match deadline.checked_sub(LAST_TRY) {
        Some(last) if now < last => (now + pause).min(last),
        _ => deadline + LAST_TRY,
    }
}

/// How long a task waits that was refused so many times.
fn pause_after(refusals: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(refusals.saturating_sub(1));
    SHORTEST_REFUSAL.saturating_mul(doubled).min(LONGEST_REFUSAL)
}

fn avoid(delay: Duration, queue: &Queue, silent: &mut SilentDelays) {
    silent.add(delay);
    let name = queue.name_of(Target::Delay(delay));
    let instead = queue.name_of(silent.avoid(Target::Delay(delay)));
    let next = if instead == name {
        "no other is left to use".into()
    } else {
        format!("using '{instead}'")
    };
    warn!("delay queue '{name}' does not respond (no leader?); {next}");
}

fn unconfirmed(reason: impl Into<String>) -> Outcome {
    Outcome::Unconfirmed { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_tried_once_more_before_its_time_ends() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        for (not_before, deadline, at) in [
            (2000, 10_000, 2000),
            (2000, 3000, 2000),
            (2000, 2500, 1500),
            (2000, 1500, 500),
            // It had its last try.
            (2000, 1000, 2000),
            (2000, 0, 2000),
        ] {
            let next = next_try(now, after(not_before), after(deadline));
            assert_eq!(next, after(at), "{not_before} of {deadline}");
        }
    }

    #[test]
    fn a_refused_task_is_not_in_flight_when_its_time_ends() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        for (pause, deadline, at) in
            [(2000, 10_000, 2000), (2000, 2500, 1500), (100, 1050, 50), (100, 1000, 2000)]
        {
            let again = publish_again(now, Duration::from_millis(pause), after(deadline));
            assert_eq!(again, after(at), "{pause} of {deadline}");
        }
    }

    #[test]
    fn a_refused_task_waits_longer_each_time_and_not_for_long() {
        let pauses = [1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|it| pause_after(it).as_millis());
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    }
}
