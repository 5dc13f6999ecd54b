//! [`Workers`]: several workers in one program, one for each queue, with one stop and one end.
//!
//! Each runs in a thread of its own. They share the stop, the task budget and a `DrainGroup`.

use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use log::error;

use crate::model::error::Error;
use crate::model::handler::Handler;
use crate::util::shutdown::Shutdown;
use crate::worker::drain_group::DrainSeat;
use crate::worker::rate::StartRate;
use crate::worker::run_context::RunUntil;
use crate::worker::summary::{QueueSummary, StopReason, Summary, Tally, WorkersSummary};
use crate::worker::task_budget::{RunLimits, TaskBudget};
use crate::worker::{Shares, Worker};

/// Works several queues in one program: one [`Worker`] for each, which start and stop together.
///
/// Each worker has its own threads, connection and sessions. If one of them ends with an error, the
/// others go on, and the error is logged and in the summary.
///
/// Workers with [`drain`](Worker::drain) end together, when all of their queues were empty at one
/// moment: a task of one queue may publish to another. They do not wait for a worker that has ended,
/// nor for a queue that the broker refuses.
///
/// Queues have no order of priority. The broker sends tasks to each worker as soon as a thread of it
/// is free, so the numbers of threads divide the machine among the queues.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use rabbit_work::{Broker, Delivery, Queue, Worker, Workers, shutdown};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let send = |delivery: &Delivery| Ok(println!("sends {:?}", delivery.task()));
/// let print = |delivery: &Delivery| Ok(println!("prints {:?}", delivery.task()));
/// let (_trigger, shutdown) = shutdown();
/// let summary = Workers::new()
///     .add(Worker::new(&broker, &Queue::new("mail")).threads(2), send)
///     .add(Worker::new(&broker, &Queue::new("pdf")).threads(6), print)
///     .run(&shutdown)?;
/// println!("{} tasks done", summary.total().done);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Workers {
    parts: Vec<Part>,
    limits: RunLimits,
    rate: Option<Arc<StartRate>>,
}

/// A worker and what it does.
struct Part {
    worker: Worker,
    handler: Box<dyn Handler>,
}

impl Workers {
    /// No workers yet.
    #[must_use]
    pub fn new() -> Workers {
        Workers::default()
    }

    /// Adds a worker, and the handler for the tasks of its queue.
    #[must_use]
    pub fn add(mut self, worker: Worker, handler: impl Handler + 'static) -> Workers {
        self.parts.push(Part { worker, handler: Box::new(handler) });
        self
    }

    /// Ends all workers when they have started this many tasks together and these are finished.
    /// Tasks that were prefetched beyond it are requeued. With this or [`max_dead`](Workers::max_dead),
    /// a worker with either limit of its own is refused. Default: each has its own.
    #[must_use]
    pub fn max_tasks(mut self, limit: u64) -> Workers {
        self.limits.tasks = Some(limit);
        self
    }

    /// Ends all workers when they have made this many dead letters together. With this or
    /// [`max_tasks`](Workers::max_tasks), a worker with either limit of its own is refused. Default:
    /// each has its own.
    #[must_use]
    pub fn max_dead(mut self, limit: u64) -> Workers {
        self.limits.dead = Some(limit);
        self
    }

    /// Has all workers start at most this many tasks in this time together, spread evenly, as
    /// [`Worker::rate`] does. A worker with a rate of its own is refused. Default: each has its own.
    #[must_use]
    pub fn rate(mut self, tasks: u32, per: Duration) -> Workers {
        self.rate = Some(Arc::new(StartRate::new(tasks, per)));
        self
    }

    /// Works until the last worker has ended: `shutdown` asks all of them to stop.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] without a worker, or for settings of one that do not fit. Nothing is
    /// worked then. Every later error is in the [`QueueSummary`] of its worker.
    ///
    /// # Blocking
    /// Until then; see [`Worker::run`] for how long a stop takes at most. The workers stop at the same
    /// time.
    ///
    /// # Panics
    /// If the run of a worker panics, which is a defect of this crate. A panic in a handler is a
    /// failed task.
    pub fn run(mut self, shutdown: &Shutdown) -> Result<WorkersSummary, Error> {
        self.validate()?;
        if let Some(rate) = &self.rate {
            self.parts.iter_mut().for_each(|part| part.worker.rate = Some(Arc::clone(rate)));
        }
        let started = Instant::now();
        let (shares, count) = (self.shares(), self.parts.len());
        let by_queue = thread::scope(|scope| {
            let start = |(number, (part, shares)): (usize, (Part, Shares))| {
                let (queue, seat) = (part.queue().to_string(), shares.drain.clone());
                let run = move || {
                    let summary = part.run(shutdown, shares);
                    // Alone, the caller learns of it at the same time.
                    if count > 1 {
                        log_error(&summary);
                    }
                    summary
                };
                let thread = thread::Builder::new().name(format!("rw-worker-{}", number + 1));
                (queue, thread.spawn_scoped(scope, run).inspect_err(|_| seat.end()))
            };
            let running: Vec<_> =
                self.parts.into_iter().zip(shares).enumerate().map(start).collect();
            running.into_iter().map(|(queue, thread)| join(queue, thread)).collect()
        });
        Ok(WorkersSummary { by_queue, elapsed: started.elapsed() })
    }

