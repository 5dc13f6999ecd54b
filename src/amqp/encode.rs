//! Writes the frames of a publish (<https://www.rabbitmq.com/amqp-0-9-1-protocol>). Pure.

use crate::model::task::{Headers, Properties, Task, Value};

/// Where a publish goes, and in frames of which size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<'a> {
    pub(super) channel: u16,
    /// Through the default exchange.
    pub(super) queue: &'a str,
    /// The largest frame that was agreed on.
    pub(super) largest_frame: usize,
}

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const FRAME_END: u8 = 0xCE;

/// What a frame has beside its payload: type, channel, size and end.
const AROUND: usize = 8;

/// Class and method, a reserved number, and the empty name of the default exchange.
const PUBLISH: [u8; 7] = [0, 60, 0, 40, 0, 0, 0];
const MANDATORY: u8 = 1;

/// The class, and a reserved number.
const CONTENT: [u8; 4] = [0, 60, 0, 0];

/// Appends a mandatory publish of this task.
pub(super) fn write_publish(out: &mut Vec<u8>, route: Route<'_>, task: &Task) {
    out.reserve(task.size_on_the_wire());
    write_frame(out, METHOD_FRAME, route.channel, |out| {
        out.extend_from_slice(&PUBLISH);
        write_short(out, route.queue);
        out.push(MANDATORY);
    });
    write_frame(out, HEADER_FRAME, route.channel, |out| {
        out.extend_from_slice(&CONTENT);
        out.extend_from_slice(&(task.body().len() as u64).to_be_bytes());
        write_properties(out, task.properties());
    });
    for part in task.body().chunks(route.largest_frame.saturating_sub(AROUND).max(1)) {
        write_frame(out, BODY_FRAME, route.channel, |out| out.extend_from_slice(part));
    }
}

fn write_frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    write_sized(out, payload);
    out.push(FRAME_END);
}

/// The flags of the properties that are present, and these, in the order of the flags.
fn write_properties(out: &mut Vec<u8>, from: &Properties) {
    let flags_at = out.len();
    out.extend_from_slice(&[0, 0]);
    let mut flags = write_texts(out, [&from.content_type, &from.content_encoding]);
    from.headers.iter().for_each(|headers| write_table(out, headers));
    out.extend(from.delivery_mode);
    out.extend(from.priority);
    for is_there in [from.headers.is_some(), from.delivery_mode.is_some(), from.priority.is_some()]
    {
        flags = flags << 1 | u16::from(is_there);
    }
    let next = [&from.correlation_id, &from.reply_to, &from.expiration, &from.message_id];
    flags = flags << 4 | write_texts(out, next);
    from.timestamp.iter().for_each(|seconds| out.extend_from_slice(&seconds.to_be_bytes()));
    flags = flags << 1 | u16::from(from.timestamp.is_some());
    let last = [&from.message_type, &from.user_id, &from.app_id, &from.cluster_id];
    flags = flags << 4 | write_texts(out, last);
    // The two lowest flags are of no property.
    out[flags_at..flags_at + 2].copy_from_slice(&(flags << 2).to_be_bytes());
}

/// Those that are present; returns their flags.
fn write_texts<const N: usize>(out: &mut Vec<u8>, texts: [&Option<String>; N]) -> u16 {
    texts.iter().fold(0, |flags, text| {
        text.iter().for_each(|text| write_short(out, text));
        flags << 1 | u16::from(text.is_some())
    })
}

/// A text with its length in one byte. Longer ones were refused before.
fn write_short(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&text.as_bytes()[..length.into()]);
}

/// What `content` appends, after its length.
fn write_sized(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let size_at = out.len();
    out.extend_from_slice(&[0; 4]);
    content(out);
    let size = u32::try_from(out.len() - size_at - 4).unwrap_or(u32::MAX);
    out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
}

fn write_table(out: &mut Vec<u8>, table: &Headers) {
    write_sized(out, |out| {
        for (name, value) in table {
            write_short(out, name);
            write_value(out, value);
        }
    });
}

