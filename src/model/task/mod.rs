//! [`Task`]: a unit of work, its settings, and what another publish of it keeps. Pure.

mod ids;
mod properties;
mod validate;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use ids::Ids;
pub(crate) use properties::{Headers, Properties, Value};

use crate::model::delays::round_up;
use crate::model::queue::{Argument, Target};
use crate::util::text::printable;

/// A unit of work: a body of any bytes, and the message properties that travel with it.
///
/// A new task is persistent, which on a durable queue survives a broker restart
/// (<https://www.rabbitmq.com/docs/queues#durability>).
///
/// ```
/// use rabbit_work::Task;
///
/// let task = Task::new("resize photo 17").with_content_type("text/plain").with_header("user", "ann");
/// assert_eq!(task.body(), b"resize photo 17");
/// ```
#[derive(Clone)]
pub struct Task {
    body: Vec<u8>,
    /// Apart, because a task is moved many times on its way.
    properties: Box<Properties>,
    /// How long it waits before it comes to its queue.
    delay: Option<Duration>,
}

const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

const EXPIRATION: &str = "x-rabbit-work-expiration";
const USER_ID: &str = "x-rabbit-work-user-id";
const COPIES: &str = "x-rabbit-work-cc";
/// Headers in which [`Task::prepare_for_republish`] keeps what would harm the next publish.
pub(crate) const SET_ASIDE: [&str; 3] = [EXPIRATION, USER_ID, COPIES];

/// The largest frame of a RabbitMQ with its default configuration. All properties have to fit in one
/// frame (amiquip 0.4.2 io_loop/channel_handle.rs:165 does not check).
pub(crate) const USUAL_FRAME: usize = 128 * 1024;
/// The other fields in the frame of the properties: type, channel, length and end of the frame, the
/// class, the length of the body, and the flags.
const FRAME_OVERHEAD: usize = 22;
/// The frames around a task on the wire, and the longest name of a queue.
const AROUND: usize = 400;

