//! Records the result of each task: counts it, notifies the observer and logs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use log::{debug, info, warn};

use crate::model::error::Error;
use crate::model::handler::{Delivery, Failure};
use crate::model::outcome::Outcome;
use crate::model::queue::Target;
use crate::model::task::name_of;
use crate::worker::event::{Event, EventKind, Observer};
use crate::worker::summary::{StopReason, Summary, Tally};

/// The journal of one run of a worker. One method for each fate of a task.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    tally: Arc<Tally>,
    observer: Observer,
    /// The name of this machine, for events.
    host: String,
}

impl Journal {
    pub(crate) fn new(observer: Observer, host: String) -> Journal {
        Journal { tally: Arc::default(), observer, host }
    }

    /// A session began on this queue.
    pub(crate) fn connected(&self, queue: &str) {
        self.notify_of_session(EventKind::Connected, queue, None);
    }

    /// A session was lost.
    pub(crate) fn disconnected(&self, queue: &str, error: &Error) {
        self.notify_of_session(EventKind::Disconnected, queue, Some(error.chain()));
    }

    fn notify_of_session(&self, kind: EventKind, queue: &str, reason: Option<String>) {
        self.observer.notify(|| Event::of_session(kind, queue, &self.host, reason));
    }

    pub(crate) fn started(&self, delivery: &Delivery) {
        self.observer.notify(|| self.event(EventKind::Started, delivery, Duration::ZERO));
    }

    /// The task is done and acked.
    pub(crate) fn done(&self, delivery: &Delivery, elapsed: Duration) {
        self.tally.done();
        self.observer.notify(|| self.event(EventKind::Done, delivery, elapsed));
    }

    /// The handler failed or deferred, and the task is about to be published to `target`. Returns the
    /// event for
    /// [`republished`](Journal::republished) or [`not_republished`](Journal::not_republished).
    pub(crate) fn failed(
        &self,
        delivery: &Delivery,
        failure: &Failure,
        target: Target,
        elapsed: Duration,
    ) -> Event {
        let (kind, delay) = match (target, failure) {
            (Target::Delay(delay), Failure::Defer { .. }) => {
                log_deferral(delivery, delay, failure);
                (EventKind::Deferred, Some(delay))
            }
            (Target::Delay(delay), _) => {
                log_failure(delivery, &format!("is tried again in {delay:?}"), failure);
                (EventKind::Retried, Some(delay))
            }
            (Target::Main, _) => {
                log_failure(delivery, "is tried again at once", failure);
                (EventKind::Retried, None)
            }
            (Target::Dead | Target::Batch(_), _) => {
                log_failure(delivery, "goes to the dead letters", failure);
                (EventKind::Dead, None)
            }
        };
        Event { delay, ..self.failure_event(kind, delivery, failure, elapsed) }
    }

    /// The task is done, and its follow-ups or its outcome are about to be published. Returns the event
    /// for [`republished`](Journal::republished) or [`not_published`](Journal::not_published).
    pub(crate) fn done_before_ack(&self, delivery: &Delivery, elapsed: Duration) -> Event {
        self.event(EventKind::Done, delivery, elapsed)
    }

    /// The broker has confirmed what had to be published before the ack, and the task is acked.
    pub(crate) fn republished(&self, event: Event) {
        match event.kind {
            // The republisher has counted it when the broker confirmed it.
            EventKind::Dead => {}
            EventKind::Done => self.tally.done(),
            EventKind::Deferred => self.tally.deferred(),
            _ => self.tally.retried(),
        }
        self.notify_now(event);
    }

    /// The outcome or a follow-up of a task is not confirmed: the task is requeued after `pause`.
    pub(crate) fn not_published(
        &self,
        event: Event,
        what: &str,
        queue: &str,
        outcome: &Outcome,
        pause: Duration,
    ) {
        let (thread, task, attempt) = (event.thread, name_of_event(&event), event.attempt);
        warn!(
            queue = event.queue.as_str(), task = event.task.as_str(), thread, attempt,
            reason:% = outcome;
            "thread {thread}: the {what} of task {task} could not be published to '{queue}'; the \
             task is requeued in {pause:?} or later, and runs again: {outcome}"
        );
        self.tally.requeued();
        self.notify_now(Event { kind: EventKind::Requeued, ..event });
    }

