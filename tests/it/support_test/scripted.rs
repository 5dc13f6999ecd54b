//! The scripted broker: what it sends and receives, with plain amiquip as the client.

use std::io::Read;
use std::net::TcpStream;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConfirmPayload, Connection,
    ConnectionBlockedNotification, Consumer, ConsumerMessage, ConsumerOptions, Error, FieldTable,
    Publish, QueueDeclareOptions,
};
use crossbeam_channel::Receiver;

use crate::support::scripted::{Damage, Event, ScriptedBroker, Session, Tuning};
use crate::support::wire::{Call, Delivery, Field, Properties};

const SOON: Duration = Duration::from_secs(30);

/// Without a word of heartbeats, which are among what the scripts are asked for here.
fn url(broker: &ScriptedBroker) -> String {
    format!("amqp://guest:guest@{}", broker.address())
}

fn connect(broker: &ScriptedBroker) -> Connection {
    Connection::insecure_open(&url(broker)).expect("the handshake succeeds")
}

fn answer_to_the_end(session: &mut Session) {
    let left = session.answer_rpcs();
    assert_eq!(left, None, "only what has a usual answer");
}

fn consume<'a>(channel: &'a Channel, queue: &str) -> Consumer<'a> {
    let consumer = channel.basic_consume(queue, ConsumerOptions::default());
    consumer.expect("the consumer is let in")
}

fn next<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(SOON).expect("the broker said something")
}

/// A consumer must not be dropped while amiquip still has its end to tell.
fn drain(consumer: Consumer<'_>) {
    let messages = consumer.receiver().clone();
    let _ = consumer.cancel();
    while messages.recv_timeout(SOON).is_ok() {}
}

#[test]
fn the_usual_calls_have_the_usual_answers() {
    let broker = ScriptedBroker::start(|session, _| {
        let tuning = Tuning { channel_max: 7, frame_max: 4096, heartbeat: 3 };
        let client = session.handshake_with(tuning);
        assert_eq!((client.channel_max, client.frame_max), (7, 4096));
        assert_eq!((client.heartbeat, client.vhost.as_str()), (3, "/"));
        assert_eq!(client.response, b"\0guest\0guest");
        answer_to_the_end(session);
    });
    let mut connection = connect(&broker);
    let channel = connection.open_channel(None).expect("a channel");
    channel.qos(0, 3, false).expect("qos");
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("q", options).expect("a queue");
    assert_eq!(queue.name(), "q");
    let passive = channel.queue_declare_passive("q").expect("a queue");
    assert_eq!(passive.declared_message_count(), Some(0));
    channel.enable_publisher_confirms().expect("confirm mode");
    assert_eq!(channel.queue_purge("q").expect("purged"), 0);
    drain(consume(&channel, "q"));
    assert!(channel.basic_get("q", false).expect("answered").is_none());
    channel.close().expect("the channel closes");
    connection.close().expect("the connection closes");
    broker.finish(SOON);
}

#[test]
fn a_publish_is_read_whole_and_settled_out_of_order() {
    let body: Vec<u8> = (0..10_000).map(|number| (number % 251) as u8).collect();
    let broker = ScriptedBroker::start({
        let body = body.clone();
        move |session, _| {
            session.handshake_with(Tuning { frame_max: 4096, ..Tuning::default() });
            let first = session.read_publish();
            assert_eq!(first.routing_key, b"q");
            assert_eq!(first.message_id().as_deref(), Some("one"));
            assert_eq!(first.header("tries"), Some(&Field::I64(4)));
            assert!(first.mandatory);
            assert_eq!(first.body, body);
            session.read_publish();
            let third = session.read_publish();
            assert_eq!((third.body.len(), third.mandatory), (0, false));
            session.return_message(&first, 312, "NO_ROUTE");
            session.nack(first.channel, 2);
            session.ack_up_to(first.channel, 3);
            answer_to_the_end(session);
        }
    });
    let mut connection = connect(&broker);
    let channel = connection.open_channel(None).expect("a channel");
    let returns = channel.listen_for_returns().expect("returns");
    let confirms = channel.listen_for_publisher_confirms().expect("confirms");
    channel.enable_publisher_confirms().expect("confirm mode");
    let mut headers = FieldTable::new();
    headers.insert("tries".to_owned(), AmqpValue::LongLongInt(4));
    let properties =
        AmqpProperties::default().with_message_id("one".to_owned()).with_headers(headers);
    let mut first = Publish::with_properties(&body, "q", properties);
    first.mandatory = true;
    channel.basic_publish("", first).expect("published");
    for body in [&b"two"[..], b""] {
        let publish = Publish::new(body, "q");
        channel.basic_publish("", publish).expect("published");
    }
    let returned = next(&returns);
    assert_eq!(returned.reply_code, 312);
    assert_eq!(returned.content, body);
    assert_eq!(returned.properties.message_id().as_deref(), Some("one"));
    let tag = |delivery_tag, multiple| ConfirmPayload { delivery_tag, multiple };
    assert_eq!(next(&confirms), Confirm::Nack(tag(2, false)));
    assert_eq!(next(&confirms), Confirm::Ack(tag(3, true)));
    connection.close().expect("the connection closes");
    broker.finish(SOON);
}

