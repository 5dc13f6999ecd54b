//! Owns [`Task`]: a unit of work, and how it is written as an AMQP message. Pure.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use crate::model::delays::LONGEST_DELAY;
use crate::model::error::Error;
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
    properties: AmqpProperties,
    /// How long it is held back before it comes to its queue.
    delay: Option<Duration>,
}

/// A header's value, as far as this crate itself writes and reads headers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    Time(SystemTime),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
    /// Of a type that none of ours has.
    Other,
}

const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// The largest body RabbitMQ 3.x takes unless it is configured otherwise, in bytes
/// (`max_message_size`; 16 MiB since 4.0).
const LARGEST_BODY: usize = 134_217_728;
/// The longest AMQP `shortstr`, in bytes; a longer one is written malformed
/// (amq-protocol-types 1.2 generation.rs:106).
const LONGEST_SHORTSTR: usize = 255;
/// The longest expiration RabbitMQ takes, in milliseconds (3.10.8; a longer one closes the channel).
const LONGEST_EXPIRATION: u64 = 315_360_000_000;
/// Headers that RabbitMQ reads itself (<https://www.rabbitmq.com/docs/sender-selected>).
const OF_THE_BROKER: [&str; 2] = ["CC", "BCC"];
const EXPIRATION: &str = "x-rabbit-work-expiration";
const USER_ID: &str = "x-rabbit-work-user-id";
const COPIES: &str = "x-rabbit-work-cc";
/// Where [`Task::prepare_for_republish`] keeps what would be in the way.
pub(crate) const SET_ASIDE: [&str; 3] = [EXPIRATION, USER_ID, COPIES];

/// The most bytes of headers in a new task: half of a frame, so that there is room for the other
/// properties, and for what becomes of the task.
const LARGEST_HEADERS: usize = 64 * 1024;
/// The largest frame, as RabbitMQ has it unless it is configured otherwise. All properties have
/// to fit one (amiquip 0.4.2 io_loop/channel_handle.rs:165 does not check).
pub(crate) const USUAL_FRAME: usize = 128 * 1024;
/// What is in the frame of the properties beside them: its type, channel, length and end, the
/// class, the length of the body, and the flags.
const FRAME_OVERHEAD: usize = 22;
/// What is around a task on the wire: its frames, and a queue with the longest name.
const AROUND: usize = 400;

impl Task {
    /// A persistent task with this body.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Task {
        let properties = AmqpProperties::default().with_delivery_mode(PERSISTENT);
        Task { body: body.into(), properties, delay: None }
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
    pub fn with_content_type(self, content_type: impl Into<String>) -> Task {
        self.map(|properties| properties.with_content_type(content_type.into()))
    }

    /// Sets a header to a text. Default: no headers.
    #[must_use]
    pub fn with_header(self, name: impl Into<String>, value: impl Into<String>) -> Task {
        self.map(|properties| {
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers.insert(name.into(), AmqpValue::LongString(value.into()));
            properties.with_headers(headers)
        })
    }

    /// Sets the id that ties an answer to this task. Default: none.
    #[must_use]
    pub fn with_correlation_id(self, id: impl Into<String>) -> Task {
        self.map(|properties| properties.with_correlation_id(id.into()))
    }

    /// Sets the queue that an answer should go to. Default: none.
    #[must_use]
    pub fn with_reply_to(self, queue: impl Into<String>) -> Task {
        self.map(|properties| properties.with_reply_to(queue.into()))
    }

    /// Sets the priority, from 0. It counts in queues that were declared with priorities
    /// (`x-max-priority`), which [`Queue::passive`](crate::Queue::passive) can use, and in
    /// quorum queues since RabbitMQ 4 (<https://www.rabbitmq.com/docs/priority>). Default: none.
    #[must_use]
    pub fn with_priority(self, priority: u8) -> Task {
        self.map(|properties| properties.with_priority(priority))
    }

    /// Has the broker drop the task when no worker has taken it after this long, in whole
    /// milliseconds, at most 3650 days. From a quorum queue that this crate declared it goes to the
    /// dead letters instead. Once a worker had the task, it no longer expires, be it
    /// tried again or replayed. Not to be combined with a [`delay`](Task::with_delay), which it
    /// would cut short: RabbitMQ counts the one of the two that is shorter, and forgets the
    /// expiration where a delay ends (<https://www.rabbitmq.com/docs/ttl>). Default: never.
    #[must_use]
    pub fn with_expiration(self, after: Duration) -> Task {
        self.map(|properties| properties.with_expiration(after.as_millis().to_string()))
    }

