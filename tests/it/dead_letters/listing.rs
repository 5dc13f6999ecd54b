//! Listing dead letters: what a row shows, many and large letters, and queues it would harm.

use std::time::{Duration, Instant};

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;

use super::{LONG, SOON, died, ids, json, let_die, queuectl};
use crate::support::broker::{breakable_broker, shared_broker};
use crate::support::client::{persistent, typed, unique_queue};
use crate::support::command::{Command, Output};
use crate::support::proxy::{Proxy, Toxic};
use crate::support::scripted::ScriptedBroker;
use crate::support::wire::{Arguments, Call, Frame, content};

#[test]
fn a_row_of_a_letter_has_the_last_of_what_its_command_said() {
    let queue = unique_queue("said");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "1");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let script = "seq 1000 >&2; echo 'the real cause' >&2; exit 65";
    let worker = Command::worker(&[&to[..], &["--drain", "--", "sh", "-c", script]].concat());
    worker.run(SOON).assert_code(1);

    let table = queuectl(&queue, &["dead", "list"]).success();

    let row = table.lines().nth(1).expect("a row").trim_end();
    assert!(row.contains("exit status 65; ") && row.ends_with("1000 the real cause"), "{row}");
}

#[test]
fn dead_list_shows_letters_in_their_order_and_leaves_them_there() {
    let queue = unique_queue("list");
    // Its dead letters are of its type, and a quorum queue gives looked-at letters another order.
    shared_broker().client().declare_classic(&queue);
    assert_eq!(json(&queuectl(&queue, &["dead", "list", "--json"])), serde_json::json!([]));
    let_die(&queue, &["1", "2", "3"]);
    for _ in 0..3 {
        let listed = json(&queuectl(&queue, &["dead", "list", "--json"]));
        assert_eq!(ids(&listed), ["1", "2", "3"]);
        assert_eq!(listed[0]["reason"], "reason of 1");
        assert_eq!(listed[0]["body"], "body of 1");
        assert_eq!(
            (&listed[0]["attempts"], &listed[0]["queue"]),
            (&1.into(), &queue.clone().into())
        );
        let some = json(&queuectl(&queue, &["dead", "list", "--json", "--limit", "2"]));
        assert_eq!(ids(&some), ["1", "2"]);
    }
    let table = queuectl(&queue, &["dead", "list"]).success();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("reason of 3"), "{table}");
    let client = shared_broker().client();
    let letters = client.get_all(&format!("{queue}.dead"));
    assert_eq!(
        letters.iter().map(|it| it.text()).collect::<Vec<_>>(),
        ["body of 1", "body of 2", "body of 3"]
    );
}

/// Each look would be a delivery, and the limit that of somebody else.
#[test]
fn letters_that_peeks_would_destroy_are_not_peeked_at_but_replayed() {
    let mut client = shared_broker().client();
    let limit = ("x-delivery-limit", AmqpValue::LongLongInt(3));
    let length = ("x-max-length", AmqpValue::LongLongInt(100));
    for arguments in [vec![limit.clone()], vec![limit, length]] {
        let queue = unique_queue("counted");
        let dead = format!("{queue}.dead");
        client.declare(&queue);
        client.declare_with(&dead, quorum(&arguments));
        client.publish_ids(&dead, ["1", "2", "3"]);

        if client.broker_version() < (4, 3) {
            assert_peeks_are_refused(&queue);
        } else {
            // To give back does not count there.
            for _look in 0..=3 {
                assert_eq!(ids(&json(&queuectl(&queue, &["dead", "list", "--json"]))).len(), 3);
            }
        }

        let some = queuectl(&queue, &["dead", "replay", "--limit", "1"]).success();
        assert_eq!(some, "1 replayed\n");
        assert_eq!(queuectl(&queue, &["dead", "replay"]).success(), "2 replayed\n");
        let replayed = client.get_all(&queue);
        let ids: Vec<_> = replayed.iter().filter_map(|it| it.message_id.as_deref()).collect();
        assert_eq!(ids, ["1", "2", "3"]);
    }
}

fn assert_peeks_are_refused(queue: &str) {
    let looks: [&[&str]; 3] = [&["list"], &["replay", "--dry-run"], &["replay", "--id", "3"]];
    for look in looks {
        let refused = queuectl(queue, &[&["dead"], look].concat());
        refused.assert_code(2);
        let told = refused.stderr();
        assert!(told.contains(&format!("{queue}.dead")), "{told}");
        assert!(told.contains("delivery limit of 3"), "{told}");
    }
}

