//! Headers and properties of a task on its way through retries, dead letters and a replay.

use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use amq_protocol_types::DecimalValue;
use rabbit_work::{Broker, Delivery, Failure, Queue, RetryPolicy, Worker};

use crate::support::broker::shared_broker;
use crate::support::client::{persistent, unique_queue};
use crate::support::command::Command;
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(30);

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
    let ours = |name: &str| name.starts_with("x-rabbit-work-");
    let theirs: FieldTable = message.headers.into_iter().filter(|(name, _)| !ours(name)).collect();
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
