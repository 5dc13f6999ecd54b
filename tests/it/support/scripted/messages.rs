//! What a broker sends of itself: deliveries, confirms, returns, closes, heartbeats.

use super::{Consumer, Session, close_arguments};
use crate::support::wire::{Arguments, Delivery, Frame, Publish, content};

impl Session {
    pub(crate) fn deliver(&mut self, delivery: &Delivery) {
        let bytes = delivery.to_bytes(self.frame_max);
        self.raw(&bytes);
    }

    pub(crate) fn ack(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 80, Arguments::default().u64(tag).u8(0));
    }

    /// Acks all tags up to this one.
    pub(crate) fn ack_up_to(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 80, Arguments::default().u64(tag).u8(1));
    }

    pub(crate) fn nack(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 120, Arguments::default().u64(tag).u8(0));
    }

    /// Nacks all tags up to this one.
    pub(crate) fn nack_up_to(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 120, Arguments::default().u64(tag).u8(1));
    }

    /// Sends a publish back, for instance with 312 and `NO_ROUTE`.
    pub(crate) fn return_message(&mut self, publish: &Publish, code: u16, text: &str) {
        let arguments = Arguments::default()
            .u16(code)
            .short(text)
            .short(&publish.exchange)
            .short(&publish.routing_key);
        let method = Frame::method(publish.channel, 60, 50, arguments);
        let properties = &publish.raw_properties;
        let bytes = content(&method, properties, &publish.body, self.frame_max);
        self.raw(&bytes);
    }

    /// Closes a channel; the client's close-ok comes later, and `answer_rpcs` passes over it.
    pub(crate) fn close_channel(&mut self, channel: u16, code: u16, text: &str) {
        self.send(channel, 20, 40, close_arguments(code, text));
    }

    /// Closes the connection; the client's close-ok comes later.
    pub(crate) fn close_connection(&mut self, code: u16, text: &str) {
        self.send(0, 10, 50, close_arguments(code, text));
    }

    /// Cancels a consumer as a broker does whose queue has gone.
    pub(crate) fn cancel_consumer(&mut self, consumer: &Consumer) {
        let arguments = Arguments::default().short(&consumer.tag).u8(1);
        self.send(consumer.channel, 60, 30, arguments);
    }

    pub(crate) fn blocked(&mut self, reason: &str) {
        self.send(0, 10, 60, Arguments::default().short(reason));
    }

    pub(crate) fn unblocked(&mut self) {
        self.send(0, 10, 61, Arguments::default());
    }

    pub(crate) fn heartbeat(&mut self) {
        self.raw(&Frame::heartbeat().to_bytes());
    }

    pub(crate) fn send(&mut self, channel: u16, class: u16, method: u16, arguments: Arguments) {
        let frame = Frame::method(channel, class, method, arguments);
        self.raw(&frame.to_bytes());
    }
}
