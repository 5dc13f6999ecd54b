//! Owns the threads that run the handler. They outlive sessions: a task that is still running
//! when its connection dies keeps one thread busy and no other, and the rest consume again as
//! soon as the broker is back.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, bounded, select_biased};
use log::{error, warn};

use crate::amqp::heartbeat::Heartbeat;
use crate::model::error::Error;
use crate::model::handler::{Delivery, Failure, Handler};
use crate::util::deadline::deadline_after;
use crate::util::panic::caught;
use crate::util::shutdown::{Closer, Shutdown, Signal, closer, is_closed};
use crate::worker::event::{Event, EventKind, Observer};
use crate::worker::health::Health;
use crate::worker::late::LateTasks;
use crate::worker::summary::Tally;

/// One consumer's claim on a runner: jobs in, results out, until either side lets go.
pub(crate) struct Assignment {
    pub(crate) jobs: Receiver<Job>,
    pub(crate) results: Sender<Ran>,
    /// How many results must not be kept waiting for more, and who is told of it.
    pub(crate) enough: usize,
    pub(crate) tell_enough: Sender<()>,
    /// Once closed, no further job of this assignment is started.
    pub(crate) shut: Signal,
    /// Where the broker is heard that the jobs came from.
    pub(crate) heartbeat: Heartbeat,
}

/// A delivery for the handler, with the tag that its consumer settles it by.
pub(crate) struct Job {
    pub(crate) tag: u64,
    pub(crate) delivery: Delivery,
}

/// What became of a job.
pub(crate) struct Ran {
    pub(crate) job: Job,
    pub(crate) result: JobResult,
    pub(crate) elapsed: Duration,
}

pub(crate) enum JobResult {
    NotStarted,
    Done,
    Failed(Failure),
}

/// All runners of one worker.
pub(crate) struct Crew {
    runners: Vec<Runner>,
    threads: Vec<JoinHandle<()>>,
    busy: Arc<AtomicUsize>,
    /// Told when the last running task has ended after it was cancelled.
    idle: Receiver<()>,
    /// Disconnects when the last runner has ended.
    ended: Receiver<Infallible>,
}

/// The way to one runner. An assignment is taken only when the runner is idle.
pub(crate) struct Runner {
    pub(crate) number: usize,
    pub(crate) assignments: Sender<Assignment>,
}

/// How long the last running tasks may go on.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    Until(Instant),
    /// Until they end by themselves, or for this long from a stop on.
    AfterStop(Duration),
}

/// How many tasks may still be started, and how many of those no consumer has taken yet or has
/// made room for.
pub(crate) struct Tickets {
    left: Option<AtomicU64>,
    unclaimed: AtomicU64,
    void: AtomicBool,
    exhausted: Closer,
}

/// What every runner needs.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) observer: Observer,
    pub(crate) cancellation: Arc<Cancellation>,
    pub(crate) health: Health,
    pub(crate) late: Arc<LateTasks>,
}

impl Work {
    /// How long the handler's tasks take to end once they are cancelled.
    pub(crate) fn cancel_timeout(&self) -> Duration {
        caught(|| self.handler.cancel_timeout()).unwrap_or_else(|panicked| {
            warn!("the handler's cancel_timeout {panicked}");
            Duration::ZERO
        })
    }
}

/// The end of all patience with what still runs, once for a whole run of a worker.
pub(crate) struct Cancellation {
    cancel: Closer,
    /// When that was.
    at: OnceLock<Instant>,
    pub(crate) cancelled: Signal,
    pub(crate) killed: Signal,
}

struct Running {
    work: Work,
    busy: Arc<AtomicUsize>,
    idle: Sender<()>,
}

impl Cancellation {
    pub(crate) fn new(killed: &Signal) -> Cancellation {
        let (cancel, cancelled) = closer();
        Cancellation { cancel, at: OnceLock::new(), cancelled, killed: killed.clone() }
    }

    /// Returns when it was first called.
    pub(crate) fn cancel(&self) -> Instant {
        let at = *self.at.get_or_init(Instant::now);
        self.cancel.close();
        at
    }
}

