//! Finds out when a worker has nothing left to do: checks the queue and its delay queues once a
//! second, and only while everything that the session took is settled.

use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, at, bounded, select_biased};
use log::{Level, info, log};

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::amqp::heartbeat::{Heartbeat, are_more_than_heartbeats};
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::topology::admin_channel::Channels;
use crate::topology::census::{Census, DelayQueue, Left};
use crate::util::shutdown::{Closer, Signal, closer, is_closed};
use crate::worker::drain_group::{DrainSeat, Quiet};
use crate::worker::health::Health;
use crate::worker::in_flight::InFlightCount;

/// Watches one session's queue. Ends with the session.
pub(crate) struct Drain {
    /// Receives how many deliveries had been taken when nothing was left, in any queue of the group.
    pub(crate) drained: Receiver<u64>,
    /// Ends the thread when this is dropped.
    _over: Closer,
}

/// What a session knows of tasks that may be in transit.
pub(crate) struct Traffic {
    pub(crate) in_flight: Arc<InFlightCount>,
    pub(crate) heartbeat: Heartbeat,
    /// Which threads consume from the queue.
    pub(crate) health: Health,
    /// Until when the broker may keep tasks for a connection that was lost before.
    pub(crate) broker_holds_until: Option<Instant>,
}

/// Checks the queue and its delay queues, on channels of the session's connection. A connection of
/// its own might never open, if the broker allows no more.
struct DrainCheck {
    queue: Queue,
    census: Census,
    channels: UnlimitedChannels,
    /// Which threads consume from the queue.
    health: Health,
    /// What the last check logged, to log it once.
    logged: Option<(Level, String)>,
}

/// Opens channels whose calls have no time limit: a queue that does not respond must not end the
/// connection, on which others work. The end of the session ends the calls. Opening a channel has the
/// usual limit, because the broker answers that without asking a queue.
struct UnlimitedChannels(Connection);

impl Channels for UnlimitedChannels {
    fn open(&self) -> Result<Channel, CloseReason> {
        self.0.open_channel().map(Channel::without_limit)
    }
}

type Ask = fn(&mut Census, &dyn Channels) -> Result<Option<Left>, CloseReason>;

/// How long a check takes at most, unless a queue does not respond: it is some eighty calls.
const CHECK_TAKES: Duration = Duration::from_secs(20);

/// How often to check.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl Drain {
    pub(crate) fn start(
        lent: Connection,
        queue: &Queue,
        traffic: Traffic,
        seat: &DrainSeat,
    ) -> Result<Drain, Error> {
        let (done, drained) = bounded(1);
        let (end, over) = closer();
        let (queue, census) = (queue.clone(), Census::new(queue));
        let channels = UnlimitedChannels(lent);
        let health = traffic.health.clone();
        let mut check = DrainCheck { queue, census, channels, health, logged: None };
        let seat = seat.clone();
        seat.begin(&done);
        thread::Builder::new()
            .name("rw-drain".into())
            .spawn(move || {
                let _ = check_until_over(&mut check, traffic, &seat, &done, &over);
                seat.note(&done, None);
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Drain { drained, _over: end })
    }
}

/// Checks once a second and notes the result in `seat`, until the session ends; then returns `None`.
///
/// Nothing is left if the queue and its delay queues were empty twice in a row, and nothing was taken
/// in between: a task that is just leaving a delay queue is in no queue for a moment. The first check
/// counts only the delay queues that are known, the last one all of them. And if nothing but
/// heartbeats was received: a large task on a slow line is in transit for long.
fn check_until_over(
    check: &mut DrainCheck,
    traffic: Traffic,
    seat: &DrainSeat,
    done: &Sender<u64>,
    over: &Signal,
) -> Option<Infallible> {
    let Traffic { in_flight, heartbeat, mut broker_holds_until, .. } = traffic;
    let mut quiet: Option<Quiet> = None;
    let mut bytes = heartbeat.bytes();
    loop {
        select_biased! {
            recv(over) -> _ => return None,
            recv(after(CHECK_EVERY)) -> _ => {},
        }
        let all = heartbeat.bytes();
        let came = all - mem::replace(&mut bytes, all);
        let is_quiet = !are_more_than_heartbeats(came, CHECK_EVERY);
        let settled = in_flight.all_settled().filter(|_| is_quiet);
        let before = quiet.filter(|before| Some(before.taken) == settled);
        quiet = match settled {
            Some(taken) => check.run(taken, before, seat, over),
            None => None,
        };
        if settled.is_some() {
            // The answers came on the same connection: they are no sign of a task.
            bytes = heartbeat.bytes();
        }
        if before.is_some() && quiet.is_some() {
            if let Some(until) = broker_holds_until.take().filter(|it| Instant::now() < *it) {
                seat.note(done, None);
                wait_for_lost_connection(until, over)?;
                quiet = None;
            }
        }
        seat.note(done, quiet);
    }
}

