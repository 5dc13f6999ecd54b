//! Refuses tasks that AMQP cannot carry, or that the broker would close the channel for. Pure.

use crate::model::delays::LONGEST_DELAY;
use crate::model::error::Error;
use crate::model::queue::Queue;
use crate::model::task::properties::size_of_entries;
use crate::model::task::{Task, Value};

/// The largest body that RabbitMQ 3.x takes in its default configuration, in bytes
/// (`max_message_size`; 16 MiB since 4.0).
const LARGEST_BODY: usize = 134_217_728;
/// The longest AMQP `shortstr`, in bytes; a longer one is written malformed
/// (amq-protocol-types 1.2 generation.rs:106).
const LONGEST_SHORTSTR: usize = 255;
/// The longest expiration RabbitMQ takes, in milliseconds (3.10.8; a longer one closes the channel).
const LONGEST_EXPIRATION: u64 = 315_360_000_000;
/// Headers that RabbitMQ reads itself (<https://www.rabbitmq.com/docs/sender-selected>).
const OF_THE_BROKER: [&str; 2] = ["CC", "BCC"];
/// The most bytes of headers in a new task: half of a frame, so that there is room for the other
/// properties, and for the record of its failures.
const LARGEST_HEADERS: usize = 64 * 1024;

impl Task {
    /// Checks whether the broker would take the task. It would answer most of these faults by closing
    /// the channel or the connection. [`Producer`](crate::Producer) validates each task.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] with the first thing that is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        if self.body.len() > LARGEST_BODY {
            return Err(Error::setting(
                "body",
                format!("it has {} bytes, and at most {LARGEST_BODY} are allowed", self.body.len()),
            ));
        }
        let properties = &self.properties;
        within_shortstr("id", &properties.message_id)?;
        within_shortstr("content type", &properties.content_type)?;
        within_shortstr("content encoding", &properties.content_encoding)?;
        within_shortstr("type", &properties.message_type)?;
        within_shortstr("correlation id", &properties.correlation_id)?;
        within_shortstr("reply-to", &properties.reply_to)?;
        self.validate_delay()?;
        self.validate_expiration()?;
        self.validate_headers()
    }

    /// Checks the same, and whether this queue can have a delay queue if the task has a delay.
    pub(crate) fn validate_for(&self, queue: &Queue) -> Result<(), Error> {
        self.validate()?;
        match self.delay {
            Some(_) => queue.validate_for_delays(),
            None => Ok(()),
        }
    }

    fn validate_delay(&self) -> Result<(), Error> {
        let Some(delay) = self.delay else { return Ok(()) };
        if delay > LONGEST_DELAY {
            return Err(Error::setting(
                "delay",
                "RabbitMQ can hold a task back for 42 days at most",
            ));
        }
        if self.properties.expiration.is_some() {
            return Err(Error::setting(
                "expiration",
                "it cannot be combined with a delay: RabbitMQ would cut the delay short, and \
                 forget the expiration after it",
            ));
        }
        Ok(())
    }

    fn validate_expiration(&self) -> Result<(), Error> {
        let Some(millis) = &self.properties.expiration else { return Ok(()) };
        if millis.parse().is_ok_and(|millis: u64| millis <= LONGEST_EXPIRATION) {
            return Ok(());
        }
        Err(Error::setting("expiration", "RabbitMQ takes 10 years of 365 days at most"))
    }

    fn validate_headers(&self) -> Result<(), Error> {
        let Some(headers) = &self.properties.headers else { return Ok(()) };
        for (name, value) in headers.iter() {
            if OF_THE_BROKER.contains(&name.as_str()) && !matches!(value, Value::List(_)) {
                return Err(Error::setting(
                    "header",
                    format!("RabbitMQ reserves {name} for a list of queues; use another name"),
                ));
            }
            if name.len() > LONGEST_SHORTSTR {
                return Err(Error::setting("header", "a name has more than 255 bytes"));
            }
        }
        if size_of_entries(headers) > LARGEST_HEADERS {
            return Err(Error::setting("header", "the headers together have more than 64 KiB"));
        }
        Ok(())
    }
}

fn within_shortstr(what: &'static str, text: &Option<String>) -> Result<(), Error> {
    match text {
        Some(text) if text.len() > LONGEST_SHORTSTR => {
            Err(Error::setting(what, "it has more than 255 bytes"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_amqp_cannot_carry_is_refused() {
        assert!(Task::new("x").with_id("i".repeat(255)).validate().is_ok());
        assert!(Task::new("x").with_id("i".repeat(256)).validate().is_err());
        assert!(Task::new("x").with_type("t".repeat(256)).validate().is_err());
        assert!(Task::new("x").with_header("n".repeat(256), "v").validate().is_err());
        assert!(Task::new("x").with_header("n", "v".repeat(65_000)).validate().is_ok());
        assert!(Task::new("x").with_header("n", "v".repeat(66_000)).validate().is_err());
    }

    #[test]
    fn what_the_broker_would_close_the_channel_for_is_refused() {
        let longest = Duration::from_millis(LONGEST_EXPIRATION);
        assert!(Task::new("x").with_expiration(longest).validate().is_ok());
        let longer = longest + Duration::from_millis(1);
        assert!(Task::new("x").with_expiration(longer).validate().is_err());
        for name in OF_THE_BROKER {
            assert!(Task::new("x").with_header(name, "queue").validate().is_err());
            let list = Value::List(vec![Value::Text("queue".into())]);
            assert!(Task::new("x").with_value(name, Some(list)).validate().is_ok());
        }
        assert!(Task::new("x").with_header("cc", "queue").validate().is_ok());
    }

    #[test]
    fn an_expiration_and_a_delay_exclude_each_other() {
        let task = Task::new("x").with_delay(Duration::from_secs(1));
        assert!(task.validate().is_ok());
        assert!(task.with_expiration(Duration::from_secs(9)).validate().is_err());
        assert!(Task::new("x").with_delay(LONGEST_DELAY).validate().is_ok());
        assert!(
            Task::new("x").with_delay(LONGEST_DELAY + Duration::from_nanos(1)).validate().is_err()
        );
        assert_eq!(Task::new("x").with_delay(Duration::ZERO).delay, None);
    }
}