    fn validate(&self) -> Result<(), Error> {
        if self.parts.is_empty() {
            return Err(Error::setting("workers", "none was added; add one for each queue"));
        }
        self.rate.as_ref().map_or(Ok(()), |rate| rate.validate())?;
        self.parts.iter().try_for_each(|part| part.worker.validate())?;
        self.limits.validate()?;
        self.parts.iter().try_for_each(|part| self.refuse_two_limits(part))
    }

    /// The limits of all together are one budget, which would replace that of a worker.
    fn refuse_two_limits(&self, part: &Part) -> Result<(), Error> {
        let own = part.worker.limits();
        let has_shared = !self.limits.is_unlimited();
        for (setting, is_set_twice) in [
            ("max tasks", has_shared && own.tasks.is_some()),
            ("max dead", has_shared && own.dead.is_some()),
            ("rate", self.rate.is_some() && part.worker.rate.is_some()),
        ] {
            if is_set_twice {
                let queue = part.queue();
                let reason = format!(
                    "the worker of '{queue}' has its own, which a limit of all workers together \
                     would replace; set limits for all together, or for each worker"
                );
                return Err(Error::setting(setting, reason));
            }
        }
        Ok(())
    }

    /// What each worker shares with the others.
    fn shares(&self) -> Vec<Shares> {
        let count = self.parts.len();
        let budgets = if self.limits.is_unlimited() {
            self.parts.iter().map(|it| TaskBudget::new(it.worker.limits())).collect()
        } else {
            TaskBudget::shared(self.limits, count)
        };
        let drains = |part: &&Part| part.worker.settings.until == RunUntil::Drained;
        let mut seats = DrainSeat::group(self.parts.iter().filter(drains).count()).into_iter();
        let seat = |part: &Part| Some(part).filter(drains).and_then(|_| seats.next());
        let seats = self.parts.iter().map(seat);
        let share =
            |(budget, seat): (_, Option<_>)| Shares { budget, drain: seat.unwrap_or_default() };
        budgets.into_iter().zip(seats).map(share).collect()
    }
}

impl Part {
    fn queue(&self) -> &str {
        self.worker.settings.queue.name()
    }

    fn run(self, shutdown: &Shutdown, shares: Shares) -> QueueSummary {
        let queue = self.queue().to_string();
        let seat = shares.drain.clone();
        let ended = self.worker.run_sharing(self.handler, shutdown, shares);
        seat.end();
        let (summary, error) = match ended {
            Ok((summary, refused)) => (summary, refused),
            Err(error) => (self.worker.last_summary().unwrap_or_else(nothing_done), Some(error)),
        };
        QueueSummary { queue, summary, error }
    }
}

fn log_error(QueueSummary { queue, error, .. }: &QueueSummary) {
    if let Some(error) = error {
        error!("queue '{queue}' is no longer worked: {}", error.chain());
    }
}

fn join(queue: String, thread: io::Result<ScopedJoinHandle<'_, QueueSummary>>) -> QueueSummary {
    match thread.map(ScopedJoinHandle::join) {
        Ok(Ok(summary)) => summary,
        Ok(Err(panicked)) => resume_unwind(panicked),
        Err(source) => {
            let error = Some(Error::NoThread { source });
            QueueSummary { queue, summary: nothing_done(), error }
        }
    }
}

/// The summary of a worker that could not begin.
fn nothing_done() -> Summary {
    Tally::default().sum_up(0, Duration::ZERO, StopReason::Failed)
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers: Vec<&Worker> = self.parts.iter().map(|part| &part.worker).collect();
        f.debug_struct("Workers")
            .field("workers", &workers)
            .field("max_tasks", &self.limits.tasks)
            .field("max_dead", &self.limits.dead)
            .field("rate", &self.rate)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::handler::Delivery;
    use crate::model::queue::Queue;

    /// Of which setting two limits are refused.
    fn refused(worker: impl Fn(Worker) -> Worker, workers: Workers) -> Option<&'static str> {
        let broker = "amqp://localhost".parse().expect("an address");
        let worker = worker(Worker::new(&broker, &Queue::new("mail")));
        match workers.add(worker, |_: &Delivery| Ok(())).validate() {
            Err(Error::InvalidSetting { setting, reason }) => {
                assert!(reason.contains("the worker of 'mail' has its own"), "{reason}");
                Some(setting)
            }
            _ => None,
        }
    }

    #[test]
    fn a_limit_that_one_of_all_workers_would_replace_is_refused() {
        let limited = || Workers::new().max_tasks(9);
        assert_eq!(refused(|it| it.max_tasks(1), limited()), Some("max tasks"));
        assert_eq!(refused(|it| it.max_dead(1), limited()), Some("max dead"));
        assert_eq!(refused(|it| it.max_tasks(1), Workers::new().max_dead(9)), Some("max tasks"));
        let minute = Duration::from_secs(60);
        assert_eq!(refused(|it| it.rate(1, minute), Workers::new().rate(9, minute)), Some("rate"));
        assert_eq!(refused(|it| it.rate(1, minute), limited()), None);
        assert_eq!(refused(|it| it.max_tasks(1).max_dead(1), Workers::new()), None);
        assert_eq!(refused(|it| it, limited().rate(9, minute)), None);
    }
}