/// A value after the letter of its type (<https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).
fn write_value(out: &mut Vec<u8>, value: &Value) {
    let mut fixed = |letter: u8, bytes: &[u8]| {
        out.push(letter);
        out.extend_from_slice(bytes);
    };
    match value {
        Value::Void => fixed(b'V', &[]),
        Value::Boolean(it) => fixed(b't', &[u8::from(*it)]),
        Value::I8(it) => fixed(b'b', &it.to_be_bytes()),
        Value::U8(it) => fixed(b'B', &[*it]),
        Value::I16(it) => fixed(b's', &it.to_be_bytes()),
        Value::U16(it) => fixed(b'u', &it.to_be_bytes()),
        Value::I32(it) => fixed(b'I', &it.to_be_bytes()),
        Value::U32(it) => fixed(b'i', &it.to_be_bytes()),
        Value::I64(it) => fixed(b'l', &it.to_be_bytes()),
        Value::F32(it) => fixed(b'f', &it.to_be_bytes()),
        Value::F64(it) => fixed(b'd', &it.to_be_bytes()),
        Value::Timestamp(it) => fixed(b'T', &it.to_be_bytes()),
        Value::Decimal { scale, value } => {
            fixed(b'D', &[*scale]);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Value::Text(text) => write_long(out, b'S', |out| out.extend_from_slice(text.as_bytes())),
        Value::Bytes(bytes) => write_long(out, b'x', |out| out.extend_from_slice(bytes)),
        Value::List(values) => {
            write_long(out, b'A', |out| values.iter().for_each(|it| write_value(out, it)));
        }
        Value::Table(table) => {
            out.push(b'F');
            write_table(out, table);
        }
    }
}

fn write_long(out: &mut Vec<u8>, letter: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(letter);
    write_sized(out, content);
}

#[cfg(test)]
mod tests {
    use amiquip::{AmqpProperties, AmqpValue, FieldTable};
    use amq_protocol::frame::AMQPFrame;
    use amq_protocol::frame::generation::{
        gen_content_body_frame, gen_content_header_frame, gen_method_frame,
    };
    use amq_protocol::protocol::AMQPClass;
    use amq_protocol::protocol::basic::{AMQPMethod, Publish};
    use amq_protocol::types::DecimalValue;

    use super::*;
    use crate::amqp::message::read_properties;

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

    fn every_property() -> AmqpProperties {
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
        all
    }

    /// The same publish in the client library's words.
    fn of_client_library(queue: &str, properties: &AmqpProperties, parts: &[&[u8]]) -> Vec<u8> {
        let publish = AMQPMethod::Publish(Publish {
            ticket: 0,
            exchange: String::new(),
            routing_key: queue.into(),
            mandatory: true,
            immediate: false,
        });
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let mut out = vec![0; 100_000];
        let (class, size) = (AMQPClass::Basic(publish), size as u64);
        let method = gen_method_frame((&mut out, 0), 258, &class).expect("room");
        let header = gen_content_header_frame(method, 258, 60, size, properties).expect("room");
        let written = parts.iter().fold(header, |written, part| {
            gen_content_body_frame(written, 258, part).expect("room")
        });
        let length = written.1;
        out.truncate(length);
        out
    }

    fn of_ours(queue: &str, task: &Task, largest_frame: usize) -> Vec<u8> {
        let mut out = Vec::new();
        write_publish(&mut out, Route { channel: 258, queue, largest_frame }, task);
        assert!(out.len() <= task.size_on_the_wire(), "no more than was reserved");
        out
    }

    #[test]
    fn a_publish_is_written_as_the_client_library_writes_it() {
        let none = AmqpProperties::default();
        let no_headers = none.clone().with_headers(FieldTable::new());
        let some = none.clone().with_message_id("1".into()).with_delivery_mode(2);
        for properties in [every_property(), none, no_headers, some] {
            for body in [&b""[..], b"a body"] {
                let task = Task::received(body.into(), read_properties(&properties));
                let parts: &[&[u8]] = if body.is_empty() { &[] } else { &[body] };
                let wanted = of_client_library("q", &properties, parts);
                assert_eq!(of_ours("q", &task, 4096), wanted);
            }
        }
    }

    #[test]
    fn a_body_is_split_into_frames_of_the_size_agreed_on() {
        let task = Task::received(b"abcdefgh".into(), Properties::default());
        let queue = "q".repeat(255);
        let none = AmqpProperties::default();
        for (largest_frame, parts) in [
            (AROUND + 3, &[&b"abc"[..], b"def", b"gh"][..]),
            (AROUND + 4, &[b"abcd", b"efgh"]),
            (AROUND + 8, &[b"abcdefgh"]),
        ] {
            let wanted = of_client_library(&queue, &none, parts);
            assert!(of_ours(&queue, &task, largest_frame) == wanted, "{largest_frame}");
        }
    }

    #[test]
    fn each_property_alone_has_its_own_flag() {
        let whole = read_properties(&every_property());
        let only = |keep: fn(Properties) -> Properties| keep(whole.clone());
        for properties in [
            only(|it| Properties { app_id: it.app_id, ..Properties::default() }),
            only(|it| Properties { priority: it.priority, ..Properties::default() }),
            only(|it| Properties { timestamp: it.timestamp, ..Properties::default() }),
            only(|it| Properties { reply_to: it.reply_to, ..Properties::default() }),
            only(|it| Properties { headers: it.headers, ..Properties::default() }),
        ] {
            let task = Task::received(Vec::new(), properties.clone());
            let frames = of_ours("q", &task, 4096);
            let header =
                &frames[frames.iter().position(|byte| *byte == FRAME_END).expect("an end") + 1..];
            let Ok((_, AMQPFrame::Header(_, _, header))) = amq_protocol::frame::parse_frame(header)
            else {
                panic!("no header")
            };
            assert_eq!(read_properties(&header.properties), properties);
        }
    }
}