#[test]
fn a_delivery_carries_headers_of_every_type() {
    let fields = [
        ("t", Field::Bool(true)),
        ("b", Field::I8(-1)),
        ("B", Field::U8(255)),
        ("s", Field::I16(-2)),
        ("u", Field::U16(65_535)),
        ("I", Field::I32(-3)),
        ("i", Field::U32(4_000_000_000)),
        ("l", Field::I64(-4)),
        ("f", Field::F32(0.5)),
        ("d", Field::F64(0.25)),
        ("D", Field::Decimal(2, 314)),
        ("S", Field::text("text")),
        ("A", Field::Array(vec![Field::Void, Field::Bool(false)])),
        ("T", Field::Timestamp(1_700_000_000)),
        ("F", Field::Table(vec![(b"k".to_vec(), Field::U8(1))])),
        ("x", Field::Bytes(vec![0, 255])),
        ("V", Field::Void),
    ];
    let count = fields.len();
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let mut properties = Properties::with_message_id("m");
        for (name, field) in &fields {
            properties = properties.header(*name, field.clone());
        }
        let delivery = Delivery::new(consumer.channel, &consumer.tag, 1)
            .redelivered()
            .properties(properties)
            .body("body");
        session.deliver(&delivery);
        let ack = session.expect_method();
        assert_eq!(ack.call, Call::Ack { delivery_tag: 1, multiple: false });
        answer_to_the_end(session);
    });
    let mut connection = connect(&broker);
    let channel = connection.open_channel(None).expect("a channel");
    let consumer = consume(&channel, "q");
    let ConsumerMessage::Delivery(delivery) = next(consumer.receiver()) else {
        panic!("not a delivery");
    };
    assert!(delivery.redelivered);
    assert_eq!(delivery.body, b"body");
    assert_eq!(delivery.properties.message_id().as_deref(), Some("m"));
    let headers = delivery.properties.headers().clone().expect("headers");
    assert_eq!(headers.len(), count, "{headers:?}");
    assert_eq!(headers["i"], AmqpValue::LongUInt(4_000_000_000));
    assert_eq!(headers["x"], AmqpValue::ByteArray(vec![0, 255]));
    delivery.ack(&channel).expect("acked");
    drain(consumer);
    connection.close().expect("the connection closes");
    broker.finish(SOON);
}

#[test]
fn a_routing_key_need_not_be_text() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let delivery = Delivery::new(consumer.channel, &consumer.tag, 1).routing_key([0xFF]);
        session.deliver(&delivery);
        session.read_until_closed();
    });
    let mut connection = connect(&broker);
    let channel = connection.open_channel(None).expect("a channel");
    let consumer = consume(&channel, "q");
    assert!(consumer.receiver().recv_timeout(SOON).is_err());
    drain(consumer);
    drop(channel);
    let cause = connection.close().expect_err("the connection is dead");
    assert!(matches!(cause, Error::MalformedFrame), "{cause}");
    broker.finish(SOON);
}

