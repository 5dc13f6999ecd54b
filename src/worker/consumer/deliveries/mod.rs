//! Passes each delivery of one channel to the handler, then acks, republishes or requeues it.
//! Everything is settled on the thread that received it.

mod failed;
mod own_jobs;
mod report;
mod requeue;

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::amqp::channel::{Acks, Channel, Received, Settlement, Unsettled};
use crate::amqp::close_reason::CloseReason;
use crate::model::batch::outcome::LONGEST_OUTPUT;
use crate::model::batch::{BatchTask, wants_output};
use crate::model::failure_record::{attempt_of, deferrals_of};
use crate::model::follow_up::FollowUps;
use crate::model::handler::{Delivery, Failure};
use crate::worker::consumer::context::ConsumerContext;
use crate::worker::consumer::own_thread::{HandlerCall, OwnThread};
use crate::worker::in_flight::{InFlight, UnackedDelivery};
use crate::worker::job::{Finished, Job, JobLink, JobResult, job_feed};
use crate::worker::journal::Journal;
use crate::worker::late::Repeat;
use crate::worker::pool::Runner;
use crate::worker::republish::RepublishResult;
use crate::worker::run_context::Settings;

use self::failed::StallLogged;

/// The unacked deliveries of one channel, and the ways to settle them.
pub(super) struct Deliveries<'c> {
    context: &'c ConsumerContext,
    /// The number of the thread.
    thread: usize,
    channel: &'c Channel,
    ledger: InFlight<Unsettled>,
    /// Repeated deliveries that must not run, until they are [refused](Deliveries::refuse_repeats).
    repeats: Vec<(Job, Repeat)>,
    pub(super) jobs: JobLink,
    /// What runs the jobs on this thread; `None` if another thread runs them.
    own_thread: Option<OwnThread>,
    results: Sender<RepublishResult>,
    pub(super) republished: Receiver<RepublishResult>,
    stall_logged: StallLogged,
}

/// Why a task fails whose ack came too late for the broker.
const OUTLIVED: &str = "it was held longer than the broker waits for an ack (consumer_timeout)";

/// How many results make a batch: half of what the broker sends without an ack, so that it always
/// has something to send. With a prefetch of 1, no result waits for another.
fn batch_size(prefetch: u16) -> usize {
    const LARGEST_BATCH: usize = 64;
    match prefetch {
        0 => LARGEST_BATCH,
        n => usize::from(n).div_ceil(2).min(LARGEST_BATCH),
    }
}

