//! Who may call the handler: one [`Runner`] for each thread number of a run.
//!
//! Runners outlive sessions. A task that still runs when its connection is lost keeps the runner of
//! its own thread number and no other: the rest consume again as soon as the broker is back.
//!
//! With a prefetch of 1, the consumer has the runner: while the handler runs, the consumer has nothing
//! to receive or requeue. With more, a second thread has it: prefetched tasks must not wait for a long
//! handler, and only the consumer may settle them. Short tasks would be quicker on the consumer's
//! thread with any prefetch, but only a second thread can take over from a task that turns out to be
//! long (docs/performance.md). Results then wait up to 1 ms, so that one ack covers several.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select_biased};

use crate::model::handler::{Failure, call};
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Shutdown, is_closed};
use crate::worker::job::{Finished, Job, JobFeed, JobResult};
use crate::worker::run_context::RunContext;

/// All runners of one run.
pub(crate) struct HandlerPool {
    slots: Vec<RunnerSlot>,
    busy: Arc<AtomicUsize>,
    /// Receives when the last running task has ended after it was cancelled.
    idle: Receiver<()>,
    /// Disconnects when the last thread has ended.
    ended: Receiver<Infallible>,
}

/// The way to the runner of one thread number, which has one holder at a time.
#[derive(Clone)]
pub(crate) struct RunnerSlot {
    pub(crate) number: usize,
    /// Receives when nobody has the runner.
    pub(crate) free: Receiver<Free>,
    release: Sender<Free>,
    run: Arc<RunContext>,
    busy: Arc<AtomicUsize>,
    idle: Sender<()>,
    alive: Sender<Infallible>,
}

/// What a slot sends when nobody has its runner.
pub(crate) struct Free;

/// The right to call the handler for one thread number.
pub(crate) struct Runner {
    slot: RunnerSlot,
}

/// How long the last running tasks may go on.
#[derive(Clone, Copy)]
pub(crate) enum WaitLimit {
    Until(Instant),
    /// Until they end by themselves, or for this long after a stop.
    AfterStop(Duration),
}

impl HandlerPool {
    pub(crate) fn new(size: usize, run: &Arc<RunContext>) -> HandlerPool {
        let busy = Arc::new(AtomicUsize::new(0));
        let (alive, ended) = bounded(0);
        let (idle_sender, idle) = bounded(1);
        let slot = |number| {
            let (release, free) = bounded(1);
            let _ = release.send(Free);
            RunnerSlot {
                number,
                free,
                release,
                run: Arc::clone(run),
                busy: Arc::clone(&busy),
                idle: idle_sender.clone(),
                alive: alive.clone(),
            }
        };
        let slots = (1..=size).map(slot).collect();
        HandlerPool { slots, busy, idle, ended }
    }

    pub(crate) fn slots(&self) -> &[RunnerSlot] {
        &self.slots
    }

    pub(crate) fn size(&self) -> usize {
        self.slots.len()
    }

    /// Cancels the running tasks. Returns a channel that receives when the last of them has ended;
    /// `None` if none runs.
    pub(crate) fn cancel(&self, run: &RunContext) -> Option<&Receiver<()>> {
        run.cancellation.cancel();
        (self.busy.load(Ordering::SeqCst) > 0).then_some(&self.idle)
    }

    /// Waits until the last task has ended, within the limit and until an abort; then cancels what
    /// still runs. Returns how many tasks are left running; their threads end when their handlers
    /// do.
    pub(crate) fn join(self, run: &RunContext, limit: WaitLimit, shutdown: &Shutdown) -> usize {
        let HandlerPool { slots, busy, ended, .. } = self;
        drop(slots);
        if ends_in_time(&ended, limit, shutdown) || ends_cancelled(&ended, run) {
            return 0;
        }
        busy.load(Ordering::SeqCst)
    }
}

impl RunnerSlot {
    /// The runner, which is free.
    pub(crate) fn runner(&self, _: Free) -> Runner {
        Runner { slot: self.clone() }
    }