impl Crew {
    pub(crate) fn start(size: usize, work: &Work) -> Result<Crew, Error> {
        let busy = Arc::new(AtomicUsize::new(0));
        let (alive, ended) = bounded(0);
        let (tell_idle, idle) = bounded(1);
        let mut crew = Crew { runners: Vec::new(), threads: Vec::new(), busy, idle, ended };
        for number in 1..=size {
            let (assignments, inbox) = bounded(0);
            let running = Running {
                work: work.clone(),
                busy: Arc::clone(&crew.busy),
                idle: tell_idle.clone(),
            };
            let alive: Sender<Infallible> = alive.clone();
            let thread = thread::Builder::new()
                .name(format!("rw-runner-{number}"))
                .spawn(move || {
                    running.run(&inbox);
                    drop(alive);
                })
                .map_err(|source| Error::NoThread { source })?;
            crew.runners.push(Runner { number, assignments });
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    pub(crate) fn runners(&self) -> &[Runner] {
        &self.runners
    }

    /// Cancels what runs, and returns what is told when the last of it has ended; `None` when
    /// nothing runs.
    pub(crate) fn cancel(&self, work: &Work) -> Option<&Receiver<()>> {
        work.cancellation.cancel();
        (self.busy.load(Ordering::SeqCst) > 0).then_some(&self.idle)
    }

    /// Lets the runners go, and waits for those that still run a task as long as `patience` says,
    /// at most until an abort; then cancels those. Returns how many were left behind; their
    /// threads end when their handlers do.
    pub(crate) fn end(self, work: &Work, patience: Patience, shutdown: &Shutdown) -> usize {
        let Crew { runners, threads, busy, ended, .. } = self;
        drop(runners);
        let deadline = match patience {
            Patience::Until(deadline) => deadline,
            Patience::AfterStop(grace) => select_biased! {
                recv(ended) -> _ => Instant::now(),
                recv(shutdown.stopping()) -> _ => deadline_after(grace),
            },
        };
        let in_time = select_biased! {
            recv(ended) -> _ => true,
            recv(shutdown.aborting()) -> _ => false,
            recv(crossbeam_channel::at(deadline)) -> _ => false,
        };
        let ended = in_time || {
            // The session may have waited for that already.
            let waited = work.cancellation.cancel().elapsed();
            let left = work.cancel_timeout().saturating_sub(waited);
            matches!(ended.recv_timeout(left), Err(RecvTimeoutError::Disconnected))
        };
        if !ended {
            return busy.load(Ordering::SeqCst);
        }
        for thread in threads {
            let _ = thread.join();
        }
        0
    }
}

impl Tickets {
    /// With `limit` tickets, or without a limit; and the signal that closes with the last one.
    pub(crate) fn new(limit: Option<u64>) -> (Tickets, Signal) {
        let (exhausted, signal) = closer();
        let left = limit.map(AtomicU64::new);
        let (unclaimed, void) = (AtomicU64::new(0), AtomicBool::new(false));
        (Tickets { left, unclaimed, void, exhausted }, signal)
    }

    pub(crate) fn are_limited(&self) -> bool {
        self.left.is_some()
    }

    /// Has a new session's consumers share what is left.
    pub(crate) fn share_out(&self) {
        if let Some(left) = &self.left {
            self.unclaimed.store(left.load(Ordering::Acquire), Ordering::Release);
        }
    }

    /// Claims tickets for a consumer, one of so many that share them: at most this many, and
    /// without a limit as many as it asks for. `None` if there are none to claim.
    pub(crate) fn claim(&self, most: u16, sharers: usize) -> Option<u16> {
        let Some(left) = &self.left else { return Some(most) };
        let sharers = u64::try_from(sharers).unwrap_or(u64::MAX).max(1);
        let share = (left.load(Ordering::Acquire) / sharers).max(1);
        // 0 is no limit.
        let most = if most == 0 { u16::MAX } else { most };
        let most = u64::from(most).min(share);
        let rest = |unclaimed: u64| (unclaimed > 0).then(|| unclaimed - unclaimed.min(most));
        let before = self.unclaimed.fetch_update(Ordering::AcqRel, Ordering::Acquire, rest).ok()?;
        u16::try_from(before.min(most)).ok()
    }

    /// Returns a claim whose delivery was not for the handler.
    pub(crate) fn unclaim(&self) {
        if self.left.is_some() {
            self.unclaimed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// From now on there are none, since no task can be done here.
    fn make_void(&self, why: &Failure) {
        if !self.void.swap(true, Ordering::AcqRel) {
            error!("the worker ends: {why}");
        }
        self.exhausted.close();
    }

    /// Whether that came.
    pub(crate) fn are_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }

    fn take(&self) -> bool {
        if self.are_void() {
            return false;
        }
        let Some(left) = &self.left else { return true };
        let taken = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        if taken.is_err() || taken == Ok(1) {
            self.exhausted.close();
        }
        taken.is_ok()
    }

    /// Takes a ticket back for which nothing was done. With the last one gone the end has begun:
    /// that is not undone.
    fn take_back(&self) {
        if let Some(left) = &self.left {
            let one_more = |n: u64| (n > 0).then_some(n + 1);
            if left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok() {
                self.unclaim();
            }
        }
    }
}

impl Assignment {
    /// Hands over a result; gives it back when there is nobody to take it.
    fn report(&self, ran: Ran) -> Option<Ran> {
        if let Err(SendError(ran)) = self.results.send(ran) {
            return Some(ran);
        }
        if self.results.len() >= self.enough {
            // It need not be told twice.
            let _ = self.tell_enough.try_send(());
        }
        None
    }
}

impl Running {
    fn run(&self, assignments: &Receiver<Assignment>) {
        for assignment in assignments {
            for job in &assignment.jobs {
                let ran = if self.may_start(&assignment) {
                    self.run_job(job)
                } else {
                    Ran { job, result: JobResult::NotStarted, elapsed: Duration::ZERO }
                };
                let not_started = matches!(ran.result, JobResult::NotStarted);
                if let Some(ran) = assignment.report(ran) {
                    orphaned(&ran, &self.work.tally, &self.work.observer);
                }
                if !not_started {
                    self.note_end();
                }
            }
        }
    }

    fn may_start(&self, assignment: &Assignment) -> bool {
        let over = is_closed(&assignment.shut)
            || assignment.heartbeat.is_stale()
            || is_closed(&self.work.cancellation.cancelled);
        if over {
            return false;
        }
        let has_ticket = self.work.tickets.take();
        if !has_ticket {
            // The end has begun. Given back before our consumer knows that, it would come again.
            let _ = assignment.shut.recv();
        }
        has_ticket
    }

    fn run_job(&self, job: Job) -> Ran {
        let thread = job.delivery.thread;
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.work.health.works(thread);
        self.work.late.started(thread, &job.delivery.task);
        self.work.observer.tell(|| event(EventKind::Started, &job.delivery, Duration::ZERO));
        let started = Instant::now();
        let result = match caught(|| self.work.handler.handle(&job.delivery)) {
            Ok(Ok(())) => JobResult::Done,
            Ok(Err(failure)) => {
                match failure {
                    Failure::StopWorker { .. } => self.work.tickets.make_void(&failure),
                    Failure::Requeue { .. } => self.work.tickets.take_back(),
                    Failure::Retry { .. } | Failure::Reject { .. } => {}
                }
                JobResult::Failed(failure)
            }
            Err(panicked) => JobResult::Failed(Failure::retry(panicked)),
        };
        self.work.late.ended(thread);
        match &result {
            JobResult::Failed(Failure::Requeue { .. }) => self.work.health.could_not_work(thread),
            _ => self.work.health.works_no_more(thread),
        }
        Ran { job, result, elapsed: started.elapsed() }
    }

    fn note_end(&self) {
        let left = self.busy.fetch_sub(1, Ordering::SeqCst) - 1;
        if is_closed(&self.work.cancellation.cancelled) {
            self.work.tally.cancelled();
            if left == 0 {
                let _ = self.idle.try_send(());
            }
        }
    }
}

/// Notes that a task ended after the channel that brought it was lost, and the broker has
/// requeued it. At least once: a task runs again when its ack does not reach the broker.
pub(crate) fn orphaned(ran: &Ran, tally: &Tally, observer: &Observer) {
    if matches!(ran.result, JobResult::NotStarted) {
        return;
    }
    let delivery = &ran.job.delivery;
    tally.orphaned();
    observer.tell(|| event(EventKind::Orphaned, delivery, ran.elapsed));
    let (thread, task) = (delivery.thread, delivery.task.name());
    warn!("thread {thread}: task {task} ended after its channel was lost, and may run twice");
}

pub(crate) fn event(kind: EventKind, delivery: &Delivery, elapsed: Duration) -> Event {
    Event {
        time: SystemTime::now(),
        kind,
        task: delivery.task.id().unwrap_or_default().to_string(),
        attempt: delivery.attempt,
        thread: delivery.thread,
        queue: delivery.queue.clone(),
        elapsed,
        reason: None,
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{never, unbounded};

    use super::*;
    use crate::model::task::Task;
    use crate::util::shutdown::shutdown;

    /// Waits in each task, and gives them a minute to end.
    struct Stuck(Receiver<()>);

    impl Handler for Stuck {
        fn handle(&self, _: &Delivery) -> Result<(), Failure> {
            let _ = self.0.recv();
            Ok(())
        }

        fn cancel_timeout(&self) -> Duration {
            Duration::from_secs(60)
        }
    }

    const SOON: Duration = Duration::from_secs(20);

    fn work(handler: impl Handler + 'static, tickets: Option<u64>) -> Work {
        Work {
            handler: Arc::new(handler),
            tickets: Arc::new(Tickets::new(tickets).0),
            tally: Arc::default(),
            observer: Observer::default(),
            cancellation: Arc::new(Cancellation::new(&never())),
            health: Health::default(),
            late: Arc::default(),
        }
    }

    fn job() -> Job {
        let delivery = Delivery {
            task: Task::new(""),
            redelivered: false,
            queue: "q".into(),
            thread: 1,
            attempt: 1,
            max_attempts: 5,
            cancelled: never(),
            killed: never(),
        };
        Job { tag: 1, delivery }
    }

    /// Has the only runner do so many jobs.
    fn assign(crew: &Crew, count: usize) -> (Closer, Receiver<Ran>) {
        let (jobs, queued) = unbounded();
        assert!((0..count).all(|_| jobs.send(job()).is_ok()));
        let (results, ran) = unbounded();
        let (shutter, shut) = closer();
        let assignment = Assignment {
            jobs: queued,
            results,
            enough: usize::MAX,
            tell_enough: bounded(1).0,
            shut,
            heartbeat: Heartbeat::new(0),
        };
        assert!(crew.runners()[0].assignments.send(assignment).is_ok());
        (shutter, ran)
    }

    #[test]
    fn a_task_without_a_ticket_stays_until_its_consumer_lets_go() {
        let crew = Crew::start(1, &work(|_: &Delivery| Ok(()), Some(1))).expect("a thread");
        let (shutter, ran) = assign(&crew, 2);
        let next = |within| ran.recv_timeout(within).map(|ran| ran.result);
        assert!(matches!(next(SOON), Ok(JobResult::Done)));
        assert!(next(Duration::from_millis(100)).is_err(), "it is not given back at once");
        shutter.close();
        assert!(matches!(next(SOON), Ok(JobResult::NotStarted)));
    }

    #[test]
    fn what_was_cancelled_has_its_time_once() {
        let (_go_on, stuck) = bounded(0);
        let work = work(Stuck(stuck), None);
        let crew = Crew::start(1, &work).expect("a thread");
        let (_shutter, _ran) = assign(&crew, 1);
        let begun = Instant::now();
        while crew.busy.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < SOON, "the task does not begin");
            thread::yield_now();
        }
        let a_minute_ago = begun.checked_sub(work.cancel_timeout()).expect("up for longer");
        work.cancellation.at.set(a_minute_ago).expect("the first time");

        let (_trigger, shutdown) = shutdown();
        let left_behind = crew.end(&work, Patience::Until(begun), &shutdown);

        assert_eq!(left_behind, 1);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }

    #[test]
    fn tickets_run_out_exactly_once() {
        let (tickets, exhausted) = Tickets::new(Some(2));
        assert!(tickets.take());
        assert!(!is_closed(&exhausted));
        assert!(tickets.take());
        assert!(is_closed(&exhausted), "closed with the last one, not with the first refusal");
        assert!(!tickets.take());
    }

    #[test]
    fn a_ticket_is_taken_back_until_the_last_one_is_gone() {
        let (tickets, exhausted) = Tickets::new(Some(2));
        assert!(tickets.take());
        tickets.take_back();
        assert!(tickets.take() && !is_closed(&exhausted));
        assert!(tickets.take() && is_closed(&exhausted));
        tickets.take_back();
        assert!(!tickets.take());
    }

    #[test]
    fn no_more_is_claimed_than_may_be_started() {
        let (tickets, _exhausted) = Tickets::new(Some(10));
        assert_eq!(tickets.claim(1, 4), None, "no session shares them yet");
        tickets.share_out();
        let shares = [tickets.claim(9, 4), tickets.claim(0, 4), tickets.claim(1, 4)];
        assert_eq!(shares, [Some(2), Some(2), Some(1)], "a quarter each at most");
        assert_eq!([2, 2, 2].map(|most| tickets.claim(most, 4)), [Some(2), Some(2), Some(1)]);
        assert_eq!(tickets.claim(1, 4), None);
        tickets.unclaim();
        assert_eq!(tickets.claim(1, 1), Some(1));
        assert!(tickets.take());
        tickets.take_back();
        assert_eq!(tickets.claim(1, 1), Some(1), "one that was not used may be claimed again");
    }

    #[test]
    fn without_a_limit_a_consumer_claims_what_it_asks_for() {
        let (tickets, _exhausted) = Tickets::new(None);
        tickets.share_out();
        assert_eq!([0, 1, 500].map(|most| tickets.claim(most, 4)), [Some(0), Some(1), Some(500)]);
    }

    #[test]
    fn void_tickets_are_none() {
        let (tickets, exhausted) = Tickets::new(None);
        tickets.make_void(&Failure::stop_worker("unfit"));
        assert!(is_closed(&exhausted) && tickets.are_void());
        assert!(!tickets.take());
    }

    #[test]
    fn without_a_limit_tickets_never_run_out() {
        let (tickets, exhausted) = Tickets::new(None);
        assert!((0..1000).all(|_| tickets.take()));
        assert!(!is_closed(&exhausted));
    }
}