#[test]
fn a_letter_that_cannot_be_parsed_is_named_with_the_remedy() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        while let Some(came) = session.next_method() {
            if matches!(came.call, Call::Get { .. }) {
                let none = Arguments::default();
                let got = none.u64(1).u8(0).short("").short([0xFF]).u32(0);
                session.raw(&content(&Frame::method(came.channel, 60, 71, got), &[0, 0], b"x", 0));
            } else {
                session.answer(&came);
            }
        }
    });

    let arguments = ["--url", &broker.url(), "--queue", "odd", "dead", "list"];
    let output = Command::queuectl(&arguments).run(SOON);

    output.assert_code(2);
    let told = output.stderr();
    assert!(told.contains("queue 'odd.dead'") && told.contains("not UTF-8"), "{told}");
}

#[test]
fn letters_of_any_queue_that_does_not_count_are_peeked_at() {
    let mut client = shared_broker().client();
    let length = ("x-max-length", AmqpValue::LongLongInt(100));
    let mut classic = FieldTable::new();
    classic.insert("x-max-length".into(), length.1.clone());
    // Since RabbitMQ 4.0 a quorum queue has a limit, unless it is told to have none.
    let mut unlimited = Vec::new();
    if client.broker_version() >= (4, 0) {
        unlimited.push(("x-delivery-limit", AmqpValue::LongLongInt(-1)));
    }
    let mut short = unlimited.clone();
    short.push(length);
    for arguments in [classic, quorum(&unlimited), quorum(&short)] {
        let queue = unique_queue("uncounted");
        let dead = format!("{queue}.dead");
        client.declare_with(&dead, arguments);
        client.publish_ids(&dead, ["1", "2"]);
        for kind in ["classic", "quorum"] {
            let listed = queuectl(&queue, &["--queue-type", kind, "dead", "list", "--json"]);
            assert!(!listed.stderr().contains("WARN"), "{}", listed.stderr());
            assert_eq!(ids(&json(&listed)), ["1", "2"]);
        }
    }
}

fn quorum(arguments: &[(&str, AmqpValue)]) -> FieldTable {
    let mut table = typed("quorum");
    table.extend(arguments.iter().map(|(name, value)| ((*name).to_string(), value.clone())));
    table
}

/// A queue and dead letters with these ids.
fn dead_letters(test: &str, ids: &[&str]) -> String {
    let queue = unique_queue(test);
    let mut client = shared_broker().client();
    let dead = format!("{queue}.dead");
    client.declare(&queue);
    client.declare(&dead);
    client.publish_ids(&dead, ids.iter().copied());
    queue
}