    /// The copy of a failed task is not confirmed: the task is requeued after `pause`.
    pub(crate) fn not_republished(
        &self,
        event: Event,
        queue: &str,
        outcome: &Outcome,
        pause: Duration,
    ) {
        let (thread, task, attempt) = (event.thread, name_of_event(&event), event.attempt);
        warn!(
            queue = event.queue.as_str(), task = event.task.as_str(), thread, attempt,
            reason:% = outcome;
            "thread {thread}: task {task} could not be published to '{queue}': {outcome}; it is requeued \
             in {pause:?} or later, and the failure is not counted"
        );
        self.tally.failed();
        self.notify_now(Event { kind: EventKind::Failed, delay: None, ..event });
    }

    /// Notifies the observer of an event that was prepared earlier.
    fn notify_now(&self, event: Event) {
        self.observer.notify(|| Event { time: SystemTime::now(), ..event });
    }

    /// What counts the dead letters when the broker confirms them: the thread that publishes them may
    /// outlive the run, and must not keep the observer.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// The handler could not try the task: it is requeued after `pause`.
    pub(crate) fn not_tried(
        &self,
        delivery: &Delivery,
        failure: &Failure,
        pause: Duration,
        elapsed: Duration,
    ) {
        log_failure(delivery, &format!("is requeued in {pause:?}"), failure);
        self.tally.requeued();
        self.observer
            .notify(|| self.failure_event(EventKind::Requeued, delivery, failure, elapsed));
    }

    /// A repeated delivery of a task that still runs here is requeued after `pause`.
    pub(crate) fn still_runs(&self, delivery: &Delivery, pause: Duration) {
        let (thread, task) = (delivery.thread, delivery.task.name());
        info!(
            queue = delivery.queue(), task = id_of(delivery), thread, attempt = delivery.attempt;
            "thread {thread}: task {task} still runs here, and is requeued in {pause:?}"
        );
        self.requeued(delivery, Duration::ZERO);
    }

    /// The task is requeued, unfinished.
    pub(crate) fn requeued(&self, delivery: &Delivery, elapsed: Duration) {
        self.tally.requeued();
        self.observer.notify(|| self.event(EventKind::Requeued, delivery, elapsed));
    }

    /// The event for [`requeued_meanwhile`](Journal::requeued_meanwhile), if an observer wants it.
    pub(crate) fn event_of_requeue(&self, delivery: &Delivery) -> Option<Event> {
        self.observer.is_set().then(|| self.event(EventKind::Requeued, delivery, Duration::ZERO))
    }

    /// The task is requeued while the handler or the republisher still has it.
    pub(crate) fn requeued_meanwhile(&self, event: Option<Event>) {
        self.tally.requeued();
        if let Some(event) = event {
            self.observer.notify(|| Event { time: SystemTime::now(), ..event });
        }
    }

    /// The handler failed, and with automatic acks the broker has forgotten the task.
    pub(crate) fn lost(&self, delivery: &Delivery, failure: &Failure, elapsed: Duration) {
        let (thread, task, attempt) = (delivery.thread, delivery.task.name(), delivery.attempt);
        warn!(
            queue = delivery.queue(), task = id_of(delivery), thread, attempt, reason:% = failure;
            "thread {thread}: task {task} failed, and is lost (auto-ack): {failure}"
        );
        self.tally.lost();
        self.observer.notify(|| self.failure_event(EventKind::Failed, delivery, failure, elapsed));
    }

    /// So many tasks were not started, and with automatic acks the broker has forgotten them.
    pub(crate) fn lost_unstarted(&self, thread: usize, count: usize) {
        (0..count).for_each(|_| self.tally.lost());
        if count > 0 {
            warn!("thread {thread}: {count} tasks that were taken with auto-ack are lost");
        }
    }

    /// The handler ended after the channel was lost, and the broker has requeued the task. At least
    /// once: a task runs again when its ack does not reach the broker.
    pub(crate) fn orphaned(&self, delivery: &Delivery, elapsed: Duration) {
        self.tally.orphaned();
        self.observer.notify(|| self.event(EventKind::Orphaned, delivery, elapsed));
        let (thread, task) = (delivery.thread, delivery.task.name());
        warn!(
            queue = delivery.queue(), task = id_of(delivery), thread, attempt = delivery.attempt;
            "thread {thread}: task {task} ended after its channel was lost, and may run twice"
        );
    }

