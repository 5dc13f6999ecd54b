//! Refuses queues that the broker would refuse by closing the connection, or that would lose tasks.
//! Pure.

use crate::model::batch::id::BatchId;
use crate::model::delays::LONGEST_DELAY;
use crate::model::error::Error;
use crate::model::queue::{
    Argument, Durability, LONGEST_NAME, MAX_PRIORITY, OVERFLOW, Queue, QueueType, REJECT_PUBLISH,
    TYPE, Target,
};

impl Queue {
    /// Refuses what the broker, or amiquip before it, would answer by closing the connection
    /// (a name of over 255 bytes is written malformed: amq-protocol-types 1.2 generation.rs:106).
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let length = self.name.len();
        if length == 0 {
            return Err(Error::setting("queue", "the name is empty"));
        }
        if length > LONGEST_NAME {
            return Err(Error::setting(
                "queue",
                format!("the name has {length} bytes, and at most {LONGEST_NAME} are allowed"),
            ));
        }
        if self.name.contains(['\r', '\n']) {
            let reason = "the name has a line end in it, which RabbitMQ would remove";
            return Err(Error::setting("queue", reason));
        }
        if self.delivery_limit == 0 {
            return Err(Error::setting("delivery limit", "0 would allow no delivery"));
        }
        if !self.is_passive() && self.name.starts_with("amq.") {
            return Err(Error::setting(
                "queue",
                "names that begin with 'amq.' are the broker's own",
            ));
        }
        if self.kind == QueueType::Quorum && self.durability == Durability::Transient {
            return Err(Error::setting("queue type", "a quorum queue is always durable"));
        }
        self.validate_arguments()
    }

    fn validate_arguments(&self) -> Result<(), Error> {
        for (index, (name, value)) in self.arguments.iter().enumerate() {
            let is_again = self.arguments[..index].iter().any(|(before, _)| before == name);
            let again = is_again.then_some("it is given twice");
            if let Some(reason) = self.objection_to(name, value).or(again) {
                return Err(Error::setting("queue argument", format!("{name}: {reason}")));
            }
        }
        Ok(())
    }

    /// Why an argument is refused.
    fn objection_to(&self, name: &str, value: &Argument) -> Option<&'static str> {
        if self.is_passive() {
            return Some("a queue that is used as it is gets no arguments");
        }
        let rejects = |argument: &(String, Argument)| {
            argument.0 == OVERFLOW && argument.1 == Argument::from(REJECT_PUBLISH)
        };
        match name {
            "" => Some("the name is empty"),
            name if name.len() > LONGEST_NAME => Some("the name has more than 255 bytes"),
            TYPE => Some("the queue type has its own option, --queue-type"),
            "x-delivery-limit" => Some("it has its own option, --delivery-limit"),
            "x-dead-letter-exchange" | "x-dead-letter-routing-key" | "x-dead-letter-strategy" => {
                Some("omit it: the worker moves failed tasks itself")
            }
            "x-message-ttl" => Some(
                "the broker would drop confirmed tasks; to have one task expire, publish it with \
                 --expiration",
            ),
            "x-expires" => Some("the broker would delete the queue with the tasks in it"),
            MAX_PRIORITY if self.kind == QueueType::Quorum => {
                Some("omit it: a quorum queue has priorities anyway")
            }
            OVERFLOW if *value != Argument::from(REJECT_PUBLISH) => {
                Some("the broker would drop confirmed tasks; use reject-publish")
            }
            "x-max-length" | "x-max-length-bytes"
                if self.kind == QueueType::Classic && !self.arguments.iter().any(rejects) =>
            {
                Some(
                    "the broker would drop confirmed tasks; add the argument \
                     x-overflow=reject-publish",
                )
            }
            _ => None,
        }
    }

    /// Refuses a name that leaves no room for the names of its delay queues.
    pub(crate) fn validate_for_delays(&self) -> Result<(), Error> {
        let longest = self.name_of(Target::Delay(LONGEST_DELAY)).len();
        if longest > LONGEST_NAME {
            let most = LONGEST_NAME - (longest - self.name.len());
            let reason = format!("for retries and delays the name may have {most} bytes at most");
            return Err(Error::setting("queue", reason));
        }
        Ok(())
    }

    /// Refuses a name that leaves no room for the name of a queue of outcomes, and a queue that a
    /// restart of the broker deletes with its tasks: a batch would wait for them for ever.
    pub(crate) fn validate_for_batches(&self) -> Result<(), Error> {
        if self.durability == Durability::Transient {
            let reason = "a restart of the broker deletes a transient queue with its tasks, and the \
                          batch would wait for them for ever; declare it as durable";
            return Err(Error::setting("queue", reason));
        }
        // With the name of the queue by which the broker is made to write this one to disk.
        let longest = self.name_of(Target::Batch(BatchId::random())).len() + ".settling".len();
        if longest > LONGEST_NAME {
            let most = LONGEST_NAME - (longest - self.name.len());
            let reason = format!("for batches the name may have {most} bytes at most");
            return Err(Error::setting("queue", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::queue::CLASSIC;

    #[test]
    fn arguments_are_declared_and_what_would_drop_tasks_is_refused() {
        let queue = Queue::new("q").argument("x-max-priority", 10);
        assert!(queue.validate().is_ok() && queue.has_priorities(None));
        let declared = queue.best_declaration(Target::Main).arguments;
        let classic = (TYPE.into(), Argument::Text(CLASSIC.into()));
        assert_eq!(declared, [classic, ("x-max-priority".into(), Argument::Number(10))]);
        assert!(!queue.takes_default_type() && Queue::new("q").takes_default_type());
        assert!(!Queue::new("q").has_priorities(None));
        let quorum = Queue::new("q").as_quorum();
        let versions = [None, Some((3, 13)), Some((4, 0))];
        assert_eq!(versions.map(|it| quorum.has_priorities(it)), [true, false, true]);

        let full = Queue::new("q").argument("x-max-length", 10);
        assert!(full.validate().is_err());
        assert!(full.clone().argument("x-overflow", "drop-head").validate().is_err());
        assert!(full.clone().argument("x-overflow", "reject-publish").validate().is_ok());
        assert!(full.queue_type(QueueType::Quorum).validate().is_ok(), "it rejects in any case");

        let twice = queue.clone().argument("x-max-priority", 5).validate().expect_err("refused");
        assert!(twice.to_string().contains("x-max-priority: it is given twice"), "{twice}");

        assert!(Queue::new("q").argument("x-max-priority", 10).passive().validate().is_err());
        assert!(queue.queue_type(QueueType::Quorum).validate().is_err());
        for refused in ["", "x-queue-type", "x-delivery-limit", "x-message-ttl", "x-expires"] {
            let error = Queue::new("q").argument(refused, 1).validate().expect_err("refused");
            assert!(error.to_string().contains(refused), "{error}");
        }
    }

    #[test]
    fn a_name_with_a_line_end_is_refused() {
        for name in ["a\n", "a\rb"] {
            assert!(Queue::new(name).validate().is_err());
        }
    }

    #[test]
    fn names_leave_room_for_the_queues_beside_them() {
        assert!(Queue::new("x".repeat(238)).validate_for_delays().is_ok());
        assert!(Queue::new("x".repeat(239)).validate_for_delays().is_err());
    }

    #[test]
    fn a_batch_needs_a_durable_queue_with_a_short_name() {
        assert!(Queue::new("x".repeat(207)).validate_for_batches().is_ok());
        assert!(Queue::new("x".repeat(208)).validate_for_batches().is_err());
        assert!(Queue::new("q").transient().validate_for_batches().is_err());
    }

    #[test]
    fn a_name_has_1_to_255_bytes() {
        assert!(Queue::new("").validate().is_err());
        assert!(Queue::new("é".repeat(127)).validate().is_ok());
        assert!(Queue::new("x".repeat(255)).validate().is_ok());
        assert!(Queue::new("x".repeat(256)).validate().is_err());
        assert!(Queue::new("é".repeat(128)).validate().is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_here() {
        assert!(Queue::new("amq.mine").validate().is_err());
        assert!(Queue::new("q").queue_type(QueueType::Quorum).transient().validate().is_err());
    }
}
