//! Owns [`Worker`]: the settings of a worker, and the sessions it runs one after the other until
//! it is told to stop.

pub(crate) mod consumer;
pub(crate) mod drain;
pub(crate) mod event;
pub(crate) mod health;
pub(crate) mod late;
pub(crate) mod pool;
pub(crate) mod refused;
pub(crate) mod republish;
pub(crate) mod session;
pub(crate) mod summary;

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, warn};

use crate::amqp::channel::Acks;
use crate::amqp::connect;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::handler::Handler;
use crate::model::queue::Queue;
use crate::model::retry::RetryPolicy;
use crate::util::backoff::Backoff;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Shutdown, is_closed};
use crate::worker::event::{Event, Observer};
use crate::worker::health::Health;
use crate::worker::pool::{Cancellation, Crew, Patience, Tickets, Work};
use crate::worker::session::{Course, RunUntil, Session, SessionEnd, Settings};
use crate::worker::summary::{StopReason, Summary, Tally};

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
/// | it returns [`Failure::Retry`](crate::Failure::Retry), or panics | published to a delay queue, confirmed, then acked; it comes back after the delay, until it has failed as often as the [`RetryPolicy`] allows |
/// | it returns [`Failure::Reject`](crate::Failure::Reject), or has failed too often | published to the dead letters (`NAME.dead`) with the reason in its headers, confirmed, then acked |
/// | that publish is not confirmed | given back after a pause of 1 s, doubling with each in a row of that thread, up to 60 s; the failure is not counted. The thread goes on with other tasks meanwhile, and gives those that it keeps back together, once it has done another task, or no other came, or after 10 min; it keeps up to 500, and then takes no others |
/// | it runs longer than the broker waits for an ack (`consumer_timeout`) | it goes on, its result is not acked, and its thread consumes again after it; when this worker gets the task again, and it has an id, that counts as a failed attempt, once for each time; if it comes once more while it still runs here, it goes back after a pause. Another worker process runs it, uncounted |
/// | it returns [`Failure::StopWorker`](crate::Failure::StopWorker) | given back, uncounted, and the worker ends |
/// | prefetched but not started at a stop | given back at once; if there are more than 1,000 on all threads together, those of a thread when its task has ended |
/// | still running when the grace ends | cancelled ([`Delivery::cancelled`](crate::Delivery::cancelled)), and given back when it has ended, or when its time for that is over ([`Handler::cancel_timeout`]); its thread is then left to itself |
/// | the connection or the process died | the broker requeues it; it may run twice |
///
/// Delay queues are called `NAME.retry.MILLISECONDS`; they appear when a task has to wait and go
/// when they were not used for a week. The queue itself is declared as without them. Failures are counted, crashes are not: on a classic queue, a task that kills
/// its worker each time comes back for ever; a quorum queue has a
/// [delivery limit](Queue::delivery_limit).
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
    observer: Observer,
    health: Health,
    last_summary: Arc<Mutex<Option<Summary>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reconnect {
    Always,
    Never,
}

/// The most channels RabbitMQ allows on a connection by default (`channel_max`).
const MOST_THREADS: usize = 2047;

/// A session shorter than this did not hold: the next pause goes on growing.
const HELD: Duration = Duration::from_secs(10);

/// This many sessions in a row that died of bytes that cannot be parsed, after they began to
/// consume, are not the network's fault. A new row begins where one held and got something done,
/// not where it merely held: a thread that is busy with a task of an earlier session does not meet
/// the message, so sessions may last while nothing is ever done. What is done was before the
/// message, behind which nothing is delivered: that comes to an end.
const POISONED_AFTER: u32 = 3;