    /// The channel was lost while a failed task was being published.
    pub(crate) fn orphaned_while_published(&self, event: Event) {
        self.tally.orphaned();
        self.observer.notify(|| Event { kind: EventKind::Orphaned, delay: None, ..event });
    }

    /// A handler has ended after it was cancelled.
    pub(crate) fn ended_cancelled(&self) {
        self.tally.cancelled();
    }

    pub(crate) fn all_cancelled(&self) -> usize {
        self.tally.all_cancelled()
    }

    /// How many tasks are done, or confirmed in another queue.
    pub(crate) fn settled(&self) -> u64 {
        self.tally.settled()
    }

    pub(crate) fn sum_up(&self, running: usize, elapsed: Duration, ended: StopReason) -> Summary {
        self.tally.sum_up(running, elapsed, ended)
    }

    fn failure_event(
        &self,
        kind: EventKind,
        delivery: &Delivery,
        failure: &Failure,
        elapsed: Duration,
    ) -> Event {
        Event { reason: Some(failure.reason().to_string()), ..self.event(kind, delivery, elapsed) }
    }

    fn event(&self, kind: EventKind, delivery: &Delivery, elapsed: Duration) -> Event {
        Event::of(kind, delivery, &self.host, elapsed)
    }
}

/// Logs redelivered tasks, the first of a session one by one.
#[derive(Debug, Default)]
pub(crate) struct RedeliveryLog(AtomicUsize);

impl RedeliveryLog {
    const MOST_LOGGED: usize = 10;

    pub(crate) fn note(&self, delivery: &Delivery) {
        let (thread, task, attempt) = (delivery.thread, delivery.task.name(), delivery.attempt);
        match self.0.fetch_add(1, Ordering::Relaxed) {
            logged if logged < Self::MOST_LOGGED => info!(
                queue = delivery.queue(), task = id_of(delivery), thread, attempt;
                "thread {thread}: task {task} was delivered before: its worker died, lost its \
                 connection, or requeued it"
            ),
            Self::MOST_LOGGED => {
                info!("more tasks were delivered before; the log names them at level debug")
            }
            _ => debug!(
                queue = delivery.queue(), task = id_of(delivery), thread, attempt;
                "thread {thread}: task {task} was delivered before"
            ),
        }
    }
}

/// For a field of the log.
fn id_of(delivery: &Delivery) -> &str {
    delivery.task.id().unwrap_or_default()
}

fn name_of_event(event: &Event) -> String {
    name_of(Some(event.task.as_str()).filter(|id| !id.is_empty()))
}

fn log_failure(delivery: &Delivery, what: &str, failure: &Failure) {
    let (thread, task) = (delivery.thread, delivery.task.name());
    let (attempt, most) = (delivery.attempt, delivery.max_attempts);
    warn!(
        queue = delivery.queue(), task = id_of(delivery), thread, attempt, reason:% = failure;
        "thread {thread}: task {task}, attempt {attempt} of {most}, {what}: {failure}"
    );
}

