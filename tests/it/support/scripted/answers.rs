//! The usual answers of a broker, and waiting for a certain method.

use super::{Consumer, Session, Tuning};
use crate::support::wire::{Arguments, Call, Delivery, Method, Publish};

impl Session {
    /// The next method, which must come.
    pub(crate) fn expect_method(&mut self) -> Method {
        let method = self.next_method();
        method.expect("the client left while the script waited for a method")
    }

    /// Answers as a broker would, until there comes what has no usual answer: that is returned.
    /// `None` when the peer has left, with or without closing the connection first.
    pub(crate) fn answer_rpcs(&mut self) -> Option<Method> {
        loop {
            let method = self.next_method()?;
            if self.answer(&method) {
                continue;
            }
            match method.call {
                Call::ChannelCloseOk => {}
                Call::ConnectionCloseOk => return None,
                _ => return Some(method),
            }
        }
    }

    /// Sends the usual answer, which to a tune-ok is none; says whether there is a usual answer.
    pub(crate) fn answer(&mut self, method: &Method) -> bool {
        let none = Arguments::default();
        let (no_wait, class, id, arguments) = match &method.call {
            Call::StartOk { .. } => {
                self.send_tune(Tuning::default());
                return true;
            }
            Call::TuneOk { frame_max, .. } => {
                self.frame_max = *frame_max;
                return true;
            }
            Call::Open { .. } => (false, 10, 41, none.short("")),
            Call::ChannelOpen => (false, 20, 11, none.long("")),
            Call::ChannelClose { .. } => (false, 20, 41, none),
            Call::ConnectionClose { .. } => (false, 10, 51, none),
            Call::ExchangeDeclare { no_wait, .. } => (*no_wait, 40, 11, none),
            Call::QueueDeclare { queue, no_wait, .. } => {
                let queue = self.named(queue, "amq.gen");
                // It is empty and has a consumer.
                (*no_wait, 50, 11, none.short(queue).u32(0).u32(1))
            }
            Call::QueueBind { no_wait, .. } => (*no_wait, 50, 21, none),
            Call::QueuePurge { no_wait, .. } => (*no_wait, 50, 31, none.u32(0)),
            Call::QueueDelete { no_wait, .. } => (*no_wait, 50, 41, none.u32(0)),
            Call::Qos { .. } => (false, 60, 11, none),
            Call::Consume { tag, no_wait, .. } => {
                let tag = self.named(tag, "amq.ctag");
                (*no_wait, 60, 21, none.short(tag))
            }
            Call::Cancel { tag, no_wait } => (*no_wait, 60, 31, none.short(tag)),
            Call::Get { .. } => (false, 60, 72, none.short("")),
            Call::ConfirmSelect { no_wait } => (*no_wait, 85, 11, none),
            _ => return false,
        };
        if !no_wait {
            self.send(method.channel, class, id, arguments);
        }
        true
    }

    /// Answers until a consumer has been let in.
    pub(crate) fn accept_consumer(&mut self) -> Consumer {
        let method = self.expect_consume();
        self.let_in(method).expect("it was waited for")
    }

    /// Lets a consumer in, if this is one that asks for it.
    pub(crate) fn let_in(&mut self, mut method: Method) -> Option<Consumer> {
        let Call::Consume { queue, tag, .. } = &mut method.call else { return None };
        *tag = self.named(tag, "amq.ctag");
        let consumer = Consumer { channel: method.channel, queue: queue.clone(), tag: tag.clone() };
        self.answer(&method);
        Some(consumer)
    }

    /// Serves a producer or a worker, from the handshake until it leaves.
    pub(crate) fn serve(&mut self) {
        self.serve_but(|_, _| {});
    }

    /// The same, but does something else, too, ahead of each answer.
    pub(crate) fn serve_but(&mut self, mut also: impl FnMut(&mut Session, &Method)) {
        if !self.read_protocol_header() {
            return;
        }
        self.send_start();
        while let Some(method) = self.next_method() {
            also(self, &method);
            self.serve_method(method);
        }
    }

    /// Confirms what is published, sends each consumer one task, and answers what has an answer.
    /// Reports `settled` when a task was published or acked.
    pub(crate) fn serve_method(&mut self, method: Method) {
        match method.call {
            Call::Ack { .. } => self.report("settled"),
            Call::Publish(_) => {
                self.report("settled");
                let tag = self.published.entry(method.channel).or_default();
                *tag += 1;
                let tag = *tag;
                self.ack(method.channel, tag);
            }
            Call::Consume { .. } => {
                let consumer = self.let_in(method).expect("it asks for that");
                let delivery = Delivery::new(consumer.channel, &consumer.tag, 1);
                self.deliver(&delivery.body("task"));
            }
            _ => drop(self.answer(&method)),
        }
    }

    /// Answers until the client consumes, which is left to be answered.
    pub(crate) fn expect_consume(&mut self) -> Method {
        self.answer_until(|call| matches!(call, Call::Consume { .. }))
    }

    /// Answers until the client cancels this consumer, which is left to be answered.
    pub(crate) fn expect_cancel(&mut self, consumer: &Consumer) -> Method {
        self.answer_until(|call| matches!(call, Call::Cancel { tag, .. } if *tag == consumer.tag))
    }

    /// Answers until a queue is to be declared, which is left to be answered.
    pub(crate) fn expect_declare(&mut self) -> Method {
        self.answer_until(|call| matches!(call, Call::QueueDeclare { .. }))
    }

    fn answer_until(&mut self, wanted: impl Fn(&Call) -> bool) -> Method {
        loop {
            let method = self.expect_method();
            if wanted(&method.call) {
                return method;
            }
            let answered = self.answer(&method);
            assert!(answered, "instead of what was waited for there came {method:?}");
        }
    }

    /// Answers until a publish is there.
    pub(crate) fn read_publish(&mut self) -> Publish {
        let publish = self.try_read_publish();
        publish.expect("the client left while the script waited for a publish")
    }

    /// As `read_publish`, but `None` when the peer has left.
    pub(crate) fn try_read_publish(&mut self) -> Option<Publish> {
        match self.answer_rpcs()?.call {
            Call::Publish(publish) => Some(*publish),
            other => panic!("instead of a publish there came {other:?}"),
        }
    }

    fn named(&mut self, name: &str, prefix: &str) -> String {
        if !name.is_empty() {
            return name.to_owned();
        }
        self.names += 1;
        format!("{prefix}-{}", self.names)
    }
}
