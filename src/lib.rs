//! Work queues on RabbitMQ for shells and for synchronous Rust programs.

#![warn(
    clippy::dbg_macro,
    clippy::exit,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::todo,
    clippy::unwrap_used
)]

mod backoff;
mod broker;
mod cause;
mod channel;
mod confirms;
mod connection;
mod consumer;
mod error;
mod event;
mod handler;
mod producer;
mod queue;
mod runner;
mod session;
mod shutdown;
mod summary;
mod task;
mod watchdog;
mod worker;

pub use broker::Broker;
#[cfg(feature = "tls")]
pub use broker::Tls;
pub use error::Error;
pub use event::{Event, EventKind};
pub use handler::{Delivery, Failure, Handler};
pub use producer::{Outcome, Producer, Receipt};
pub use queue::{Queue, QueueKind};
pub use shutdown::{Shutdown, Trigger, shutdown};
pub use summary::{Ended, Summary};
pub use task::Task;
pub use worker::Worker;
