//! Headers and properties of a task on its way through retries, dead letters and a replay.

use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use amq_protocol::types::DecimalValue;
use rabbit_work::{Broker, Delivery, Failure, Queue, RetryPolicy, Worker};

use super::{SOON, dead, failing, policy, worker};
use crate::support::broker::shared_broker;
use crate::support::client::{Message, persistent, publish_raw, unique_queue};
use crate::support::command::Command;
use crate::support::wire::{Field, Properties};
use crate::support::working::Working;

#[test]
fn a_task_whose_headers_fill_a_frame_still_ends_as_a_dead_letter() {
    let queue = unique_queue("crowded");
    let mut client = shared_broker().client();
    client.declare(&queue);
    // The last fills a frame of 128 KiB to its last byte.
    let sizes = [60_000, 100_000, 127_000, 130_300, 131_036];
    for size in sizes {
        let mut headers = FieldTable::new();
        headers.insert("h".into(), AmqpValue::LongString("x".repeat(size)));
        let properties =
            AmqpProperties::default().with_message_id("1".into()).with_delivery_mode(2);
        client.publish(&queue, size.to_string().as_bytes(), properties.with_headers(headers));
    }
    let said = format!("first {} last", "…".repeat(2000));
    let handler = move |_: &Delivery| -> Result<(), Failure> { Err(Failure::retry(said.clone())) };

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.failed, summary.retried, summary.dead), (0, 4, 5));
    let letters = client.get_all(&dead(&queue));
    let told = sizes.map(|size| {
        let letter = letters.iter().find(|it| it.text() == size.to_string()).expect("it is dead");
        assert!(letter.headers["h"] == AmqpValue::LongString("x".repeat(size)));
        let reason = match letter.headers.get("x-rabbit-work-reason") {
            Some(AmqpValue::LongString(reason)) => reason.len(),
            _ => 0,
        };
        (letter.headers.contains_key("x-rabbit-work-attempts"), reason / 100)
    });
    assert_eq!(told, [(true, 44), (true, 44), (true, 1), (true, 1), (false, 0)]);
}

#[test]
fn a_task_whose_headers_are_nested_as_deep_as_is_taken_fails_like_any_other() {
    let queue = unique_queue("deep");
    let mut client = shared_broker().client();
    client.declare(&queue);
    // The table of the headers is the hundredth.
    let deep = (1..100).fold(AmqpValue::Void, |inside, _| AmqpValue::FieldArray(vec![inside]));
    let mut headers = FieldTable::new();
    headers.insert("h".into(), deep.clone());
    client.publish(&queue, b"x", persistent("1").with_headers(headers));
    let (attempts, handler) = failing(u32::MAX);

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.retried, summary.dead, attempts.try_iter().count()), (1, 1, 2));
    assert!(client.get_all(&dead(&queue))[0].headers["h"] == deep);
}

/// As long as they come as text, the client library drops them and all behind them.
#[test]
fn headers_that_are_not_utf_8_keep_their_bytes_and_what_is_behind_them() {
    let queue = unique_queue("latin");
    let client = shared_broker().client();
    client.declare(&queue);
    let latin = || Field::text(b"caf\xe9");
    let table = vec![(b"in".to_vec(), latin()), (b"out".to_vec(), Field::Bool(true))];
    for id in ["letter", "replayed"] {
        let properties = Properties::with_message_id(id)
            .header("a", Field::text("one"))
            .header("b", latin())
            .header("c", Field::text("three"))
            .header("d", Field::Array(vec![latin(), Field::Table(table.clone()), latin()]))
            .header("e", Field::text("caf\u{e9}"));
        publish_raw(shared_broker().url(), &queue, b"x", &properties);
    }
    let (_, handler) = failing(u32::MAX);

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");
    let replay = ["dead", "replay", "--id", "replayed"];
    let place = ["--url", shared_broker().url(), "--queue", &queue];
    Command::queuectl(&[&place[..], &replay].concat()).run(SOON).assert_code(0);

    assert_eq!((summary.retried, summary.dead), (2, 2));
    let text = |text: &str| AmqpValue::LongString(text.into());
    let bytes = || AmqpValue::ByteArray(b"caf\xe9".to_vec());
    let mut table = FieldTable::new();
    table.insert("in".into(), bytes());
    table.insert("out".into(), AmqpValue::Boolean(true));
    let list = AmqpValue::FieldArray(vec![bytes(), AmqpValue::FieldTable(table), bytes()]);
    let sent = [
        ("a", text("one")),
        ("b", bytes()),
        ("c", text("three")),
        ("d", list),
        ("e", text("caf\u{e9}")),
    ];
    for (queue, id) in [(dead(&queue), "letter"), (queue, "replayed")] {
        let messages = client.get_all(&queue);
        assert_eq!(messages.len(), 1, "{queue}");
        assert_eq!(messages[0].message_id.as_deref(), Some(id));
        for (name, value) in &sent {
            assert_eq!(messages[0].headers.get(*name), Some(value), "{name} of {id}");
        }
    }
}

