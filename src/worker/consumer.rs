//! Owns one worker thread's side of the broker: takes deliveries from its own channel, has them
//! run, settles each on the channel it came in on, and gives the rest back when it ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never, select_biased, unbounded};
use log::{debug, info, warn};

use crate::amqp::channel::{
    Acks, Channel, Incoming, Left, Received, Settlement, Subscription, Unsettled,
};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::amqp::heartbeat::Heartbeat;
use crate::model::failure_record::{FailureContext, attempt_of, to_dead_letter, to_retry};
use crate::model::handler::{Delivery, Failure};
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::retry::{Decision, RetryPolicy};
use crate::model::task::{Task, name_of};
use crate::util::shutdown::{Closer, Signal, closer, is_closed};
use crate::worker::event::{Event, EventKind, Observer};
use crate::worker::health::Health;
use crate::worker::late::{LateTasks, Repeat};
use crate::worker::pool::{
    Assignment, Cancellation, Job, JobResult, Ran, Runner, Tickets, event, orphaned,
};
use crate::worker::refused::{Refused, pause_after};
use crate::worker::republish::{Order, Reply, Slip};
use crate::worker::summary::Tally;

/// What a consumer works for and with; the same for all of one session but for the runner.
pub(crate) struct Post<'a> {
    pub(crate) queue: &'a Queue,
    pub(crate) prefetch: u16,
    pub(crate) acks: Acks,
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) host: &'a str,
    pub(crate) runner: &'a Runner,
    pub(crate) in_hand: &'a InHand,
    /// Where failed tasks are handed over.
    pub(crate) orders: Sender<Order>,
    pub(crate) tally: &'a Tally,
    pub(crate) observer: &'a Observer,
    /// Closed: take nothing new, give back what was prefetched, finish what runs.
    pub(crate) stop: &'a Signal,
    /// Closed: keep nothing back for a pause any more.
    pub(crate) hurry: &'a Signal,
    /// Closed: give back everything, now.
    pub(crate) leave: &'a Signal,
    pub(crate) cancellation: &'a Cancellation,
    pub(crate) heartbeat: &'a Heartbeat,
    pub(crate) health: &'a Health,
    pub(crate) late: &'a LateTasks,
    pub(crate) tickets: &'a Tickets,
    /// How many consumers share the tickets.
    pub(crate) sharers: usize,
    /// Where another channel comes from.
    pub(crate) connection: &'a Connection,
    /// Whether the broker reads nothing on this connection at present.
    pub(crate) is_blocked: &'a AtomicBool,
    pub(crate) redelivered: &'a Redelivered,
    /// What the session is told.
    pub(crate) reports: Sender<Report>,
}

/// What a consumer tells its session.
pub(crate) enum Report {
    /// Its subscription stands.
    Consumes { number: usize },
    /// Its last word.
    Ended(End),
}

/// How much all consumers of a session have in their hands, for whoever waits for the end of it.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    taken: AtomicU64,
    settled: AtomicU64,
}

impl InHand {
    /// How many deliveries were taken so far, if all of them are settled.
    pub(crate) fn all_settled(&self) -> Option<u64> {
        // In this order: a delivery is taken before it is settled.
        let settled = self.settled.load(Ordering::Acquire);
        let taken = self.taken.load(Ordering::Acquire);
        (taken == settled).then_some(taken)
    }

    /// How many deliveries were taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }
}

/// Why a consumer ended.
pub(crate) enum End {
    /// It was told to; everything it had is settled or given back.
    Told,
    /// Its channel or connection ended; with the cause, where that was told.
    Lost(Option<CloseReason>),
}

impl From<CloseReason> for End {
    fn from(cause: CloseReason) -> End {
        End::Lost(Some(cause))
    }
}

/// How many deliveries that can go nowhere at present a thread keeps unsettled while it takes
/// others. Beyond that it takes none until they go back.
const MOST_KEPT: usize = 500;

/// How long a hand-over may take before the thread goes on with other tasks. A new delay queue is
/// trusted after 1.5 s.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(3);

/// How many tasks of a session that were delivered before are told of one by one.
#[derive(Debug, Default)]
pub(crate) struct Redelivered(AtomicUsize);

impl Redelivered {
    const MOST: usize = 10;

    fn note(&self, thread: usize, task: &Task) {
        let task = task.name();
        match self.0.fetch_add(1, Ordering::Relaxed) {
            told if told < Self::MOST => info!(
                "thread {thread}: task {task} was delivered before: its worker died, lost its \
                 connection, or gave it back"
            ),
            Self::MOST => {
                info!("more tasks were delivered before; the log names them at level debug")
            }
            _ => debug!("thread {thread}: task {task} was delivered before"),
        }
    }
}

/// Why a task fails that the broker takes away while it runs.
const OUTLIVED: &str = "it was held longer than the broker waits for an ack (consumer_timeout)";

