//! Converts tasks to and from the client library's messages, without loss. A body is never copied.
//!
//! The texts of properties and headers are copied once in each direction: amiquip lends its
//! properties but does not give them away, and a publish is kept until it is confirmed.

use std::mem;

use amiquip::{AmqpProperties, AmqpValue, FieldTable, Publish};
use amq_protocol_types::DecimalValue;

use crate::model::task::{Headers, Properties, Task, Value};

/// Sets one property.
type Set<T> = fn(AmqpProperties, T) -> AmqpProperties;

/// The task that a delivery brings. Leaves the delivery without its content.
pub(crate) fn take_task(delivery: &mut amiquip::Delivery) -> Task {
    let body = mem::take(&mut delivery.body);
    let properties = mem::take(&mut delivery.properties);
    Task::received(body, read_properties(&properties))
}

/// A mandatory publish of this task to `queue`, through the default exchange.
pub(crate) fn publish_to<'a>(queue: &str, task: &'a Task) -> Publish<'a> {
    Publish {
        body: task.body(),
        routing_key: queue.into(),
        mandatory: true,
        immediate: false,
        properties: write_properties(task.properties()),
    }
}

fn read_properties(from: &AmqpProperties) -> Properties {
    Properties {
        content_type: from.content_type().clone(),
        content_encoding: from.content_encoding().clone(),
        headers: from.headers().as_ref().map(read_table),
        delivery_mode: *from.delivery_mode(),
        priority: *from.priority(),
        correlation_id: from.correlation_id().clone(),
        reply_to: from.reply_to().clone(),
        expiration: from.expiration().clone(),
        message_id: from.message_id().clone(),
        timestamp: *from.timestamp(),
        message_type: from.type_().clone(),
        user_id: from.user_id().clone(),
        app_id: from.app_id().clone(),
        cluster_id: from.cluster_id().clone(),
    }
}

fn write_properties(from: &Properties) -> AmqpProperties {
    let texts: [(&Option<String>, Set<String>); 10] = [
        (&from.content_type, AmqpProperties::with_content_type),
        (&from.content_encoding, AmqpProperties::with_content_encoding),
        (&from.correlation_id, AmqpProperties::with_correlation_id),
        (&from.reply_to, AmqpProperties::with_reply_to),
        (&from.expiration, AmqpProperties::with_expiration),
        (&from.message_id, AmqpProperties::with_message_id),
        (&from.message_type, AmqpProperties::with_type_),
        (&from.user_id, AmqpProperties::with_user_id),
        (&from.app_id, AmqpProperties::with_app_id),
        (&from.cluster_id, AmqpProperties::with_cluster_id),
    ];
    let bytes: [(Option<u8>, Set<u8>); 2] = [
        (from.delivery_mode, AmqpProperties::with_delivery_mode),
        (from.priority, AmqpProperties::with_priority),
    ];
    let mut to = AmqpProperties::default();
    for (text, set) in texts {
        to = set_some(to, text.clone(), set);
    }
    for (byte, set) in bytes {
        to = set_some(to, byte, set);
    }
    to = set_some(to, from.timestamp, AmqpProperties::with_timestamp);
    set_some(to, from.headers.as_ref().map(write_table), AmqpProperties::with_headers)
}

fn set_some<T>(to: AmqpProperties, value: Option<T>, set: Set<T>) -> AmqpProperties {
    match value {
        Some(value) => set(to, value),
        None => to,
    }
}

fn read_table(from: &FieldTable) -> Headers {
    from.iter().map(|(name, value)| (name.clone(), read_value(value))).collect()
}

fn write_table(from: &Headers) -> FieldTable {
    from.iter().map(|(name, value)| (name.clone(), write_value(value))).collect()
}

