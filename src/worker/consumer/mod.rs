//! One consumer thread: subscribes on its own channel, has one runner call the handler, and settles
//! what that finishes.

mod closing;
pub(crate) mod context;
mod deliveries;
mod event_loop;
pub(crate) mod own_thread;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::select_biased;
use log::{debug, info, warn};

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::consumer_tag::tag_of_thread;
use crate::util::shutdown::is_closed;
use crate::worker::consumer::context::{ConsumerContext, ConsumerEnd, Report};
use crate::worker::consumer::event_loop::{ConsumerLoop, Exit};
use crate::worker::consumer::own_thread::HandlerCall;
use crate::worker::pool::{Free, Runner, RunnerSlot};

/// The consumer of one thread number.
pub(crate) struct Consumer {
    context: Arc<ConsumerContext>,
    slot: RunnerSlot,
    call: Arc<HandlerCall>,
}

/// A runner that is not free after this long is busy with a task.
const BUSY_AFTER: Duration = Duration::from_millis(100);

impl Consumer {
    pub(crate) fn new(context: &Arc<ConsumerContext>, slot: &RunnerSlot) -> Consumer {
        Consumer { context: Arc::clone(context), slot: slot.clone(), call: Arc::default() }
    }

    /// Whether it calls the handler itself at present.
    pub(crate) fn handler_call(&self) -> Arc<HandlerCall> {
        Arc::clone(&self.call)
    }

    /// Consumes until it is stopped or its channel is lost. If the broker closed the channel because
    /// a task was late, it goes on with another one.
    pub(crate) fn run(&self, channel: Channel) -> ConsumerEnd {
        self.go_on_after(self.run_on(channel))
    }

    /// Goes on after a consumer of the same thread number whose channel ended like this, if it may.
    pub(crate) fn go_on_after(&self, mut end: ConsumerEnd) -> ConsumerEnd {
        loop {
            let cause = match end {
                ConsumerEnd::Lost(cause) if self.may_go_on_after(&cause) => cause,
                end => return end,
            };
            let channel = match self.open_another() {
                Ok(channel) => channel,
                Err(lost) => {
                    debug!("thread {}: cannot open another channel: {lost}", self.slot.number);
                    return ConsumerEnd::Lost(cause);
                }
            };
            self.note_late(&cause);
            end = self.run_on(channel);
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
                self.slot.number
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
        let number = self.slot.number;
        self.context.run.late_tasks.mark_late(number);
        warn!(
            "thread {number}: lost its consumer: {cause}; its tasks may run twice, and it consumes again \
             after its task. If a task ran longer than consumer_timeout, raise consumer_timeout in \
             rabbitmq.conf or make the task shorter"
        );
    }

    fn consume(&self, channel: &Channel) -> ConsumerEnd {
        let runner = match self.wait_for_runner() {
            Ok(runner) => runner,
            Err(end) => return end,
        };
        let mut consumer_loop = match ConsumerLoop::new(&self.context, runner, &self.call, channel)
        {
            Ok(consumer_loop) => consumer_loop,
            Err(cause) => return ConsumerEnd::Lost(cause),
        };
        let end = self.run_subscriptions(channel, &mut consumer_loop);
        // Before another consumer gets the runner.
        self.context.run.health.consumes_no_more(self.slot.number);
        end
    }

    /// Waits for the runner, which may still be busy with a task of an earlier session.
    fn wait_for_runner(&self) -> Result<Runner, ConsumerEnd> {
        let free = self.slot.free.recv_timeout(BUSY_AFTER).or_else(|_| self.wait_for_task());
        let runner = self.slot.runner(free?);
        runner.forget_job();
        Ok(runner)
    }

    fn wait_for_task(&self) -> Result<Free, ConsumerEnd> {
        info!(
            "thread {}: will consume again when its task of the lost channel has ended",
            self.slot.number
        );
        select_biased! {
            recv(self.context.signals.abort) -> _ => Err(ConsumerEnd::Stopped),
            recv(self.context.signals.stop) -> _ => Err(ConsumerEnd::Stopped),
            // Never disconnected: `slot` is a sender, too.
            recv(self.slot.free) -> free => free.map_err(|_| ConsumerEnd::Stopped),
        }
    }

    /// Subscribes, and again as often as a subscription stalls.
    fn run_subscriptions(
        &self,
        channel: &Channel,
        consumer_loop: &mut ConsumerLoop<'_>,
    ) -> ConsumerEnd {
        let settings = &self.context.run.settings;
        let mut subscriptions = 0;
        loop {
            let Some(prefetch) = self.context.claim(settings.prefetch) else {
                return consumer_loop.close_unsubscribed();
            };
            subscriptions += 1;
            let name = self.context.connection.name();
            let tag = tag_of_thread(name, self.slot.number, subscriptions);
            let queue = self.context.queue.name();
            let subscription = match channel.consume(queue, prefetch, settings.acks, Some(&tag)) {
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

    /// Reports its end, unless the session went on without it.
    pub(crate) fn report_end(&self, end: ConsumerEnd) {
        if self.call.is_awaited() {
            let _ = self.context.reports.send(Report::Ended(self.slot.number, end));
        }
    }

    fn report_consuming(&self) {
        let number = self.slot.number;
        let _ = self.context.reports.send(Report::Consuming(number));
        self.context.run.health.consumes(number);
    }
}