#[test]
fn the_broker_can_cancel_block_and_close() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        session.blocked("low on memory");
        session.unblocked();
        session.cancel_consumer(&consumer);
        let other = session.accept_consumer();
        session.close_channel(other.channel, 406, "PRECONDITION_FAILED - too late");
        assert_eq!(session.expect_method().call, Call::ChannelCloseOk);
        session.close_connection(320, "CONNECTION_FORCED - going");
        assert_eq!(session.expect_method().call, Call::ConnectionCloseOk);
    });
    let mut connection = connect(&broker);
    let notices = connection.listen_for_connection_blocked();
    let notices = notices.expect("a place for the notices");
    let channel = connection.open_channel(None).expect("a channel");
    let first = consume(&channel, "q");
    let ConnectionBlockedNotification::Blocked(reason) = next(&notices) else {
        panic!("the connection was not blocked");
    };
    assert_eq!(reason, "low on memory");
    let ConnectionBlockedNotification::Unblocked = next(&notices) else {
        panic!("the connection was not unblocked");
    };
    let message = next(first.receiver());
    assert!(matches!(message, ConsumerMessage::ServerCancelled), "{message:?}");
    let second = consume(&channel, "q");
    let ConsumerMessage::ServerClosedChannel(error) = next(second.receiver()) else {
        panic!("the channel was not closed");
    };
    assert!(error.to_string().contains("406"), "{error}");
    assert!(notices.recv_timeout(SOON).is_err(), "the connection is dead");
    drop((first, second));
    drop(channel);
    let cause = connection.close().expect_err("the broker closed first");
    assert!(cause.to_string().contains("320"), "{cause}");
    broker.finish(SOON);
}

#[test]
fn a_silent_broker_is_missed_by_its_heartbeats_and_a_reset_shows_at_once() {
    let broker = ScriptedBroker::start(|session, number| {
        let tuning = Tuning { heartbeat: 1, ..Tuning::default() };
        session.handshake_with(tuning);
        match number {
            0 => session.stay_silent(),
            _ => {
                session.expect_method();
                session.reset();
            }
        }
    });
    let mut connection = connect(&broker);
    let notices = connection.listen_for_connection_blocked();
    let notices = notices.expect("a place for the notices");
    assert!(notices.recv_timeout(SOON).is_err(), "it is dead");
    let cause = connection.close().expect_err("it is dead");
    assert!(matches!(cause, Error::MissedServerHeartbeats), "{cause}");
    let mut connection = connect(&broker);
    assert!(connection.open_channel(None).is_err());
    let cause = connection.close().expect_err("it is dead");
    assert!(format!("{cause:?}").contains("ConnectionReset"), "{cause:?}");
    broker.finish(SOON);
}

#[test]
fn one_byte_arrives_damaged_and_the_others_as_they_were_sent() {
    let broker = ScriptedBroker::start(|session, _| {
        session.damage(Damage { position: 3, bits: 0x20 });
        session.raw(b"ab");
        session.raw(b"cdef");
        session.hang_up();
    });
    let mut stream = TcpStream::connect(broker.address()).expect("the broker listens");
    stream.set_read_timeout(Some(SOON)).expect("a TCP stream");

    let mut arrived = Vec::new();
    stream.read_to_end(&mut arrived).expect("an end in good order");

    assert_eq!(arrived, b"abcDef");
    broker.finish(SOON);
}

#[test]
fn reports_arrive_in_order() {
    let broker = ScriptedBroker::start(|session, number| {
        session.report(format!("connection {number}"));
        session.handshake();
        session.report("open");
        session.expect_method();
        session.hang_up();
    });
    drop(connect(&broker));
    broker.wait("connection 0", SOON);
    broker.wait("open", SOON);
    broker.wait_for(SOON, |event| *event == Event::Ended(0));
    broker.finish(SOON);
}

#[test]
fn a_failed_script_fails_whoever_waits_finishes_or_drops() {
    let fail = || {
        let broker = ScriptedBroker::start(|_, _| panic!("the script fails on purpose"));
        let _ = Connection::insecure_open(&url(&broker));
        broker.wait_for(SOON, |event| matches!(event, Event::Failed(0, _)));
        broker
    };
    let ways: [fn(ScriptedBroker); 2] = [|broker| broker.finish(SOON), drop];
    for way in ways {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| way(fail())));
        let payload = outcome.expect_err("the failure comes through");
        assert_eq!(payload.downcast_ref(), Some(&"the script fails on purpose"));
    }
    let broker = ScriptedBroker::start(|session, _| drop(session.read_publish()));
    let wait = || {
        let _ = Connection::insecure_open(&format!("{}?connection_timeout=1", url(&broker)));
        broker.wait("never said", SOON);
    };
    assert!(panic::catch_unwind(AssertUnwindSafe(wait)).is_err());
    assert!(panic::catch_unwind(AssertUnwindSafe(|| drop(broker))).is_err());
}

#[test]
fn a_script_that_still_waits_when_the_test_is_over_is_no_failure() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.report("open");
        session.read_publish();
    });
    let connection = connect(&broker);
    broker.wait("open", SOON);
    drop(broker);
    drop(connection);
}