/// The broker needs the square of their number to take back letters one by one: for these half a
/// minute.
#[test]
fn many_letters_are_back_at_once_after_a_peek() {
    let numbers: Vec<String> = (0..10_000).map(|it| it.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let queue = dead_letters("many", &numbers);
    let dead = format!("{queue}.dead");
    let client = shared_broker().client();

    let listed = queuectl(&queue, &["dead", "list"]).success();

    client.wait_for_count(&dead, 10_000, Duration::from_secs(10));
    assert_eq!(listed.lines().count(), 10_001);
    client.delete(&dead);
}

/// One by one they would take 40 s.
#[test]
fn a_long_line_is_crossed_for_many_letters_at_once() {
    let numbers: Vec<String> = (0..400).map(|it| it.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let queue = dead_letters("far", &numbers);
    let proxy = Proxy::start(shared_broker().address());
    proxy.set_both(Toxic::Latency(Duration::from_millis(50)));

    let begun = Instant::now();
    let far = ["--url", &proxy.url(), "--queue", &queue, "dead", "list", "--json"];
    let listed = json(&Command::queuectl(&far).run(LONG));

    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let listed = listed.as_array().expect("an array").iter();
    assert!(listed.map(|it| it["id"].as_str().expect("an id")).eq(numbers), "in their order");
}

/// Of 100 MB a list keeps what it shows.
#[test]
#[cfg(target_os = "linux")]
fn large_letters_are_listed_in_little_memory() {
    let queue = dead_letters("large", &["small"]);
    let dead = format!("{queue}.dead");
    let mut client = shared_broker().client();
    let body = vec![b'x'; 5_000_000];
    for number in 0..20 {
        client.publish(&dead, &body, persistent(&number.to_string()));
    }
    let script = format!(
        "ulimit -d 60000; exec '{}' --url '{}' --queue '{queue}' dead list",
        env!("CARGO_BIN_EXE_queuectl"),
        shared_broker().url(),
    );

    let listed = Command::program("sh", &["-c", &script]).run(LONG);

    assert_eq!(listed.success().lines().count(), 22);
    client.delete(&dead);
}

#[test]
fn a_peek_at_dead_letters_needs_no_more_than_their_queue() {
    let broker = breakable_broker();
    let mut client = broker.client();
    let queue = unique_queue("only-dead");
    let dead = format!("{queue}.dead");
    broker.ctl(&["add_user", "undertaker", "s3cret"]);
    broker.ctl(&[
        "set_permissions",
        "undertaker",
        &format!("^{dead}$"),
        "^$",
        &format!("^{dead}$"),
    ]);
    let look = |login: &str| {
        let url = format!("amqp://{login}@{}", broker.address());
        Command::queuectl(&["--url", &url, "--queue", &queue, "dead", "list", "--json"]).run(SOON)
    };

    client.declare(&queue);
    let none_yet = look("undertaker:s3cret");
    client.declare(&dead);
    let empty = look("undertaker:s3cret");
    client.publish_ids(&dead, ["1"]);
    client.delete(&queue);
    let orphan = [look("undertaker:s3cret"), look("guest:guest")];
    broker.ctl(&["delete_user", "undertaker"]);

    for (output, letters) in
        [(none_yet, 0), (empty, 0), (orphan[0].clone(), 1), (orphan[1].clone(), 1)]
    {
        assert_eq!(json(&output).as_array().map(Vec::len), Some(letters), "{output:?}");
    }
}

#[test]
fn a_body_that_is_not_utf_8_is_shown_byte_for_byte() {
    let queue = dead_letters("latin", &["text"]);
    let mut client = shared_broker().client();
    let body = b"caf\xE9\0\n.txt";
    client.publish(&format!("{queue}.dead"), body, persistent("bytes"));

    let listed = json(&queuectl(&queue, &["dead", "list", "--json"]));
    let raw = queuectl(&queue, &["dead", "show", "bytes", "--raw"]);

    assert_eq!((&listed[0]["body"], &listed[0]["body_base64"]), (&"text".into(), &Value::Null));
    assert_eq!(listed[1]["body_base64"], "Y2Fm6QAKLnR4dA==");
    assert_eq!(listed[1]["body"], Value::Null);
    raw.assert_code(0);
    assert_eq!(raw.stdout, body);
}

#[test]
fn dead_show_prints_all_that_is_known_of_one_letter() {
    let queue = died("shown", &[("1", "no", 60), ("2", "the disk is full", 60)]);

    let shown = queuectl(&queue, &["dead", "show", "2"]).success();
    let missing = queuectl(&queue, &["dead", "show", "3"]);

    let told = |line: &str| shown.lines().any(|it| it.split_whitespace().eq(line.split(' ')));
    assert!(told("id 2") && told("reason the disk is full") && told("body x"), "{shown}");
    assert!(told("header x-rabbit-work-reason: the disk is full"), "{shown}");
    assert!(!shown.contains("reason          no"), "{shown}");
    missing.assert_code(1);
    assert!(missing.stderr().contains("no such dead letter: 3"), "{}", missing.stderr());
}

#[test]
fn a_stream_is_refused_by_name() {
    let client = shared_broker().client();
    let mut aged = typed("stream");
    aged.insert("x-max-age".into(), AmqpValue::LongString("1h".into()));
    aged.insert("x-max-length-bytes".into(), AmqpValue::LongLongInt(1_000_000_000));
    for arguments in [typed("stream"), aged] {
        let queue = unique_queue("stream");
        client.declare_with(&queue, arguments);
        for flags in [&["check"][..], &["--no-declare", "check"]] {
            let checked = queuectl(&queue, flags);
            checked.assert_code(2);
            let told = checked.stdout();
            assert!(told.contains("FAIL  queue") && told.contains("is a stream"), "{told}");
        }
        client.delete(&queue);
    }
}

/// They would go in, and never be seen again.
#[test]
fn a_stream_is_no_place_for_dead_letters() {
    let queue = dead_letters("dead-stream", &[]);
    let dead = format!("{queue}.dead");
    let client = shared_broker().client();
    client.delete(&dead);
    client.declare_with(&dead, typed("stream"));

    let checked = queuectl(&queue, &["check"]);
    let told: Vec<Output> = [
        "dead list",
        "dead show 1",
        "dead replay",
        "dead replay --id 1",
        "dead purge --yes",
        "dead purge --yes --limit 1",
        "purge --yes",
    ]
    .map(|deed| deed.split(' ').collect::<Vec<&str>>())
    .map(|deed| queuectl(if deed[0] == "purge" { &dead } else { &queue }, &deed))
    .into();
    client.delete(&dead);

    checked.assert_code(2);
    let (check, is) = (checked.stdout(), format!("'{dead}': it is a stream"));
    assert!(check.contains("FAIL  dead") && check.contains(&is), "{check}");
    for output in told {
        output.assert_code(2);
        let log = output.stderr();
        let refused = format!("the broker refused the use of queue '{dead}': NOT_IMPLEMENTED");
        assert!(log.contains(&is) || log.contains(&refused), "{log}");
        assert!(!log.contains("may still happen"), "{log}");
    }
}