#[test]
fn properties_that_are_not_utf_8_become_ascii_and_take_no_others_with_them() {
    let queue = unique_queue("latin-1");
    let client = shared_broker().client();
    client.declare(&queue);
    let latin = || Some(b"caf\xe9".to_vec());
    let properties = Properties {
        content_type: latin(),
        correlation_id: latin(),
        reply_to: Some(b"answers".to_vec()),
        app_id: latin(),
        ..Properties::with_message_id("id").header("a", Field::text("one"))
    };
    publish_raw(shared_broker().url(), &queue, b"x", &properties);
    let (_, handler) = failing(u32::MAX);

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.retried, summary.dead), (1, 1));
    let letter = client.get_all(&dead(&queue)).pop().expect("a letter");
    let Message { properties, headers, .. } = &letter;
    let mended = Some("caf?".to_string());
    assert_eq!(properties.content_type(), &mended);
    assert_eq!(properties.correlation_id(), &mended);
    assert_eq!(properties.reply_to(), &Some("answers".into()));
    assert_eq!(properties.message_id(), &Some("id".into()));
    assert_eq!(properties.app_id(), &mended);
    assert_eq!(headers.get("a"), Some(&AmqpValue::LongString("one".into())));
}

#[test]
fn headers_and_properties_of_every_type_survive_a_retry_a_dead_letter_and_a_replay() {
    let queue = unique_queue("every-type");
    let broker: Broker = shared_broker().url().parse().expect("the broker's URL is one");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish(&queue, b"body", with_every_property().with_headers(every_type()));
    let handler = |_: &Delivery| -> Result<(), Failure> { Err(Failure::retry("no")) };

    let policy = RetryPolicy::new().max_attempts(2).first_delay(Duration::from_millis(100));
    let worker = Worker::new(&broker, &Queue::new(&queue)).threads(1).retry(policy).drain();
    let summary = Working::start(&worker, handler).wait(SOON).expect("it ends well");
    Command::queuectl(&["--url", shared_broker().url(), "--queue", &queue, "dead", "replay"])
        .run(SOON)
        .assert_code(0);

    assert_eq!((summary.retried, summary.dead), (1, 1));
    let message = client.get_all(&queue).pop().expect("the replayed task");
    assert_eq!(message.body, b"body");
    // A quorum queue adds a count.
    let added = |name: &str| name.starts_with("x-rabbit-work-") || name == "x-delivery-count";
    let theirs: FieldTable = message.headers.into_iter().filter(|(name, _)| !added(name)).collect();
    assert_eq!(theirs, every_type());
    let none = FieldTable::new();
    let properties = message.properties.with_headers(none.clone());
    assert_eq!(properties, with_every_property().with_headers(none));
}

/// Each property but those that are set aside: `expiration` and `user_id`.
fn with_every_property() -> AmqpProperties {
    persistent("id")
        .with_content_type("content type".into())
        .with_content_encoding("encoding".into())
        .with_priority(9)
        .with_correlation_id("correlation".into())
        .with_reply_to("reply to".into())
        .with_timestamp(7)
        .with_type_("type".into())
        .with_app_id("app".into())
        .with_cluster_id("cluster".into())
}

fn every_type() -> FieldTable {
    let table: FieldTable = [("in".to_string(), AmqpValue::Float(0.5))].into();
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
        AmqpValue::Double(1e-300),
        AmqpValue::DecimalValue(DecimalValue { scale: 2, value: 314 }),
        AmqpValue::LongString("text".into()),
        AmqpValue::ByteArray(vec![0, 255]),
        AmqpValue::Timestamp(1_700_000_000),
        AmqpValue::FieldArray(vec![AmqpValue::FieldTable(table.clone()), AmqpValue::Void]),
        AmqpValue::FieldTable(table),
    ];
    let named = values.into_iter().enumerate();
    named.map(|(number, value)| (format!("h{number}"), value)).collect()
}
