//! Owns [`Task`]: a unit of work, and how it is written as an AMQP message. Pure.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue};

use crate::error::Error;

/// A unit of work: a body of any bytes, and the message properties that travel with it.
///
/// A new task is persistent, which on a durable queue survives a broker restart
/// (<https://www.rabbitmq.com/docs/queues#durability>).
///
/// ```
/// use rabbit_work::Task;
///
/// let task = Task::new("resize photo 17").content_type("text/plain").header("user", "ann");
/// assert_eq!(task.body(), b"resize photo 17");
/// ```
#[derive(Clone)]
pub struct Task {
    body: Vec<u8>,
    properties: AmqpProperties,
}

const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// The largest body RabbitMQ 3.x takes unless it is configured otherwise, in bytes
/// (`max_message_size`; 16 MiB since 4.0).
const LARGEST_BODY: usize = 134_217_728;
/// The longest AMQP `shortstr`, in bytes; a longer one is written malformed
/// (amq-protocol-types 1.2 generation.rs:106).
const LONGEST_SHORTSTR: usize = 255;
/// The most bytes of headers; they have to fit a frame together with the other properties
/// (amiquip 0.4.2 io_loop/channel_handle.rs:165 does not check).
const LARGEST_HEADERS: usize = 64 * 1024;

impl Task {
    /// A persistent task with this body.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Task {
        let properties = AmqpProperties::default().with_delivery_mode(PERSISTENT);
        Task { body: body.into(), properties }
    }

    /// Gives the task an id (`message_id`). Default: a random UUID, set when it is published.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Task {
        self.map(|properties| properties.with_message_id(id.into()))
    }

    /// Makes the task transient: a broker restart loses it. Default: persistent.
    #[must_use]
    pub fn transient(self) -> Task {
        self.map(|properties| properties.with_delivery_mode(TRANSIENT))
    }

    /// Sets the body's media type. Default: none.
    #[must_use]
    pub fn content_type(self, content_type: impl Into<String>) -> Task {
        self.map(|properties| properties.with_content_type(content_type.into()))
    }

    /// Sets a header to a text. Default: no headers.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Task {
        self.map(|properties| {
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers.insert(name.into(), AmqpValue::LongString(value.into()));
            properties.with_headers(headers)
        })
    }

    /// Sets the priority, 0 to 255, which counts on a queue that was declared with
    /// `x-max-priority` (<https://www.rabbitmq.com/docs/priority>). Default: none, which is 0.
    #[must_use]
    pub fn priority(self, priority: u8) -> Task {
        self.map(|properties| properties.with_priority(priority))
    }

    /// Has the broker drop the task when it was not delivered after this long, to the
    /// millisecond (<https://www.rabbitmq.com/docs/ttl#per-message-ttl-in-publishers>).
    /// Default: never.
    #[must_use]
    pub fn expiration(self, after: Duration) -> Task {
        self.map(|properties| properties.with_expiration(after.as_millis().to_string()))
    }

    /// Sets the id that ties an answer to this task. Default: none.
    #[must_use]
    pub fn correlation_id(self, id: impl Into<String>) -> Task {
        self.map(|properties| properties.with_correlation_id(id.into()))
    }

    /// Sets the queue that an answer should go to. Default: none.
    #[must_use]
    pub fn reply_to(self, queue: impl Into<String>) -> Task {
        self.map(|properties| properties.with_reply_to(queue.into()))
    }

    /// The body, as published.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, taken out of the task.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The task's id (`message_id`), where it has one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.properties.message_id().as_deref()
    }

    /// A header's value as text; numbers and booleans are written in decimal and as
    /// `true`/`false`. Absent, not a text, or of a nested type: `None`.
    #[must_use]
    pub fn header_text(&self, name: &str) -> Option<String> {
        let headers = self.properties.headers().as_ref()?;
        value_as_text(headers.get(name)?)
    }

    /// When the task was published, where its producer said so (the `timestamp` property, to
    /// the second).
    #[must_use]
    pub fn enqueued_at(&self) -> Option<SystemTime> {
        let seconds = (*self.properties.timestamp())?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// The body's media type, where its producer said so.
    #[must_use]
    pub fn media_type(&self) -> Option<&str> {
        self.properties.content_type().as_deref()
    }

    /// The priority, where its producer set one.
    #[must_use]
    pub fn priority_set(&self) -> Option<u8> {
        *self.properties.priority()
    }

    /// The id that ties an answer to this task, where it has one.
    #[must_use]
    pub fn correlation(&self) -> Option<&str> {
        self.properties.correlation_id().as_deref()
    }

    /// The queue that an answer should go to, where it has one.
    #[must_use]
    pub fn answers_to(&self) -> Option<&str> {
        self.properties.reply_to().as_deref()
    }

    /// The headers that can be written as text, by name; see [`header_text`](Task::header_text).
    pub fn header_texts(&self) -> impl Iterator<Item = (&str, String)> {
        let headers = self.properties.headers().iter().flatten();
        headers.filter_map(|(name, value)| Some((name.as_str(), value_as_text(value)?)))
    }

    /// A task as it was received.
    pub(crate) fn received(body: Vec<u8>, properties: AmqpProperties) -> Task {
        Task { body, properties }
    }

    pub(crate) fn properties(&self) -> &AmqpProperties {
        &self.properties
    }

    /// Fills in what every published task carries: an id to tell it by in returns, logs and
    /// ledgers, and the time.
    pub(crate) fn stamped(self, now: SystemTime) -> Task {
        let identified = match self.id() {
            Some(_) => self,
            None => self.with_id(uuid::Uuid::new_v4().to_string()),
        };
        match (*identified.properties.timestamp(), now.duration_since(UNIX_EPOCH)) {
            (None, Ok(since)) => identified.map(|it| it.with_timestamp(since.as_secs())),
            _ => identified,
        }
    }

    /// What the broker, or amiquip before it, would answer by closing the channel or the
    /// connection is refused here instead.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.body.len() > LARGEST_BODY {
            return Err(Error::setting(
                "body",
                format!("it has {} bytes, and at most {LARGEST_BODY} are allowed", self.body.len()),
            ));
        }
        let properties = &self.properties;
        within_shortstr("id", properties.message_id())?;
        within_shortstr("content type", properties.content_type())?;
        within_shortstr("correlation id", properties.correlation_id())?;
        within_shortstr("reply-to", properties.reply_to())?;
        self.validate_headers()
    }

    fn validate_headers(&self) -> Result<(), Error> {
        let mut total = 0;
        for (name, value) in self.properties.headers().iter().flatten() {
            if name.len() > LONGEST_SHORTSTR {
                return Err(Error::setting("header", "a name has more than 255 bytes"));
            }
            total += name.len() + value_as_text(value).map_or(16, |text| text.len()) + 8;
        }
        if total > LARGEST_HEADERS {
            return Err(Error::setting("header", "all together have more than 64 KiB"));
        }
        Ok(())
    }

    fn map(self, change: impl FnOnce(AmqpProperties) -> AmqpProperties) -> Task {
        Task { body: self.body, properties: change(self.properties) }
    }
}