impl Worker {
    /// A worker of this queue.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Worker {
        let settings = Settings {
            queue: queue.clone(),
            prefetch: 1,
            acks: Acks::Manual,
            grace: Duration::from_secs(30),
            policy: RetryPolicy::new(),
            until: RunUntil::Stopped,
            host: host_name(),
        };
        Worker {
            broker: broker.clone(),
            settings,
            threads: thread::available_parallelism().map_or(1, usize::from),
            reconnect: Reconnect::Always,
            max_tasks: None,
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

    /// Sets how many tasks each thread may hold unsettled. 1 is fair dispatch: a thread gets a
    /// task when it has none. 0 is no limit: plain round-robin, at the price that a whole queue
    /// may be held in memory. Default: 1.
    ///
    /// Source: <https://www.rabbitmq.com/docs/consumer-prefetch>.
    #[must_use]
    pub fn prefetch(mut self, prefetch: u16) -> Worker {
        self.settings.prefetch = prefetch;
        self
    }

    /// Has the broker count a task as done when it sends it: **at most once**. A worker that
    /// dies or stops loses everything it was sent and has not finished. For comparison with
    /// what this crate is for. Default: acks after the work.
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

    /// Sets how often a failed task is tried again, and when. Default: five attempts, 5 s, 10 s,
    /// 20 s and 45 s apart.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Worker {
        self.settings.policy = policy;
        self
    }

    /// Ends once there is nothing left to do: the queue and its delay queues are empty, and
    /// everything that this worker took is settled. Looks once a second, on a channel of its
    /// own. What another worker still runs does not count; when that fails, it is the other's
    /// to finish. Default: works until it is stopped.
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

    /// Ends after this many tasks were started, when they are finished. One that could not be
    /// tried ([`Failure::Requeue`](crate::Failure::Requeue)) counts only where the last was
    /// started meanwhile: then fewer are run, and the end waits for its pause. Default: no limit.
    #[must_use]
    pub fn max_tasks(mut self, limit: u64) -> Worker {
        self.max_tasks = Some(limit);
        self
    }

    /// Has `observer` told what happens to each task. It is called from the worker's threads
    /// and holds them up while it runs; a panic in it is logged. Default: none.
    #[must_use]
    pub fn observer(mut self, observer: impl Fn(&Event) + Send + Sync + 'static) -> Worker {
        self.observer = Observer(Some(Arc::new(observer)));
        self
    }

    /// A look at the threads of this worker, to be taken from another thread while it runs.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Works until `shutdown` asks to stop, as many tasks as allowed have been done, or the
    /// handler says that none can be.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for settings that do not fit. On the first connection,
    /// whatever a person has to act on: [`Error::LoginRefused`], [`Error::VhostRefused`],
    /// [`Error::QueueMissing`], [`Error::QueueMismatch`], [`Error::QueueRefused`], [`Error::Tls`].
    /// Later only [`Error::Poisoned`], and with [`no_reconnect`](Worker::no_reconnect) whatever ended the
    /// session; [`last_summary`](Worker::last_summary) tells what was done until then.
    ///
    /// # Blocking
    /// Until then. After a stop: while tasks run, at most for the grace, and some 5 s more for
    /// a broker that does not answer; also while tasks are still coming on a slow line, which go
    /// back, for a minute at most. After [`abort`](crate::Trigger::abort), about 1 s. To
    /// both comes the time that cancelled handlers take, at most [`Handler::cancel_timeout`].
    /// Handlers that are still running then are left behind in their threads.
    pub fn run(
        &self,
        handler: impl Handler + 'static,
        shutdown: &Shutdown,
    ) -> Result<Summary, Error> {
        self.validate()?;
        let started = Instant::now();
        let (tickets, exhausted) = Tickets::new(self.max_tasks);
        let work = Work {
            handler: Arc::new(handler),
            tickets: Arc::new(tickets),
            tally: Arc::new(Tally::default()),
            observer: self.observer.clone(),
            health: self.health.clone(),
            cancellation: Arc::new(Cancellation::new(shutdown.killing())),
            late: Arc::default(),
        };
        let threads = self.threads_needed();
        self.health.expect(threads);
        let crew = Crew::start(threads, &work)?;
        let session = Session {
            broker: &self.broker,
            settings: &self.settings,
            work: &work,
            crew: &crew,
            shutdown,
            exhausted: &exhausted,
        };
        let finish = self.run_sessions(&session);
        let at_once = |_: &Error| Patience::Until(Instant::now());
        let patience = finish.as_ref().map_or_else(at_once, |finish| finish.patience);
        let running = crew.end(&work, patience, shutdown);
        let unfinished = running + work.tally.all_cancelled();
        let ended = match &finish {
            Ok(finish) => finish.ended(shutdown, &work.tickets, unfinished),
            Err(_) => StopReason::Failed,
        };
        let summary = work.tally.sum_up(running, started.elapsed(), ended);
        *self.last_summary.lock().unwrap_or_else(PoisonError::into_inner) = Some(summary);
        finish.map(|_| summary)
    }