/// A deferral is no failure, and may be as frequent as tasks are.
fn log_deferral(delivery: &Delivery, delay: Duration, failure: &Failure) {
    let (thread, task) = (delivery.thread, delivery.task.name());
    let deferral = delivery.deferrals.saturating_add(1);
    info!(
        queue = delivery.queue(), task = id_of(delivery), thread, attempt = delivery.attempt,
        reason:% = failure;
        "thread {thread}: task {task} is deferred for {delay:?} (deferral {deferral}): {failure}"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::handler::test_delivery;
    use crate::model::task::Task;

    /// The kind and the reason of each event.
    type Events = Arc<Mutex<Vec<(EventKind, Option<String>)>>>;

    /// A journal, and the events that its observer was notified of.
    fn journal() -> (Journal, Events) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let observer = Observer(Some(Arc::new(move |event: &Event| {
            seen.lock().expect("no panic").push((event.kind, event.reason.clone()));
        })));
        (Journal::new(observer, "host".into()), events)
    }

    fn delivery() -> Delivery {
        test_delivery(Task::new("").with_id("a"))
    }

    const NO_TIME: Duration = Duration::ZERO;

    /// Has a task meet each fate.
    fn record_each_fate(journal: &Journal) {
        let (delivery, failure) = (delivery(), Failure::retry("broken"));
        let failed = |target| journal.failed(&delivery, &failure, target, NO_TIME);
        let refused = Outcome::Refused { reason: "full".into() };

        journal.started(&delivery);
        journal.done(&delivery, NO_TIME);
        journal.republished(failed(Target::Main));
        let delay = Target::Delay(Duration::from_secs(1));
        let not_now = Failure::defer("busy", None);
        journal.republished(journal.failed(&delivery, &not_now, delay, NO_TIME));
        journal.republished(failed(Target::Dead));
        journal.tally().dead();
        journal.not_republished(failed(Target::Dead), "q.dead", &refused, NO_TIME);
        journal.not_tried(&delivery, &Failure::requeue("later"), NO_TIME, NO_TIME);
        journal.requeued(&delivery, NO_TIME);
        journal.lost(&delivery, &failure, NO_TIME);
        journal.orphaned(&delivery, NO_TIME);
        journal.orphaned_while_published(failed(Target::Dead));

        journal.republished(journal.done_before_ack(&delivery, NO_TIME));
        let unreported = journal.done_before_ack(&delivery, NO_TIME);
        journal.not_published(unreported, "outcome", "q.batch.1", &refused, NO_TIME);
    }

    #[test]
    fn each_fate_is_counted_once_and_observed_once() {
        let (journal, events) = journal();

        record_each_fate(&journal);

        let summary = journal.sum_up(0, NO_TIME, StopReason::Stopped);
        let counts =
            [summary.done, summary.retried, summary.deferred, summary.dead, summary.failed];
        assert_eq!(counts, [2, 1, 1, 1, 1]);
        assert_eq!([summary.requeued, summary.lost, summary.orphaned], [3, 1, 2]);
        let broken = Some("broken".to_string());
        let expected = [
            (EventKind::Started, None),
            (EventKind::Done, None),
            (EventKind::Retried, broken.clone()),
            (EventKind::Deferred, Some("busy".to_string())),
            (EventKind::Dead, broken.clone()),
            (EventKind::Failed, broken.clone()),
            (EventKind::Requeued, Some("later".to_string())),
            (EventKind::Requeued, None),
            (EventKind::Failed, broken.clone()),
            (EventKind::Orphaned, None),
            (EventKind::Orphaned, broken),
            (EventKind::Done, None),
            (EventKind::Requeued, None),
        ];
        assert_eq!(*events.lock().expect("no panic"), expected);
    }

    #[test]
    fn only_the_event_of_a_task_that_waits_in_a_delay_queue_has_a_delay() {
        let (journal, delay) = (Journal::default(), Duration::from_secs(5));
        let of = |target, failure: Failure| {
            let event = journal.failed(&delivery(), &failure, target, NO_TIME);
            (event.kind, event.delay)
        };
        let (retry, defer) = (|| Failure::retry("broken"), Failure::defer("busy", None));
        assert_eq!(of(Target::Delay(delay), retry()), (EventKind::Retried, Some(delay)));
        assert_eq!(of(Target::Delay(delay), defer), (EventKind::Deferred, Some(delay)));
        assert_eq!(of(Target::Main, retry()), (EventKind::Retried, None));
        assert_eq!(of(Target::Dead, retry()), (EventKind::Dead, None));
    }

    #[test]
    fn an_event_has_the_task_s_type_and_its_producers_headers() {
        let task = Task::new("").with_type("resize").with_correlation_id("c").with_header("n", 7);
        let task = task.with_header("x-rabbit-work-attempts", 1);
        let event = Journal::default().event(EventKind::Done, &test_delivery(task), NO_TIME);
        assert_eq!(event.task_type.as_deref(), Some("resize"));
        assert_eq!(event.correlation_id.as_deref(), Some("c"));
        assert_eq!(event.headers, [("n".to_string(), "7".to_string())].into());
    }

    #[test]
    fn what_is_lost_unstarted_is_counted_without_events() {
        let (journal, events) = journal();
        journal.lost_unstarted(1, 3);
        assert_eq!(journal.sum_up(0, NO_TIME, StopReason::Stopped).lost, 3);
        assert!(events.lock().expect("no panic").is_empty());
    }

    #[test]
    fn a_task_that_is_requeued_meanwhile_is_counted_also_without_an_observer() {
        let journal = Journal::default();
        let event = journal.event_of_requeue(&delivery());
        assert!(event.is_none(), "nobody wants it");
        journal.requeued_meanwhile(event);
        assert_eq!(journal.sum_up(0, NO_TIME, StopReason::Stopped).requeued, 1);
    }
}
