//! For the tests of programs that use this crate. No broker is needed.
//!
//! * [`verdict`] runs a handler once, and says what a worker would do with the task.
//! * [`delivery`] makes a [`Delivery`] of any attempt, also a cancelled one. After a handler has run,
//!   [`Delivery::follow_ups`] are the tasks that it asked for.
//! * [`Recorder`] takes the place of a [`Producer`](crate::Producer), if the program asks for a
//!   [`Publish`](crate::Publish).
//! * [`event`], [`Receipt::new`](crate::Receipt::new) and the constructors of
//!   [`Outcome`](crate::Outcome) make what observers and callers of a producer get.
//!
//! ```
//! use rabbit_work::testing::{Verdict, delivery, verdict};
//! use rabbit_work::{Delivery, Failure, OrFail, RetryPolicy, Task};
//!
//! fn resize(delivery: &Delivery) -> Result<(), Failure> {
//!     let width: u32 = String::from_utf8_lossy(delivery.body()).parse().or_reject()?;
//!     if width > 10_000 { Err(Failure::retry("out of memory")) } else { Ok(()) }
//! }
//!
//! let policy = RetryPolicy::new();
//! assert_eq!(verdict(&resize, Task::new("640"), &policy), Verdict::Done);
//! assert!(matches!(verdict(&resize, Task::new("wide"), &policy), Verdict::Dead { .. }));
//!
//! let first = verdict(&resize, Task::new("99999"), &policy);
//! assert!(matches!(first, Verdict::Retried { after, .. } if after.as_secs() == 5));
//! let last = verdict(&resize, delivery(Task::new("99999")).attempt(5), &policy);
//! assert!(matches!(last, Verdict::Dead { .. }));
//! ```
//!
//! # With a real broker
//!
//! This module imitates no broker: an imitation would agree with the program, and not with RabbitMQ.
//! For a test of the whole way, start a RabbitMQ and give each test a queue of its own:
//!
//! * `scripts/broker.sh`, in this crate's repository, runs a RabbitMQ that is installed, without
//!   root and beside any other. `start` prints its address in some seconds, `stop` removes it.
//!
//!   ```sh
//!   export AMQP_URL=$(scripts/broker.sh start)
//!   cargo test
//!   scripts/broker.sh stop
//!   ```
//!
//! * The crate [testcontainers-modules](https://docs.rs/testcontainers-modules), with its features
//!   `blocking` and `rabbitmq`, runs one in Docker for a single test:
//!
//!   ```ignore
//!   use rabbit_work::{Broker, Producer, Queue, Task, Worker, shutdown};
//!   use testcontainers_modules::{rabbitmq::RabbitMq, testcontainers::runners::SyncRunner};
//!
//!   #[test]
//!   fn a_photo_is_resized() -> Result<(), Box<dyn std::error::Error>> {
//!       let rabbitmq = RabbitMq::default().start()?; // removed when this is dropped
//!       let port = rabbitmq.get_host_port_ipv4(5672)?;
//!       let broker: Broker = format!("amqp://{}:{port}", rabbitmq.get_host()?).parse()?;
//!       let queue = Queue::new("photos");
//!
//!       Producer::new(&broker, &queue).publish(Task::new("640"))?;
//!       let (_trigger, shutdown) = shutdown();
//!       let summary = Worker::new(&broker, &queue).drain().run(resize, &shutdown)?;
//!       assert_eq!(summary.done, 1);
//!       Ok(())
//!   }
//!   ```
//!
//! [`Worker::drain`](crate::Worker::drain) ends when nothing is left to do, so such a test needs
//! neither a sleep nor a signal.

mod delivery;
mod recorder;
mod verdict;

pub use delivery::{DeliveryBuilder, delivery};
pub use recorder::Recorder;
pub use verdict::{Verdict, verdict};

use std::time::Duration;

use crate::model::handler::Delivery;
use crate::worker::event::{Event, EventKind};

/// An event of this kind about this delivery, as an observer gets it. Its fields can be changed.
///
/// ```
/// use rabbit_work::testing::{delivery, event};
/// use rabbit_work::{EventKind, Task};
///
/// let delivery = delivery(Task::new("x").with_id("17")).attempt(2).build();
/// let mut retried = event(EventKind::Retried, &delivery);
/// retried.reason = Some("no network".into());
/// assert_eq!((retried.task.as_str(), retried.attempt), ("17", 2));
/// ```
#[must_use]
pub fn event(kind: EventKind, delivery: &Delivery) -> Event {
    Event::of(kind, delivery, "host", Duration::ZERO)
}
