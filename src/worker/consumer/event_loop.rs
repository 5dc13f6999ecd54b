//! The event loop of one consumer: waits for the next event, and acts on it.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, never, select_biased};

use crate::amqp::channel::{Channel, Incoming, Left, Subscription};
use crate::amqp::close_reason::CloseReason;
use crate::worker::consumer::closing::{CloseMode, Closing};
use crate::worker::consumer::context::{ConsumerContext, ConsumerEnd};
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::consumer::own_thread::{HandlerCall, LeftBehind, OwnThread};
use crate::worker::job::{Finished, Job};
use crate::worker::pool::Runner;
use crate::worker::republish::RepublishResult;

/// The loop of one consumer on one channel.
pub(super) struct ConsumerLoop<'c> {
    context: &'c ConsumerContext,
    deliveries: Deliveries<'c>,
    /// Until when results wait for others; `None` when the next one is settled as it comes.
    batch_due: Option<Instant>,
    /// Results that are settled only after the subscription has ended, so that the broker sends
    /// nothing in their place.
    last: VecDeque<Finished>,
}

/// What a consumer waits for.
enum ConsumerEvent {
    Abort,
    Stop,
    /// A full batch of results waits, or an incomplete one has waited long enough.
    BatchReady,
    Finished(Finished),
    HandlerThreadEnded,
    Republished(RepublishResult),
    PauseOver,
    /// Failed tasks keep the broker from sending others.
    Stalled,
    Message(Incoming),
    Disconnected,
}

/// How a subscription is to end.
pub(super) enum Exit {
    /// By another one on the same channel.
    Resubscribe,
    /// In order.
    Close(CloseMode),
    /// At once: nothing can be settled any more.
    Abandon(CloseReason),
}

impl From<CloseReason> for Exit {
    fn from(cause: CloseReason) -> Exit {
        Exit::Abandon(cause)
    }
}

/// How long a result may wait for others. Two threads that wake each other for every task take
/// longer for that than for a short task.
const BATCH_WAIT: Duration = Duration::from_millis(1);

/// How many deliveries are taken before other events have their turn.
const MOST_AT_ONCE: usize = 64;

