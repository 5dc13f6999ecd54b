//! Publishes what has to be confirmed before a delivery is acked, such as the copy of a failed task or
//! a follow-up:
//! one thread for each session, many deliveries at a time. Each consumer learns which of its
//! deliveries may be acked.
//!
//! The thread uses a connection of its own: during a memory alarm the broker reads nothing more from
//! connections that publish, and acks must still get through. If no second connection can be opened,
//! it uses a channel of the session's own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{mem, thread};

use crossbeam_channel::{Receiver, RecvError, Sender, TryRecvError, bounded, unbounded};
use log::info;

use crate::amqp::connection::Connection;
use crate::model::batch::id::BatchId;
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::task::Task;
use crate::publish::config::{Limits, PublisherConfig};
use crate::publish::pending::Resolved;
use crate::publish::publisher::Publisher;
use crate::publish::refusal::OnRefusal;
use crate::util::shutdown::{Signal, is_closed};
use crate::worker::run_context::RunContext;
use crate::worker::summary::Tally;
use crate::worker::task_budget::TaskBudget;

/// A session's way to publish before an ack. The thread connects when the first task comes.
pub(crate) struct Republisher {
    requests: Requests,
    ended: Receiver<Infallible>,
}

/// Where consumers send their requests. `None` ends the thread: a consumer that the session went on
/// without may hold a sender for as long as its handler runs.
pub(crate) type Requests = Sender<Option<RepublishRequest>>;

/// The thread.
struct RepublisherThread {
    tally: Arc<Tally>,
    budget: Arc<TaskBudget>,
    publisher: Publisher<Ticket>,
    abort: Signal,
    /// What failed at once, and is tried again after a pause.
    failed_at_once: Vec<RepublishRequest>,
    /// The last batch whose queue of outcomes was found missing.
    missing: Option<BatchId>,
}

/// What has to be confirmed before a delivery is acked, and where the result goes.
pub(crate) struct RepublishRequest {
    /// Each is published after the one before it is confirmed.
    pub(crate) publishes: VecDeque<Publish>,
    /// The delivery tag of the task.
    pub(crate) tag: u64,
    pub(crate) results: Sender<RepublishResult>,
}

/// One publish.
pub(crate) struct Publish {
    pub(crate) task: Task,
    /// Whose target it is; `None` is the worker's own queue.
    pub(crate) queue: Option<Arc<Queue>>,
    pub(crate) target: Target,
}

/// What became of a request. Only if all of it is confirmed, the delivery may be acked.
pub(crate) struct RepublishResult {
    pub(crate) tag: u64,
    /// Of the publish that was not confirmed, or of the last.
    pub(crate) queue: Option<Arc<Queue>>,
    pub(crate) target: Target,
    pub(crate) outcome: Outcome,
}

/// What the publisher returns with each outcome.
struct Ticket {
    queue: Option<Arc<Queue>>,
    target: Target,
    /// What is published next.
    next: VecDeque<Publish>,
    since: Instant,
    tag: u64,
    results: Sender<RepublishResult>,
}

/// How many tasks are in flight at a time, and how long each is tried.
const COPY_LIMITS: Limits = Limits { window: 1000, timeout: Duration::from_secs(30) };

/// How long requests and confirms wait for others, to be dealt with together. A single one does not
/// wait: with a prefetch of 1, its thread takes no task before it has the result.
const BATCH_WAIT: Duration = Duration::from_millis(1);

/// The pause after what failed at once: nothing gets through then, such as without a permission.
const PAUSE: Duration = Duration::from_secs(1);

impl Republisher {
    /// Starts the thread, for the session of this connection. When `abort` closes, it gives up what
    /// is not confirmed and cuts its connection.
    pub(crate) fn start(
        run: &RunContext,
        connection: &Connection,
        queue: &Queue,
        abort: &Signal,
    ) -> Result<Republisher, Error> {
        let (requests, inbox) = unbounded();
        let (alive, ended) = bounded(0);
        let publisher = Publisher::new(PublisherConfig {
            lent: Some(connection.lend()),
            stopping: abort.clone(),
            aborting: abort.clone(),
            delays: run.settings.policy.series(),
            on_refusal: OnRefusal::GiveUp,
            has_connected: true,
            ..PublisherConfig::new(
                &run.broker.for_role("republish", queue.name()),
                queue,
                COPY_LIMITS,
            )
        });
        let mut republisher = RepublisherThread {
            tally: run.journal.tally(),
            budget: Arc::clone(&run.budget),
            publisher,
            abort: abort.clone(),
            failed_at_once: Vec::new(),
            missing: None,
        };
        thread::Builder::new()
            .name("rw-republisher".into())
            .spawn(move || {
                let alive: Sender<Infallible> = alive;
                republisher.work(&inbox);
                republisher.end();
                drop(alive);
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Republisher { requests, ended })
    }

    pub(crate) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// Ends the thread: no request is left that counts. Waits for its end, at most for `limit`. If the
    /// broker does not answer, the thread ends later by itself, and its results no longer matter.
    pub(crate) fn end(self, limit: Duration) {
        let _ = self.requests.send(None);
        let _ = self.ended.recv_timeout(limit);
    }
}

impl RepublisherThread {
    fn work(&mut self, requests: &Receiver<Option<RepublishRequest>>) {
        loop {
            self.publisher.collect();
            // Before publishing, which may take long: it may have to declare the next queue.
            self.send_results();
            self.publisher.publish();
            let has_more = self.send_results();
            if is_closed(&self.abort) {
                return;
            }
            if has_more || !self.failed_at_once.is_empty() {
                self.begin_again();
            } else {
                match self.publisher.wait(requests) {
                    None => {}
                    Some(Err(_) | Ok(None)) => return,
                    Some(Ok(Some(request))) => self.accept(request),
                }
                if self.publisher.unresolved() > 1 {
                    let _ = self.abort.recv_timeout(BATCH_WAIT);
                }
            }
            if self.accept_waiting(requests).is_err() {
                return;
            }
        }
    }

