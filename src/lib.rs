//! Work queues on RabbitMQ for shells and for synchronous Rust programs.
//!
//! A [`Producer`] publishes tasks to a queue, and the broker confirms each one. A [`Worker`] runs
//! the tasks on its threads, shares them with every other worker of the queue, and acks each one
//! after the work. [`DeadLetters`] are the tasks that failed for good. The commands `producer`,
//! `worker` and `queuectl` are thin shells over this library.
//!
//! Every call blocks, on purpose: a worker spends its time in its tasks, and one thread for each
//! running task is the simplest way to do that. No async runtime is involved. Each call that can
//! wait says under *Blocking* for how long.
//!
//! # Publishing
//!
//! ```no_run
//! # fn main() -> Result<(), rabbit_work::Error> {
//! use rabbit_work::{Broker, Producer, Queue, Task};
//!
//! let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
//! let mut producer = Producer::new(&broker, &Queue::new("photos"));
//! producer.publish(Task::new("resize photo 17"))?; // returns after the confirm
//! # Ok(())
//! # }
//! ```
//!
//! For many tasks, [`Producer::send`] keeps a window of publishes in flight. Many threads, or several
//! queues, share one connection through a [`SharedProducer`]; see [`guide::sharing`].
//!
//! # Working
//!
//! ```no_run
//! # fn main() -> Result<(), rabbit_work::Error> {
//! use rabbit_work::{Broker, Delivery, OrFail, Queue, Worker, shutdown};
//!
//! let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
//! let (_trigger, shutdown) = shutdown(); // `_trigger.stop()` from any thread ends the worker
//! let resize = |delivery: &Delivery| {
//!     let order = std::str::from_utf8(delivery.body()).or_reject()?; // bad input: a dead letter
//!     println!("thread {} does: {order}", delivery.thread());
//!     Ok(()) // the task is acked after this; an error or a panic fails it
//! };
//! Worker::new(&broker, &Queue::new("photos")).threads(4).run(resize, &shutdown)?;
//! # Ok(())
//! # }
//! ```
//!
//! For several types of tasks, see [`Router`]. [`testing`] has what tests of handlers need.
//!
//! # What is guaranteed
//!
//! **At least once: a task runs again when its ack does not reach the broker.**
//!
//! * **Never lost:** the broker keeps a confirmed task until a worker has acked it. Killed workers,
//!   lost connections and restarts of the broker do not lose it, because queues are durable and
//!   tasks persistent by default. An [`Outcome`] or an [`Error::NotConfirmed`] reports a task that
//!   was not confirmed.
//! * **May run twice:** a task may run twice if its worker or connection dies before the ack, if it
//!   outlives the grace period, or if it runs longer than the broker's `consumer_timeout`
//!   (30 minutes). A task is queued twice if its confirm is lost and the producer publishes it
//!   again, with the same message id. Make tasks safe to repeat.
//! * **Failed:** a task waits in a delay queue and runs again, as the [`RetryPolicy`] says. After its
//!   last attempt it is a dead letter that says why. [`DeadLetters`] reads and replays it. The worker
//!   acks a failed task only after the broker has confirmed its copy.
//! * **Given up by name:** [`Worker::auto_ack`] loses the tasks that a worker holds when it ends.
//!   [`Task::transient`] and [`Queue::transient`] lose tasks when the broker restarts.
//!
//! # Guide
//!
//! Pages with an example each: [guarantees and retries](guide::guarantees),
//! [shared producers](guide::sharing), [signals](guide::signals), [several queues](guide::queues),
//! [fork and panics](guide::processes), and [tests](testing).
//!
//! # Threads
//!
//! [`Worker::run`] supervises on the caller's thread. It starts these threads:
//!
//! * `rw-consumer-1`, `rw-consumer-2`, …: one for each worker thread, while the connection lives.
//!   Each owns one channel, and settles what this channel delivers. With a prefetch of 1 it calls the
//!   handler itself.
//! * `rw-runner-1`, …: call the handler if the prefetch is greater, or while a thread keeps failed
//!   tasks that are published nowhere yet. They never touch a channel.
//! * `rw-republisher`: publishes copies of failed tasks, follow-ups and outcomes, while the connection
//!   lives. It opens a second connection for the first of them. If none is open within 5 s, it uses
//!   the first connection.
//! * `rw-drain`: with [`Worker::drain`] only. It counts the queues once a second.
//! * `rw-worker-1`, …: with [`Workers`] only. Each supervises one worker, and [`Workers::run`] waits
//!   for them.
//! * `rw-publisher`: with a [`SharedProducer`] only. It publishes for all its clones.
//! * `rw-watchdog`, and `rw-io` and a timer of the client library: for each connection. Without the
//!   feature `command`, or on another system than Linux, `rw-io` is called `amiquip-io`.
//! * Short-lived threads whose names begin with `rw-`: while a connection is opened, for the log
//!   line of a slow call, and for the output of the programs of a `Command`.
//!
//! So a stop requeues prefetched tasks at once while handlers finish, a dead connection is noticed
//! during a task, and a task that outlives its connection delays no other thread. A [`Producer`]
//! works on the caller's thread, with a connection of its own.
//!
//! # Logs
//!
//! The library logs through the `log` crate:
//!
//! * *error*: a worker's session was lost;
//! * *warn*: a task failed, was requeued or may run twice, or the broker refused or blocked
//!   something;
//! * *info*: start, stop and changes;
//! * *debug*: details.
//!
//! It logs neither bodies nor passwords. The client library does: wrap your logger with
//! [`log_filter`].
//!
//! The library reads no arguments and no environment, sets up no logger and no signal handler,
//! prints nothing, and never ends the process. Five exceptions:
//!
//! * `Command` finds its program in `PATH`, keeps large bodies in `TMPDIR`, passes the environment on
//!   without inherited `TASK_*` variables and the commands' own, and passes its output on.
//! * `shutdown_on_signals` sets up signal handlers, and its third signal ends the process.
//! * `SSL_CERT_FILE` and `SSL_CERT_DIR` say where the system's authorities are, as for OpenSSL.
//! * A URL of `amqps` names files to read.
//! * The hidden module `cli` is the commands.
//!
//! # Features
//!
//! All are on by default. With `default-features = false`, name those that you need.
//!
//! * `tls`: `amqps://` addresses.
//! * `command`: `Command` and `OutputStream`, on Unix.
//! * `json`: JSON bodies: `Task::json`, `Delivery::json` and `Router::on`. [`Summary`] and
//!   [`StopReason`] can be serialized, with the keys and words of `worker --json`.
//! * `signals`: `shutdown_on_signals`.
//! * `cli`: what only the commands need.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(
    clippy::dbg_macro,
    clippy::exit,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::todo,
    clippy::unwrap_used
)]