impl Post<'_> {
    /// Consumes until told otherwise or until the channel is lost, and goes on with another one
    /// if the broker took it for a task that is late.
    pub(crate) fn work(&self, mut channel: Channel) -> End {
        loop {
            let cause = match self.work_on(channel) {
                End::Lost(Some(cause)) if may_be_late(&cause) && !is_closed(self.stop) => cause,
                end => return end,
            };
            channel = match self.open_again() {
                Ok(channel) => channel,
                Err(lost) => {
                    debug!("thread {}: no channel in its place: {lost}", self.runner.number);
                    return End::Lost(Some(cause));
                }
            };
            self.note_late(&cause);
        }
    }

    fn work_on(&self, channel: Channel) -> End {
        match self.consume(&channel) {
            End::Told => {}
            end => return end,
        }
        let acked = channel.has_settled();
        let closed = channel.close();
        if let (true, Err(cause)) = (acked, &closed) {
            warn!(
                "thread {}: the last acks may not have arrived, and their tasks may run twice: \
                 {cause}",
                self.runner.number
            );
        }
        closed.map_or_else(End::from, |()| End::Told)
    }

    /// Another channel, if the queue still exists: a consumer is cancelled also when it does not.
    fn open_again(&self) -> Result<Channel, CloseReason> {
        let channel = self.connection.open_channel()?;
        channel.count(self.queue.name())?;
        Ok(channel)
    }

    fn note_late(&self, cause: &CloseReason) {
        let number = self.runner.number;
        self.late.mark_late(number);
        warn!(
            "thread {number}: its consumer was lost: {cause}: what it had may run twice; if that \
             was held longer than the broker waits for an ack, raise consumer_timeout in \
             rabbitmq.conf, or make the task shorter. The thread consumes again when its task has \
             ended; the others go on"
        );
    }

    fn consume(&self, channel: &Channel) -> End {
        let (mut hands, assignment) = Hands::new(self, channel);
        match self.engage(assignment) {
            Ok(()) => {}
            Err(Finish::Lost(cause)) => return End::Lost(cause),
            Err(Finish::Told(_) | Finish::Stuck) => return End::Told,
        }
        let end = loop {
            let Some(prefetch) = self.claim(self.prefetch) else {
                break hands.end(Told::Enough, Vec::new());
            };
            let subscription = match channel.consume(self.queue.name(), prefetch, self.acks) {
                Ok(subscription) => subscription,
                Err(cause) => break hands.abandon(Some(cause)),
            };
            hands.prefetch = prefetch;
            let _ = self.reports.send(Report::Consumes { number: self.runner.number });
            self.health.consumes(self.runner.number);
            match hands.work(&subscription) {
                Finish::Stuck => {
                    if let Err(cause) = hands.set_aside(subscription) {
                        break hands.abandon(cause);
                    }
                }
                Finish::Told(told) => break hands.let_go(subscription, told),
                Finish::Lost(cause) => {
                    subscription.leave();
                    break hands.abandon(cause);
                }
            }
        };
        self.health.consumes_no_more(self.runner.number);
        end
    }

    /// With automatic acks the broker heeds no prefetch.
    fn claim(&self, most: u16) -> Option<u16> {
        match self.acks {
            Acks::Manual => self.tickets.claim(most, self.sharers),
            Acks::Automatic => Some(most),
        }
    }

    /// Waits for the runner, which may still be busy with a task of an earlier session.
    fn engage(&self, assignment: Assignment) -> Result<(), Finish> {
        let sent = self.runner.assignments.send_timeout(assignment, BUSY_AFTER);
        let Err(busy) = sent else { return Ok(()) };
        info!(
            "thread {}: will consume again when its task of the lost channel has ended",
            self.runner.number
        );
        select_biased! {
            recv(self.leave) -> _ => Err(Finish::Told(Told::Leave)),
            recv(self.stop) -> _ => Err(Finish::Told(Told::Stop)),
            send(self.runner.assignments, busy.into_inner()) -> sent => {
                sent.map_err(|_| runner_ended())
            },
        }
    }
}

/// Whether a consumer that was lost for this may have been so for a task that is late: RabbitMQ
/// closes the channel, and from 4.3 on cancels the consumer of a quorum queue without a reason.
fn may_be_late(cause: &CloseReason) -> bool {
    cause.is_delivery_timeout() || *cause == CloseReason::ConsumerCancelled
}

/// An idle runner takes an assignment at once; one that has not after this long is busy.
const BUSY_AFTER: Duration = Duration::from_millis(100);

/// How long a result may wait for others. Two threads that wake each other for every task take
/// longer for that than for a short task.
const GATHERING: Duration = Duration::from_millis(1);

/// How many results wait for no others: half of what the broker sends without an ack, so that it
/// always has something to send. With a prefetch of 1 none waits.
fn enough_of(prefetch: u16) -> usize {
    const MOST: usize = 64;
    match prefetch {
        0 => MOST,
        n => usize::from(n).div_ceil(2).min(MOST),
    }
}

fn runner_ended() -> Finish {
    CloseReason::Lost("the runner ended".into()).into()
}

enum Told {
    Stop,
    Leave,
    /// What it has taken is all that it is to take.
    Enough,
}

/// How many deliveries the threads of a session give back one by one at most: RabbitMQ needs the
/// square of their number for that (30,000: 23 to 59 s on 3.10.8), and for any number that goes by
/// one nack a moment.
const FEW: usize = 1000;

/// How many of those that go back one nack covers: it takes everything unsettled up to its tag, so
/// none that stays may stand before. Both are in the order of their tags.
fn covered_by_one<'a>(
    unsettled: impl Iterator<Item = &'a u64>,
    going_back: impl Iterator<Item = &'a u64>,
) -> usize {
    unsettled.zip(going_back).take_while(|(unsettled, going)| unsettled == going).count()
}

