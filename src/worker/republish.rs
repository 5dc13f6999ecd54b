//! Owns the handing over of failed tasks: one thread per session that publishes them to their
//! delay queue or to the dead letters, many at a time, and tells each consumer which of its
//! deliveries the broker now answers for elsewhere.
//!
//! On a connection of its own: during a memory alarm the broker reads nothing more from
//! connections that publish, and acks must still get through. Where no second connection is to be
//! had, on a channel of the session's own.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use log::warn;

use crate::amqp::connection::Connection;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::failure_record::{Fitted, fitted};
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::retry::RetryPolicy;
use crate::model::task::{Task, USUAL_FRAME};
use crate::publish::config::{Limits, PublisherConfig};
use crate::publish::pending::Resolved;
use crate::publish::publisher::Publisher;
use crate::publish::refusal::OnRefusal;
use crate::util::shutdown::{Signal, is_closed};
use crate::worker::summary::Tally;

/// A session's hand-over. It connects when the first task comes, and ends when the last of its
/// order books is dropped.
pub(crate) struct Handover {
    orders: Sender<Order>,
    ended: Receiver<Infallible>,
}

/// What the thread works with.
struct Desk {
    publisher: Publisher<Slip>,
    largest_frame: usize,
    tally: Arc<Tally>,
    leave: Signal,
}

/// A failed task to be published.
pub(crate) struct Order {
    pub(crate) task: Task,
    pub(crate) receipt: Slip,
}

/// Where an order goes, where to tell what became of it, and by which tag the consumer knows it.
pub(crate) struct Slip {
    pub(crate) tag: u64,
    pub(crate) target: Target,
    pub(crate) replies: Sender<Reply>,
}

/// What became of an order: only what is confirmed may be acked.
pub(crate) struct Reply {
    pub(crate) tag: u64,
    /// Where it was to go.
    pub(crate) target: Target,
    pub(crate) outcome: Outcome,
}

/// How many tasks are in flight at a time, and how long each is tried.
const LIMITS: Limits = Limits { window: 1000, timeout: Duration::from_secs(30) };

/// How long it lets orders and confirms come together, to deal with many at a time.
const GATHERING: Duration = Duration::from_millis(1);

impl Handover {
    /// Starts the thread, for the session of this connection. Once `leave` closes, what is
    /// outstanding is given up, and the connection cut: whoever leaves waits for the consumers
    /// already.
    pub(crate) fn start(
        broker: &Broker,
        connection: &Connection,
        queue: &Queue,
        policy: &RetryPolicy,
        tally: &Arc<Tally>,
        leave: &Signal,
    ) -> Result<Handover, Error> {
        let (orders, inbox) = unbounded();
        let (alive, ended) = bounded(0);
        let publisher = Publisher::new(PublisherConfig {
            lent: Some(connection.lend()),
            stopping: leave.clone(),
            aborting: leave.clone(),
            delays: policy.series(),
            on_refusal: OnRefusal::GiveUp,
            has_connected: true,
            ..PublisherConfig::new(broker, queue, LIMITS)
        });
        let mut desk = Desk {
            publisher,
            largest_frame: connection.largest_frame().min(USUAL_FRAME),
            tally: Arc::clone(tally),
            leave: leave.clone(),
        };
        thread::Builder::new()
            .name("rw-handover".into())
            .spawn(move || {
                let alive: Sender<Infallible> = alive;
                desk.run(&inbox);
                desk.end();
                drop(alive);
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Handover { orders, ended })
    }

    /// A book to write orders in.
    pub(crate) fn orders(&self) -> Sender<Order> {
        self.orders.clone()
    }

    /// Waits for its end, at most for `limit`. A broker that does not answer may hold it up for
    /// longer; it then ends by itself, and nobody waits for what it does.
    pub(crate) fn end(self, limit: Duration) {
        drop(self.orders);
        let _ = self.ended.recv_timeout(limit);
    }
}

impl Desk {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            self.publisher.collect();
            // At once: to have the next one's queue there may take long.
            self.reply();
            self.publisher.publish();
            self.reply();
            if is_closed(&self.leave) {
                return;
            }
            match self.publisher.wait(orders) {
                None => {}
                Some(Err(_)) => return,
                Some(Ok(order)) => self.accept(order),
            }
            let _ = self.leave.recv_timeout(GATHERING);
            orders.try_iter().for_each(|order| self.accept(order));
        }
    }

    /// Nobody waits for what is still on its way.
    fn end(mut self) {
        self.publisher.collect();
        self.publisher.give_up_all();
        self.reply();
        self.publisher.close();
    }

    /// What has come can go: only what we have added may be too much.
    fn accept(&mut self, order: Order) {
        let Order { task, receipt } = order;
        match fitted(task, self.largest_frame) {
            Fitted::Recorded(task) => self.publisher.accept(task, receipt.target, receipt),
            Fitted::Truncated(bare) => {
                warn!(
                    "task {}: its own headers leave no room to count its failures: it goes to \
                     the dead letters at once, without a record",
                    bare.name()
                );
                let receipt = Slip { target: Target::Dead, ..receipt };
                self.publisher.accept(bare, receipt.target, receipt);
            }
        }
    }

    fn reply(&mut self) {
        for resolved in self.publisher.take_resolved() {
            let Resolved { ticket: Slip { tag, target, replies }, outcome, sent, .. } = resolved;
            // Also without anybody to ack for it: a letter that is there is there.
            match (target, &outcome) {
                (Target::Dead, Outcome::Confirmed) => self.tally.dead(),
                (Target::Dead, Outcome::Unconfirmed { .. }) if sent => {
                    self.tally.dead_unconfirmed()
                }
                _ => {}
            }
            // A consumer that is gone has left the delivery to the broker.
            let _ = replies.send(Reply { tag, target, outcome });
        }
    }
}
