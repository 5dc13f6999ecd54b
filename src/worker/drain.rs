//! Owns how a worker knows that there is nothing left to do: looks once a second, and only while
//! nothing that the session took is unsettled.

use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, bounded, select_biased};
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
use crate::worker::consumer::InHand;

/// Watches one session's queue. Ends with the session.
pub(crate) struct Drain {
    /// Tells when nothing is left, and how many deliveries had been taken by then.
    pub(crate) drained: Receiver<u64>,
    /// Dropped with this: the watch ends.
    _over: Closer,
}

/// What a session knows of what may still be on its way.
pub(crate) struct Seen {
    pub(crate) in_hand: Arc<InHand>,
    pub(crate) heartbeat: Heartbeat,
    /// Until when the broker may keep tasks for a connection that was lost before.
    pub(crate) unnoticed: Option<Instant>,
}

/// Looks at the queue and its delay queues, on channels of the session's connection: a drain that
/// waited for a further one could wait for ever, where all that the broker allows are taken.
struct Looks {
    queue: Queue,
    census: Census,
    channels: Patient,
    /// What the last look had to say, so that the same is not said each second.
    said: Option<(Level, String)>,
}

/// Opens channels whose questions have no time limit of their own: one that a queue does not answer
/// must not end the connection, which the tasks of others depend on. The end of the session ends
/// them. To open one has the usual limit, for the broker answers that without asking a queue.
struct Patient(Connection);

impl Channels for Patient {
    fn open(&self) -> Result<Channel, CloseReason> {
        self.0.open_channel().map(Channel::without_limit)
    }
}

type Look = fn(&mut Census, &dyn Channels) -> Result<Option<Left>, CloseReason>;

/// How long a look takes at most, unless a queue does not respond: it asks some eighty questions.
const LOOK_TAKES: Duration = Duration::from_secs(20);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Drain {
    pub(crate) fn start(lent: Connection, queue: &Queue, seen: Seen) -> Result<Drain, Error> {
        let (done, drained) = bounded(1);
        let (end, over) = closer();
        let (queue, census) = (queue.clone(), Census::new(queue));
        let mut looks = Looks { queue, census, channels: Patient(lent), said: None };
        thread::Builder::new()
            .name("rw-drain".into())
            .spawn(move || {
                if let Some(taken) = until_empty(&mut looks, seen, &over) {
                    info!("the queue and its delay queues are empty");
                    let _ = done.send(taken);
                }
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Drain { drained, _over: end })
    }
}

/// Waits until the queue and its delay queues were empty twice in a row, with nothing taken in
/// between: what is just leaving a delay queue is in neither for a moment. The first look asks only
/// for the delay queues that are known, the second for all. And with no more come than heartbeats: a
/// large task on a slow line is neither in the queue nor taken for long. Says how many were taken.
fn until_empty(looks: &mut Looks, seen: Seen, over: &Signal) -> Option<u64> {
    let Seen { in_hand, heartbeat, mut unnoticed } = seen;
    let mut before = None;
    let mut bytes = heartbeat.bytes();
    loop {
        select_biased! {
            recv(over) -> _ => return None,
            recv(after(LOOK_EVERY)) -> _ => {},
        }
        let all = heartbeat.bytes();
        let came = all - mem::replace(&mut bytes, all);
        let settled = in_hand.all_settled().filter(|_| !are_more_than_heartbeats(came, LOOK_EVERY));
        let look = if before.is_some() && before == settled {
            Census::left
        } else {
            Census::left_in_known
        };
        let empty = settled.is_some() && looks.is_empty(look, over);
        if settled.is_some() {
            // The answers came on the same connection: they are no sign of a task.
            bytes = heartbeat.bytes();
        }
        let now = settled.filter(|_| empty);
        if now.is_some() && now == before {
            let Some(until) = unnoticed.take().filter(|until| Instant::now() < *until) else {
                return now;
            };
            let left = until.saturating_duration_since(Instant::now()).as_secs();
            info!(
                "empty; but the broker may keep tasks for the lost connection for up to {left} s \
                 more: waits for them"
            );
            select_biased! {
                recv(over) -> _ => return None,
                recv(at(until)) -> _ => {},
            }
            before = None;
        } else {
            before = now;
        }
    }
}

impl Looks {
    fn is_empty(&mut self, look: Look, over: &Signal) -> bool {
        let doing = format!("looking at '{}' and its delay queues", self.queue.name());
        let guard = self.channels.0.call_guard();
        let asked = || look(&mut self.census, &self.channels);
        let (left, _) = guard.warn_after(LOOK_TAKES, over, &doing, asked);
        let (is_empty, saying) = match left {
            Ok(Some(Left::Nothing)) => (true, None),
            Ok(Some(Left::Ready(_))) => (false, None),
            Ok(Some(Left::Delayed(waiting))) => (false, Some((Level::Info, awaited(&waiting)))),
            Ok(Some(Left::Hidden(delay))) => (false, Some((Level::Warn, self.hidden(delay)))),
            Ok(None) => (false, Some((Level::Warn, unknown("the queue does not exist")))),
            Err(cause) => {
                self.census.channel().forget();
                // Of a connection that is lost the session tells.
                let why = cause.is_channel_error().then(|| unknown(&cause.to_string()));
                (false, why.map(|why| (Level::Warn, why)))
            }
        };
        let news = saying.as_ref().filter(|_| saying != self.said && !is_closed(over));
        if let Some((level, line)) = news {
            log!(*level, "{line}");
        }
        self.said = saying;
        is_empty
    }

    fn hidden(&self, delay: Duration) -> String {
        let name = self.queue.name_of(Target::Delay(delay));
        format!("waits for a task in '{name}', which does not say how many it holds (no leader?)")
    }
}

fn unknown(why: &str) -> String {
    format!("cannot tell whether the queue is empty, and works on until that is known: {why}")
}

/// Says what is waited for, without a count, which changes from look to look.
fn awaited(waiting: &[DelayQueue]) -> String {
    let longest = waiting.iter().map(|it| it.delay).max().unwrap_or_default();
    format!("waits for delayed tasks, the last of them due in at most {}", said(longest))
}

/// A delay as people name it.
fn said(delay: Duration) -> String {
    let units = [(24 * 3600, "days"), (3600, "h"), (60, "min"), (1, "s")];
    let seconds = delay.as_secs();
    let unit = units.iter().find(|(unit, _)| seconds >= *unit && seconds % *unit == 0);
    unit.map_or_else(|| format!("{delay:?}"), |(unit, name)| format!("{} {name}", seconds / unit))
}
