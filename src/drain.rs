//! Owns how a worker knows that there is nothing left to do: looks once a second, and only while
//! nothing that the session took is unsettled.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{after, select_biased};
use log::{debug, info};

use crate::broker::Broker;
use crate::consumer::InHand;
use crate::error::Error;
use crate::inspect::Inspector;
use crate::queue::Queue;
use crate::retry::RetryPolicy;
use crate::shutdown::{Closer, Signal, closer};

/// Watches one session's queue. Ends with the session.
pub(crate) struct Drain {
    /// Closes when nothing is left.
    pub(crate) drained: Signal,
    /// Dropped with this: the watch ends.
    _over: Closer,
}

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Drain {
    pub(crate) fn start(
        broker: &Broker,
        queue: &Queue,
        policy: &RetryPolicy,
        in_hand: &Arc<InHand>,
    ) -> Result<Drain, Error> {
        let (done, drained) = closer();
        let (end, over) = closer();
        let mut inspector = Inspector::interrupted_by(broker, queue, &over);
        let delays = policy.delays();
        let in_hand = Arc::clone(in_hand);
        thread::Builder::new()
            .name("rw-drain".into())
            .spawn(move || {
                if until_empty(&mut inspector, &delays, &in_hand, &over) {
                    info!("the queue and its delay queues are empty");
                    done.close();
                }
                // Not before the end is known: `done` closes when it is dropped.
                let _ = over.recv();
                drop(done);
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Drain { drained, _over: end })
    }
}

/// Waits until the queue and its delay queues were empty twice in a row, with nothing taken in
/// between: what is just leaving a delay queue is in neither for a moment.
fn until_empty(
    inspector: &mut Inspector,
    delays: &[Duration],
    in_hand: &InHand,
    over: &Signal,
) -> bool {
    let mut before = None;
    loop {
        select_biased! {
            recv(over) -> _ => return false,
            recv(after(LOOK_EVERY)) -> _ => {},
        }
        let settled = in_hand.all_settled();
        let empty = settled.is_some() && look(inspector, delays);
        let now = settled.filter(|_| empty);
        if now.is_some() && now == before {
            return true;
        }
        before = now;
    }
}

fn look(inspector: &mut Inspector, delays: &[Duration]) -> bool {
    inspector.is_empty(delays).unwrap_or_else(|error| {
        debug!("cannot tell whether the queue is empty: {}", error.chain());
        false
    })
}
