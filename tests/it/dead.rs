//! Dead letters, many and large; the choice of some; and what no broker answers.

use std::fs;
use std::time::{Duration, Instant};

use amiquip::{AmqpValue, FieldTable};
use rabbit_work::{Broker, Inspector, Queue, QueueType};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::broker::{breakable_broker, shared_broker};
use crate::support::client::{persistent, unique_queue};
use crate::support::command::{Command, Output};
use crate::support::proxy::{Proxy, Toxic};
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::wire::{Arguments, Call, Field, Frame, Method, content};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

fn queuectl(queue: &str, arguments: &[&str]) -> Output {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::queuectl(&[&to, arguments].concat()).run(LONG)
}

fn json(output: &Output) -> Value {
    output.assert_code(0);
    serde_json::from_str(&output.stdout()).expect("JSON")
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

/// Dead letters, each with its id, reason, and how long ago it died. A look leaves them in this
/// order, which a quorum queue would change.
fn died(test: &str, letters: &[(&str, &str, u64)]) -> String {
    let queue = unique_queue(test);
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.declare_classic(&format!("{queue}.dead"));
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    for (id, reason, ago) in letters {
        let mut headers = FieldTable::new();
        let text = AmqpValue::LongString((*reason).into());
        headers.insert("x-rabbit-work-reason".into(), text);
        headers.insert("x-rabbit-work-last-failure".into(), AmqpValue::Timestamp(now - ago));
        client.publish(&format!("{queue}.dead"), b"x", persistent(id).with_headers(headers));
    }
    queue
}

fn ids(queue: &str, choice: &[&str]) -> Vec<String> {
    let listed = json(&queuectl(queue, &[&["dead", "list", "--json"], choice].concat()));
    let letters = listed.as_array().expect("an array").iter();
    letters.map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect()
}

/// The broker needs the square of their number to take back letters one by one: for these half a
/// minute.
#[test]
fn many_letters_are_back_at_once_after_a_look() {
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
fn a_look_at_dead_letters_needs_no_more_than_their_queue() {
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
fn a_body_that_is_not_utf_8_is_told_byte_for_byte() {
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
fn dead_show_tells_all_that_is_known_of_one_letter() {
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

const FOUR: [(&str, &str, u64); 4] =
    [("1", "disk full", 7200), ("2", "no route", 7200), ("3", "disk full", 60), ("4", "-", 60)];

#[test]
fn letters_are_chosen_by_id_reason_and_age() {
    let queue = died("chosen", &FOUR);
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("ids");
    fs::write(&file, "4\n\n2\r\n").expect("written");
    let file = file.to_str().expect("UTF-8");

    assert_eq!(ids(&queue, &["--id", "3", "--id", "1"]), ["1", "3"]);
    assert_eq!(ids(&queue, &["--ids-from", file, "--id", "1"]), ["1", "2", "4"]);
    assert_eq!(ids(&queue, &["--reason", "disk"]), ["1", "3"]);
    assert_eq!(ids(&queue, &["--older", "1h"]), ["1", "2"]);
    assert_eq!(ids(&queue, &["--older", "1h", "--reason", "disk", "--id", "1"]), ["1"]);
    assert_eq!(ids(&queue, &["--reason", "disk", "--limit", "1"]), ["1"]);
    assert_eq!(ids(&queue, &["--reason", "-"]), ["4"]);
}

#[test]
fn no_ids_choose_no_letter() {
    let queue = died("none-chosen", &FOUR);
    let from_stdin = |deed: &[&str]| {
        let to = ["--url", shared_broker().url(), "--queue", &queue, "dead"];
        Command::queuectl(&[&to, deed, &["--ids-from", "-"]].concat()).stdin("\n").run(SOON)
    };

    assert_eq!(from_stdin(&["replay"]).success(), "0 replayed\n");
    assert_eq!(from_stdin(&["purge", "--yes"]).success(), "0 thrown away\n");
    assert_eq!(ids(&queue, &[]).len(), 4);
    queuectl(&queue, &["dead", "list", "--ids-from", "/none"]).assert_code(2);
}

#[test]
fn chosen_letters_are_replayed_in_one_go_and_those_that_are_missing_named() {
    let queue = died("some", &FOUR);
    let to = ["--url", shared_broker().url(), "--queue", &queue, "dead", "replay"];

    let would = queuectl(&queue, &["dead", "replay", "--dry-run", "--id", "5", "--id", "1"]);
    let replay = Command::queuectl(&to).args(&["--ids-from", "-"]).stdin("3\n5\n1\n6\n").run(SOON);

    would.assert_code(1);
    assert!(would.stdout().ends_with("1 would be replayed\n"), "{}", would.stdout());
    replay.assert_code(1);
    assert_eq!(replay.stdout(), "2 replayed\n");
    assert!(replay.stderr().contains("no such dead letter: 5, 6"), "{}", replay.stderr());
    assert_eq!(ids(&queue, &[]), ["2", "4"]);
    let back = shared_broker().client().get_all(&queue);
    let back: Vec<_> = back.iter().filter_map(|it| it.message_id.as_deref()).collect();
    assert_eq!(back, ["1", "3"]);
}

#[test]
fn chosen_letters_are_thrown_away_and_the_others_stay() {
    let queue = died("purged", &FOUR);

    queuectl(&queue, &["dead", "purge", "--reason", "disk"]).assert_code(2);
    assert_eq!(ids(&queue, &[]).len(), 4, "not without --yes");
    let purge = queuectl(&queue, &["dead", "purge", "--yes", "--reason", "disk", "--older", "1h"]);
    let missing = queuectl(&queue, &["dead", "purge", "--yes", "--id", "1", "--id", "2"]);

    assert_eq!(purge.success(), "1 thrown away\n");
    missing.assert_code(1);
    assert_eq!(missing.stdout(), "1 thrown away\n");
    assert!(missing.stderr().contains("no such dead letter: 1"), "{}", missing.stderr());
    assert_eq!(ids(&queue, &[]), ["3", "4"]);
    assert_eq!(
        queuectl(&queue, &["dead", "purge", "--yes", "--limit", "1"]).success(),
        "1 thrown away\n"
    );
    assert_eq!(ids(&queue, &[]), ["4"]);
}

#[test]
fn a_stream_is_refused_by_name() {
    let client = shared_broker().client();
    let typed = |kind: &str| {
        let mut arguments = FieldTable::new();
        arguments.insert("x-queue-type".into(), AmqpValue::LongString(kind.into()));
        arguments
    };
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
    let mut arguments = FieldTable::new();
    arguments.insert("x-queue-type".into(), AmqpValue::LongString("stream".into()));
    client.declare_with(&dead, arguments);

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

#[test]
fn letters_are_replayed_over_one_connection_where_the_broker_allows_no_second() {
    let broker = breakable_broker();
    let vhost = unique_queue("single");
    broker.ctl(&["add_vhost", &vhost]);
    broker.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let url = format!("{}/{vhost}", broker.url());
    let to = ["--url", &url, "--queue", "q"];
    Command::producer(&to).args(&["--repeat", "3", "x"]).run(SOON).assert_code(0);
    let fail = ["--drain", "--max-attempts", "1", "--", "false"];
    Command::worker(&to).args(&fail).run(SOON).assert_code(1);
    broker.ctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-connections": 1}"#]);

    let begun = Instant::now();
    let replayed = Command::queuectl(&to).args(&["dead", "replay", "--limit", "2"]).run(LONG);
    let took = begun.elapsed();
    broker.ctl(&["delete_vhost", &vhost]);

    assert_eq!(replayed.success(), "2 replayed\n");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn status_and_check_name_the_type_of_a_quorum_queue() {
    let queue = unique_queue("typed");
    let classic = unique_queue("untyped");
    let quorum = ["--queue-type", "quorum"];
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    Command::producer(&[&to[..], &quorum, &["1"]].concat()).run(SOON).assert_code(0);
    shared_broker().client().declare_classic(&classic);

    let right = queuectl(&queue, &[&quorum[..], &["check"]].concat());
    let status = queuectl(&queue, &["status", "--json"]);
    let known = queuectl(&queue, &[&quorum[..], &["status"]].concat());
    let plain = queuectl(&classic, &["status"]);

    right.assert_code(0);
    assert!(right.stdout().contains("a quorum queue"), "{}", right.stdout());
    assert_eq!(json(&status)["type"], "quorum");
    assert!(
        known.success().contains("type       quorum\n") && known.stderr.is_empty(),
        "{known:?}"
    );
    assert!(
        plain.success().contains("type       classic\n") && plain.stderr.is_empty(),
        "{plain:?}"
    );
}

/// As a worker, which declares it the same way there.
#[test]
fn check_takes_a_quorum_queue_that_was_made_by_the_default_of_its_virtual_host() {
    let broker = breakable_broker();
    let vhost = unique_queue("quorum-by-default");
    broker.ctl(&["add_vhost", &vhost, "--default-queue-type", "quorum"]);
    broker.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let url = format!("{}/{vhost}", broker.url());
    let to = ["--url", &url, "--queue", "q"];
    let produced = Command::producer(&to).arg("x").run(SOON);

    let checked = Command::queuectl(&to).arg("check").run(SOON);
    broker.ctl(&["delete_vhost", &vhost]);

    produced.assert_code(0);
    assert!(checked.success().contains("a quorum queue"), "{checked:?}");
}

#[test]
fn check_warns_of_tasks_that_wait_with_no_consumer() {
    let queue = unique_queue("unworked");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let idle = queuectl(&queue, &["check"]).success();
    client.publish_ids(&queue, ["1", "2"]);
    let waiting = queuectl(&queue, &["check"]).success();

    assert!(!idle.contains("warn"), "{idle}");
    let last = waiting.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("warn  workers") && last.contains("2 ready, and no consumer"),
        "{waiting}"
    );
    assert!(client.get_all(&queue).iter().all(|it| !it.redelivered));
}

/// A broker with one dead letter, or as many as are asked for, that does what `odd` says.
fn broker_with_letters(
    odd: impl Fn(&mut Session, &Method) -> bool + Send + Sync + 'static,
) -> ScriptedBroker {
    ScriptedBroker::start(move |session, _| {
        session.handshake();
        while let Some(came) = session.next_method() {
            if odd(session, &came) {
                return;
            }
            if matches!(came.call, Call::Get { .. }) {
                let got = Arguments::default().u64(1).u8(0).short("").short("q.dead").u32(0);
                let got = Frame::method(came.channel, 60, 71, got);
                session.raw(&content(&got, &[0, 0], b"x", 0));
            } else {
                session.serve_method(came);
            }
        }
    })
}

/// Whether the session ends at this.
type End = fn(&Call) -> bool;

fn end_at(wanted: End) -> ScriptedBroker {
    broker_with_letters(move |session, came| {
        if wanted(&came.call) {
            session.hang_up();
            return true;
        }
        false
    })
}

#[test]
fn what_is_asked_for_and_not_answered_may_still_happen() {
    let is_purge = |call: &Call| matches!(call, Call::QueuePurge { .. });
    let is_end = |call: &Call| matches!(call, Call::ChannelClose { .. } | Call::Nack { .. });
    let cases: [(&str, End); 4] = [
        ("purge --yes", is_purge),
        ("dead purge --yes", is_purge),
        ("dead purge --yes --limit 1", is_end),
        ("dead replay --limit 1", is_end),
    ];
    for (deed, wanted) in cases {
        let broker = end_at(wanted);
        let url = broker.url();
        let deed: Vec<&str> = deed.split(' ').collect();
        let output =
            Command::queuectl(&[&["--url", &url, "--queue", "q"], &deed[..]].concat()).run(SOON);

        output.assert_code(69);
        assert!(output.stderr().contains("it may still happen"), "{deed:?}: {}", output.stderr());
    }
}

#[test]
fn what_was_never_asked_for_will_not_happen() {
    let broker = end_at(|call| matches!(call, Call::ChannelOpen));
    let url = broker.url();
    let output = Command::queuectl(&["--url", &url, "--queue", "q", "purge", "--yes"]).run(SOON);

    output.assert_code(69);
    assert!(!output.stderr().contains("may still happen"), "{}", output.stderr());
}

/// Without a majority of its nodes a quorum queue is counted and declared as ever, and does
/// nothing (RabbitMQ 3.10.8, two nodes of three killed).
#[test]
fn check_finds_a_quorum_queue_that_does_nothing() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        while let Some(came) = session.next_method() {
            match &came.call {
                Call::Consume { .. } | Call::Get { .. } => {}
                Call::QueueDeclare { arguments, .. }
                    if arguments.iter().any(|(_, it)| *it == Field::text("classic")) =>
                {
                    let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' \
                                in vhost '/': received 'classic' but current is 'quorum'";
                    session.close_channel(came.channel, 406, text);
                }
                _ => drop(session.answer(&came)),
            }
        }
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let url = url.call_timeout(Duration::from_secs(1));
    let checks = Inspector::new(&url, &Queue::new("q").queue_type(QueueType::Quorum)).check();

    let last = checks.last().expect("a check");
    let error = last.result.as_ref().expect_err("it fails");
    assert_eq!(last.name, "queue");
    assert!(error.is_transient() && error.chain().contains("leader"), "{}", error.chain());
}

#[test]
fn the_options_of_a_subcommand_stand_together_and_first() {
    for (command, own) in [
        (
            &["dead", "list"][..],
            &["--reason", "--older", "--ids-from", "--id", "--limit", "--json"][..],
        ),
        (
            &["dead", "replay"],
            &["--reason", "--older", "--ids-from", "--id", "--limit", "--dry-run"],
        ),
        (&["status"], &["--json"]),
        (&["purge"], &["--yes"]),
    ] {
        let help = Command::queuectl(&[command, &["--help"]].concat()).run(SOON).success();
        let options = help.lines().filter_map(|line| line.trim_start().split(['<', ' ']).next());
        let options: Vec<&str> = options.filter(|it| it.starts_with("--")).collect();
        assert_eq!(options[..own.len()], *own, "{help}");
        assert!(help.contains("\nExit status:\n") && help.contains("\nExample:\n"), "{help}");
        let place = |name: &str| options.iter().position(|it| *it == name).expect("an option");
        assert!(place("--queue") < place("--no-declare") && place("--no-declare") < place("--url"));
    }
}
