//! Frames, messages and headers that are too large, too deep or unfinished, and protocol errors.

use std::thread;
use std::time::{Duration, Instant};

use rabbit_work::{Broker, Outcome, Producer, Queue, Task};

use super::{SOON, deliver};
use crate::support::command::Command;
use crate::support::scripted::{Consumer, Event, ScriptedBroker, Tuning};
use crate::support::wire::{Arguments, Call, Delivery as WireDelivery, Field, Frame, Properties};

/// Their frames are smaller than RabbitMQ's own.
const SMALL: Tuning = Tuning { channel_max: 2047, frame_max: 8192, heartbeat: 0 };

#[test]
fn a_record_makes_room_for_a_task_s_own_headers_also_where_frames_are_small() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake_with(SMALL);
        if number == 0 {
            let consumer = session.accept_consumer();
            let properties = Properties::default().header("big", Field::text("x".repeat(7800)));
            let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
            session.deliver(&delivery.properties(properties));
            let acked = session.answer_rpcs().expect("it is acked");
            assert!(matches!(acked.call, Call::Ack { .. }), "{acked:?}");
            session.report("acked");
        } else {
            let publish = session.read_publish();
            assert_eq!(publish.routing_key, b"task_queue.dead");
            let size = publish.raw_properties.len();
            assert!((7800..8192 - 20).contains(&size), "{size}");
            session.ack(publish.channel, 1);
        }
        let _ = session.answer_rpcs();
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-attempts", "1"];
    let command = ["--", "sh", "-c", "printf %0300d 7 >&2; exit 1"];

    let running = Command::worker(&[&arguments[..], &command].concat()).start();
    broker.wait("acked", SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(0);
    broker.finish(SOON);
}

#[test]
fn a_task_whose_headers_are_too_large_for_the_broker_s_frames_is_refused_and_the_next_goes_on() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake_with(SMALL);
        let publish = session.read_publish();
        assert_eq!(publish.body, b"second");
        session.ack(publish.channel, 1);
        let _ = session.answer_rpcs();
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q"));
    let large = Task::new("first").with_header("big", "x".repeat(8192));

    let mut receipts = producer.send(large);
    receipts.extend(producer.send(Task::new("second")));
    receipts.extend(producer.flush());

    let [first, second] = &receipts[..] else { panic!("{receipts:?}") };
    let Outcome::Refused { reason, .. } = &first.outcome else { panic!("{first:?}") };
    assert!(reason.contains("frame_max of 8192"), "{reason}");
    assert_eq!(second.outcome, Outcome::Confirmed);
}

#[test]
fn a_message_that_cannot_be_parsed_trips_the_breaker_with_cause_and_remedy() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
        session.deliver(&delivery.routing_key([0xFF]).body("x"));
        session.read_until_closed();
    });

    let begun = Instant::now();
    let output = Command::worker(&["--url", &broker.url(), "--queue", "poisoned"]).run(SOON);

    output.assert_code(2);
    let stderr = output.stderr();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains("queue 'poisoned'") && last.contains("not UTF-8"), "{stderr}");
    assert!(last.contains("remove it with another client"), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// One ack would be for both, and nobody knows for which of the two it is missing.
#[test]
fn a_delivery_tag_that_comes_twice_ends_the_session() {
    let broker = sends_first(|consumer| {
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1).body("twice.");
        delivery.to_bytes(4096).repeat(2)
    });

    let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
    let line = running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
    running.wait_for_stdout_line(|line| line == " [x] Received '1'", SOON);

    assert!(line.contains("sent delivery tag 1 after 1"), "{line}");
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

/// Arrays within one another, so many that only their bytes are made.
fn nested(levels: u32) -> Field {
    let mut bytes = Vec::new();
    for below in (0..levels).rev() {
        bytes.extend((5 * below + 1).to_be_bytes());
        bytes.push(if below > 0 { b'A' } else { b'V' });
    }
    Field::Unknown(b'A', bytes)
}

#[test]
fn headers_that_are_nested_too_deep_trip_the_breaker_and_do_not_kill_the_process() {
    for levels in [100, 20_000] {
        let broker = ScriptedBroker::start(move |session, _| {
            session.handshake();
            let channel = session.expect_consume().channel;
            let consume_ok = Frame::method(channel, 60, 21, Arguments::default().short("tag"));
            let properties = Properties::default().header("deep", nested(levels));
            let delivery = WireDelivery::new(channel, "tag", 1).properties(properties).body("x");
            // At once, as RabbitMQ does: the consumer stands before the message ends it.
            session.raw(&[consume_ok.to_bytes(), delivery.to_bytes(0)].concat());
            session.read_until_closed();
        });

        let arguments = ["--url", &broker.url(), "--queue", "deep", "--threads", "1"];
        let output = Command::worker(&arguments).run(SOON);

        output.assert_code(2);
        let stderr = output.stderr();
        let first = stderr.lines().find(|line| line.contains("lost the session"));
        assert!(first.is_some_and(|line| line.contains("deeper than 100 levels")), "{stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.contains("queue 'deep'") && last.contains("nested too deep"), "{stderr}");
        assert!(last.contains("remove it with another client"), "{stderr}");
    }
}

#[test]
fn a_return_that_is_nested_too_deep_ends_the_session_and_not_the_producer() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let mut publish = session.read_publish();
        if number == 0 {
            let properties = Properties::default().header("deep", nested(20_000));
            publish.raw_properties = properties.to_bytes();
            session.return_message(&publish, 312, "NO_ROUTE");
        } else {
            session.ack(publish.channel, 1);
        }
        let _ = session.answer_rpcs();
    });

    let output = Command::producer(&["--url", &broker.url(), "x"]).run(SOON);

    output.assert_code(0);
    broker.wait_for(SOON, |event| *event == Event::Connected(1));
}