    /// Begins again with what failed at once, after a pause.
    fn begin_again(&mut self) {
        if !self.failed_at_once.is_empty() {
            let _ = self.abort.recv_timeout(PAUSE);
            mem::take(&mut self.failed_at_once).into_iter().for_each(|it| self.accept(it));
        }
    }

    /// Accepts the requests that have come in. An error at their end: what is tried again and again
    /// would otherwise keep this thread for ever.
    fn accept_waiting(
        &mut self,
        requests: &Receiver<Option<RepublishRequest>>,
    ) -> Result<(), RecvError> {
        loop {
            match requests.try_recv() {
                Ok(Some(request)) => self.accept(request),
                Err(TryRecvError::Empty) => return Ok(()),
                Ok(None) | Err(TryRecvError::Disconnected) => return Err(RecvError),
            }
        }
    }

    /// Gives up what is not confirmed: its consumers have ended.
    fn end(mut self) {
        self.publisher.collect();
        self.publisher.give_up_all();
        self.send_results();
        self.publisher.close();
    }

    /// Begins with the first publish of a request.
    fn accept(&mut self, request: RepublishRequest) {
        let RepublishRequest { publishes: mut next, tag, results } = request;
        let Some(Publish { task, queue, target }) = next.pop_front() else { return };
        let ticket =
            Ticket { queue: queue.clone(), target, next, since: Instant::now(), tag, results };
        match queue {
            Some(queue) => self.publisher.accept_for(queue, task, target, ticket),
            None => self.publisher.accept(task, target, ticket),
        }
    }

    /// Sends the results of requests, and goes on with those of which more is to be published. Returns
    /// whether there are any.
    fn send_results(&mut self) -> bool {
        let mut has_more = false;
        for resolved in self.publisher.take_resolved() {
            let Resolved { task, ticket, outcome, sent } = resolved;
            let Ticket { queue, target, mut next, since, tag, results } = ticket;
            let outcome = self.note(target, outcome, sent);
            let again = is_tried_again(target, &outcome) && !is_closed(&self.abort);
            if again {
                next.push_front(Publish { task, queue: queue.clone(), target });
            }
            let request = RepublishRequest { publishes: next, tag, results };
            if again && since.elapsed() < COPY_LIMITS.timeout {
                self.failed_at_once.push(request);
            } else if again || outcome == Outcome::Confirmed && !request.publishes.is_empty() {
                has_more = true;
                self.accept(request);
            } else {
                // A consumer that has ended has left the delivery to the broker.
                let _ = request.results.send(RepublishResult { tag, queue, target, outcome });
            }
        }
        has_more
    }

    /// Counts a dead letter: here, because it exists whether or not its task can be acked. Returns the
    /// outcome that counts. Nobody waits for a batch whose queue does not exist.
    fn note(&mut self, target: Target, outcome: Outcome, sent: bool) -> Outcome {
        match (target, &outcome) {
            (Target::Dead, Outcome::Confirmed) => {
                self.tally.dead();
                self.budget.note_dead();
            }
            (Target::Dead, Outcome::Unconfirmed { .. }) if sent => self.tally.dead_unconfirmed(),
            (Target::Batch(id), Outcome::Returned { .. }) => {
                if self.missing.replace(id) != Some(id) {
                    info!("nobody waits for batch {id}: its queue of outcomes does not exist");
                }
                return Outcome::Confirmed;
            }
            _ => {}
        }
        outcome
    }
}

/// Whether this is published again while its task stays unacked: the outcome of a task that is done
/// or dead, which must not run again because of an alarm, or of a queue that is full or down.
fn is_tried_again(target: Target, outcome: &Outcome) -> bool {
    matches!(target, Target::Batch(_)) && outcome.is_transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_tried_again_whatever_may_pass_and_the_copy_of_a_failed_task_is_not() {
        let batch = Target::Batch(BatchId::of(1));
        for (outcome, again) in [
            (Outcome::unsent("an alarm"), true),
            (Outcome::nacked("its queue is down"), true),
            (Outcome::unconfirmed("no answer"), true),
            (Outcome::returned("no queue"), false),
            (Outcome::refused("too large"), false),
            (Outcome::Confirmed, false),
        ] {
            assert_eq!(is_tried_again(batch, &outcome), again, "{outcome}");
            assert!(!is_tried_again(Target::Dead, &outcome), "{outcome}");
        }
    }
}
