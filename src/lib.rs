//! Work queues on RabbitMQ for shells and for synchronous Rust programs.
//!
//! A [`Producer`] puts tasks on a queue, and each one is confirmed by the broker. A [`Worker`]
//! shares the tasks among its threads and with every other worker of the queue, and acks each
//! one after the work. [`DeadLetters`] are the tasks that failed for good. The commands `producer`,
//! `worker` and `queuectl` are thin shells over these.
//!
//! Every call blocks, on purpose: a worker's time goes into its tasks, and a thread for each task
//! at hand is the plainest way to spend it. No async runtime is involved. Whatever can wait says
//! under *Blocking* for how long.
//!
//! # Putting tasks on a queue
//!
//! ```no_run
//! # fn main() -> Result<(), rabbit_work::Error> {
//! use rabbit_work::{Broker, Producer, Queue, Task};
//!
//! let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
//! let mut producer = Producer::new(&broker, &Queue::new("photos"));
//! producer.publish(Task::new("resize photo 17"))?; // returns once it is confirmed
//! # Ok(())
//! # }
//! ```
//!
//! For many tasks, [`Producer::send`] keeps a window of them in flight.
//!
//! # Working them
//!
//! ```no_run
//! # fn main() -> Result<(), rabbit_work::Error> {
//! use rabbit_work::{Broker, Delivery, Queue, Worker, shutdown};
//!
//! let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
//! let (_trigger, shutdown) = shutdown(); // `_trigger.stop()`, from any thread, ends the worker
//! let resize = |delivery: &Delivery| {
//!     let order = std::str::from_utf8(delivery.body())?; // `?` makes a failed task
//!     println!("thread {} does: {order}", delivery.thread());
//!     Ok(()) // acked after this, on the channel it came in on
//! };
//! Worker::new(&broker, &Queue::new("photos")).threads(4).run(resize, &shutdown)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is guaranteed
//!
//! **At least once: a task runs again when its ack does not reach the broker.**
//!
//! * **Never lost:** a task that the broker has confirmed, until a worker has acked it. A killed
//!   worker, a lost connection and a restart of the broker do not lose it, for queues are durable
//!   and tasks persistent unless you say otherwise. What was not confirmed is told: in an
//!   [`Outcome`] or an [`Error::NotConfirmed`].
//! * **Done twice:** a task whose worker was killed or lost its connection before the ack had
//!   reached the broker; that was still running when the grace of a stop ended; that ran longer
//!   than the broker's `consumer_timeout` (30 minutes unless configured). And a task is queued
//!   twice when its confirm does not reach the producer, which then publishes it again under the
//!   same message id. Make the work such that doing it twice does no harm.
//! * **Failed:** a task waits in a delay queue and runs again, as often and as late as the
//!   [`RetryPolicy`] says; then it is a dead letter that says why, which [`DeadLetters`] reads and
//!   replays. Each step is published, confirmed, and only then acked.
//! * **Given up only by name:** [`Worker::auto_ack`] loses what a worker had in hand when it
//!   ends; [`Task::transient`] and [`Queue::transient`] lose tasks when the broker restarts.
//!
//! # Threads
//!
//! [`Worker::run`] stays on the caller's thread and supervises. It starts, by their names:
//!
//! * `rw-runner-1`, `rw-runner-2`, …: these call the handler, one task at a time each. They live
//!   as long as the run, and never touch a channel.
//! * `rw-consumer-1`, …: one for each runner, for as long as the connection lives. Each owns one
//!   channel, and only it takes and settles what comes in there.
//! * `rw-handover`: one for as long as the connection lives. It publishes the tasks that failed,
//!   on a second connection that is made when the first task does; the consumers go on meanwhile.
//!   If no second connection is to be had within 5 s, it uses a channel of the first one.
//! * `rw-drain`: only with [`Worker::drain`]; looks at the queues once a second, on a channel of
//!   its own.
//! * `rw-watchdog`, and two of the client library: one set for each connection. The watchdog shuts
//!   the socket under a call that takes too long or is interrupted, and logs one that is slow.
//! * `rw-connect` and `rw-lookup`: only while a connection is made.
//! * `rw-cancel`, `rw-background` and `rw-waiter`: only with `Command`, beside its programs.
//!
//! So a stop gives back at once what was prefetched while the handlers finish, a dead connection
//! is noticed during a task, and a task that outlives its connection holds up no other thread. A
//! producer works on the caller's thread, with a connection of its own.
//!
//! # Logs
//!
//! Through the `log` crate: *error*, a worker's session was lost; *warn*, a task failed, went back
//! or may run twice, or the broker refused or blocked something; *info*, start, stop and what
//! changed; *debug*, what hardly anybody has to know. Never a body, never a password. The client
//! library's own records, of target `amiquip`, are another matter: let none of them through, for
//! they may show bodies and the login with its password.
//!
//! The library reads no arguments and no environment (but for `Command`, which looks its program
//! up in `PATH` and keeps inherited `TASK_*` variables from it), sets up no logger and no signal
//! handler, prints nothing but what a `Command` says, and never ends the process.
//!
//! # Features
//!
//! All on by default: `tls`, `amqps://` addresses; `command`, `Command` and `OutputStream` (Unix); `cli`,
//! what only the commands need. A library's user names those that are wanted, after
//! `default-features = false`.

#![warn(
    clippy::dbg_macro,
    clippy::exit,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::todo,
    clippy::unwrap_used
)]

mod admin;
mod amqp;
#[cfg(all(unix, feature = "command"))]
mod command;
mod model;
mod publish;
mod topology;
mod util;
mod worker;

pub use admin::dead_letter_filter::DeadLetterFilter;
pub use admin::dead_letters::{DeadLetter, DeadLetters, PurgeSummary, ReplaySummary};
pub use admin::{CheckResult, Inspector, Status};
#[cfg(all(unix, feature = "command"))]
pub use command::Command;
#[cfg(all(unix, feature = "command"))]
pub use command::output::OutputStream;
pub use model::broker::Broker;
pub use model::error::Error;
pub use model::failure_record::FailureRecord;
pub use model::handler::{Delivery, Failure, Handler};
pub use model::outcome::Outcome;
pub use model::queue::{Argument, Queue, QueueType};
pub use model::retry::RetryPolicy;
pub use model::task::Task;
#[cfg(feature = "tls")]
pub use model::tls::Tls;
pub use publish::{Producer, Receipt};
pub use topology::census::DelayQueue;
pub use util::shutdown::{Shutdown, Trigger, shutdown};
pub use worker::Worker;
pub use worker::event::{Event, EventKind};
pub use worker::health::Health;
pub use worker::summary::{StopReason, Summary};

/// The README's Rust, compiled with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