impl Task {
    /// A persistent task with this body.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Task {
        let properties = Properties { delivery_mode: Some(PERSISTENT), ..Properties::default() };
        Task { body: body.into(), properties: Box::new(properties), delay: None }
    }

    /// Gives the task an id (`message_id`). Default: a UUID of version 7, set when it is published: such
    /// ids sort by time.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Task {
        self.properties.message_id = Some(id.into());
        self
    }

    /// Makes the task transient: a broker restart loses it. Default: persistent.
    #[must_use]
    pub fn transient(mut self) -> Task {
        self.properties.delivery_mode = Some(TRANSIENT);
        self
    }

    pub(crate) fn is_transient(&self) -> bool {
        self.properties.delivery_mode == Some(TRANSIENT)
    }

    /// Sets the body's media type. Default: none.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Task {
        self.properties.content_type = Some(content_type.into());
        self
    }

    /// Says how the body is encoded, such as `gzip`. Default: none.
    #[must_use]
    pub fn with_content_encoding(mut self, encoding: impl Into<String>) -> Task {
        self.properties.content_encoding = Some(encoding.into());
        self
    }

    /// Names the type of the task (AMQP's property `type`), by which a handler may choose what to do.
    /// Default: none.
    #[must_use]
    pub fn with_type(mut self, name: impl Into<String>) -> Task {
        self.properties.message_type = Some(name.into());
        self
    }

    /// Sets a header to a text, a whole number, or true or false. Default: no headers.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Argument>) -> Task {
        self.headers_mut().insert(name.into(), value.into().into());
        self
    }

    /// Sets the id that ties an answer to this task. Default: none.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Task {
        self.properties.correlation_id = Some(id.into());
        self
    }

    /// Sets the queue that an answer should go to. Default: none.
    #[must_use]
    pub fn with_reply_to(mut self, queue: impl Into<String>) -> Task {
        self.properties.reply_to = Some(queue.into());
        self
    }

    /// Sets the priority, from 0. It has an effect in classic queues that were declared with
    /// `x-max-priority` ([`Queue::argument`](crate::Queue::argument)), and in quorum queues since
    /// RabbitMQ 4 (<https://www.rabbitmq.com/docs/priority>). Default: none.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Task {
        self.properties.priority = Some(priority);
        self
    }

    /// Has the broker drop the task if no worker has taken it after this time, in whole milliseconds, at
    /// most 3650 days. In a quorum queue that this crate declared, the task becomes a dead letter
    /// instead. A task that a worker has taken no longer expires, even if it is tried again or
    /// replayed. It cannot be combined with a [`delay`](Task::with_delay): RabbitMQ would end the
    /// delay early, and forget the expiration after it (<https://www.rabbitmq.com/docs/ttl>). Default: never.
    #[must_use]
    pub fn with_expiration(mut self, after: Duration) -> Task {
        self.properties.expiration = Some(after.as_millis().to_string());
        self
    }

    /// Delays the task: it comes to its queue after this time, at most 42 days. It waits at the broker,
    /// in a queue for all tasks with the same delay. So the delay is rounded up as in a
    /// [`RetryPolicy`](crate::RetryPolicy). Default: none.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Task {
        self.delay = (!delay.is_zero()).then_some(delay);
        self
    }

    /// The body, as published.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The task's id (`message_id`), if it has one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.properties.message_id.as_deref()
    }

    /// Where it is published to: its queue, or the queue for its delay.
    pub(crate) fn target(&self) -> Target {
        self.delay.map_or(Target::Main, |delay| Target::Delay(round_up(delay)))
    }

    /// Its name in logs: the id, on one line and safe for a terminal.
    pub(crate) fn name(&self) -> String {
        name_of(self.id())
    }

    /// A header's value as text; numbers in decimal, booleans as `true` or `false`. `None` if the header
    /// is absent or of another type.
    #[must_use]
    pub fn header_text(&self, name: &str) -> Option<String> {
        self.value(name)?.to_text()
    }

    /// A header's value if it is a whole number, of any width. `None` if the header is absent or of
    /// another type.
    #[must_use]
    pub fn header_number(&self, name: &str) -> Option<i64> {
        self.value(name)?.as_number()
    }

    /// A header's value if it is true or false. `None` if the header is absent or of another type.
    #[must_use]
    pub fn header_flag(&self, name: &str) -> Option<bool> {
        self.value(name)?.as_flag()
    }

    /// When the task was published (the `timestamp` property, to the second), if its producer set it.
    #[must_use]
    pub fn enqueued_at(&self) -> Option<SystemTime> {
        Value::Timestamp(self.properties.timestamp?).as_time()
    }

    /// The body's media type, if its producer set one.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.properties.content_type.as_deref()
    }

    /// How the body is encoded, if its producer said so.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&str> {
        self.properties.content_encoding.as_deref()
    }

    /// The task's type (AMQP's property `type`), if its producer set one.
    #[must_use]
    pub fn type_name(&self) -> Option<&str> {
        self.properties.message_type.as_deref()
    }

    /// The priority, if its producer set one.
    #[must_use]
    pub fn priority(&self) -> Option<u8> {
        self.properties.priority
    }

    /// The id that ties an answer to this task, if it has one.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id.as_deref()
    }

    /// The queue that an answer should go to, if it has one.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to.as_deref()
    }

    /// The headers that can be written as text, by name; see [`header_text`](Task::header_text).
    pub fn headers_as_text(&self) -> impl Iterator<Item = (&str, String)> {
        let headers = self.properties.headers.iter().flatten();
        headers.filter_map(|(name, value)| Some((name.as_str(), value.to_text()?)))
    }

    /// A task as it was received.
    pub(crate) fn received(body: Vec<u8>, properties: Properties) -> Task {
        Task { body, properties: Box::new(properties), delay: None }
    }

    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.properties.headers.as_ref()?.get(name)
    }

    /// Sets a header, or removes it.
    pub(crate) fn with_value(self, name: &str, value: Option<Value>) -> Task {
        self.with_values([(name, value)])
    }

    /// Sets headers, or removes them.
    pub(crate) fn with_values<'a>(
        mut self,
        values: impl IntoIterator<Item = (&'a str, Option<Value>)>,
    ) -> Task {
        let headers = self.headers_mut();
        for (name, value) in values {
            match value {
                Some(value) => headers.insert(name.into(), value),
                None => headers.remove(name),
            };
        }
        self
    }

    /// Prepares the task for another publish, which is not its producer's: nothing of it is lost,
    /// and it goes to one queue only. Headers of ours keep what would prevent that:
    ///
    /// * `expiration` would end a delay early, or expire a dead letter;
    /// * the broker refuses a `user_id` other than the login's, and closes the channel
    ///   (<https://www.rabbitmq.com/docs/validated-user-id>);
    /// * `CC` would send copies again (<https://www.rabbitmq.com/docs/sender-selected>).
    pub(crate) fn prepare_for_republish(mut self) -> Task {
        self.delay = None;
        self.properties.delivery_mode = Some(PERSISTENT);
        let expiration = self.properties.expiration.take();
        let user_id = self.properties.user_id.take();
        let headers = self.headers_mut();
        for (name, text) in [(EXPIRATION, expiration), (USER_ID, user_id)] {
            if let Some(text) = text {
                headers.insert(name.into(), Value::Text(text));
            }
        }
        if let Some(copies) = headers.remove("CC") {
            headers.insert(COPIES.into(), copies);
        }
        self
    }

    pub(crate) fn properties(&self) -> &Properties {
        &self.properties
    }

    fn headers_mut(&mut self) -> &mut Headers {
        self.properties.headers.get_or_insert_default()
    }

    /// Whether its properties fit in a frame of this size; otherwise they cannot be sent.
    pub(crate) fn fits_a_frame(&self, largest: usize) -> bool {
        self.properties.size_on_the_wire() + FRAME_OVERHEAD <= largest
    }

    pub(crate) fn size_on_the_wire(&self) -> usize {
        self.body().len() + self.properties.size_on_the_wire() + AROUND
    }

    /// Fills in what every published task carries: an id, by which returns and logs name it, and
    /// the time.
    pub(crate) fn stamped(mut self, now: SystemTime, ids: &mut Ids) -> Task {
        let Properties { message_id, timestamp, .. } = &mut *self.properties;
        message_id.get_or_insert_with(|| ids.next_id(now));
        if timestamp.is_none() {
            let since = now.duration_since(UNIX_EPOCH);
            *timestamp = since.ok().map(|since| since.as_secs());
        }
        self
    }
}

