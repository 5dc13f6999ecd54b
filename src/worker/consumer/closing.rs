//! The end of a consumer: finishes or requeues what is unacked after the subscription has ended.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use crossbeam_channel::{Receiver, never, select_biased};

use crate::amqp::channel::{Received, Unsettled};
use crate::amqp::close_reason::CloseReason;
use crate::util::shutdown::is_closed;
use crate::worker::consumer::context::{ConsumerContext, ConsumerEnd, ConsumerSignals};
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::job::Finished;
use crate::worker::republish::RepublishResult;

/// Why a consumer closes, which says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseMode {
    /// Finishes what runs, and requeues what is not started.
    Stop,
    /// Requeues everything.
    Abort,
    /// Finishes everything that it has taken: that is all that it may take.
    BudgetUsed,
}

/// A consumer that has left its subscription.
pub(super) struct Closing<'l, 'c> {
    context: &'c ConsumerContext,
    deliveries: &'l mut Deliveries<'c>,
    last: VecDeque<Finished>,
    /// Never closes once its closing is acted on.
    signals: ConsumerSignals,
    /// `None` once the handler thread has left the feed.
    finished: Option<Receiver<Finished>>,
}

/// What a closing consumer waits for.
enum ClosingEvent {
    Abort,
    /// To be acted on before the next wait.
    SignalClosed,
    Finished(Finished),
    FeedEnded,
    Republished(RepublishResult),
    PauseOver,
}

impl<'l, 'c> Closing<'l, 'c> {
    pub(super) fn new(
        context: &'c ConsumerContext,
        deliveries: &'l mut Deliveries<'c>,
        last: VecDeque<Finished>,
    ) -> Closing<'l, 'c> {
        let finished = Some(deliveries.jobs.finished.clone());
        Closing { context, deliveries, last, signals: context.signals.clone(), finished }
    }

    /// Settles everything; `arrived` came before the end of the subscription.
    pub(super) fn run(
        mut self,
        mode: CloseMode,
        arrived: Vec<(Unsettled, Received)>,
    ) -> ConsumerEnd {
        match self.settle_all(mode, arrived) {
            Ok(()) => ConsumerEnd::Stopped,
            Err(cause) => {
                self.deliveries.abandon(self.last);
                ConsumerEnd::Lost(cause)
            }
        }
    }

    fn settle_all(
        &mut self,
        mode: CloseMode,
        arrived: Vec<(Unsettled, Received)>,
    ) -> Result<(), CloseReason> {
        self.deliveries.take_all(arrived)?;
        match mode {
            CloseMode::Abort => {
                self.deliveries.requeue_unstarted()?;
                self.deliveries.requeue_all()
            }
            CloseMode::Stop | CloseMode::BudgetUsed => self.finish(),
        }
    }

    /// Waits for what runs, for what is being republished and for pauses, until nothing is left or
    /// an abort comes.
    fn finish(&mut self) -> Result<(), CloseReason> {
        self.settle_waiting()?;
        self.deliveries.refuse_repeats();
        self.requeue_early()?;
        self.deliveries.end_jobs()?;
        loop {
            self.requeue_early()?;
            if self.finished.is_none() && !self.deliveries.is_waiting() {
                return Ok(());
            }
            match self.next_event() {
                ClosingEvent::Abort => return self.deliveries.requeue_all(),
                ClosingEvent::SignalClosed => {}
                ClosingEvent::Finished(finished) => {
                    self.last.push_back(finished);
                    self.settle_waiting()?;
                }
                ClosingEvent::FeedEnded => self.finished = None,
                ClosingEvent::Republished(result) => self.deliveries.finish_republish(result)?,
                ClosingEvent::PauseOver => self.deliveries.requeue_due()?,
            }
        }
    }

    /// Settles the results that wait. What is done is acked before anything is recorded, which may be
    /// slow.
    fn settle_waiting(&mut self) -> Result<(), CloseReason> {
        self.last.extend(self.deliveries.jobs.finished.try_iter());
        let (mut done, mut acked, mut others) = (BTreeMap::new(), Vec::new(), VecDeque::new());
        for finished in mem::take(&mut self.last) {
            if self.deliveries.is_done(&finished) {
                done.insert(finished.job.tag, finished);
            } else {
                others.push_back(finished);
            }
        }
        let mut sent = Ok(());
        while sent.is_ok() && !done.is_empty() {
            sent = self.deliveries.ack_next(&mut done, &mut acked);
        }
        acked.iter().for_each(|finished| self.deliveries.note_done(finished));
        self.last = done.into_values().chain(others).collect();
        sent?;
        while let Some(finished) = self.last.pop_front() {
            self.deliveries.settle(finished)?;
        }
        Ok(())
    }

    /// Requeues what must not wait any longer.
    fn requeue_early(&mut self) -> Result<(), CloseReason> {
        if is_closed(&self.signals.stop) {
            self.signals.stop = never();
            self.deliveries.requeue_unstarted()?;
        }
        // Each time: more tasks may be paused after the signal.
        if is_closed(&self.context.signals.skip_pauses) {
            self.signals.skip_pauses = never();
            self.deliveries.skip_pauses()?;
        }
        if self.finished.is_none() {
            self.deliveries.nack_requeued()?;
        }
        Ok(())
    }

    fn next_event(&self) -> ClosingEvent {
        let finished = self.finished.clone().unwrap_or_else(never);
        select_biased! {
            recv(self.signals.abort) -> _ => ClosingEvent::Abort,
            recv(self.signals.stop) -> _ => ClosingEvent::SignalClosed,
            recv(self.signals.skip_pauses) -> _ => ClosingEvent::SignalClosed,
            recv(finished) -> finished => {
                finished.map_or(ClosingEvent::FeedEnded, ClosingEvent::Finished)
            },
            recv(self.deliveries.republished) -> result => {
                // Never disconnected: `Deliveries` is a sender, too.
                result.map_or(ClosingEvent::SignalClosed, ClosingEvent::Republished)
            },
            recv(self.deliveries.next_due()) -> _ => ClosingEvent::PauseOver,
        }
    }
}
