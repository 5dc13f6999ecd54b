//! Converts the client library's messages to tasks, without loss. A body is not copied. The texts of
//! properties and headers are: amiquip lends its properties but does not give them away.

use std::mem;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use crate::model::task::{Headers, Properties, Task, Value};

/// The task that a delivery brings. Leaves the delivery without its content.
pub(crate) fn take_task(delivery: &mut amiquip::Delivery) -> Task {
    let body = mem::take(&mut delivery.body);
    let properties = mem::take(&mut delivery.properties);
    Task::received(body, read_properties(&properties))
}

pub(super) fn read_properties(from: &AmqpProperties) -> Properties {
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

fn read_table(from: &FieldTable) -> Headers {
    from.iter().map(|(name, value)| (name.clone(), read_value(value))).collect()
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