/// The tag of the last of so many that go back.
fn last_of_first<T>(count: usize, going_back: &BTreeMap<u64, T>) -> Option<u64> {
    count.checked_sub(1).and_then(|before| going_back.keys().nth(before).copied())
}

/// Why a consumer stops taking deliveries.
enum Finish {
    /// The broker sends nothing more on this subscription, because of what can go nowhere.
    Stuck,
    Told(Told),
    Lost(Option<CloseReason>),
}

impl From<CloseReason> for Finish {
    fn from(cause: CloseReason) -> Finish {
        Finish::Lost(Some(cause))
    }
}

/// What a consumer has in its hands: every delivery of its channel that is not settled yet is
/// queued for the runner, with the runner, failed and being handed over, or pausing.
struct Hands<'p> {
    post: &'p Post<'p>,
    channel: &'p Channel,
    /// How many deliveries the broker may have unsettled on the present subscription; 0 is no limit.
    prefetch: u16,
    /// The unsettled deliveries of earlier subscriptions, by delivery tag.
    kept: BTreeSet<u64>,
    /// `None` once nothing more is handed to the runner, which then lets go of the assignment.
    jobs: Option<Sender<Job>>,
    /// The other end of `jobs`, to take back what the runner has not started.
    queued: Receiver<Job>,
    ran: Receiver<Ran>,
    /// Told when enough results wait.
    enough: Receiver<()>,
    /// Until when results wait for others; `None` when the next one is settled as it comes.
    gathering: Option<Instant>,
    /// Shuts the runner off from further jobs.
    shutter: Closer,
    /// The tag of the delivery that came last.
    last_tag: u64,
    /// By delivery tag.
    unsettled: BTreeMap<u64, Held>,
    /// What is to be given back, by delivery tag; the job of one that was not started.
    going_back: BTreeMap<u64, Option<Job>>,
    /// A result that is settled only after the subscription has ended, so that nothing comes in
    /// its place.
    last: Option<Ran>,
    /// Failed tasks that are being handed over, by delivery tag: what to tell when they are.
    leaving: HashMap<u64, Event>,
    replies: Sender<Reply>,
    replied: Receiver<Reply>,
    /// What goes back when its pause is over, by that moment and its tag.
    pausing: BTreeSet<(Instant, u64)>,
    /// Pauses in a row in which nothing was done.
    failures: u32,
    /// What could not be handed over, or still runs here.
    refused: Refused,
    /// Since when everything that the broker sends here is being handed over or was refused.
    stuck_since: Option<Instant>,
    /// How much of the present row of refusals was told.
    told: Tale,
}

/// What was told of a row of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tale {
    Nothing,
    /// That others are taken meanwhile.
    GoesOn,
    /// That no others are.
    Full,
}

/// A delivery that is not settled.
struct Held {
    /// With automatic acks there is nothing to settle with.
    duty: Option<Unsettled>,
    /// What to tell when it is given back while it runs, to whoever wants to know.
    event: Option<Event>,
}

impl<'p> Hands<'p> {
    fn new(post: &'p Post<'p>, channel: &'p Channel) -> (Hands<'p>, Assignment) {
        let (jobs, queued) = unbounded();
        let (results, ran) = unbounded();
        let (tell_enough, enough) = bounded(1);
        let (shutter, shut) = closer();
        let (replies, replied) = unbounded();
        let assignment = Assignment {
            jobs: queued.clone(),
            results,
            enough: enough_of(post.prefetch),
            tell_enough,
            shut,
            heartbeat: post.heartbeat.clone(),
        };
        let hands = Hands {
            post,
            channel,
            prefetch: post.prefetch,
            kept: BTreeSet::new(),
            jobs: Some(jobs),
            queued,
            ran,
            enough,
            gathering: None,
            shutter,
            last_tag: 0,
            unsettled: BTreeMap::new(),
            going_back: BTreeMap::new(),
            last: None,
            leaving: HashMap::new(),
            replies,
            replied,
            pausing: BTreeSet::new(),
            failures: 0,
            refused: Refused::default(),
            stuck_since: None,
            told: Tale::Nothing,
        };
        (hands, assignment)
    }

    /// Takes and settles deliveries until there is a reason to finish.
    fn work(&mut self, subscription: &Subscription<'_>) -> Finish {
        loop {
            if let Err(finish) = self.step(subscription) {
                return finish;
            }
        }
    }

