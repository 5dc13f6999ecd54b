//! [`Worker`]: its settings, and one run of it from start to end.

pub(crate) mod consumer;
pub(crate) mod drain;
pub(crate) mod drain_group;
pub(crate) mod event;
pub(crate) mod health;
pub(crate) mod in_flight;
pub(crate) mod job;
pub(crate) mod journal;
pub(crate) mod kept;
pub(crate) mod late;
pub(crate) mod pool;
pub(crate) mod rate;
pub(crate) mod republish;
pub(crate) mod run_context;
pub(crate) mod session;
pub(crate) mod session_events;
pub(crate) mod sessions;
pub(crate) mod summary;
#[cfg(feature = "json")]
mod summary_json;
pub(crate) mod supervision;
pub(crate) mod supervisor;
pub(crate) mod task_budget;
pub(crate) mod workers;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::amqp::channel::Acks;
use crate::model::broker::Broker;
use crate::model::connection_name::WORKER;
use crate::model::error::Error;
use crate::model::handler::Handler;
use crate::model::queue::Queue;
use crate::model::retry::RetryPolicy;
use crate::util::host::host_name;
use crate::util::shutdown::{Shutdown, Signal};
use crate::worker::drain_group::DrainSeat;
use crate::worker::event::{Event, Observer};
use crate::worker::health::Health;
use crate::worker::journal::Journal;
use crate::worker::late::LateTasks;
use crate::worker::pool::{HandlerPool, WaitLimit};
use crate::worker::rate::StartRate;
use crate::worker::run_context::{Cancellation, RunContext, RunUntil, Settings};
use crate::worker::session::Session;
use crate::worker::sessions::{Reconnect, RunEnd, run_sessions};
use crate::worker::summary::{StopReason, Summary};
use crate::worker::task_budget::{RunLimits, TaskBudget};

/// Works the tasks of one queue with several threads.
///
/// Each worker thread consumes on a channel of its own and acks there, after the handler
/// returned. When the connection dies, a new one is made after a growing pause of 0.5 to 10 s.
///
/// # What becomes of a task
///
/// | situation | what happens |
/// |---|---|
/// | the handler returns `Ok` | acked |
/// | it returns `Ok` and has asked for [follow-ups](crate::Delivery::follow_up) | they are published, confirmed, then it is acked; if one is not confirmed, it is requeued after a pause, uncounted |
/// | it returns [`Failure::Retry`](crate::Failure::Retry), or panics | published to a delay queue, confirmed, then acked; it comes back after the delay, until it has failed as often as the [`RetryPolicy`] allows |
/// | it returns [`Failure::Defer`](crate::Failure::Defer) | the same, but its attempts do not grow; it is a dead letter once it is deferred more often than [`RetryPolicy::max_defers`](crate::RetryPolicy::max_defers) allows |
/// | it returns [`Failure::Reject`](crate::Failure::Reject), or has failed too often | published to the dead letters (`NAME.dead`) with the reason in its headers, confirmed, then acked |
/// | that publish is not confirmed | requeued after a pause, and the failure does not count. The pause is 1 s and doubles with each in a row of that thread, up to 60 s. The thread goes on with other tasks meanwhile. It requeues those that it keeps together: once it has done another task, or if no other came, or after 10 min. It keeps up to 20,000, and then takes no others |
/// | it runs longer than the broker waits for an ack (`consumer_timeout`) | it runs on, but its result is not acked, and its thread consumes again afterwards. When this worker receives the task again, and the task has an id, that counts as a failed attempt, once for each time. If it comes again while it still runs here, it is requeued after a pause. Another worker process runs it, uncounted |
/// | it returns [`Failure::StopWorker`](crate::Failure::StopWorker) | requeued, uncounted, and the worker ends |
/// | prefetched but not started at a stop | requeued at once. If there are more than 1,000 on all threads together, a thread requeues its own when its task has ended |
/// | still running when the grace ends | cancelled ([`Delivery::cancelled`](crate::Delivery::cancelled)), and requeued when it has ended or its time for that is over ([`Handler::cancel_timeout`]); its thread is then left running |
/// | the connection or the process died | the broker requeues it; it may run twice |
///
/// Delay queues are called `NAME.retry.MILLISECONDS`. They are declared when a task has to wait, and
/// the broker deletes them after a week without use. They change nothing about the queue itself.
///
/// Failures are counted, crashes are not. On a classic queue, a task that kills its worker each time
/// comes back for ever; a quorum queue has a [delivery limit](Queue::delivery_limit).
///
/// **At least once: a task runs again when its ack does not reach the broker.** Make the work
/// such that doing it twice does no harm.
#[derive(Clone, Debug)]
pub struct Worker {
    broker: Broker,
    settings: Settings,
    threads: usize,
    reconnect: Reconnect,
    max_tasks: Option<u64>,
    max_dead: Option<u64>,
    rate: Option<Arc<StartRate>>,
    observer: Observer,
    health: Health,
    last_summary: Arc<Mutex<Option<Summary>>>,
}