fn read_value(from: &AmqpValue) -> Value {
    match from {
        AmqpValue::Void => Value::Void,
        AmqpValue::Boolean(it) => Value::Boolean(*it),
        AmqpValue::ShortShortInt(it) => Value::I8(*it),
        AmqpValue::ShortShortUInt(it) => Value::U8(*it),
        AmqpValue::ShortInt(it) => Value::I16(*it),
        AmqpValue::ShortUInt(it) => Value::U16(*it),
        AmqpValue::LongInt(it) => Value::I32(*it),
        AmqpValue::LongUInt(it) => Value::U32(*it),
        AmqpValue::LongLongInt(it) => Value::I64(*it),
        AmqpValue::Float(it) => Value::F32(*it),
        AmqpValue::Double(it) => Value::F64(*it),
        AmqpValue::DecimalValue(it) => Value::Decimal { scale: it.scale, value: it.value },
        AmqpValue::LongString(text) => Value::Text(text.clone()),
        AmqpValue::ByteArray(bytes) => Value::Bytes(bytes.clone()),
        AmqpValue::Timestamp(it) => Value::Timestamp(*it),
        AmqpValue::FieldArray(values) => Value::List(values.iter().map(read_value).collect()),
        AmqpValue::FieldTable(table) => Value::Table(read_table(table)),
    }
}

fn write_value(from: &Value) -> AmqpValue {
    match from {
        Value::Void => AmqpValue::Void,
        Value::Boolean(it) => AmqpValue::Boolean(*it),
        Value::I8(it) => AmqpValue::ShortShortInt(*it),
        Value::U8(it) => AmqpValue::ShortShortUInt(*it),
        Value::I16(it) => AmqpValue::ShortInt(*it),
        Value::U16(it) => AmqpValue::ShortUInt(*it),
        Value::I32(it) => AmqpValue::LongInt(*it),
        Value::U32(it) => AmqpValue::LongUInt(*it),
        Value::I64(it) => AmqpValue::LongLongInt(*it),
        Value::F32(it) => AmqpValue::Float(*it),
        Value::F64(it) => AmqpValue::Double(*it),
        Value::Decimal { scale, value } => {
            AmqpValue::DecimalValue(DecimalValue { scale: *scale, value: *value })
        }
        Value::Text(text) => AmqpValue::LongString(text.clone()),
        Value::Bytes(bytes) => AmqpValue::ByteArray(bytes.clone()),
        Value::Timestamp(it) => AmqpValue::Timestamp(*it),
        Value::List(values) => AmqpValue::FieldArray(values.iter().map(write_value).collect()),
        Value::Table(table) => AmqpValue::FieldTable(write_table(table)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_type() -> FieldTable {
        let table: FieldTable = [("in".to_string(), AmqpValue::Void)].into();
        let values = [
            AmqpValue::Void,
            AmqpValue::Boolean(true),
            AmqpValue::ShortShortInt(i8::MIN),
            AmqpValue::ShortShortUInt(u8::MAX),
            AmqpValue::ShortInt(i16::MIN),
            AmqpValue::ShortUInt(u16::MAX),
            AmqpValue::LongInt(i32::MIN),
            AmqpValue::LongUInt(u32::MAX),
            AmqpValue::LongLongInt(i64::MIN),
            AmqpValue::Float(-0.5),
            AmqpValue::Double(f64::MIN_POSITIVE),
            AmqpValue::DecimalValue(DecimalValue { scale: 2, value: 314 }),
            AmqpValue::LongString("text".into()),
            AmqpValue::ByteArray(vec![0, 255]),
            AmqpValue::Timestamp(u64::MAX),
            AmqpValue::FieldArray(vec![AmqpValue::FieldTable(table.clone()), AmqpValue::Void]),
            AmqpValue::FieldTable(table),
        ];
        let named = values.into_iter().enumerate();
        named.map(|(number, value)| (number.to_string(), value)).collect()
    }

    #[test]
    fn properties_and_headers_of_every_type_are_kept() {
        let all = AmqpProperties::default()
            .with_content_type("content type".into())
            .with_content_encoding("encoding".into())
            .with_headers(every_type())
            .with_delivery_mode(2)
            .with_priority(9)
            .with_correlation_id("correlation".into())
            .with_reply_to("reply to".into())
            .with_expiration("60000".into())
            .with_message_id("id".into())
            .with_timestamp(7)
            .with_type_("type".into())
            .with_user_id("user".into())
            .with_app_id("app".into())
            .with_cluster_id("cluster".into());
        assert_eq!(all.bitmask().count_ones(), 14, "each property");
        for properties in [all, AmqpProperties::default().with_headers(FieldTable::new())] {
            assert_eq!(write_properties(&read_properties(&properties)), properties);
        }
        let none = AmqpProperties::default();
        assert_eq!(read_properties(&none), Properties::default());
        assert_eq!(write_properties(&Properties::default()), none);
    }
}