#[test]
fn a_start_that_is_nested_too_deep_is_no_broker_and_reported_as_the_cause() {
    let broker = ScriptedBroker::start(|session, _| {
        session.expect_protocol_header();
        session.send_start_with(vec![(b"deep".to_vec(), nested(20_000))]);
        session.read_until_closed();
    });

    let output = Command::worker(&["--url", &broker.url(), "--no-reconnect"]).run(SOON);

    output.assert_code(69);
    let stderr = output.stderr();
    assert!(stderr.contains("deeper than 100 levels"), "{stderr}");
}

/// A delivery whose header announces a body of this size.
fn announcing(consumer: &Consumer, size: u64) -> Vec<u8> {
    let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1).body("x");
    let mut bytes = delivery.to_bytes(4096);
    let method = usize::from(u16::from_be_bytes([bytes[5], bytes[6]]));
    // Behind the method frame: a frame's head, and the class.
    let place = method + 8 + 7 + 4;
    bytes[place..place + 8].copy_from_slice(&size.to_be_bytes());
    bytes
}

/// Sends nonsense to the first consumer, and a task to the next.
fn sends_first(nonsense: impl Fn(&Consumer) -> Vec<u8> + Send + Sync + 'static) -> ScriptedBroker {
    ScriptedBroker::start(move |session, number| {
        session.handshake();
        let consumer = session.accept_consumer();
        if number == 0 {
            session.raw(&nonsense(&consumer));
        } else {
            deliver(session, &consumer, 1);
        }
        let _ = session.answer_rpcs();
    })
}

#[test]
fn an_absurd_size_ends_the_session_and_neither_the_process_nor_its_memory() {
    let brokers = [
        (sends_first(|consumer| announcing(consumer, 1 << 46)), "message of 70368744177664 bytes"),
        (sends_first(|consumer| announcing(consumer, 1 << 63)), "message of 9223372036854775808"),
        (sends_first(|_| b"\x03\0\x01\x70\0\0\0xyz".to_vec()), "one of 1879048192 bytes"),
    ];
    for (broker, cause) in brokers {
        let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
        let line = running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
        running.wait_for_stdout_line(|line| line == " [x] Received '1'", SOON);

        assert!(line.contains("lost the session") && line.contains(cause), "{line}");
        assert!(running.peak_memory() < 100 << 20, "{}", running.peak_memory());
        running.signal("INT");
        let _ = running.wait(SOON);
    }
}

/// A broker that sends this much of a message to its first consumer, and then only heartbeats; to
/// the next it sends a task.
fn stops_short(begun: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> ScriptedBroker {
    ScriptedBroker::start(move |session, number| {
        session.handshake_with(Tuning { heartbeat: 4, ..Tuning::default() });
        let consumer = session.accept_consumer();
        if number == 0 {
            let message = WireDelivery::new(consumer.channel, &consumer.tag, 1).body([b'x'; 1000]);
            session.raw(&begun(&message.to_bytes(4096)));
            session.beat_until_closed();
        } else {
            deliver(session, &consumer, 1);
            let _ = session.answer_rpcs();
        }
    })
}

/// Where the frame ends that begins here.
fn frame_end(bytes: &[u8], begin: usize) -> usize {
    begin + 8 + usize::from(u16::from_be_bytes([bytes[begin + 5], bytes[begin + 6]]))
}

#[test]
fn a_message_that_does_not_come_on_ends_the_session_though_heartbeats_do() {
    let header = |bytes: &[u8]| frame_end(bytes, 0);
    let body = move |bytes: &[u8]| frame_end(bytes, header(bytes));
    let brokers = [
        (
            stops_short(move |bytes| bytes[..header(bytes)].to_vec()),
            "the broker stalled in a message on channel 1",
        ),
        (
            stops_short(move |bytes| bytes[..body(bytes)].to_vec()),
            "the broker stalled in a message on channel 1",
        ),
        (
            stops_short(move |bytes| bytes[..body(bytes) + 50].to_vec()),
            "the broker stalled in a frame",
        ),
        // A header that takes all that follows for a part of it. It is not passed on before it is
        // whole: to the client library nothing comes.
        (
            stops_short(move |bytes| {
                let mut bytes = bytes.to_vec();
                let size = header(&bytes) + 5;
                bytes[size] = 0xFF;
                bytes
            }),
            "the broker missed two heartbeats",
        ),
    ];
    // Side by side, and each worker is stopped as soon as it has its task: these brokers send no
    // heartbeats after it.
    thread::scope(|scope| {
        for (broker, what) in &brokers {
            scope.spawn(move || loses_its_session(broker, what));
        }
    });
}

fn loses_its_session(broker: &ScriptedBroker, what: &str) {
    let url = format!("amqp://{}?heartbeat=4", broker.address());
    let running = Command::worker(&["--url", &url, "--threads", "1"]).start();
    let line = running.wait_for_stderr_line(|line| line.contains("next try in"), 2 * SOON);
    running.wait_for_stdout_line(|line| line == " [x] Received '1'", SOON);

    assert!(line.contains("lost the session") && line.contains(what), "{line}");
    running.signal("INT");
    let _ = running.wait(SOON);
}