    /// What the last run did that has ended, also where it ended with an error; `None` before.
    /// Clones share it.
    #[must_use]
    pub fn last_summary(&self) -> Option<Summary> {
        *self.last_summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that takes no task would only hold one that it has to give back.
    fn threads_needed(&self) -> usize {
        let most =
            self.max_tasks.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        self.threads.min(most)
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
        if self.max_tasks == Some(0) {
            return Err(Error::setting("max tasks", "0 would never start any"));
        }
        Ok(())
    }

    fn run_sessions(&self, session: &Session<'_>) -> Result<Finish, Error> {
        let mut history = History::new();
        loop {
            let error = match self.run_session(session, &mut history) {
                Ok(Some(finish)) => return Ok(finish),
                Ok(None) => continue,
                Err(error) => error,
            };
            if is_closed(session.exhausted) {
                warn!("{}", error.chain());
                return Ok(self.finished(By::Limit, None));
            }
            if self.gives_up(&error, &history) {
                return Err(error);
            }
            if history.is_poisoned() {
                let queue = self.settings.queue.name().to_string();
                return Err(Error::Poisoned { queue });
            }
            let pause = history.backoff.next_pause();
            error!("{}; next try in {:.1} s", error.chain(), pause.as_secs_f64());
            if session.shutdown.wait(pause) {
                return Ok(self.stopped_now());
            }
        }
    }

    /// `None`: go on with another.
    fn run_session(
        &self,
        session: &Session<'_>,
        history: &mut History,
    ) -> Result<Option<Finish>, Error> {
        let opened = connect::open(&self.broker, session.shutdown.stopping())?;
        let Some(connection) = opened else { return Ok(Some(self.stopped_now())) };
        let began = Instant::now();
        let settled_before = session.work.tally.settled();
        let course = session.run(connection, history.unnoticed);
        let settled = session.work.tally.settled() - settled_before;
        history.note(&course, began.elapsed(), settled);
        match course.end {
            SessionEnd::Stopped => Ok(Some(self.finished(By::Stop, course.deadline))),
            SessionEnd::Exhausted => Ok(Some(self.finished(By::Limit, course.deadline))),
            SessionEnd::Drained => Ok(Some(self.finished(By::Drain, course.deadline))),
            SessionEnd::Again => Ok(None),
            SessionEnd::Lost(error) => Err(error),
        }
    }

    fn gives_up(&self, error: &Error, history: &History) -> bool {
        self.reconnect == Reconnect::Never || !(error.is_transient() || history.ever_consumed)
    }

    fn stopped_now(&self) -> Finish {
        self.finished(By::Stop, Some(deadline_after(self.settings.grace)))
    }

    /// With a deadline if a stop was asked for. Without, what still runs of an earlier session is
    /// finished.
    fn finished(&self, by: By, deadline: Option<Instant>) -> Finish {
        let until_stopped = Patience::AfterStop(self.settings.grace);
        Finish { patience: deadline.map_or(until_stopped, Patience::Until), by }
    }
}

/// The name of this machine, as its kernel tells it.
fn host_name() -> String {
    let told = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    let name = told.unwrap_or_default().trim().to_string();
    if name.is_empty() { "unknown".into() } else { name }
}

/// How the last session ended, and how long what still runs may go on.
struct Finish {
    patience: Patience,
    by: By,
}

enum By {
    Stop,
    Limit,
    Drain,
}

impl Finish {
    /// What ended it; `unfinished` tasks had to be cancelled for that.
    fn ended(&self, shutdown: &Shutdown, tickets: &Tickets, unfinished: usize) -> StopReason {
        match self.by {
            By::Limit if unfinished == 0 && tickets.are_void() => StopReason::HandlerStopped,
            By::Limit if unfinished == 0 => StopReason::MaxTasks,
            By::Drain if unfinished == 0 => StopReason::Drained,
            _ if shutdown.is_aborting() => StopReason::Aborted,
            _ if unfinished > 0 => StopReason::GraceExceeded,
            _ => StopReason::Stopped,
        }
    }
}

/// What the sessions so far tell about the next.
struct History {
    ever_consumed: bool,
    backoff: Backoff,
    malformed_in_a_row: u32,
    /// Until when the broker may keep tasks for a connection that was lost.
    unnoticed: Option<Instant>,
}

impl History {
    fn new() -> History {
        History {
            ever_consumed: false,
            backoff: Backoff::of_a_worker(),
            malformed_in_a_row: 0,
            unnoticed: None,
        }
    }

