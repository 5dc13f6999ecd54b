//! One consumer thread: subscribes on its own channel, feeds one handler thread, and settles what
//! that finishes.

mod closing;
pub(crate) mod context;
mod deliveries;
mod event_loop;

use std::time::Duration;

use crossbeam_channel::select_biased;
use log::{debug, info, warn};

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::util::shutdown::is_closed;
use crate::worker::consumer::context::{ConsumerContext, ConsumerEnd, Report};
use crate::worker::consumer::event_loop::{ConsumerLoop, Exit, handler_thread_ended};
use crate::worker::job::JobFeed;
use crate::worker::pool::HandlerHandle;

/// The consumer of one handler thread.
pub(crate) struct Consumer<'c> {
    context: &'c ConsumerContext<'c>,
    handler: &'c HandlerHandle,
}

/// An idle handler thread takes a feed at once; one that has not after this long is busy.
const BUSY_AFTER: Duration = Duration::from_millis(100);

impl<'c> Consumer<'c> {
    pub(crate) fn new(
        context: &'c ConsumerContext<'c>,
        handler: &'c HandlerHandle,
    ) -> Consumer<'c> {
        Consumer { context, handler }
    }

    /// Consumes until it is stopped or its channel is lost. If the broker closed the channel because
    /// a task was late, it goes on with another one.
    pub(crate) fn run(&self, mut channel: Channel) -> ConsumerEnd {
        loop {
            let cause = match self.run_on(channel) {
                ConsumerEnd::Lost(cause) if self.may_go_on_after(&cause) => cause,
                end => return end,
            };
            channel = match self.open_another() {
                Ok(channel) => channel,
                Err(lost) => {
                    debug!("thread {}: no channel in its place: {lost}", self.handler.number);
                    return ConsumerEnd::Lost(cause);
                }
            };
            self.note_late(&cause);
        }
    }

    /// Whether the consumer may have been lost because a task was late. RabbitMQ closes the channel
    /// for that; from 4.3 on it cancels the consumer of a quorum queue without a reason.
    fn may_go_on_after(&self, cause: &CloseReason) -> bool {
        let may_be_late = cause.is_delivery_timeout() || *cause == CloseReason::ConsumerCancelled;
        may_be_late && !is_closed(&self.context.signals.stop)
    }

    fn run_on(&self, channel: Channel) -> ConsumerEnd {
        match self.consume(&channel) {
            ConsumerEnd::Stopped => {}
            lost @ ConsumerEnd::Lost(_) => return lost,
        }
        let has_acked = channel.has_settled();
        let Err(cause) = channel.close() else { return ConsumerEnd::Stopped };
        if has_acked {
            warn!(
                "thread {}: the last acks may not have arrived, and their tasks may run twice: \
                 {cause}",
                self.handler.number
            );
        }
        ConsumerEnd::Lost(cause)
    }

    /// Opens another channel, if the queue still exists: a consumer is cancelled as well when its
    /// queue is deleted.
    fn open_another(&self) -> Result<Channel, CloseReason> {
        let channel = self.context.connection.open_channel()?;
        channel.count(self.context.queue.name())?;
        Ok(channel)
    }

    fn note_late(&self, cause: &CloseReason) {
        let number = self.handler.number;
        self.context.run.late_tasks.mark_late(number);
        warn!(
            "thread {number}: its consumer was lost: {cause}. Its tasks may run twice. If a task ran \
             longer than consumer_timeout, raise that in rabbitmq.conf, or make the task shorter. \
             The thread consumes again after its task"
        );
    }

    fn consume(&self, channel: &Channel) -> ConsumerEnd {
        let (consumer_loop, feed) = ConsumerLoop::new(self.context, self.handler.number, channel);
        if let Err(end) = self.attach(feed) {
            return end;
        }
        let end = self.run_subscriptions(channel, consumer_loop);
        self.context.run.health.consumes_no_more(self.handler.number);
        end
    }

    /// Waits for the handler thread, which may still be busy with a task of an earlier session.
    fn attach(&self, feed: JobFeed) -> Result<(), ConsumerEnd> {
        let sent = self.handler.feeds.send_timeout(feed, BUSY_AFTER);
        let Err(busy) = sent else { return Ok(()) };
        info!(
            "thread {}: will consume again when its task of the lost channel has ended",
            self.handler.number
        );
        select_biased! {
            recv(self.context.signals.abort) -> _ => Err(ConsumerEnd::Stopped),
            recv(self.context.signals.stop) -> _ => Err(ConsumerEnd::Stopped),
            send(self.handler.feeds, busy.into_inner()) -> sent => {
                sent.map_err(|_| ConsumerEnd::Lost(handler_thread_ended()))
            },
        }
    }

    /// Subscribes, and again as often as a subscription stalls.
    fn run_subscriptions(
        &self,
        channel: &Channel,
        mut consumer_loop: ConsumerLoop<'_>,
    ) -> ConsumerEnd {
        let settings = &self.context.run.settings;
        loop {
            let Some(prefetch) = self.context.claim(settings.prefetch) else {
                return consumer_loop.close_unsubscribed();
            };
            let queue = self.context.queue.name();
            let subscription = match channel.consume(queue, prefetch, settings.acks) {
                Ok(subscription) => subscription,
                Err(cause) => return consumer_loop.abandon(cause),
            };
            self.report_consuming();
            match consumer_loop.run(&subscription, prefetch) {
                Exit::Resubscribe => {
                    if let Err(cause) = consumer_loop.keep_failed(subscription) {
                        return consumer_loop.abandon(cause);
                    }
                }
                Exit::Close(mode) => return consumer_loop.close(subscription, mode),
                Exit::Abandon(cause) => {
                    subscription.leave();
                    return consumer_loop.abandon(cause);
                }
            }
        }
    }

    pub(crate) fn number(&self) -> usize {
        self.handler.number
    }

    pub(crate) fn report_end(&self, end: ConsumerEnd) {
        let _ = self.context.reports.send(Report::Ended(end));
    }

    fn report_consuming(&self) {
        let number = self.handler.number;
        let _ = self.context.reports.send(Report::Consuming(number));
        self.context.run.health.consumes(number);
    }
}