    /// Starts a thread that may outlive its session: the run waits for it.
    pub(crate) fn start_thread(
        &self,
        role: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let alive = self.alive.clone();
        let thread = thread::Builder::new().name(format!("rw-{role}-{}", self.number));
        let started = thread.spawn(move || {
            work();
            drop(alive);
        });
        started.map(drop)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Never full: this is what was received from it.
        let _ = self.slot.release.try_send(Free);
    }
}

fn ends_in_time(ended: &Receiver<Infallible>, limit: WaitLimit, shutdown: &Shutdown) -> bool {
    let deadline = match limit {
        WaitLimit::Until(deadline) => deadline,
        WaitLimit::AfterStop(grace) => select_biased! {
            recv(ended) -> _ => Instant::now(),
            recv(shutdown.stopping()) -> _ => deadline_after(grace),
        },
    };
    select_biased! {
        recv(ended) -> _ => true,
        recv(shutdown.aborting()) -> _ => false,
        recv(crossbeam_channel::at(deadline)) -> _ => false,
    }
}

fn ends_cancelled(ended: &Receiver<Infallible>, run: &RunContext) -> bool {
    // The session may have cancelled, and waited, before.
    let waited = run.cancellation.cancel().elapsed();
    let left = run.cancel_timeout().saturating_sub(waited);
    matches!(ended.recv_timeout(left), Err(RecvTimeoutError::Disconnected))
}

impl Runner {
    pub(crate) fn number(&self) -> usize {
        self.slot.number
    }

    /// Starts a thread that runs the jobs of a feed, until its consumer sends no more.
    pub(crate) fn start_thread(self, feed: JobFeed) -> io::Result<()> {
        let slot = self.slot.clone();
        slot.start_thread("runner", move || self.run_all(&feed))
    }

    fn run_all(&self, feed: &JobFeed) {
        for job in &feed.jobs {
            if self.may_start(feed) {
                let finished = self.run_job(job);
                self.forget_job();
                self.send(feed, finished);
                self.note_end();
            } else {
                let (result, elapsed) = (JobResult::NotStarted, Duration::ZERO);
                // Without a consumer nothing is lost: the broker has requeued the task.
                let _ = feed.send(Finished { job, result, elapsed });
            }
        }
    }

    fn send(&self, feed: &JobFeed, finished: Finished) {
        if let Some(orphaned) = feed.send(finished) {
            self.run().journal.orphaned(&orphaned.job.delivery, orphaned.elapsed);
        }
    }

    fn may_start(&self, feed: &JobFeed) -> bool {
        if self.is_over(feed) || !self.has_turn(feed) {
            return false;
        }
        let may_start = self.run().budget.take();
        if !may_start {
            // The worker ends. Requeued before our consumer knows that, the task would come again.
            let _ = feed.closed.recv();
        }
        may_start
    }

    /// Waits for the next start, if there is a rate.
    fn has_turn(&self, feed: &JobFeed) -> bool {
        let RunContext { rate, cancellation, .. } = self.run();
        let Some(rate) = rate else { return true };
        rate.wait(&[&feed.closed, &cancellation.cancelled]) && !self.is_over(feed)
    }

    /// Takes the next job of a feed for the thread that sent it. `None` if no job may be started:
    /// then the thread has to wait for the event that says why.
    pub(crate) fn next_job(&self, feed: &JobFeed) -> Option<Job> {
        let may_start = !feed.jobs.is_empty() && !self.is_over(feed) && self.run().budget.take();
        may_start.then(|| feed.jobs.try_recv().ok()).flatten()
    }

    fn is_over(&self, feed: &JobFeed) -> bool {
        is_closed(&feed.closed)
            || feed.heartbeat.is_stale()
            || is_closed(&self.run().cancellation.cancelled)
    }

    /// Calls the handler. [`note_end`](Runner::note_end) follows, once an abort cannot overtake the
    /// result.
    pub(crate) fn run_job(&self, job: Job) -> Finished {
        let RunContext { journal, health, late_tasks, .. } = self.run();
        let thread = self.slot.number;
        self.slot.busy.fetch_add(1, Ordering::SeqCst);
        health.works(thread);
        late_tasks.started(thread, &job.delivery.task);
        journal.started(&job.delivery);
        let started = Instant::now();
        let result = self.call_handler(&job);
        match &result {
            JobResult::Failed(Failure::Requeue { .. }) => health.could_not_work(thread),
            _ => health.works_no_more(thread),
        }
        Finished { job, result, elapsed: started.elapsed() }
    }

