//! Owns how a worker knows that there is nothing left to do: looks once a second, and only while
//! nothing that the session took is unsettled.

use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, bounded, select_biased};
use log::{info, warn};

use crate::broker::Broker;
use crate::census::Left;
use crate::consumer::InHand;
use crate::error::Error;
use crate::inspect::Inspector;
use crate::pulse::{Pulse, are_more_than_heartbeats};
use crate::queue::Queue;
use crate::shutdown::{Closer, Signal, closer, is_closed};

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
    pub(crate) pulse: Pulse,
    /// Until when the broker may keep tasks for a connection that was lost before.
    pub(crate) unnoticed: Option<Instant>,
}

/// What was seen of the queue and its delay queues.
struct Looks {
    inspector: Inspector,
    /// What kept the last look from telling, so that the same is not said each second.
    hindrance: Option<String>,
}

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Drain {
    pub(crate) fn start(broker: &Broker, queue: &Queue, seen: Seen) -> Result<Drain, Error> {
        let (done, drained) = bounded(1);
        let (end, over) = closer();
        let inspector = Inspector::interrupted_by(broker, queue, &over);
        thread::Builder::new()
            .name("rw-drain".into())
            .spawn(move || {
                let looks = Looks { inspector, hindrance: None };
                if let Some(taken) = until_empty(looks, seen, &over) {
                    info!("the queue and its delay queues are empty");
                    let _ = done.send(taken);
                }
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Drain { drained, _over: end })
    }
}

/// Waits until the queue and its delay queues were empty twice in a row, with nothing taken in
/// between: what is just leaving a delay queue is in neither for a moment. And with no more come
/// than heartbeats: a large task on a slow line is neither in the queue nor taken for long. Says
/// how many were taken.
fn until_empty(mut looks: Looks, seen: Seen, over: &Signal) -> Option<u64> {
    let Seen { in_hand, pulse, mut unnoticed } = seen;
    let mut before = None;
    let mut bytes = pulse.bytes();
    loop {
        select_biased! {
            recv(over) -> _ => return None,
            recv(after(LOOK_EVERY)) -> _ => {},
        }
        let all = pulse.bytes();
        let came = all - mem::replace(&mut bytes, all);
        let settled = in_hand.all_settled().filter(|_| !are_more_than_heartbeats(came, LOOK_EVERY));
        let empty = settled.is_some() && looks.is_empty(over);
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
    fn is_empty(&mut self, over: &Signal) -> bool {
        let (empty, hindrance) = match self.inspector.left() {
            Ok(left) => (left == Left::Nothing, None),
            Err(error) => (false, Some(error.chain())),
        };
        let news = hindrance != self.hindrance && !is_closed(over);
        if let Some(why) = hindrance.as_ref().filter(|_| news) {
            warn!(
                "cannot tell whether the queue is empty, and works on until that is known: {why}"
            );
        }
        self.hindrance = hindrance;
        empty
    }
}