    fn step(&mut self, subscription: &Subscription<'_>) -> Result<(), Finish> {
        self.give_back_together()?;
        let stuck = self.stuck();
        let inbox = subscription.inbox();
        select_biased! {
            recv(self.post.leave) -> _ => Err(Finish::Told(Told::Leave)),
            recv(self.post.stop) -> _ => Err(Finish::Told(Told::Stop)),
            recv(self.enough) -> told => match told {
                Ok(()) => self.settle_ran(None, subscription),
                Err(_) => Err(runner_ended()),
            },
            recv(self.gathered()) -> _ => self.settle_ran(None, subscription),
            recv(self.next_result()) -> ran => match ran {
                Ok(ran) => self.settle_ran(Some(ran), subscription),
                Err(_) => Err(runner_ended()),
            },
            recv(self.replied) -> reply => match reply {
                Ok(reply) => {
                    self.stands(subscription)?;
                    let makes_room =
                        reply.outcome == Outcome::Confirmed && !self.kept.contains(&reply.tag);
                    if makes_room && !self.may_take_another() {
                        let _ = self.replies.send(reply);
                        return Err(Finish::Told(Told::Enough));
                    }
                    self.handed_over(reply).map_err(Finish::from)
                }
                Err(_) => Ok(()), // Never: `replies` is a sender too.
            },
            recv(self.next_pause_over()) -> _ => {
                self.stands(subscription)?;
                if self.return_makes_room() && !self.may_take_another() {
                    return Err(Finish::Told(Told::Enough));
                }
                self.requeue_due().map_err(Finish::from)
            },
            // It may have come since the wait began.
            recv(stuck) -> _ => if self.is_blocked() { Ok(()) } else { Err(Finish::Stuck) },
            recv(inbox) -> message => match message {
                Ok(message) => self.take(message.into()),
                Err(_) => Err(Finish::Lost(None)),
            },
        }
    }

    /// Whether the broker may send another delivery for one that is settled.
    fn may_take_another(&self) -> bool {
        self.post.claim(1).is_some()
    }

    /// Told when the broker sends nothing more here because of what cannot be handed over. While
    /// it reads nothing, it is not asked for more: it could not answer.
    fn stuck(&mut self) -> Receiver<Instant> {
        let away = self.leaving.len() + self.refused.len() + self.going_back.len();
        let of_this = away.saturating_sub(self.kept.len());
        if of_this == 0 || of_this < usize::from(self.prefetch) || self.prefetch == 0 {
            self.stuck_since = None;
            return never();
        }
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        if self.kept.len() >= MOST_KEPT {
            self.tell(Tale::Full);
            return never();
        }
        if self.is_blocked() {
            return never();
        }
        let patience = if self.refused.is_empty() { HANDED_OVER_WITHIN } else { Duration::ZERO };
        crossbeam_channel::at(since + patience)
    }

    fn is_blocked(&self) -> bool {
        self.post.is_blocked.load(Ordering::Acquire)
    }

    /// Once in each row of refusals.
    fn tell(&mut self, tale: Tale) {
        if self.told >= tale {
            return;
        }
        self.told = tale;
        let number = self.post.runner.number;
        match tale {
            Tale::Nothing => {}
            Tale::GoesOn => info!(
                "thread {number}: tasks cannot be handed over at present, or still run here: it \
                 keeps up to {MOST_KEPT} of them for a while, and goes on with others"
            ),
            Tale::Full => warn!(
                "thread {number}: it keeps {} tasks that cannot be handed over at present, and takes \
                 no others until these go back to the queue",
                self.unsettled.len()
            ),
        }
    }

    /// Keeps what can go nowhere at present, for another subscription to bring other tasks: the
    /// prefetch is of each by itself (<https://www.rabbitmq.com/docs/consumer-prefetch>).
    fn set_aside(&mut self, subscription: Subscription<'_>) -> Result<(), Option<CloseReason>> {
        self.tell(Tale::GoesOn);
        let Left { arrived, ended } = subscription.leave();
        if ended.is_some() {
            return Err(ended);
        }
        self.dispatch_all(arrived)?;
        self.kept = self.unsettled.keys().copied().collect();
        self.stuck_since = None;
        Ok(())
    }