/// The body stays out of it: logs carry no bodies.
impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("id", &self.id()).field("bytes", &self.body.len()).finish()
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

fn value_as_text(value: &AmqpValue) -> Option<String> {
    match value {
        AmqpValue::LongString(text) => Some(text.clone()),
        AmqpValue::Boolean(it) => Some(it.to_string()),
        AmqpValue::ShortShortInt(it) => Some(it.to_string()),
        AmqpValue::ShortShortUInt(it) => Some(it.to_string()),
        AmqpValue::ShortInt(it) => Some(it.to_string()),
        AmqpValue::ShortUInt(it) => Some(it.to_string()),
        AmqpValue::LongInt(it) => Some(it.to_string()),
        AmqpValue::LongUInt(it) => Some(it.to_string()),
        AmqpValue::LongLongInt(it) => Some(it.to_string()),
        AmqpValue::Timestamp(it) => Some(it.to_string()),
        AmqpValue::Float(it) => Some(it.to_string()),
        AmqpValue::Double(it) => Some(it.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_task_is_persistent_and_a_transient_one_is_not() {
        assert_eq!(*Task::new("x").properties().delivery_mode(), Some(PERSISTENT));
        assert_eq!(*Task::new("x").transient().properties().delivery_mode(), Some(TRANSIENT));
    }

    #[test]
    fn a_stamp_keeps_what_is_there_already() {
        let now = UNIX_EPOCH + Duration::from_secs(42);
        let stamped = Task::new("x").with_id("mine").stamped(now).stamped(SystemTime::now());
        assert_eq!(stamped.id(), Some("mine"));
        assert_eq!(stamped.enqueued_at(), Some(now));
        let (one, two) = (Task::new("").stamped(now), Task::new("").stamped(now));
        assert_ne!(one.id(), two.id());
    }

    #[test]
    fn what_amqp_cannot_carry_is_refused() {
        assert!(Task::new("x").with_id("i".repeat(255)).validate().is_ok());
        assert!(Task::new("x").with_id("i".repeat(256)).validate().is_err());
        assert!(Task::new("x").header("n".repeat(256), "v").validate().is_err());
        assert!(Task::new("x").header("n", "v".repeat(65_000)).validate().is_ok());
        assert!(Task::new("x").header("n", "v".repeat(66_000)).validate().is_err());
    }

    #[test]
    fn a_body_stays_out_of_the_debug_output() {
        assert_eq!(format!("{:?}", Task::new("secret")), "Task { id: None, bytes: 6 }");
    }
}