impl<'c> ConsumerLoop<'c> {
    pub(super) fn new(
        context: &'c ConsumerContext,
        runner: Runner,
        call: &Arc<HandlerCall>,
        channel: &'c Channel,
    ) -> Result<ConsumerLoop<'c>, CloseReason> {
        let deliveries = Deliveries::new(context, runner, call, channel)?;
        Ok(ConsumerLoop { context, deliveries, batch_due: None, last: VecDeque::new() })
    }

    /// Takes and settles deliveries of a new subscription until there is a reason to end it.
    pub(super) fn run(&mut self, subscription: &Subscription<'_>, prefetch: u16) -> Exit {
        self.deliveries.begin_subscription(prefetch);
        loop {
            if let Err(exit) = self.step(subscription) {
                return exit;
            }
        }
    }

    fn step(&mut self, subscription: &Subscription<'_>) -> Result<(), Exit> {
        if self.deliveries.has_repeats() {
            self.flush(subscription)?;
            self.deliveries.refuse_repeats();
        }
        self.deliveries.nack_requeued()?;
        match self.deliveries.next_own_job() {
            Ok(None) => {}
            Ok(Some((own_thread, job))) => return self.run_job(own_thread, job, subscription),
            Err(LeftBehind) => {
                self.deliveries.leave_queued_job();
                return Err(left_behind(subscription));
            }
        }
        let event = self.next_event(subscription);
        self.on(event, subscription)
    }

    /// Runs a job on this thread. Meanwhile the broker has nothing to send, and nothing else waits.
    fn run_job(
        &mut self,
        own_thread: OwnThread,
        job: Job,
        subscription: &Subscription<'_>,
    ) -> Result<(), Exit> {
        let (finished, returned) = own_thread.run(job);
        let settled = match returned {
            Ok(()) => self.settle_own(finished, subscription),
            Err(LeftBehind) => {
                self.deliveries.leave_own_job(&finished);
                Err(left_behind(subscription))
            }
        };
        if settled.is_ok() {
            own_thread.forget_job();
        }
        self.deliveries.put_back(own_thread);
        settled
    }

    fn settle_own(
        &mut self,
        finished: Finished,
        subscription: &Subscription<'_>,
    ) -> Result<(), Exit> {
        if self.context.is_stopped() {
            self.last.push_back(finished);
            return Err(Exit::Close(CloseMode::Stop));
        }
        self.settle(finished, subscription)
    }

    fn next_event(&mut self, subscription: &Subscription<'_>) -> ConsumerEvent {
        use ConsumerEvent as Event;
        let stalled = self.deliveries.stalled();
        let signals = &self.context.signals;
        let batch_ready = self.deliveries.batch_ready();
        select_biased! {
            recv(signals.abort) -> _ => Event::Abort,
            recv(signals.stop) -> _ => Event::Stop,
            recv(batch_ready) -> ready => {
                ready.map_or(Event::HandlerThreadEnded, |()| Event::BatchReady)
            },
            recv(self.batch_due()) -> _ => Event::BatchReady,
            recv(self.next_result()) -> finished => {
                finished.map_or(Event::HandlerThreadEnded, Event::Finished)
            },
            recv(self.deliveries.republished) -> result => {
                // Never disconnected: `Deliveries` is a sender, too.
                result.map_or(Event::Disconnected, Event::Republished)
            },
            recv(self.deliveries.next_due()) -> _ => Event::PauseOver,
            recv(stalled) -> _ => Event::Stalled,
            recv(subscription.inbox()) -> message => {
                message.map_or(Event::Disconnected, |it| Event::Message(it.into()))
            },
        }
    }

    fn batch_due(&self) -> Receiver<Instant> {
        self.batch_due.map_or_else(never, crossbeam_channel::at)
    }

    fn next_result(&self) -> Receiver<Finished> {
        if self.batch_due.is_none() { self.deliveries.finished() } else { never() }
    }

    fn on(&mut self, event: ConsumerEvent, subscription: &Subscription<'_>) -> Result<(), Exit> {
        match event {
            ConsumerEvent::Abort => Err(Exit::Close(CloseMode::Abort)),
            ConsumerEvent::Stop => Err(Exit::Close(CloseMode::Stop)),
            ConsumerEvent::BatchReady => self.settle_batch(None, subscription),
            ConsumerEvent::Finished(finished) => self.settle_batch(Some(finished), subscription),
            ConsumerEvent::HandlerThreadEnded => Err(handler_thread_ended().into()),
            ConsumerEvent::Republished(result) => self.on_republished(result, subscription),
            ConsumerEvent::PauseOver => self.on_pause_over(subscription),
            // The broker may have stopped reading since the wait began.
            ConsumerEvent::Stalled if self.context.is_blocked() => Ok(()),
            ConsumerEvent::Stalled => Err(Exit::Resubscribe),
            ConsumerEvent::Message(incoming) => self.take_arrived(incoming, subscription),
            ConsumerEvent::Disconnected => Err(CloseReason::Disconnected.into()),
        }
    }

    /// Takes a delivery, and some of those that came with it: to wait for events before each of them
    /// takes longer than a short task.
    fn take_arrived(
        &mut self,
        first: Incoming,
        subscription: &Subscription<'_>,
    ) -> Result<(), Exit> {
        self.take(first)?;
        subscription.inbox().try_iter().take(MOST_AT_ONCE).try_for_each(|it| self.take(it.into()))
    }

    fn take(&mut self, incoming: Incoming) -> Result<(), Exit> {
        match incoming {
            Incoming::Delivery(unsettled, received) => {
                self.deliveries.take(unsettled, received)?;
                self.start_batch();
                Ok(())
            }
            Incoming::Ended(cause) => Err(cause.into()),
            Incoming::Cancelled => Err(CloseReason::Disconnected.into()),
        }
    }

    fn start_batch(&mut self) {
        if self.deliveries.runs_jobs_itself() {
            return;
        }
        self.batch_due.get_or_insert_with(|| Instant::now() + BATCH_WAIT);
    }

    /// Settles the results that wait, due or not, before an observer is called: this thread waits for it.
    fn flush(&mut self, subscription: &Subscription<'_>) -> Result<(), Exit> {
        match self.deliveries.jobs.finished.is_empty() {
            true => Ok(()),
            false => self.settle_batch(None, subscription),
        }
    }

    /// Settles what the runner has finished; `first` came before the results that wait. What is done
    /// is acked before anything else: the rest may be slow to record.
    fn settle_batch(
        &mut self,
        first: Option<Finished>,
        subscription: &Subscription<'_>,
    ) -> Result<(), Exit> {
        let any = first.is_some() || !self.deliveries.jobs.finished.is_empty();
        let (done, mut others) = self.take_results(first);
        let mut settled = self.ack_together(done, subscription);
        while let (Ok(()), Some(finished)) = (&settled, others.pop_front()) {
            settled = self.settle(finished, subscription);
        }
        self.last.extend(others);
        settled?;
        if !self.last.is_empty() {
            return Err(Exit::Close(CloseMode::BudgetUsed));
        }
        self.batch_due = None;
        if any && self.deliveries.jobs.has_queued() {
            self.start_batch();
        }
        Ok(())
    }

    /// Takes the results that wait: those that are to be acked together, and the others.
    fn take_results(
        &mut self,
        first: Option<Finished>,
    ) -> (BTreeMap<u64, Finished>, VecDeque<Finished>) {
        let (mut done, mut others) = (BTreeMap::new(), VecDeque::new());
        // No more than there are now: the runner goes on, and other events have their turn.
        let count = self.deliveries.jobs.finished.len();
        let waiting = self.deliveries.jobs.finished.clone();
        for finished in first.into_iter().chain(waiting.try_iter().take(count)) {
            if !self.deliveries.is_done(&finished) {
                others.push_back(finished);
            } else if self.claim_replacement().is_ok() {
                done.insert(finished.job.tag, finished);
            } else {
                self.last.push_back(finished);
                break;
            }
        }
        (done, others)
    }

    fn ack_together(
        &mut self,
        mut done: BTreeMap<u64, Finished>,
        subscription: &Subscription<'_>,
    ) -> Result<(), Exit> {
        let (mut acked, mut sent) = (Vec::new(), Ok(()));
        while sent.is_ok() && !done.is_empty() {
            let checked = self.check_subscription(subscription);
            sent = checked.and_then(|()| Ok(self.deliveries.ack_next(&mut done, &mut acked)?));
        }
        acked.iter().for_each(|finished| self.deliveries.note_done(finished));
        done.values().for_each(|finished| self.deliveries.orphan(finished));
        sent
    }

    fn settle(&mut self, finished: Finished, subscription: &Subscription<'_>) -> Result<(), Exit> {
        if let Err(exit) = self.check_subscription(subscription) {
            self.deliveries.orphan(&finished);
            return Err(exit);
        }
        if self.deliveries.settles_at_once(&finished) && self.claim_replacement().is_err() {
            self.last.push_back(finished);
            return Err(Exit::Close(CloseMode::BudgetUsed));
        }
        Ok(self.deliveries.settle(finished)?)
    }

    fn on_republished(
        &mut self,
        result: RepublishResult,
        subscription: &Subscription<'_>,
    ) -> Result<(), Exit> {
        let flushed = self.flush(subscription).and_then(|()| self.check_subscription(subscription));
        let ready = flushed.and_then(|()| match self.deliveries.makes_room(&result) {
            true => self.claim_replacement(),
            false => Ok(()),
        });
        if ready.is_err() {
            self.deliveries.postpone(result);
            return ready;
        }
        Ok(self.deliveries.finish_republish(result)?)
    }

    fn on_pause_over(&mut self, subscription: &Subscription<'_>) -> Result<(), Exit> {
        self.check_subscription(subscription)?;
        if self.deliveries.due_makes_room() {
            self.claim_replacement()?;
        }
        Ok(self.deliveries.requeue_due()?)
    }

    /// Claims the delivery that the broker may send for one that is settled.
    fn claim_replacement(&self) -> Result<(), Exit> {
        self.context.claim(1).map(drop).ok_or(Exit::Close(CloseMode::BudgetUsed))
    }

    /// Checks that the subscription has not ended, before anything is settled on it: a requeued task
    /// must not be acked, and a late ack would revive a consumer that the client library has
    /// forgotten (RabbitMQ 4.3).
    fn check_subscription(&mut self, subscription: &Subscription<'_>) -> Result<(), Exit> {
        loop {
            match subscription.inbox().try_recv() {
                Ok(message) => self.take(message.into())?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(CloseReason::Disconnected.into()),
            }
        }
    }

    /// Ends a subscription, and keeps its failed tasks, so that another one brings other tasks: each
    /// has a prefetch of its own (<https://www.rabbitmq.com/docs/consumer-prefetch>).
    pub(super) fn keep_failed(
        &mut self,
        subscription: Subscription<'_>,
    ) -> Result<(), CloseReason> {
        self.deliveries.log_resubscription();
        let Left { arrived, ended } = subscription.leave();
        ended.map_or(Ok(()), Err)?;
        self.deliveries.take_all(arrived)
    }

    /// Ends the subscription, and settles or requeues what is left.
    pub(super) fn close(&mut self, subscription: Subscription<'_>, mode: CloseMode) -> ConsumerEnd {
        if mode != CloseMode::BudgetUsed {
            self.deliveries.jobs.close();
        }
        match subscription.leave() {
            Left { ended: Some(cause), .. } => self.abandon(cause),
            Left { arrived, ended: None } => self.closing().run(mode, arrived),
        }
    }

    /// The same without a subscription.
    pub(super) fn close_unsubscribed(&mut self) -> ConsumerEnd {
        self.closing().run(CloseMode::BudgetUsed, Vec::new())
    }

    /// Leaves everything to the broker, which has requeued it or is about to.
    pub(super) fn abandon(&mut self, cause: CloseReason) -> ConsumerEnd {
        self.deliveries.abandon(mem::take(&mut self.last));
        ConsumerEnd::Lost(cause)
    }

    fn closing(&mut self) -> Closing<'_, 'c> {
        Closing::new(self.context, &mut self.deliveries, mem::take(&mut self.last))
    }
}

/// Ends a consumer that its session went on without.
fn left_behind(subscription: &Subscription<'_>) -> Exit {
    // The supervisor may be closing the connection. A request could break that.
    subscription.wait_for_end();
    CloseReason::Disconnected.into()
}

fn handler_thread_ended() -> CloseReason {
    CloseReason::Lost("the handler thread ended".into())
}
