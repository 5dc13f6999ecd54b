//! The properties and header values of a message, and how many bytes they take on the wire.
//!
//! They can hold all that AMQP can: a task that is published again keeps what it came with,
//! including header types that this crate never writes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::queue::Argument;

/// The properties of a message; in an absent one, the broker and other clients see nothing
/// (<https://www.rabbitmq.com/docs/publishers#message-properties>).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Properties {
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) headers: Option<Headers>,
    pub(crate) delivery_mode: Option<u8>,
    pub(crate) priority: Option<u8>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) reply_to: Option<String>,
    /// Milliseconds in decimal.
    pub(crate) expiration: Option<String>,
    pub(crate) message_id: Option<String>,
    /// Seconds since 1970.
    pub(crate) timestamp: Option<u64>,
    /// The property that AMQP calls `type`.
    pub(crate) message_type: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) app_id: Option<String>,
    pub(crate) cluster_id: Option<String>,
}

/// The headers of a message, or a table within a header, in the order in which they are written.
pub(crate) type Headers = BTreeMap<String, Value>;

/// A header's value, in the types of RabbitMQ
/// (<https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Void,
    Boolean(bool),
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    /// `value` divided by ten to the power of `scale`.
    Decimal {
        scale: u8,
        value: u32,
    },
    Text(String),
    Bytes(Vec<u8>),
    /// Seconds since 1970.
    Timestamp(u64),
    List(Vec<Value>),
    Table(Headers),
}

impl Properties {
    /// How many bytes they take on the wire, without the flags that say which are present.
    pub(crate) fn size_on_the_wire(&self) -> usize {
        let short = [
            &self.content_type,
            &self.content_encoding,
            &self.correlation_id,
            &self.reply_to,
            &self.expiration,
            &self.message_id,
            &self.message_type,
            &self.user_id,
            &self.app_id,
            &self.cluster_id,
        ];
        let short: usize = short.into_iter().flatten().map(|text| 1 + text.len()).sum();
        let headers = self.headers.as_ref().map_or(0, |headers| 4 + size_of_entries(headers));
        let mode = self.delivery_mode.map_or(0, |_| 1);
        let priority = self.priority.map_or(0, |_| 1);
        let timestamp = self.timestamp.map_or(0, |_| 8);
        short + headers + mode + priority + timestamp
    }
}

impl From<Argument> for Value {
    fn from(argument: Argument) -> Value {
        match argument {
            Argument::Text(text) => Value::Text(text),
            Argument::Number(number) => Value::I64(number),
            Argument::Flag(flag) => Value::Boolean(flag),
        }
    }
}

impl Value {
    /// A moment, to the second; `None` before 1970, which AMQP cannot write.
    pub(crate) fn time(time: SystemTime) -> Option<Value> {
        Some(Value::Timestamp(time.duration_since(UNIX_EPOCH).ok()?.as_secs()))
    }

    pub(crate) fn as_time(&self) -> Option<SystemTime> {
        let Value::Timestamp(seconds) = self else { return None };
        UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
    }

    /// A whole number of any width.
    pub(crate) fn as_number(&self) -> Option<i64> {
        Some(match *self {
            Value::I8(it) => it.into(),
            Value::U8(it) => it.into(),
            Value::I16(it) => it.into(),
            Value::U16(it) => it.into(),
            Value::I32(it) => it.into(),
            Value::U32(it) => it.into(),
            Value::I64(it) => it,
            _ => return None,
        })
    }

    pub(crate) fn as_flag(&self) -> Option<bool> {
        let Value::Boolean(flag) = self else { return None };
        Some(*flag)
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        let Value::Text(text) = self else { return None };
        Some(text)
    }

    /// An entry of a table.
    pub(crate) fn entry(&self, name: &str) -> Option<&Value> {
        let Value::Table(entries) = self else { return None };
        entries.get(name)
    }

    /// The value as a person reads it; `None` for types that have no short text.
    pub(crate) fn to_text(&self) -> Option<String> {
        match self {
            Value::Text(text) => Some(text.clone()),
            Value::Boolean(it) => Some(it.to_string()),
            Value::Timestamp(it) => Some(it.to_string()),
            Value::F32(it) => Some(it.to_string()),
            Value::F64(it) => Some(it.to_string()),
            other => other.as_number().map(|it| it.to_string()),
        }
    }

    /// How many bytes it takes on the wire, with its type.
    fn size_on_the_wire(&self) -> usize {
        1 + match self {
            Value::Void => 0,
            Value::Boolean(_) | Value::I8(_) | Value::U8(_) => 1,
            Value::I16(_) | Value::U16(_) => 2,
            Value::I32(_) | Value::U32(_) | Value::F32(_) => 4,
            Value::Decimal { .. } => 5,
            Value::I64(_) | Value::F64(_) | Value::Timestamp(_) => 8,
            Value::Text(text) => 4 + text.len(),
            Value::Bytes(bytes) => 4 + bytes.len(),
            Value::List(values) => 4 + values.iter().map(Value::size_on_the_wire).sum::<usize>(),
            Value::Table(entries) => 4 + size_of_entries(entries),
        }
    }
}

/// How many bytes the entries of a table take on the wire.
pub(crate) fn size_of_entries(table: &Headers) -> usize {
    table.iter().map(|(name, value)| 1 + name.len() + value.size_on_the_wire()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_measured_as_they_are_on_the_wire() {
        let text = |text: &str| Some(text.to_string());
        let short = Properties {
            message_id: text("1"),
            content_type: text("t/p"),
            priority: Some(1),
            delivery_mode: Some(2),
            timestamp: Some(3),
            ..Properties::default()
        };
        assert_eq!(short.size_on_the_wire(), 1 + 2 + 4 + 1 + 8);
        let table = Value::Table(Headers::from([("ab".into(), Value::I64(1))]));
        let list = Value::List(vec![Value::Text("xyz".into()), table]);
        let list_size = 5 + (5 + 3) + (5 + 1 + 2 + 9);
        let headers = Some(Headers::from([("h".into(), list)]));
        let nested = Properties { headers, ..Properties::default() };
        assert_eq!(nested.size_on_the_wire(), 4 + 1 + 1 + list_size);
    }

    #[test]
    fn a_time_is_kept_to_the_second() {
        let time = UNIX_EPOCH + Duration::from_millis(7900);
        let value = Value::time(time).expect("after 1970");
        assert_eq!(value.as_time(), Some(UNIX_EPOCH + Duration::from_secs(7)));
        assert_eq!(Value::time(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(Value::Timestamp(u64::MAX).as_time(), None, "later than any clock can tell");
    }

    #[test]
    fn whole_numbers_of_any_width_are_numbers() {
        let seven = [
            Value::I8(7),
            Value::U8(7),
            Value::I16(7),
            Value::U16(7),
            Value::I32(7),
            Value::U32(7),
            Value::I64(7),
        ];
        for value in seven {
            assert_eq!((value.as_number(), value.to_text()), (Some(7), Some("7".into())));
        }
        assert_eq!(Value::F64(7.0).as_number(), None);
        assert_eq!(Value::F64(7.5).to_text(), Some("7.5".into()));
        assert_eq!(Value::Void.to_text(), None);
    }
}