impl<'c> Deliveries<'c> {
    pub(super) fn new(
        context: &'c ConsumerContext,
        runner: Runner,
        call: &Arc<HandlerCall>,
        channel: &'c Channel,
    ) -> Result<Deliveries<'c>, CloseReason> {
        let settings = &context.run.settings;
        let thread = runner.number();
        let (jobs, feed) = job_feed(batch_size(settings.prefetch), context.connection.heartbeat());
        let (results, republished) = unbounded();
        let mut deliveries = Deliveries {
            context,
            thread,
            channel,
            ledger: InFlight::new(),
            repeats: Vec::new(),
            jobs,
            own_thread: Some(OwnThread::new(runner, feed, call, &context.connection)),
            results,
            republished,
            stall_logged: StallLogged::Nothing,
        };
        // The wait of a start rate must not hold up what else this thread has to do.
        let is_paced = context.run.rate.is_some();
        if settings.prefetch != 1 || settings.acks == Acks::Automatic || is_paced {
            deliveries.start_runner_thread()?;
        }
        Ok(deliveries)
    }

    fn settings(&self) -> &'c Settings {
        &self.context.run.settings
    }

    fn journal(&self) -> &'c Journal {
        &self.context.run.journal
    }

    /// Begins a subscription. With automatic acks the broker ignores the prefetch.
    pub(super) fn begin_subscription(&mut self, prefetch: u16) {
        let is_manual = self.settings().acks == Acks::Manual;
        self.ledger.begin_subscription(if is_manual { prefetch } else { 0 });
    }

    pub(super) fn take_all(
        &mut self,
        arrived: Vec<(Unsettled, Received)>,
    ) -> Result<(), CloseReason> {
        arrived.into_iter().try_for_each(|(unsettled, received)| self.take(unsettled, received))
    }

    /// Takes a delivery, and sends it to the runner unless it must not run.
    pub(super) fn take(
        &mut self,
        unsettled: Unsettled,
        received: Received,
    ) -> Result<(), CloseReason> {
        let tag = unsettled.tag();
        let delivery = Box::new(self.delivery(received));
        self.enter(unsettled, &delivery)?;
        if self.ledger.len() > 1 {
            // The others need this thread while the handler runs.
            self.start_runner_thread()?;
        }
        if delivery.redelivered && !self.context.queue.counts_deliveries() {
            self.context.redeliveries.note(&delivery);
        }
        match self.check_repeat(&delivery) {
            None => self.jobs.send(Job { tag, delivery }),
            Some(repeat) => {
                self.context.run.budget.unclaim();
                self.repeats.push((Job { tag, delivery }, repeat));
            }
        }
        Ok(())
    }

    fn delivery(&self, received: Received) -> Delivery {
        let policy = &self.settings().policy;
        let max_attempts = policy.attempt_limit();
        let cancellation = &self.context.run.cancellation;
        let queue = self.context.queue.name();
        let kept_output = if wants_output(&received.task, queue) { LONGEST_OUTPUT } else { 0 };
        Delivery {
            attempt: attempt_of(&received.task, max_attempts),
            max_attempts,
            deferrals: deferrals_of(&received.task, policy.deferral_limit()),
            task: received.task,
            redelivered: received.redelivered,
            queue: queue.to_string(),
            thread: self.thread,
            cancelled: cancellation.cancelled.clone(),
            killed: cancellation.killed.clone(),
            kept_output,
            program_end: OnceLock::new(),
            follow_ups: match self.settings().acks {
                Acks::Manual => FollowUps::default(),
                Acks::Automatic => FollowUps::Refused,
            },
        }
    }

    /// Enters a delivery in the ledger. A broker that breaks the protocol loses its connection.
    fn enter(&mut self, unsettled: Unsettled, delivery: &Delivery) -> Result<(), CloseReason> {
        let tag = unsettled.tag();
        let duty = (self.settings().acks == Acks::Manual).then_some(unsettled);
        let event = self.journal().event_of_requeue(delivery);
        self.ledger.take(tag, UnackedDelivery { duty, event }).map_err(|broken| {
            let cause = CloseReason::Lost(broken);
            self.channel.fail_connection(&cause);
            cause
        })?;
        self.context.in_flight.add_taken();
        Ok(())
    }

    /// With automatic acks no task is late.
    fn check_repeat(&self, delivery: &Delivery) -> Option<Repeat> {
        match self.settings().acks {
            Acks::Manual => self.context.run.late_tasks.check(&delivery.task, delivery.redelivered),
            Acks::Automatic => None,
        }
    }

    pub(super) fn has_repeats(&self) -> bool {
        !self.repeats.is_empty()
    }

    /// Routes or keeps the repeated deliveries that must not run. The log and an observer learn of them.
    pub(super) fn refuse_repeats(&mut self) {
        for (job, repeat) in mem::take(&mut self.repeats) {
            self.refuse_repeat(job, repeat);
        }
    }

    fn refuse_repeat(&mut self, job: Job, repeat: Repeat) {
        match repeat {
            Repeat::CountFailure => {
                self.route_failure(job, &Failure::retry(OUTLIVED), Duration::ZERO);
            }
            Repeat::Wait => {
                let pause = self.ledger.keep(job.tag, Instant::now());
                self.journal().still_runs(&job.delivery, pause);
            }
        }
    }

    /// Settles a delivery with which the runner has finished.
    pub(super) fn settle(&mut self, finished: Finished) -> Result<(), CloseReason> {
        let is_automatic = self.settings().acks == Acks::Automatic;
        let Finished { job, result, elapsed } = finished;
        match result {
            JobResult::NotStarted => self.requeue_or_lose(vec![job]),
            // With automatic acks there is nothing to requeue.
            _ if !is_automatic && self.context.is_cancelled() => {
                return self.requeue_cancelled(&job, elapsed);
            }
            JobResult::Done if self.is_acked_later(&job.delivery) => {
                self.publish_then_ack(job, elapsed);
            }
            JobResult::Done => return self.ack_done(&job, elapsed),
            JobResult::Failed(failure) if is_automatic => {
                self.journal().lost(&job.delivery, &failure, elapsed);
                return self.settle_one(job.tag, Settlement::Ack);
            }
            JobResult::Failed(failure) => self.route_failure(job, &failure, elapsed),
        }
        Ok(())
    }

    /// Whether a result is settled at once, and not after a publish.
    pub(super) fn settles_at_once(&self, finished: &Finished) -> bool {
        match finished.result {
            JobResult::NotStarted => true,
            JobResult::Done => !self.is_acked_later(&finished.job.delivery),
            JobResult::Failed(_) => false,
        }
    }

    /// Whether this task, when it is done, is acked only after a publish: it has follow-ups, or a batch
    /// waits for its outcome. With automatic acks nothing is reported: the broker has forgotten the
    /// task, so it cannot be kept until the outcome is confirmed.
    fn is_acked_later(&self, delivery: &Delivery) -> bool {
        let is_of_batch = BatchTask::of(&delivery.task, &delivery.queue).is_some();
        let publishes = is_of_batch || !delivery.follow_ups.is_empty();
        publishes && self.settings().acks == Acks::Manual
    }

    /// Whether its result is settled with an ack, and nothing else has to be done for that.
    pub(super) fn is_done(&self, finished: &Finished) -> bool {
        let is_done = matches!(finished.result, JobResult::Done);
        let is_acked_at_once = is_done && !self.is_acked_later(&finished.job.delivery);
        is_acked_at_once
            && (self.settings().acks == Acks::Automatic || !self.context.is_cancelled())
    }

    /// Sends one ack, for as many tasks as it can cover, which it moves from `done` to `acked`.
    pub(super) fn ack_next(
        &mut self,
        done: &mut BTreeMap<u64, Finished>,
        acked: &mut Vec<Finished>,
    ) -> Result<(), CloseReason> {
        let Some(ack) = self.ledger.next_ack(done) else { return Ok(()) };
        let sent = ack.duty.map_or(Ok(()), |duty| self.channel.settle(duty, ack.how));
        self.context.in_flight.add_settled(ack.count);
        match sent {
            Ok(()) => acked.extend(ack.done.into_values()),
            Err(_) => done.extend(ack.done),
        }
        sent
    }

    /// Records a task that is acked.
    pub(super) fn note_done(&mut self, finished: &Finished) {
        self.ledger.note_done();
        self.journal().done(&finished.job.delivery, finished.elapsed);
    }

    fn ack_done(&mut self, job: &Job, elapsed: Duration) -> Result<(), CloseReason> {
        let acked = self.settle_one(job.tag, Settlement::Ack);
        acked.inspect_err(|_| self.journal().orphaned(&job.delivery, elapsed))?;
        self.ledger.note_done();
        self.journal().done(&job.delivery, elapsed);
        Ok(())
    }

    fn requeue_cancelled(&mut self, job: &Job, elapsed: Duration) -> Result<(), CloseReason> {
        let requeued = self.settle_one(job.tag, Settlement::Requeue);
        requeued.inspect_err(|_| self.journal().orphaned(&job.delivery, elapsed))?;
        self.journal().requeued(&job.delivery, elapsed);
        Ok(())
    }

    fn settle_one(&mut self, tag: u64, how: Settlement) -> Result<(), CloseReason> {
        let Some(delivery) = self.ledger.finish(tag) else { return Ok(()) };
        let settled = delivery.duty.map_or(Ok(()), |duty| self.channel.settle(duty, how));
        self.context.in_flight.add_settled(1);
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_never_waits_for_results_that_wait_for_others() {
        assert_eq!([0, 1, 2, 3, 10, 100, u16::MAX].map(batch_size), [64, 1, 1, 2, 5, 50, 64]);
    }
}