    /// Notes that the last task can no longer be late for its ack.
    pub(crate) fn forget_job(&self) {
        self.run().late_tasks.ended(self.slot.number);
    }

    fn call_handler(&self, job: &Job) -> JobResult {
        let Err(failure) = call(&*self.run().handler, &job.delivery) else {
            return JobResult::Done;
        };
        match &failure {
            Failure::StopWorker { .. } => self.run().budget.close(&failure),
            Failure::Requeue { .. } => self.run().budget.refund(),
            Failure::Retry { .. } | Failure::Reject { .. } | Failure::Defer { .. } => {}
        }
        JobResult::Failed(failure)
    }

    pub(crate) fn note_end(&self) {
        let left = self.slot.busy.fetch_sub(1, Ordering::SeqCst) - 1;
        if is_closed(&self.run().cancellation.cancelled) {
            self.run().journal.ended_cancelled();
            if left == 0 {
                let _ = self.slot.idle.try_send(());
            }
        }
    }

    fn run(&self) -> &RunContext {
        &self.slot.run
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::never;

    use super::*;
    use crate::amqp::heartbeat::Heartbeat;
    use crate::model::broker::Broker;
    use crate::model::handler::{Delivery, Handler, test_delivery};
    use crate::model::queue::Queue;
    use crate::model::task::Task;
    use crate::util::shutdown::shutdown;
    use crate::worker::job::{JobLink, job_feed};
    use crate::worker::journal::Journal;
    use crate::worker::run_context::{Cancellation, Settings};
    use crate::worker::task_budget::{RunLimits, TaskBudget};

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

    fn run(handler: impl Handler + 'static, max_tasks: Option<u64>) -> Arc<RunContext> {
        let (budget, exhausted) = TaskBudget::new(RunLimits { tasks: max_tasks, dead: None });
        Arc::new(RunContext {
            broker: Broker::new(["amqp://localhost"]).expect("a URL"),
            settings: Settings::new(&Queue::new("q"), "host".into()),
            handler: Box::new(handler),
            budget: Arc::new(budget),
            exhausted,
            rate: None,
            cancellation: Cancellation::new(&never()),
            journal: Journal::default(),
            health: Default::default(),
            late_tasks: Default::default(),
            drain: Default::default(),
        })
    }

    fn job() -> Job {
        Job { tag: 1, delivery: Box::new(test_delivery(Task::new(""))) }
    }

    /// Feeds the only thread so many jobs.
    fn feed(pool: &HandlerPool, count: usize) -> JobLink {
        let (link, feed) = job_feed(usize::MAX, &Heartbeat::new(0));
        (0..count).for_each(|_| link.send(job()));
        let slot = &pool.slots()[0];
        let free = slot.free.recv().expect("a free runner");
        slot.runner(free).start_thread(feed).expect("a thread");
        link
    }

    #[test]
    fn a_task_beyond_the_budget_stays_until_its_consumer_closes_the_feed() {
        let pool = HandlerPool::new(1, &run(|_: &Delivery| Ok(()), Some(1)));
        let link = feed(&pool, 2);
        let next = |within| link.finished.recv_timeout(within).map(|finished| finished.result);
        assert!(matches!(next(SOON), Ok(JobResult::Done)));
        assert!(next(Duration::from_millis(100)).is_err(), "it is not requeued at once");
        link.close();
        assert!(matches!(next(SOON), Ok(JobResult::NotStarted)));
    }

    #[test]
    fn cancelled_tasks_have_their_time_once() {
        let (_go_on, stuck) = bounded(0);
        let run = run(Stuck(stuck), None);
        let pool = HandlerPool::new(1, &run);
        let _link = feed(&pool, 1);
        let begun = Instant::now();
        while pool.busy.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < SOON, "the task does not begin");
            thread::yield_now();
        }
        run.cancellation.cancel_at(begun.checked_sub(run.cancel_timeout()).expect("up for longer"));

        let (_trigger, shutdown) = shutdown();
        let left_running = pool.join(&run, WaitLimit::Until(begun), &shutdown);

        assert_eq!(left_running, 1);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
}