/// Without the body: logs carry no bodies.
impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("id", &self.id()).field("bytes", &self.body.len()).finish()
    }
}

/// The name in logs of a task with this id, or without one.
pub(crate) fn name_of(id: Option<&str>) -> String {
    id.map_or_else(|| "without an id".into(), printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_task_is_persistent_and_a_transient_one_is_not() {
        assert_eq!(Task::new("x").properties().delivery_mode, Some(PERSISTENT));
        assert_eq!(Task::new("x").transient().properties().delivery_mode, Some(TRANSIENT));
    }

    #[test]
    fn a_stamp_keeps_what_is_there_already() {
        let now = UNIX_EPOCH + Duration::from_secs(42);
        let mut ids = Ids::new();
        let stamped = Task::new("x").with_id("mine").stamped(now, &mut ids);
        let stamped = stamped.stamped(SystemTime::now(), &mut ids);
        assert_eq!(stamped.id(), Some("mine"));
        assert_eq!(stamped.enqueued_at(), Some(now));
        let mut stamped = || Task::new("").stamped(now, &mut ids);
        let (one, two) = (stamped(), stamped());
        assert_ne!(one.id(), two.id());
    }

    #[test]
    fn a_republished_task_keeps_all_but_what_would_harm_it() {
        let sent = Task::new("x")
            .with_id("1")
            .with_content_type("t")
            .with_priority(3)
            .with_header("h", "v");
        let sent = sent
            .with_correlation_id("c")
            .with_reply_to("r")
            .stamped(SystemTime::now(), &mut Ids::new());
        let harmful = sent.clone().with_expiration(Duration::from_millis(5)).transient();
        let mut harmful = harmful.with_header("CC", "elsewhere");
        harmful.properties.user_id = Some("guest".into());
        let again = harmful.prepare_for_republish();
        assert_eq!(again.properties().expiration, None);
        assert_eq!(again.properties().user_id, None);
        assert_eq!(again.value("CC"), None);
        assert_eq!(again.value(USER_ID), Some(&Value::Text("guest".into())));
        assert_eq!(again.value(EXPIRATION), Some(&Value::Text("5".into())));
        let noted = [EXPIRATION, USER_ID, COPIES].map(|name| (name, None));
        assert_eq!(again.with_values(noted).properties(), sent.properties());
    }

    #[test]
    fn a_task_has_a_type_and_headers_of_three_types() {
        let task = Task::new("x").with_type("resize").with_header("text", "7");
        let task = task.with_header("number", 7).with_header("flag", true);
        assert_eq!((task.type_name(), Task::new("x").type_name()), (Some("resize"), None));
        let numbers = ["text", "number", "flag", "none"].map(|name| task.header_number(name));
        assert_eq!(numbers, [None, Some(7), None, None]);
        let flags = ["text", "number", "flag", "none"].map(|name| task.header_flag(name));
        assert_eq!(flags, [None, None, Some(true), None]);
        assert_eq!(task.header_text("flag").as_deref(), Some("true"));
    }

    #[test]
    fn a_body_stays_out_of_the_debug_output() {
        assert_eq!(format!("{:?}", Task::new("secret")), "Task { id: None, bytes: 6 }");
    }
}