    /// Holds the task back at least this long before it comes to its queue; at most 42 days. It
    /// waits at the broker, in a queue for all tasks with the same delay, so the delay is rounded
    /// up as in a [`RetryPolicy`](crate::RetryPolicy). Default: none.
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

    /// What logs call it: its id, on one line and without anything that a terminal would act on.
    pub(crate) fn name(&self) -> String {
        name_of(self.id())
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
    pub fn content_type(&self) -> Option<&str> {
        self.properties.content_type().as_deref()
    }

    /// The priority, where its producer set one.
    #[must_use]
    pub fn priority(&self) -> Option<u8> {
        *self.properties.priority()
    }

    /// The id that ties an answer to this task, where it has one.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_deref()
    }

    /// The queue that an answer should go to, where it has one.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_deref()
    }

    /// The headers that can be written as text, by name; see [`header_text`](Task::header_text).
    pub fn headers_as_text(&self) -> impl Iterator<Item = (&str, String)> {
        let headers = self.properties.headers().iter().flatten();
        headers.filter_map(|(name, value)| Some((name.as_str(), value_as_text(value)?)))
    }

    /// A task as it was received.
    pub(crate) fn received(body: Vec<u8>, properties: AmqpProperties) -> Task {
        Task { body, properties, delay: None }
    }

    pub(crate) fn delay(&self) -> Option<Duration> {
        self.delay
    }

    /// A header in one of the forms that this crate writes.
    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        self.properties.headers().as_ref()?.get(name).map(read_value)
    }

    /// Sets a header, or takes it away.
    pub(crate) fn with_value(self, name: &str, value: Option<Value>) -> Task {
        self.with_values([(name, value)])
    }

    /// Sets headers, or takes them away.
    pub(crate) fn with_values<'a>(
        self,
        values: impl IntoIterator<Item = (&'a str, Option<Value>)>,
    ) -> Task {
        self.map(|properties| {
            let mut headers = properties.headers().clone().unwrap_or_default();
            for (name, value) in values {
                match value.and_then(write_value) {
                    Some(value) => headers.insert(name.into(), value),
                    None => headers.remove(name),
                };
            }
            properties.with_headers(headers)
        })
    }

    /// Makes the task fit to be published again by somebody else than its producer, without
    /// loss and to one queue only. What would be in the way goes into headers of ours:
    ///
    /// * `expiration` would end a delay early, or a dead letter;
    /// * a `user_id` other than the login's is refused, and takes the channel with it
    ///   (<https://www.rabbitmq.com/docs/validated-user-id>);
    /// * `CC` would send copies again (<https://www.rabbitmq.com/docs/sender-selected>).
    pub(crate) fn prepare_for_republish(self) -> Task {
        let expiration = self.properties.expiration().clone();
        let user = self.properties.user_id().clone();
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        for (name, text) in [(EXPIRATION, expiration), (USER_ID, user)] {
            if let Some(text) = text {
                headers.insert(name.into(), AmqpValue::LongString(text));
            }
        }
        if let Some(copies) = headers.remove("CC") {
            headers.insert(COPIES.into(), copies);
        }
        // Builders only set: the properties are copied without those two.
        let old = &self.properties;
        let mut properties = AmqpProperties::default().with_headers(headers);
        properties = properties.with_delivery_mode(PERSISTENT);
        macro_rules! keep {
            ($($get:ident $with:ident),*) => {
                $(if let Some(it) = old.$get().clone() { properties = properties.$with(it); })*
            };
        }
        keep!(content_type with_content_type, content_encoding with_content_encoding);
        keep!(priority with_priority, correlation_id with_correlation_id);
        keep!(reply_to with_reply_to, message_id with_message_id, timestamp with_timestamp);
        keep!(type_ with_type_, app_id with_app_id, cluster_id with_cluster_id);
        Task { body: self.body, properties, delay: None }
    }

    pub(crate) fn properties(&self) -> &AmqpProperties {
        &self.properties
    }

    /// Whether its properties fit a frame of this size, without which they cannot be sent.
    pub(crate) fn fits_a_frame(&self, largest: usize) -> bool {
        self.size_of_properties() + FRAME_OVERHEAD <= largest
    }

    pub(crate) fn size_on_the_wire(&self) -> usize {
        self.body().len() + self.size_of_properties() + AROUND
    }

    fn size_of_properties(&self) -> usize {
        let it = &self.properties;
        let short: [&Option<String>; 10] = [
            it.content_type(),
            it.content_encoding(),
            it.correlation_id(),
            it.reply_to(),
            it.expiration(),
            it.message_id(),
            it.type_(),
            it.user_id(),
            it.app_id(),
            it.cluster_id(),
        ];
        let short: usize = short.into_iter().flatten().map(|text| 1 + text.len()).sum();
        let headers = it.headers().as_ref().map_or(0, |headers| 4 + size_of_entries(headers));
        let mode = it.delivery_mode().map_or(0, |_| 1);
        let priority = it.priority().map_or(0, |_| 1);
        let timestamp = it.timestamp().map_or(0, |_| 8);
        short + headers + mode + priority + timestamp
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

    /// Whether the broker would take the task. What it, or AMQP, could only answer by closing the
    /// channel or the connection is refused here instead; [`Producer`](crate::Producer) asks this
    /// of each task.
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
        within_shortstr("id", properties.message_id())?;
        within_shortstr("content type", properties.content_type())?;
        within_shortstr("correlation id", properties.correlation_id())?;
        within_shortstr("reply-to", properties.reply_to())?;
        self.validate_delay()?;
        self.validate_expiration()?;
        self.validate_headers()
    }

    fn validate_delay(&self) -> Result<(), Error> {
        let Some(delay) = self.delay else { return Ok(()) };
        if delay > LONGEST_DELAY {
            return Err(Error::setting(
                "delay",
                "RabbitMQ can hold a task back for 42 days at most",
            ));
        }
        if self.properties.expiration().is_some() {
            return Err(Error::setting(
                "expiration",
                "it cannot be combined with a delay: RabbitMQ would cut the delay short, and \
                 forget the expiration after it",
            ));
        }
        Ok(())
    }

    fn validate_expiration(&self) -> Result<(), Error> {
        let Some(millis) = self.properties.expiration() else { return Ok(()) };
        if millis.parse().is_ok_and(|millis: u64| millis <= LONGEST_EXPIRATION) {
            return Ok(());
        }
        Err(Error::setting("expiration", "RabbitMQ takes 10 years of 365 days at most"))
    }

    fn validate_headers(&self) -> Result<(), Error> {
        let Some(headers) = self.properties.headers() else { return Ok(()) };
        for (name, value) in headers.iter() {
            if OF_THE_BROKER.contains(&name.as_str()) && !matches!(value, AmqpValue::FieldArray(_))
            {
                return Err(Error::setting(
                    "header",
                    format!("RabbitMQ takes {name} for a list of further queues, and no text"),
                ));
            }
            if name.len() > LONGEST_SHORTSTR {
                return Err(Error::setting("header", "a name has more than 255 bytes"));
            }
        }
        if size_of_entries(headers) > LARGEST_HEADERS {
            return Err(Error::setting("header", "all together have more than 64 KiB"));
        }
        Ok(())
    }

    fn map(self, change: impl FnOnce(AmqpProperties) -> AmqpProperties) -> Task {
        Task { body: self.body, properties: change(self.properties), delay: self.delay }
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

/// How many bytes the entries of a table take on the wire.
fn size_of_entries(table: &FieldTable) -> usize {
    table.iter().map(|(name, value)| 1 + name.len() + size_of(value)).sum()
}

/// How many bytes a value takes on the wire, with its type.
fn size_of(value: &AmqpValue) -> usize {
    1 + match value {
        AmqpValue::Void => 0,
        AmqpValue::Boolean(_) | AmqpValue::ShortShortInt(_) | AmqpValue::ShortShortUInt(_) => 1,
        AmqpValue::ShortInt(_) | AmqpValue::ShortUInt(_) => 2,
        AmqpValue::LongInt(_) | AmqpValue::LongUInt(_) | AmqpValue::Float(_) => 4,
        AmqpValue::DecimalValue(_) => 5,
        AmqpValue::LongLongInt(_) | AmqpValue::Double(_) | AmqpValue::Timestamp(_) => 8,
        AmqpValue::LongString(text) => 4 + text.len(),
        AmqpValue::ByteArray(bytes) => 4 + bytes.len(),
        AmqpValue::FieldArray(values) => 4 + values.iter().map(size_of).sum::<usize>(),
        AmqpValue::FieldTable(table) => 4 + size_of_entries(table),
    }
}

fn read_value(value: &AmqpValue) -> Value {
    match value {
        AmqpValue::LongString(text) => Value::Text(text.clone()),
        AmqpValue::Timestamp(seconds) => {
            let time = UNIX_EPOCH.checked_add(Duration::from_secs(*seconds));
            time.map_or(Value::Other, Value::Time)
        }
        AmqpValue::FieldArray(values) => Value::List(values.iter().map(read_value).collect()),
        AmqpValue::FieldTable(table) => {
            Value::Table(table.iter().map(|(name, it)| (name.clone(), read_value(it))).collect())
        }
        AmqpValue::ShortShortInt(it) => Value::Number((*it).into()),
        AmqpValue::ShortShortUInt(it) => Value::Number((*it).into()),
        AmqpValue::ShortInt(it) => Value::Number((*it).into()),
        AmqpValue::ShortUInt(it) => Value::Number((*it).into()),
        AmqpValue::LongInt(it) => Value::Number((*it).into()),
        AmqpValue::LongUInt(it) => Value::Number((*it).into()),
        AmqpValue::LongLongInt(it) => Value::Number(*it),
        _ => Value::Other,
    }
}

fn write_value(value: Value) -> Option<AmqpValue> {
    Some(match value {
        Value::Text(text) => AmqpValue::LongString(text),
        Value::Number(number) => AmqpValue::LongLongInt(number),
        Value::Time(time) => AmqpValue::Timestamp(time.duration_since(UNIX_EPOCH).ok()?.as_secs()),
        Value::List(values) => {
            let values: Vec<AmqpValue> = values.into_iter().filter_map(write_value).collect();
            AmqpValue::FieldArray(values)
        }
        Value::Table(entries) => AmqpValue::FieldTable(
            entries.into_iter().filter_map(|(name, it)| Some((name, write_value(it)?))).collect(),
        ),
        Value::Other => return None,
    })
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

/// What logs call a task with this id, if any.
pub(crate) fn name_of(id: Option<&str>) -> String {
    id.map_or_else(|| "without an id".into(), printable)
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
    fn properties_are_measured_as_they_are_on_the_wire() {
        assert_eq!(Task::new("x").size_of_properties(), 1);
        let short = Task::new("").with_id("1").with_content_type("t/p").with_priority(1);
        assert_eq!(short.stamped(SystemTime::now()).size_of_properties(), 1 + 2 + 4 + 1 + 8);
        let table = Value::Table(vec![("ab".into(), Value::Number(1))]);
        let list = Value::List(vec![Value::Text("xyz".into()), table]);
        let list_size = 5 + (5 + 3) + (5 + 1 + 2 + 9);
        let nested = Task::new("").with_value("h", Some(list));
        assert_eq!(nested.size_of_properties(), 1 + 4 + 1 + 1 + list_size);
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
        assert_eq!(Task::new("x").with_delay(Duration::ZERO).delay(), None);
    }

    #[test]
    fn on_another_journey_a_task_keeps_all_but_what_would_harm_it() {
        let sent = Task::new("x")
            .with_id("1")
            .with_content_type("t")
            .with_priority(3)
            .with_header("h", "v");
        let sent = sent.with_correlation_id("c").with_reply_to("r").stamped(SystemTime::now());
        let harmful = sent.clone().with_expiration(Duration::from_millis(5)).transient();
        let harmful =
            harmful.with_header("CC", "elsewhere").map(|it| it.with_user_id("guest".into()));
        let again = harmful.prepare_for_republish();
        assert_eq!(*again.properties().expiration(), None);
        assert_eq!(*again.properties().user_id(), None);
        assert_eq!(again.value("CC"), None);
        assert_eq!(again.value(USER_ID), Some(Value::Text("guest".into())));
        assert_eq!(again.value(EXPIRATION), Some(Value::Text("5".into())));
        let noted = [EXPIRATION, USER_ID, COPIES].map(|name| (name, None));
        assert_eq!(again.with_values(noted).properties(), sent.properties());
    }

    #[test]
    fn values_come_back_as_they_were_written() {
        let time = UNIX_EPOCH + Duration::from_secs(7);
        let table =
            Value::Table(vec![("a".into(), Value::Number(-1)), ("b".into(), Value::Time(time))]);
        let list = Value::List(vec![table, Value::Text("t".into())]);
        let task = Task::new("").with_value("h", Some(list.clone()));
        assert_eq!(task.value("h"), Some(list));
        assert_eq!(task.with_value("h", None).value("h"), None);
    }

    #[test]
    fn a_body_stays_out_of_the_debug_output() {
        assert_eq!(format!("{:?}", Task::new("secret")), "Task { id: None, bytes: 6 }");
    }
}