/// What a worker may share with other workers of its program.
struct Shares {
    budget: (TaskBudget, Signal),
    drain: DrainSeat,
}

/// The most channels RabbitMQ allows on a connection by default (`channel_max`).
const MOST_THREADS: usize = 2047;

impl Worker {
    /// A worker of this queue.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Worker {
        Worker {
            broker: broker.for_role(WORKER, queue.name()),
            settings: Settings::new(queue, host_name()),
            threads: thread::available_parallelism().map_or(1, usize::from),
            reconnect: Reconnect::Always,
            max_tasks: None,
            max_dead: None,
            rate: None,
            observer: Observer::default(),
            health: Health::default(),
            last_summary: Arc::default(),
        }
    }

    /// Sets how many tasks run at a time, each in a thread and on a channel of its own, 1 to
    /// 2047. Default: the number of processors.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Worker {
        self.threads = threads;
        self
    }

    /// Sets how many unacked tasks each thread may have. 1 is fair dispatch: a thread gets a task
    /// when it has none. 0 is no limit: plain round-robin, but a whole queue may be held in memory.
    /// Default: 1.
    ///
    /// Source: <https://www.rabbitmq.com/docs/consumer-prefetch>.
    #[must_use]
    pub fn prefetch(mut self, prefetch: u16) -> Worker {
        self.settings.prefetch = prefetch;
        self
    }

    /// Has the broker count a task as done when it sends it: **at most once**. A worker that dies or
    /// stops loses everything that it has received and not finished. For comparison with what this
    /// crate is for. Default: acks after the work.
    #[must_use]
    pub fn auto_ack(mut self) -> Worker {
        self.settings.acks = Acks::Automatic;
        self
    }

    /// Sets how long running tasks may go on after a stop was asked for. Default: 30 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Worker {
        self.settings.grace = grace;
        self
    }

    /// Sets how often a failed or deferred task is tried again, and when. Default: five attempts, 5 s,
    /// 10 s, 20 s and 45 s apart; 1000 deferrals of 60 s.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Worker {
        self.settings.policy = policy;
        self
    }

    /// Ends once there is nothing left to do: the queue and its delay queues are empty, and
    /// everything that this worker took is settled. It checks once a second, on a channel of its
    /// own. It does not wait for tasks that another worker still runs; if one of those fails, the
    /// other worker has to finish it. Default: works until it is stopped.
    #[must_use]
    pub fn drain(mut self) -> Worker {
        self.settings.until = RunUntil::Drained;
        self
    }

    /// Ends with an error when no broker is reached or the connection is lost. Default:
    /// connect again, for ever.
    #[must_use]
    pub fn no_reconnect(mut self) -> Worker {
        self.reconnect = Reconnect::Never;
        self
    }

    /// Sets the longest pause between a lost connection, or a failed try to connect, and the next try. The
    /// pauses grow from 0.5 s up to it. Default: 10 s.
    #[must_use]
    pub fn longest_pause(mut self, longest: Duration) -> Worker {
        self.settings.longest_pause = longest;
        self
    }

    /// Ends when this many tasks were started and are finished. A task that could not be tried
    /// ([`Failure::Requeue`](crate::Failure::Requeue)) counts only if the last one was started
    /// meanwhile: then fewer are run, and the end waits for its pause. Default: no limit.
    #[must_use]
    pub fn max_tasks(mut self, limit: u64) -> Worker {
        self.max_tasks = Some(limit);
        self
    }

    /// Ends once this worker has made this many dead letters. Running tasks are finished, and may add
    /// some more. Default: no limit.
    #[must_use]
    pub fn max_dead(mut self, limit: u64) -> Worker {
        self.max_dead = Some(limit);
        self
    }

    /// Starts at most `tasks` tasks in each `per`, in all threads of this worker and its clones together.
    /// The starts are spread evenly, `per / tasks` apart. A task that waits for its start is unacked, so
    /// let each thread start one within the broker's `consumer_timeout` (30 minutes). At a stop it is
    /// requeued at once. Default: no limit.
    #[must_use]
    pub fn rate(mut self, tasks: u32, per: Duration) -> Worker {
        self.rate = Some(Arc::new(StartRate::new(tasks, per)));
        self
    }

    /// Calls `observer` for each thing that happens to a task or to a session. It is called from the worker's threads,
    /// which wait for it; a panic in it is logged. Default: none.
    #[must_use]
    pub fn observer(mut self, observer: impl Fn(&Event) + Send + Sync + 'static) -> Worker {
        self.observer = Observer(Some(Arc::new(observer)));
        self
    }

    /// The state of this worker's threads, to be checked from another thread while it runs.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Works until `shutdown` asks to stop, [`max_tasks`](Worker::max_tasks) are done,
    /// [`max_dead`](Worker::max_dead) are dead, or the handler returns
    /// [`Failure::StopWorker`](crate::Failure::StopWorker).
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for settings that do not fit. On the first connection, any error
    /// that a person has to act on: [`Error::LoginRefused`], [`Error::VhostRefused`],
    /// [`Error::QueueMissing`], [`Error::QueueMismatch`], [`Error::QueueRefused`], [`Error::Tls`].
    /// Later only [`Error::Poisoned`], and with [`no_reconnect`](Worker::no_reconnect) the error that
    /// ended the session. [`last_summary`](Worker::last_summary) says what was done until then.
    ///
    /// # Blocking
    /// Until then. After a stop: while tasks run, at most for the grace, and some 5 s more for a broker
    /// that does not answer. On a slow line, tasks in transit may take up to a minute more; they are
    /// requeued. After [`abort`](crate::Trigger::abort), about 1 s. To both comes the time that
    /// cancelled handlers take, at most [`Handler::cancel_timeout`]. Handlers that still run then are
    /// left running in their threads.
    pub fn run(
        &self,
        handler: impl Handler + 'static,
        shutdown: &Shutdown,
    ) -> Result<Summary, Error> {
        self.validate()?;
        let budget = TaskBudget::new(self.limits());
        let shares = Shares { budget, drain: DrainSeat::default() };
        self.run_sharing(Box::new(handler), shutdown, shares).map(|(summary, _)| summary)
    }

    /// Runs with valid settings. Returns also why the broker refused the last session, if it did and
    /// a stop was asked for before the next.
    fn run_sharing(
        &self,
        handler: Box<dyn Handler>,
        shutdown: &Shutdown,
        shares: Shares,
    ) -> Result<(Summary, Option<Error>), Error> {
        let started = Instant::now();
        let threads = self.threads_needed(&shares.budget.0);
        let run = Arc::new(self.run_context(handler, shutdown, shares));
        self.health.expect(threads);
        let pool = HandlerPool::new(threads, &run);
        let end = run_sessions(&Session { run: &run, pool: &pool, shutdown }, self.reconnect);
        let at_once = |_: &Error| WaitLimit::Until(Instant::now());
        let limit = end.as_ref().map_or_else(at_once, |end| end.wait_limit);
        let running = pool.join(&run, limit, shutdown);
        let cancelled = running + run.journal.all_cancelled();
        let reason = |end: &RunEnd| end.reason(shutdown, &run.budget, cancelled);
        let ended = end.as_ref().map_or(StopReason::Failed, reason);
        let summary = run.journal.sum_up(running, started.elapsed(), ended);
        *self.last_summary.lock().unwrap_or_else(PoisonError::into_inner) = Some(summary);
        end.map(|end| (summary, end.refused))
    }

    /// The summary of the last run that has ended, with or without an error; `None` before the first.
    /// Clones share it.
    #[must_use]
    pub fn last_summary(&self) -> Option<Summary> {
        *self.last_summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_context(
        &self,
        handler: Box<dyn Handler>,
        shutdown: &Shutdown,
        shares: Shares,
    ) -> RunContext {
        let Shares { budget: (budget, exhausted), drain } = shares;
        RunContext {
            broker: self.broker.clone(),
            settings: self.settings.clone(),
            handler,
            budget: Arc::new(budget),
            exhausted,
            rate: self.rate.clone(),
            cancellation: Cancellation::new(shutdown.killing()),
            journal: Journal::new(self.observer.clone(), self.settings.host.clone()),
            health: self.health.clone(),
            late_tasks: LateTasks::default(),
            drain,
        }
    }

    fn limits(&self) -> RunLimits {
        RunLimits { tasks: self.max_tasks, dead: self.max_dead }
    }

    /// No more threads than tasks: a thread without a task could only hold a delivery that it must
    /// requeue.
    fn threads_needed(&self, budget: &TaskBudget) -> usize {
        let most = budget.left().and_then(|most| usize::try_from(most).ok());
        self.threads.min(most.unwrap_or(usize::MAX))
    }

    fn validate(&self) -> Result<(), Error> {
        self.settings.queue.validate()?;
        self.settings.policy.validate()?;
        if self.settings.acks == Acks::Manual {
            self.settings.queue.validate_for_delays()?;
        }
        if !(1..=MOST_THREADS).contains(&self.threads) {
            return Err(Error::setting(
                "threads",
                format!("{} is not within 1 to {MOST_THREADS}", self.threads),
            ));
        }
        self.rate.as_ref().map_or(Ok(()), |rate| rate.validate())?;
        self.limits().validate()
    }
}