    /// Notes how a session went, how long it lasted, and how many tasks it settled.
    fn note(&mut self, course: &Course, lasted: Duration, settled: u64) {
        self.ever_consumed |= course.consumed;
        self.unnoticed = self.unnoticed.max(course.unnoticed);
        let held = course.consumed && lasted >= HELD;
        if held {
            self.backoff = Backoff::of_a_worker();
        }
        if held && settled > 0 {
            self.malformed_in_a_row = 0;
        }
        match &course.end {
            SessionEnd::Lost(error) if course.consumed && error.is_malformed() => {
                self.malformed_in_a_row += 1;
            }
            _ => self.malformed_in_a_row = 0,
        }
    }

    fn is_poisoned(&self) -> bool {
        self.malformed_in_a_row >= POISONED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::close_reason::CloseReason;

    const SHORT: Duration = Duration::from_secs(1);

    fn died(cause: CloseReason) -> Course {
        let end = SessionEnd::Lost(Error::session_lost("b:5672", cause));
        Course { consumed: true, unnoticed: None, deadline: None, end }
    }

    /// After which of these sessions, each so long and with so many tasks settled, all of which
    /// die of the same message, the worker gives up.
    fn poisoned_at(sessions: &[(Duration, u64)]) -> Option<usize> {
        let mut history = History::new();
        let mut sessions = sessions.iter();
        sessions.position(|(lasted, settled)| {
            history.note(&died(CloseReason::Malformed("poison".into())), *lasted, *settled);
            history.is_poisoned()
        })
    }

    #[test]
    fn the_third_session_in_a_row_that_dies_of_a_message_is_the_last() {
        assert_eq!(poisoned_at(&[(SHORT, 0); 5]), Some(2));
        assert_eq!(poisoned_at(&[(SHORT, 7); 5]), Some(2), "short tasks before the message");
        assert_eq!(poisoned_at(&[(HELD * 2, 0); 5]), Some(2), "long tasks that are never done");
        assert_eq!(poisoned_at(&[(HELD * 2, 0), (SHORT, 0), (HELD * 2, 0)]), Some(2));
    }

    #[test]
    fn a_session_that_held_and_got_something_done_begins_a_new_row() {
        assert_eq!(poisoned_at(&[(HELD, 1); 5]), None);
        assert_eq!(poisoned_at(&[(SHORT, 0), (SHORT, 0), (HELD, 1), (SHORT, 0)]), None);
    }

    #[test]
    fn a_session_that_dies_of_something_else_begins_a_new_row() {
        let mut history = History::new();
        for cause in [CloseReason::Malformed("poison".into()), CloseReason::Disconnected]
            .into_iter()
            .cycle()
            .take(9)
        {
            history.note(&died(cause), SHORT, 0);
            assert!(!history.is_poisoned());
        }
    }
}
