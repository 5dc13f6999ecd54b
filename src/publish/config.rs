//! The settings of a publisher.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::never;

use crate::amqp::connection::Connection;
use crate::model::broker::Broker;
use crate::model::queue::Queue;
use crate::publish::refusal::OnRefusal;
use crate::util::shutdown::Signal;

/// What a publisher is built from.
pub(crate) struct PublisherConfig {
    pub(crate) broker: Broker,
    pub(crate) queue: Arc<Queue>,
    pub(crate) limits: Limits,
    /// Ends the wait for a connection once it closes.
    pub(crate) stopping: Signal,
    /// Ends every wait once it closes: the tasks that are not resolved by then are unconfirmed.
    pub(crate) aborting: Signal,
    /// The connection of a session, to publish on if the publisher gets none of its own.
    pub(crate) lent: Option<Connection>,
    /// The delays that one task may need, in this order.
    pub(crate) delays: Vec<Duration>,
    pub(crate) on_refusal: OnRefusal,
    /// Whether this broker has let us in before. If it has, each failure to connect is retried.
    pub(crate) has_connected: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many tasks may be in flight.
    pub(crate) window: usize,
    /// How long each task is tried.
    pub(crate) timeout: Duration,
}

impl PublisherConfig {
    /// The settings of a publisher that nothing stops and that publishes refused tasks again.
    pub(crate) fn new(broker: &Broker, queue: &Queue, limits: Limits) -> PublisherConfig {
        PublisherConfig {
            broker: broker.clone(),
            queue: Arc::new(queue.clone()),
            limits,
            stopping: never(),
            aborting: never(),
            lent: None,
            delays: Vec::new(),
            on_refusal: OnRefusal::TryAgain,
            has_connected: false,
        }
    }
}