/// Waits until the broker must have requeued the tasks of a lost connection; `None` if the session
/// ends before.
fn wait_for_lost_connection(until: Instant, over: &Signal) -> Option<()> {
    let left = until.saturating_duration_since(Instant::now()).as_secs();
    info!(
        "the queue is empty, but the broker may hold tasks for the lost connection: waits up to \
         {left} s for them"
    );
    select_biased! {
        recv(over) -> _ => None,
        recv(at(until)) -> _ => Some(()),
    }
}

impl DrainCheck {
    /// Checks once, when so many deliveries were taken and are settled. `before` is what the checks
    /// before found with the same deliveries.
    fn run(
        &mut self,
        taken: u64,
        before: Option<Quiet>,
        seat: &DrainSeat,
        over: &Signal,
    ) -> Option<Quiet> {
        let counts_all = before.is_some() && seat.is_last_check();
        let begun = Instant::now();
        let ask = if counts_all { Census::left } else { Census::left_in_known };
        if !self.is_empty(ask, over) {
            return None;
        }
        let quiet = before.unwrap_or(Quiet { taken, since: Instant::now(), counted_all: None });
        let counted_all = if counts_all { Some(begun) } else { quiet.counted_all };
        Some(Quiet { counted_all, ..quiet })
    }

    fn is_empty(&mut self, ask: Ask, over: &Signal) -> bool {
        let doing = format!("checking '{}' and its delay queues", self.queue.name());
        let guard = self.channels.0.call_guard();
        let asked = || ask(&mut self.census, &self.channels);
        let (left, _) = guard.warn_after(CHECK_TAKES, over, &doing, asked);
        if left.is_err() {
            self.census.channel().forget();
        }
        let left = left.map(|left| left.map(|it| self.without_false_zero(it)));
        let is_empty = matches!(left, Ok(Some(Left::Nothing { .. })));
        self.log_once(self.describe(left), over);
        is_empty
    }

    /// A count of 0 tasks means nothing if it leaves out this worker: so RabbitMQ counts a quorum queue
    /// whose leader does not answer within 0.25 s (measured on 3.10.8, 4.0.5 and 4.3.6).
    fn without_false_zero(&self, left: Left) -> Left {
        match left {
            Left::Nothing { consumers: 0 } if self.health.consuming() > 0 => {
                Left::Hidden(Target::Main)
            }
            left => left,
        }
    }

    fn log_once(&mut self, line: Option<(Level, String)>, over: &Signal) {
        let news = line.as_ref().filter(|_| line != self.logged && !is_closed(over));
        if let Some((level, line)) = news {
            log!(*level, "{line}");
        }
        self.logged = line;
    }

    /// What to log about the tasks that are left.
    fn describe(&self, left: Result<Option<Left>, CloseReason>) -> Option<(Level, String)> {
        match left {
            Ok(Some(Left::Nothing { .. } | Left::Ready(_))) => None,
            Ok(Some(Left::Delayed(waiting))) => Some((Level::Info, awaited(&waiting))),
            Ok(Some(Left::Hidden(target))) => Some((Level::Warn, self.hidden(target))),
            Ok(None) => Some((Level::Warn, unknown("the queue does not exist"))),
            // The session logs the loss of the connection.
            Err(cause) if !cause.is_channel_error() => None,
            Err(cause) => Some((Level::Warn, unknown(&cause.to_string()))),
        }
    }

    fn hidden(&self, target: Target) -> String {
        let name = self.queue.name_of(target);
        match target {
            Target::Main => format!(
                "waits for '{name}', which does not report this worker as a consumer, so its count of 0 \
                 tasks may be wrong (no leader?)"
            ),
            _ => format!("waits for '{name}', which does not report its tasks (no leader?)"),
        }
    }
}

fn unknown(why: &str) -> String {
    format!("cannot check whether the queue is empty, so the worker continues: {why}")
}

/// Says what the worker waits for, without a count, which changes from check to check.
fn awaited(waiting: &[DelayQueue]) -> String {
    let longest = waiting.iter().map(|it| it.delay).max().unwrap_or_default();
    format!("waiting for delayed tasks; the last one is due within {}", in_words(longest))
}

/// A delay in its largest whole unit.
fn in_words(delay: Duration) -> String {
    let units = [(24 * 3600, "days"), (3600, "h"), (60, "min"), (1, "s")];
    let seconds = delay.as_secs();
    let unit = units.iter().find(|(unit, _)| seconds >= *unit && seconds % *unit == 0);
    unit.map_or_else(|| format!("{delay:?}"), |(unit, name)| format!("{} {name}", seconds / unit))
}