// The commands name the library as every other program does.
#[cfg(all(unix, feature = "cli"))]
extern crate self as rabbit_work;

mod admin;
mod amqp;
mod batch;
/// The commands, in the library so that they are compiled once for all programs. No part of its API.
#[cfg(all(unix, feature = "cli"))]
#[doc(hidden)]
#[path = "../bin/cli/mod.rs"]
pub mod cli;
#[cfg(all(unix, feature = "command"))]
mod command;
mod model;
mod publish;
#[cfg(feature = "signals")]
mod signals;
pub mod testing;
mod topology;
mod util;
mod worker;

/// The crate whose channels are in this crate's API ([`Delivery::cancelled`], [`Shutdown::stopping`]):
/// a program that selects on them uses the same version by `rabbit_work::crossbeam_channel`.
#[doc(no_inline)]
pub use crossbeam_channel;

pub use admin::check::CheckResult;
pub use admin::dead_letter_filter::DeadLetterFilter;
pub use admin::dead_letters::{DeadLetter, DeadLetters, PurgeSummary, ReplaySummary};
pub use admin::{Inspector, Status};
pub use batch::{Batch, BatchSummary};
#[cfg(all(unix, feature = "command"))]
#[cfg_attr(docsrs, doc(cfg(all(unix, feature = "command"))))]
pub use command::Command;
#[cfg(all(unix, feature = "command"))]
#[cfg_attr(docsrs, doc(cfg(all(unix, feature = "command"))))]
pub use command::output::OutputStream;
pub use model::batch::outcome::{BatchOutcome, TaskEnd, TaskOutput};
pub use model::broker::Broker;
pub use model::broker_builder::BrokerBuilder;
pub use model::error::Error;
pub use model::failure_record::FailureRecord;
pub use model::handler::{Delivery, Failure, Handler};
pub use model::or_fail::OrFail;
pub use model::outcome::Outcome;
pub use model::program_end::ProgramEnd;
pub use model::queue::{Argument, Queue, QueueType};
pub use model::retry::RetryPolicy;
pub use model::router::Router;
pub use model::task::Task;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use model::tls::Tls;
pub use model::tls_cause::TlsCause;
pub use publish::Producer;
pub use publish::publish_trait::Publish;
pub use publish::receipt::Receipt;
pub use publish::shared::SharedProducer;
pub use publish::shared::pending::Pending;
pub use publish::shared::state::ProducerState;
#[cfg(feature = "signals")]
#[cfg_attr(docsrs, doc(cfg(feature = "signals")))]
pub use signals::{shutdown_on_signals, shutdown_on_signals_with};
pub use topology::census::DelayQueue;
pub use util::log_filter::log_filter;
pub use util::shutdown::{Shutdown, Trigger, shutdown};
pub use worker::Worker;
pub use worker::event::{Event, EventKind};
pub use worker::health::Health;
pub use worker::summary::{QueueSummary, StopReason, Summary, WorkersSummary};
pub use worker::workers::Workers;

/// Pages about what concerns several types of this crate.
pub mod guide {
    #[doc = include_str!("../docs/guide/guarantees.md")]
    pub mod guarantees {}
    #[doc = include_str!("../docs/guide/processes.md")]
    pub mod processes {}
    #[doc = include_str!("../docs/guide/queues.md")]
    pub mod queues {}
    #[doc = include_str!("../docs/guide/sharing.md")]
    pub mod sharing {}
    #[cfg(feature = "signals")]
    #[cfg_attr(docsrs, doc(cfg(feature = "signals")))]
    #[doc = include_str!("../docs/guide/signals.md")]
    pub mod signals {}
}

/// The README's Rust, compiled with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