    /// Looks whether the subscription is over before anything is settled on it: what the broker
    /// has requeued must not be acked, and a late ack would revive a consumer that the client
    /// library has forgotten (RabbitMQ 4.3).
    fn stands(&mut self, subscription: &Subscription<'_>) -> Result<(), Finish> {
        loop {
            match subscription.inbox().try_recv() {
                Ok(message) => self.take(message.into())?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Finish::Lost(None)),
            }
        }
    }

    fn take(&mut self, incoming: Incoming) -> Result<(), Finish> {
        match incoming {
            Incoming::Delivery(unsettled, received) => {
                self.dispatch(unsettled, received).map_err(Finish::from)
            }
            Incoming::Ended(cause) => Err(cause.into()),
            Incoming::Cancelled => Err(Finish::Lost(None)),
        }
    }

    fn dispatch_all(&mut self, arrived: Vec<(Unsettled, Received)>) -> Result<(), CloseReason> {
        arrived.into_iter().try_for_each(|(unsettled, received)| self.dispatch(unsettled, received))
    }

    fn dispatch(&mut self, unsettled: Unsettled, received: Received) -> Result<(), CloseReason> {
        let tag = unsettled.tag();
        let duty = (self.post.acks == Acks::Manual).then_some(unsettled);
        // They count up. Of two with the same one, an ack would be for which?
        if tag <= self.last_tag {
            let text = format!("the broker sent delivery tag {tag} after {}", self.last_tag);
            return Err(self.condemned(text));
        }
        self.last_tag = tag;
        self.check_prefetch()?;
        self.post.in_hand.taken.fetch_add(1, Ordering::AcqRel);
        let max_attempts = self.post.policy.attempts();
        let delivery = Delivery {
            attempt: attempt_of(&received.task, max_attempts),
            max_attempts,
            task: received.task,
            redelivered: received.redelivered,
            queue: self.post.queue.name().to_string(),
            thread: self.post.runner.number,
            cancelled: self.post.cancellation.cancelled.clone(),
            killed: self.post.cancellation.killed.clone(),
        };
        let wanted = self.post.observer.is_set();
        let event = wanted.then(|| event(EventKind::Returned, &delivery, Duration::ZERO));
        self.unsettled.insert(tag, Held { duty, event });
        if delivery.redelivered && !self.post.queue.counts_deliveries() {
            self.post.redelivered.note(delivery.thread, &delivery.task);
        }
        if let Some(repeat) = self.judge(&delivery) {
            self.post.tickets.unclaim();
            let job = Job { tag, delivery };
            match repeat {
                Repeat::CountFailure => {
                    self.dispose(job, &Failure::retry(OUTLIVED), Duration::ZERO)
                }
                Repeat::Wait => self.put_off(&job),
            }
            return Ok(());
        }
        if let Some(jobs) = &self.jobs {
            // Cannot fail: `queued` is a receiver too.
            let _ = jobs.send(Job { tag, delivery });
        }
        self.gather();
        Ok(())
    }

    fn judge(&self, delivery: &Delivery) -> Option<Repeat> {
        let late = self.post.late;
        match self.post.acks {
            Acks::Manual => late.check(&delivery.task, delivery.redelivered),
            Acks::Automatic => None,
        }
    }

    /// Has a task wait that still runs here.
    fn put_off(&mut self, job: &Job) {
        let pause = self.refused.keep(job.tag, Instant::now());
        let (thread, task) = (self.post.runner.number, job.delivery.task.name());
        info!(
            "thread {thread}: task {task} still runs here, and goes back to the queue in {pause:?}"
        );
        self.returned(job, Duration::ZERO);
    }

    /// Whether there is room for one more. What is settled is taken out before the broker can hear
    /// of it: one that sends more heeds no prefetch, and nothing else bounds what is in memory.
    fn check_prefetch(&self) -> Result<(), CloseReason> {
        let (prefetch, acks) = (self.prefetch, self.post.acks);
        let of_this = self.unsettled.len().saturating_sub(self.kept.len());
        if acks == Acks::Automatic || prefetch == 0 || of_this < prefetch.into() {
            return Ok(());
        }
        let text =
            format!("the broker sent more deliveries than the prefetch of {prefetch} allows");
        Err(self.condemned(text))
    }

    /// The end of the connection, on which no more is read.
    fn condemned(&self, text: String) -> CloseReason {
        let cause = CloseReason::Lost(text);
        self.channel.fail_connection(&cause);
        cause
    }

    /// Settles what the runner is through with; `first` came before what is in `ran`.
    fn settle_ran(
        &mut self,
        first: Option<Ran>,
        subscription: &Subscription<'_>,
    ) -> Result<(), Finish> {
        // No more than there are now: the runner goes on, and others want to be heard too.
        let count = self.ran.len() + usize::from(first.is_some());
        let mut next = first;
        for _ in 0..count {
            let Some(ran) = next.take().or_else(|| self.ran.try_recv().ok()) else { break };
            if let Err(finish) = self.stands(subscription) {
                self.orphaned(&ran);
                return Err(finish);
            }
            if !matches!(ran.result, JobResult::Failed(_)) && !self.may_take_another() {
                self.last = Some(ran);
                return Err(Finish::Told(Told::Enough));
            }
            self.settle(ran)?;
        }
        self.gathering = None;
        if count > 0 && !self.queued.is_empty() {
            self.gather();
        }
        Ok(())
    }

    fn gather(&mut self) {
        self.gathering.get_or_insert_with(|| Instant::now() + GATHERING);
    }

    fn gathered(&self) -> Receiver<Instant> {
        self.gathering.map_or_else(never, crossbeam_channel::at)
    }

    fn next_result(&self) -> Receiver<Ran> {
        if self.gathering.is_none() { self.ran.clone() } else { never() }
    }

    /// Decides what becomes of a delivery that the runner is through with.
    fn settle(&mut self, ran: Ran) -> Result<(), CloseReason> {
        // With automatic acks there is nothing to give back.
        let manual = self.post.acks == Acks::Manual;
        let is_started = !matches!(ran.result, JobResult::NotStarted);
        if manual && is_started && is_closed(&self.post.cancellation.cancelled) {
            let given_back = self.give_back(&ran.job, ran.elapsed);
            return given_back.inspect_err(|_| self.orphaned(&ran));
        }
        match ran.result {
            JobResult::Done => {
                let acked = self.settle_one(ran.job.tag, Settlement::Ack);
                acked.inspect_err(|_| self.orphaned(&ran))?;
                self.failures = 0;
                self.refused.another_ended();
                self.post.tally.done();
                self.post.observer.tell(|| event(EventKind::Done, &ran.job.delivery, ran.elapsed));
                Ok(())
            }
            JobResult::Failed(failure) if self.post.acks == Acks::Automatic => {
                self.lose(&ran.job, &failure, ran.elapsed)
            }
            JobResult::Failed(failure) => {
                self.dispose(ran.job, &failure, ran.elapsed);
                Ok(())
            }
            JobResult::NotStarted => {
                if self.post.acks == Acks::Automatic {
                    self.note_dropped(1);
                }
                self.going_back.insert(ran.job.tag, Some(ran.job));
                Ok(())
            }
        }
    }

    /// Sends a failed task on its way. What is handed over is acked only once that is confirmed;
    /// meanwhile this thread goes on.
    fn dispose(&mut self, job: Job, failure: &Failure, elapsed: Duration) {
        let fate = self.post.policy.decide(job.delivery.attempt, failure);
        let event = |kind| Event {
            reason: Some(failure.reason().to_string()),
            ..event(kind, &job.delivery, elapsed)
        };
        let target = match fate {
            Decision::Requeue => {
                let event = event(EventKind::Returned);
                let pause = self.pause(job.tag);
                self.note(&job.delivery, &format!("goes back to the queue in {pause:?}"), failure);
                self.post.tally.returned();
                return self.post.observer.tell(|| event);
            }
            Decision::Retry(delay) if delay.is_zero() => Target::Main,
            Decision::Retry(delay) => Target::Delay(delay),
            Decision::Dead => Target::Dead,
        };
        let what = match fate {
            Decision::Retry(delay) if delay.is_zero() => "is tried again at once".to_string(),
            Decision::Retry(delay) => format!("is tried again in {delay:?}"),
            Decision::Dead | Decision::Requeue => "goes to the dead letters".to_string(),
        };
        self.note(&job.delivery, &what, failure);
        self.leaving.insert(job.tag, event(EventKind::Retried));
        self.hand_over(job, target, failure);
    }

    fn hand_over(&self, job: Job, target: Target, failure: &Failure) {
        let Job { tag, delivery } = job;
        let scene = FailureContext {
            queue: self.post.queue.name(),
            host: self.post.host,
            now: SystemTime::now(),
        };
        let failed = if target == Target::Dead { to_dead_letter } else { to_retry };
        let task = failed(delivery.task, delivery.attempt, failure.reason(), scene);
        let receipt = Slip { tag, target, replies: self.replies.clone() };
        if let Err(unsent) = self.post.orders.send(Order { task, receipt }) {
            let Slip { tag, target, replies } = unsent.into_inner().receipt;
            let reason = "the hand-over has ended".to_string();
            let outcome = Outcome::Unconfirmed { reason };
            let _ = replies.send(Reply { tag, target, outcome });
        }
    }

    /// Keeps a task that could not be tried for a while before it goes back: so long.
    fn pause(&mut self, tag: u64) -> Duration {
        // What fails while others wait shares their cause, and their pause.
        if self.pausing.is_empty() {
            self.failures = self.failures.saturating_add(1);
        }
        let pause = pause_after(self.failures);
        self.pausing.insert((Instant::now() + pause, tag));
        pause
    }

    fn note(&self, delivery: &Delivery, what: &str, failure: &Failure) {
        let (thread, task) = (self.post.runner.number, delivery.task.name());
        let (attempt, most) = (delivery.attempt, delivery.max_attempts);
        warn!("thread {thread}: task {task}, attempt {attempt} of {most}, {what}: {failure}");
    }

    /// Acks what the broker has confirmed elsewhere; anything else goes back to the queue.
    fn handed_over(&mut self, reply: Reply) -> Result<(), CloseReason> {
        let Reply { tag, target, outcome } = reply;
        let Some(mut event) = self.leaving.remove(&tag) else { return Ok(()) };
        event.time = SystemTime::now();
        if outcome == Outcome::Confirmed {
            if let Err(cause) = self.settle_one(tag, Settlement::Ack) {
                self.leaving.insert(tag, event);
                return Err(cause);
            }
            self.failures = 0;
            self.refused.another_ended();
            self.refused.end_row();
            self.told = Tale::Nothing;
            if target == Target::Dead {
                event.kind = EventKind::Dead;
            } else {
                self.post.tally.retried();
            }
        } else {
            let pause = self.refused.keep(tag, Instant::now());
            let thread = self.post.runner.number;
            let task = name_of(Some(event.task.as_str()).filter(|id| !id.is_empty()));
            let to = self.post.queue.name_of(target);
            warn!(
                "thread {thread}: task {task} could not be handed over to '{to}' and goes back to \
                 the queue in {pause:?} or later, its failure uncounted: {outcome}"
            );
            self.post.tally.failed();
            event.kind = EventKind::Failed;
        }
        self.post.observer.tell(|| event);
        Ok(())
    }

    /// With automatic acks the broker has forgotten the task long ago.
    fn lose(&mut self, job: &Job, failure: &Failure, elapsed: Duration) -> Result<(), CloseReason> {
        let (thread, task) = (self.post.runner.number, job.delivery.task.name());
        warn!("thread {thread}: task {task} failed, and is lost (auto-ack): {failure}");
        self.post.tally.lost();
        self.post.observer.tell(|| Event {
            reason: Some(failure.reason().to_string()),
            ..event(EventKind::Failed, &job.delivery, elapsed)
        });
        self.settle_one(job.tag, Settlement::Ack)
    }

    fn next_pause_over(&self) -> Receiver<Instant> {
        let refused = self.refused_until();
        let first = self.pausing.first().map(|(until, _)| *until).into_iter().chain(refused).min();
        first.map_or_else(never, crossbeam_channel::at)
    }

    fn refused_until(&self) -> Option<Instant> {
        let back = self.refused.len() + self.pausing.len() + self.going_back.len();
        self.refused.due_at(self.unsettled.len() <= back)
    }

    fn requeue_due(&mut self) -> Result<(), CloseReason> {
        let now = Instant::now();
        if self.refused_until().is_some_and(|until| until <= now) {
            self.requeue_refused();
        }
        let later = self.pausing.split_off(&(now, u64::MAX));
        let due = mem::replace(&mut self.pausing, later);
        self.going_back.extend(due.into_iter().map(|(_, tag)| (tag, None)));
        self.give_back_together()
    }

    /// What was kept from an earlier subscription makes no room on the present one.
    fn return_makes_room(&self) -> bool {
        let last = self.refused.last();
        !self.pausing.is_empty() || last.is_some_and(|tag| !self.kept.contains(&tag))
    }

    fn requeue_refused(&mut self) {
        self.going_back.extend(self.refused.take().into_iter().map(|tag| (tag, None)));
    }

    fn requeue_pausing(&mut self) -> Result<(), CloseReason> {
        self.requeue_refused();
        let pausing = mem::take(&mut self.pausing);
        self.going_back.extend(pausing.into_iter().map(|(_, tag)| (tag, None)));
        self.give_back_together()
    }

    /// Gives back what is to go: by one nack, as far as that covers nothing that stays. What comes
    /// after something that stays goes one by one if that is little, and else waits for it.
    fn give_back_together(&mut self) -> Result<(), CloseReason> {
        let together = covered_by_one(self.unsettled.keys(), self.going_back.keys());
        if let Some(last) = last_of_first(together, &self.going_back) {
            let others = self.going_back.split_off(&(last + 1));
            let going = mem::replace(&mut self.going_back, others);
            self.kept = self.kept.split_off(&(last + 1));
            let others = self.unsettled.split_off(&(last + 1));
            let mut covered = mem::replace(&mut self.unsettled, others);
            let duty = covered.pop_last().and_then(|(_, held)| held.duty);
            self.post.in_hand.settled.fetch_add(going.len() as u64, Ordering::AcqRel);
            duty.map_or(Ok(()), |it| self.channel.settle(it, Settlement::GiveBackUpTo))?;
            going.into_values().flatten().for_each(|job| self.returned(&job, Duration::ZERO));
        }
        if self.going_back.len() > FEW / self.post.sharers {
            return Ok(());
        }
        while let Some((tag, job)) = self.going_back.pop_first() {
            self.settle_one(tag, Settlement::GiveBack)?;
            job.iter().for_each(|job| self.returned(job, Duration::ZERO));
        }
        Ok(())
    }

    fn give_back(&mut self, job: &Job, elapsed: Duration) -> Result<(), CloseReason> {
        self.settle_one(job.tag, Settlement::GiveBack)?;
        self.returned(job, elapsed);
        Ok(())
    }

    /// With automatic acks there was nothing to give back.
    fn returned(&self, job: &Job, elapsed: Duration) {
        if self.post.acks == Acks::Manual {
            self.post.tally.returned();
            self.post.observer.tell(|| event(EventKind::Returned, &job.delivery, elapsed));
        }
    }

    fn settle_one(&mut self, tag: u64, how: Settlement) -> Result<(), CloseReason> {
        let Some(held) = self.unsettled.remove(&tag) else { return Ok(()) };
        self.kept.remove(&tag);
        let settled = held.duty.map_or(Ok(()), |unsettled| self.channel.settle(unsettled, how));
        self.post.in_hand.settled.fetch_add(1, Ordering::AcqRel);
        settled
    }

    fn orphaned(&self, ran: &Ran) {
        orphaned(ran, self.post.tally, self.post.observer);
    }

    /// Ends the subscription, and settles or gives back what is left.
    fn let_go(&mut self, subscription: Subscription<'_>, told: Told) -> End {
        if !matches!(told, Told::Enough) {
            self.shutter.close();
        }
        match subscription.leave() {
            Left { ended: Some(cause), .. } => self.abandon(Some(cause)),
            Left { arrived, ended: None } => self.end(told, arrived),
        }
    }

    fn end(&mut self, told: Told, arrived: Vec<(Unsettled, Received)>) -> End {
        let settled = self.dispatch_all(arrived).and_then(|()| match told {
            Told::Leave => self.give_back_unstarted().and_then(|()| self.give_back_all()),
            Told::Stop | Told::Enough => self.finish_running(),
        });
        settled.map_or_else(|cause| self.abandon(Some(cause)), |()| End::Told)
    }

    fn give_back_unstarted(&mut self) -> Result<(), CloseReason> {
        self.shutter.close();
        let unstarted: Vec<Job> = self.queued.try_iter().collect();
        if self.post.acks == Acks::Automatic {
            self.note_dropped(unstarted.len());
        }
        self.going_back.extend(unstarted.into_iter().map(|job| (job.tag, Some(job))));
        self.give_back_together()
    }

    /// Settles what the runner is still busy with, what is being handed over and what pauses,
    /// until there is nothing left of it or no more time. At a stop, what the runner has not
    /// started goes back.
    fn finish_running(&mut self) -> Result<(), CloseReason> {
        self.jobs = None;
        if let Some(ran) = self.last.take() {
            self.settle(ran)?;
        }
        let mut running = Some(self.ran.clone());
        let (mut stop, mut hurry) = (self.post.stop.clone(), self.post.hurry.clone());
        loop {
            if is_closed(&stop) {
                stop = never();
                self.give_back_unstarted()?;
            }
            // Also what comes to a pause only now.
            if is_closed(self.post.hurry) {
                hurry = never();
                self.requeue_pausing()?;
            }
            if running.is_none() {
                self.give_back_together()?;
            }
            let waits = !self.pausing.is_empty() || !self.refused.is_empty();
            if running.is_none() && self.leaving.is_empty() && !waits {
                return Ok(());
            }
            select_biased! {
                recv(self.post.leave) -> _ => return self.give_back_all(),
                recv(stop) -> _ => {},
                recv(hurry) -> _ => {},
                recv(running.clone().unwrap_or_else(never)) -> ran => match ran {
                    Ok(ran) => self.settle(ran)?,
                    Err(_) => running = None,
                },
                recv(self.replied) -> reply => {
                    if let Ok(reply) = reply {
                        self.handed_over(reply)?;
                    }
                },
                recv(self.next_pause_over()) -> _ => self.requeue_due()?,
            }
        }
    }

    /// Gives back what is still running or being handed over, too: it is left behind.
    fn give_back_all(&mut self) -> Result<(), CloseReason> {
        // What a lost channel leaves unsettled of them is still there, to be counted.
        while let Ok(ran) = self.ran.try_recv() {
            self.settle(ran)?;
        }
        while let Ok(reply) = self.replied.try_recv() {
            self.handed_over(reply)?;
        }
        // They are counted already.
        self.requeue_pausing()?;
        if self.post.acks == Acks::Automatic && is_closed(&self.post.cancellation.cancelled) {
            self.note_dropped(self.unsettled.len());
        }
        if self.post.acks == Acks::Automatic {
            return Ok(());
        }
        let mut left = mem::take(&mut self.unsettled);
        let Some(mut last) = left.last_entry() else { return Ok(()) };
        if let Some(duty) = last.get_mut().duty.take() {
            self.channel.settle(duty, Settlement::GiveBackUpTo)?;
        }
        for (tag, held) in left {
            self.leaving.remove(&tag);
            // What had paused is counted already.
            if let Some(None) = self.going_back.remove(&tag) {
                continue;
            }
            self.post.tally.returned();
            if let Some(event) = held.event {
                self.post.observer.tell(|| Event { time: SystemTime::now(), ..event });
            }
        }
        Ok(())
    }

    /// Leaves everything to the broker, which has requeued it or is about to.
    fn abandon(&mut self, cause: Option<CloseReason>) -> End {
        if self.post.acks == Acks::Automatic {
            self.note_dropped(self.queued.try_iter().count());
        }
        for (_, mut event) in mem::take(&mut self.leaving) {
            self.post.tally.orphaned();
            event.kind = EventKind::Orphaned;
            self.post.observer.tell(|| event);
        }
        // The broker has them. Of what is still running, nobody here is to wait for the ack.
        self.post.in_hand.settled.fetch_add(self.unsettled.len() as u64, Ordering::AcqRel);
        // Last: what ends while the observer is told is among them.
        let last = self.last.take();
        for ran in last.into_iter().chain(self.ran.try_iter()) {
            if self.post.acks == Acks::Automatic && matches!(ran.result, JobResult::NotStarted) {
                self.note_dropped(1);
            }
            self.orphaned(&ran);
        }
        End::Lost(cause)
    }

    fn note_dropped(&self, dropped: usize) {
        (0..dropped).for_each(|_| self.post.tally.lost());
        if dropped > 0 {
            let thread = self.post.runner.number;
            warn!("thread {thread}: {dropped} tasks that were taken with auto-ack are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nack_covers_what_goes_back_up_to_the_first_delivery_that_stays() {
        let covered = |unsettled: &[u64], going: &[u64]| {
            assert!(going.iter().all(|it| unsettled.contains(it)));
            covered_by_one(unsettled.iter(), going.iter())
        };
        assert_eq!(covered(&[], &[]), 0);
        assert_eq!(covered(&[1, 2, 3], &[]), 0);
        assert_eq!(covered(&[1, 2, 3], &[1, 2, 3]), 3);
        assert_eq!(covered(&[3, 7, 20], &[3, 7, 20]), 3, "what is settled leaves gaps");
        assert_eq!(covered(&[1, 2, 3], &[2, 3]), 0, "the first one stays");
        assert_eq!(covered(&[1, 2, 3], &[1, 2]), 2, "the last one stays");
        assert_eq!(covered(&[1, 4, 5, 9], &[1, 4, 9]), 2, "one in the middle stays");
        assert_eq!(covered(&[1, 4, 5, 9], &[4, 5, 9]), 0);
    }

    #[test]
    fn the_broker_never_waits_for_results_that_wait_for_others() {
        assert_eq!([0, 1, 2, 3, 10, 100, u16::MAX].map(enough_of), [64, 1, 1, 2, 5, 50, 64]);
    }
}
