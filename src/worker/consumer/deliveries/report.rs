//! Reports how a task of a batch ended, to the queue of outcomes of its batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::batch::BatchTask;
use crate::model::batch::outcome::{BatchOutcome, TYPE, TaskEnd, TaskOutput};
use crate::model::handler::Delivery;
use crate::model::program_end::ProgramEnd;
use crate::model::queue::Target;
use crate::model::task::{Ids, Task};
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::job::Job;
use crate::worker::republish::Publish;

/// What the outcome of a task says, before it is known how the task ended.
pub(super) struct Report {
    of: BatchTask,
    task: String,
    attempts: u32,
    elapsed: Duration,
    program_end: Option<Box<ProgramEnd>>,
    with_output: bool,
}

impl Report {
    /// Takes what the outcome needs from a delivery, if a batch waits for it.
    pub(super) fn take(delivery: &mut Delivery, elapsed: Duration) -> Option<Report> {
        Some(Report {
            of: BatchTask::of(&delivery.task, &delivery.queue)?,
            task: delivery.task.id().unwrap_or_default().to_string(),
            attempts: delivery.attempt,
            elapsed,
            program_end: delivery.program_end.take(),
            with_output: delivery.kept_output > 0,
        })
    }

    /// The publish of the outcome.
    pub(super) fn publish(self, end: TaskEnd, reason: Option<String>, host: &str) -> Publish {
        let (of, now) = (self.of, SystemTime::now());
        let outcome = self.outcome(end, reason, host, now);
        let task = Task::new(outcome.to_json())
            .with_type(TYPE)
            .with_content_type("application/json")
            .with_correlation_id(of.correlation_id())
            .stamped(now, &mut Ids::new());
        Publish { task, queue: None, target: Target::Batch(of.batch) }
    }

    fn outcome(
        self,
        end: TaskEnd,
        reason: Option<String>,
        host: &str,
        now: SystemTime,
    ) -> BatchOutcome {
        let program = self.program_end.as_deref();
        let started = program.map(|it| it.started);
        let output = program.filter(|_| self.with_output);
        let output = output.map(|it| TaskOutput::start_of(it.output.clone(), it.output_bytes));
        BatchOutcome {
            n: self.of.n,
            end,
            attempts: self.attempts,
            exit: program.and_then(|it| it.exit),
            signal: program.and_then(|it| it.signal),
            reason,
            host: host.to_string(),
            started: started.or_else(|| now.checked_sub(self.elapsed)).unwrap_or(now),
            elapsed: self.elapsed,
            output,
            task: self.task,
        }
    }
}

impl Deliveries<'_> {
    /// Has the follow-ups of a done task published, then its outcome, and the task acked after that.
    pub(super) fn publish_then_ack(&mut self, job: Job, elapsed: Duration) {
        let Job { tag, mut delivery } = job;
        let event = self.journal().done_before_ack(&delivery, elapsed);
        let follow_ups = delivery.follow_ups.take().into_iter().map(|(queue, task)| {
            let target = task.target();
            let other = (queue.name() != delivery.queue).then(|| Arc::new(queue));
            Publish { task, queue: other, target }
        });
        let mut publishes: VecDeque<_> = follow_ups.collect();
        let report = Report::take(&mut delivery, elapsed);
        let done = |it: Report| it.publish(TaskEnd::Done, None, &self.settings().host);
        publishes.extend(report.map(done));
        self.publish_before_ack(tag, publishes, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::id::BatchId;
    use crate::model::handler::test_delivery;
    use crate::model::queue::Queue;

    fn delivery(kept_output: usize) -> Delivery {
        let task = BatchId::of(1).number(7, Task::new("x"), &Queue::new("q"));
        let mut delivery = test_delivery(task);
        delivery.kept_output = kept_output;
        let end = ProgramEnd {
            started: SystemTime::UNIX_EPOCH,
            elapsed: Duration::from_secs(1),
            exit: Some(3),
            signal: None,
            stopped: false,
            output_error: None,
            output_bytes: 9,
            output: b"words".to_vec(),
        };
        delivery.program_end.set(Box::new(end)).expect("not set yet");
        delivery
    }

    #[test]
    fn an_outcome_goes_to_the_queue_of_its_batch() {
        let report = Report::take(&mut delivery(5), Duration::from_secs(2)).expect("of a batch");
        let publish = report.publish(TaskEnd::Dead, Some("no".into()), "here");
        assert_eq!(publish.target, Target::Batch(BatchId::of(1)));
        let id = publish.task.correlation_id().unwrap_or_default().to_string();
        assert!(id.ends_with("1/7"), "{id}");
        let read = BatchOutcome::from_json(publish.task.body()).expect("an outcome");
        assert_eq!((read.n, read.end, read.attempts, read.exit), (7, TaskEnd::Dead, 2, Some(3)));
        assert_eq!((read.reason.as_deref(), read.host.as_str()), (Some("no"), "here"));
        assert_eq!(read.started, SystemTime::UNIX_EPOCH);
        let cut = TaskOutput { bytes: b"words".to_vec(), cut_from: Some(9) };
        assert_eq!(read.output, Some(cut));
    }

    #[test]
    fn output_comes_back_only_if_it_was_asked_for() {
        let report = Report::take(&mut delivery(0), Duration::ZERO).expect("of a batch");
        let publish = report.publish(TaskEnd::Done, None, "here");
        let read = BatchOutcome::from_json(publish.task.body()).expect("an outcome");
        assert_eq!(read.output, None);
        assert!(Report::take(&mut test_delivery(Task::new("x")), Duration::ZERO).is_none());
    }
}
