//! `queuectl`: what it shows, checks, replays and throws away.

use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use rabbit_work::{Broker, Delivery, Failure, Producer, Queue, RetryPolicy, Task, Worker};
use serde_json::Value;

use crate::support::broker::{PrivateBroker, breakable_broker, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};
use crate::support::scripted::ScriptedBroker;
use crate::support::wire::{Arguments, Call, Frame, content};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

fn queuectl(queue: &str, arguments: &[&str]) -> Output {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::queuectl(&[&to, arguments].concat()).run(SOON)
}

fn json(output: &Output) -> Value {
    output.assert_code(0);
    serde_json::from_str(&output.stdout()).expect("JSON")
}

fn broker() -> Broker {
    shared_broker().url().parse().expect("a URL")
}

/// Lets tasks with these ids die, each with its id as its reason.
fn let_die(queue: &str, ids: &[&str]) {
    let mut producer = Producer::new(&broker(), &Queue::new(queue));
    for id in ids {
        producer.publish(Task::new(format!("body of {id}")).with_id(*id)).expect("confirmed");
    }
    die(queue);
}

fn die(queue: &str) {
    let policy = RetryPolicy::new().max_attempts(1);
    let worker = Worker::new(&broker(), &Queue::new(queue)).threads(1).retry(policy).drain();
    let handler = |delivery: &Delivery| -> Result<(), Failure> {
        Err(Failure::retry(format!("reason of {}", delivery.task().id().unwrap_or_default())))
    };
    Working::start(&worker, handler).wait(SOON).expect("it ends well");
}

fn ids(listed: &Value) -> Vec<&str> {
    let letters = listed.as_array().expect("an array").iter();
    letters.map(|letter| letter["id"].as_str().expect("an id")).collect()
}

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

/// The broker's count overtakes what was given back just before.
#[test]
fn a_replay_right_after_a_look_replays_all() {
    let queue = unique_queue("looked");
    let client = shared_broker().client();
    let letters = format!("{queue}.dead");
    client.declare(&queue);
    client.declare(&letters);
    let ids: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    shared_broker().client().publish_ids(&letters, ids.iter().map(String::as_str));

    // A thousand answers of a busy broker, and then two thousand.
    let to = ["--url", shared_broker().url(), "--queue", &queue, "dead", "replay"];
    let would = Command::queuectl(&[&to[..], &["--dry-run"]].concat()).run(LONG);
    let replayed = Command::queuectl(&to).run(LONG);

    assert!(would.success().contains("1000 would be replayed"), "{would:?}");
    assert!(replayed.success().contains("1000 replayed"), "{replayed:?}");
    client.delete(&queue);
}

#[test]
fn where_a_command_of_queuectl_has_its_options_does_not_matter() {
    let queue = unique_queue("options");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    for look in [&["dead", "list"][..], &["dead", "replay", "--id", "-1"], &["status"]] {
        let before = Command::queuectl(&[&to[..], look].concat()).run(SOON);
        let after = Command::queuectl(&[look, &to[..]].concat()).run(SOON);
        assert_eq!(before.code, after.code, "{look:?}: {before:?} {after:?}");
        assert_ne!(before.code, Some(2), "{before:?}");
    }
}

#[test]
fn where_there_is_no_such_queue_each_look_at_it_ends_with_1() {
    let queue = unique_queue("none");
    let looks = [
        "status",
        "check",
        "purge --yes",
        "dead list",
        "dead list --json",
        "dead show 1",
        "dead replay",
        "dead replay --dry-run",
        "dead purge --yes",
        "dead purge --id 1 --yes",
    ];
    for look in looks {
        let output = queuectl(&queue, &look.split(' ').collect::<Vec<_>>());
        output.assert_code(1);
        let told = output.stderr() + &output.stdout();
        assert!(told.contains("no such queue"), "{look}: {told}");
    }
    assert!(!shared_broker().client().has(&queue), "none was made");
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

#[test]
fn dead_replay_resets_the_attempts_and_a_second_death_keeps_the_history() {
    let queue = unique_queue("history");
    let_die(&queue, &["1", "2", "3"]);

    queuectl(&queue, &["dead", "replay", "--dry-run"]).assert_code(0);
    assert_eq!(ids(&json(&queuectl(&queue, &["dead", "list", "--json"]))), ["1", "2", "3"]);
    let told = queuectl(&queue, &["dead", "replay", "--id", "2"]).success();
    assert_eq!(told, "1 replayed\n");
    assert_eq!(ids(&json(&queuectl(&queue, &["dead", "list", "--json"]))), ["1", "3"]);
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 1);
    die(&queue);

    let listed = json(&queuectl(&queue, &["dead", "list", "--json"]));
    assert_eq!(ids(&listed), ["1", "3", "2"]);
    assert_eq!(listed[2]["attempts"], 1);
    assert_eq!(listed[2]["history"][0]["reason"], "reason of 2");
    assert_eq!(listed[0]["history"], serde_json::json!([]));
    assert_eq!(queuectl(&queue, &["dead", "replay", "--limit", "1"]).success(), "1 replayed\n");
    assert_eq!(ids(&json(&queuectl(&queue, &["dead", "list", "--json"]))), ["3", "2"]);
    assert_eq!(client.get_all(&queue)[0].message_id.as_deref(), Some("1"));
}

#[test]
fn a_replay_that_is_refused_keeps_the_letter_and_says_so() {
    let queue = unique_queue("full");
    let dead = format!("{queue}.dead");
    let mut client = shared_broker().client();
    client.declare_bounded(&queue, 1);
    client.declare(&dead);
    client.publish_ids(&queue, ["there"]);
    client.publish_ids(&dead, ["letter"]);

    // It is tried again for 30 s: what was refused may be taken when there is room.
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--no-declare"];
    let replay = Command::queuectl(&to).args(&["dead", "replay"]).run(LONG);

    replay.assert_code(1);
    assert!(replay.stderr().contains("letter"), "{}", replay.stderr());
    // A quorum queue counts what is given back a moment later.
    client.wait_for_count(&dead, 1, SOON);
    assert_eq!(client.count(&queue), 1);
}

/// A replayed task must not expire before anybody has a worker for it.
#[test]
fn a_replayed_task_no_longer_expires() {
    let queue = unique_queue("unexpiring");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    let task = Task::new("precious").with_id("1").with_expiration(Duration::from_secs(600));
    producer.publish(task).expect("confirmed");
    die(&queue);

    let told = queuectl(&queue, &["dead", "replay"]).success();

    assert_eq!(told, "1 replayed\n");
    let replayed = &shared_broker().client().get_all(&queue)[0];
    assert_eq!(*replayed.properties.expiration(), None);
    let noted = &replayed.headers["x-rabbit-work-expiration"];
    assert_eq!(noted, &AmqpValue::LongString("600000".into()));
}

#[test]
fn a_letter_whose_headers_make_no_sense_holds_up_none_behind_it() {
    let queue = unique_queue("senseless");
    let mut client = shared_broker().client();
    let dead = format!("{queue}.dead");
    client.declare(&queue);
    client.declare(&dead);
    let mut headers = FieldTable::new();
    for name in ["attempts", "first-failure", "expiration", "user-id", "cc", "history"] {
        headers.insert(format!("x-rabbit-work-{name}"), AmqpValue::LongString("soon".into()));
    }
    client.publish(&dead, b"first", AmqpProperties::default().with_headers(headers));
    client.publish_ids(&dead, ["1", "2", "3"]);

    let told = queuectl(&queue, &["dead", "replay"]).success();

    assert_eq!(told, "4 replayed\n");
    let bodies: Vec<_> = client.get_all(&queue).iter().map(|it| it.text()).collect();
    assert_eq!(bodies, ["first", "1", "2", "3"]);
}

#[test]
fn nothing_is_thrown_away_without_yes() {
    let queue = unique_queue("purge");
    let_die(&queue, &["1", "2"]);
    let mut client = shared_broker().client();
    client.publish_ids(&queue, ["3"]);
    queuectl(&queue, &["purge"]).assert_code(2);
    queuectl(&queue, &["dead", "purge"]).assert_code(2);
    assert_eq!(client.count(&queue), 1);
    assert_eq!(queuectl(&queue, &["dead", "purge", "--yes"]).success(), "2 thrown away\n");
    assert_eq!(client.count(&queue), 1);
    assert_eq!(queuectl(&queue, &["purge", "--yes"]).success(), "1 thrown away\n");
}

#[test]
fn status_counts_what_is_ready_waits_and_is_dead() {
    let queue = unique_queue("status");
    let_die(&queue, &["1", "2"]);
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    producer.publish(Task::new("")).expect("confirmed");
    for _ in 0..3 {
        producer.publish(Task::new("").with_delay(Duration::from_secs(60))).expect("confirmed");
    }
    let status = json(&queuectl(&queue, &["status", "--json"]));
    assert_eq!(
        (&status["ready"], &status["retry"], &status["dead"], &status["consumers"]),
        (&1.into(), &3.into(), &2.into(), &0.into())
    );
    assert_eq!(status["unacked"], Value::Null);
    producer
        .publish(Task::new("").with_delay(Duration::from_secs(42 * 86_400)))
        .expect("confirmed");
    let text = queuectl(&queue, &["status"]).success();
    assert!(text.contains("3 after 1m\n") && text.contains("1 after 42d\n"), "{text}");
}

#[test]
fn check_names_the_real_cause_with_its_own_status() {
    let broker = PrivateBroker::start();
    let queue = unique_queue("check");
    let client = broker.client();
    client.declare(&queue);
    let address = broker.address();
    broker.ctl(&["add_user", "weak", "s3cret"]);
    broker.ctl(&["set_permissions", "weak", "^$", "^$", "^$"]);
    let check = |url: &str, queue: &str, flags: &[&str]| {
        Command::queuectl(&[&["--url", url, "--queue", queue], flags, &["check"]].concat())
            .run(SOON)
    };
    let url = |login: &str, vhost: &str| format!("amqp://{login}@{address}/{vhost}");
    let good = url("guest:guest", "");
    let cases: [(&str, String, &str, &[&str], i32); 6] = [
        ("connect", "amqp://guest:guest@127.0.0.1:1".into(), &queue, &[], 69),
        ("login", url("guest:s3cret", ""), &queue, &[], 2),
        ("vhost", url("guest:guest", "nowhere"), &queue, &[], 2),
        ("queue", good.clone(), "no-such", &[], 1),
        ("queue", good.clone(), &queue, &["--queue-type", "quorum"], 2),
        ("queue", url("weak:s3cret", ""), &queue, &[], 2),
    ];
    for (step, url, queue, flags, code) in cases {
        let output = check(&url, queue, flags);
        output.assert_code(code);
        let text = output.stdout();
        let failed: Vec<&str> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
        assert_eq!(failed.len(), 1, "{text}");
        assert!(failed[0].starts_with(&format!("FAIL  {step}")), "{text}");
        assert!(!text.contains("s3cret") && !output.stderr().contains("s3cret"));
    }
    let well = check(&good, &queue, &[]);
    well.assert_code(0);
    assert_eq!(well.stdout().lines().filter(|line| line.starts_with("ok")).count(), 8);

    broker.ctl(&["add_user", "sender", "s3cret"]);
    broker.ctl(&["set_permissions", "sender", ".*", ".*", "^$"]);
    for kind in ["classic", "quorum"] {
        let name = format!("{queue}.{kind}");
        let flags = ["--queue-type", kind];
        let to = ["--url", &good, "--queue", &name];
        Command::producer(&[&to[..], &flags, &["1"]].concat()).run(SOON).assert_code(0);
        let well = check(&good, &name, &flags);
        well.assert_code(0);
        assert!(well.stdout().contains("ok    consume  allowed"), "{}", well.stdout());
        let unread = check(&url("sender:s3cret", ""), &name, &flags);
        unread.assert_code(2);
        assert!(unread.stdout().contains("ok    publish  allowed"), "{}", unread.stdout());
        let last = unread.stdout().lines().last().map(str::to_owned).unwrap_or_default();
        assert!(last.starts_with("FAIL  consume") && last.contains("ACCESS_REFUSED"), "{last}");
        let task = &client.get_all(&name)[0];
        assert!(!task.redelivered, "a check takes no task");
    }

    broker.alarm();
    let blocked = check(&good, &queue, &[]);
    blocked.assert_code(1);
    assert!(
        blocked.stdout().contains("FAIL  publish  the broker blocks publishers"),
        "{}",
        blocked.stdout()
    );
}

/// Each look would be a delivery, and the limit that of somebody else.
#[test]
fn letters_that_looks_would_destroy_are_not_looked_at_but_replayed() {
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
            assert_looks_are_refused(&queue);
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

fn assert_looks_are_refused(queue: &str) {
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
fn letters_of_any_queue_that_does_not_count_are_looked_at() {
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
    let mut table = FieldTable::new();
    table.insert("x-queue-type".into(), AmqpValue::LongString("quorum".into()));
    table.extend(arguments.iter().map(|(name, value)| ((*name).to_string(), value.clone())));
    table
}

/// The commands that docs/failures.md gives, on what a dead-letter exchange made by hand leaves.
#[test]
fn the_letters_of_an_exchange_made_by_hand_are_read_and_replayed_as_documented() {
    let queue = unique_queue("old");
    let dead = format!("{queue}.dead");
    let mut client = shared_broker().client();
    let text = |text: &str| AmqpValue::LongString(text.into());
    let mut by_hand = FieldTable::new();
    by_hand.insert("x-dead-letter-exchange".into(), text(""));
    by_hand.insert("x-dead-letter-routing-key".into(), text(&dead));
    client.declare(&dead);
    client.declare_with(&queue, by_hand);
    client.publish(&queue, b"x", AmqpProperties::default().with_expiration("1".into()));
    client.wait_for_count(&dead, 1, SOON);

    let commands = include_str!("../../docs/failures.md").lines().map(str::trim);
    let commands = commands.filter_map(|it| it.strip_prefix("queuectl --queue old "));
    let outputs: Vec<String> = commands
        .map(|it| queuectl(&queue, &it.split_whitespace().collect::<Vec<_>>()).success())
        .collect();

    assert_eq!(outputs.len(), 2, "{outputs:?}");
    let letter = outputs[0].lines().nth(1).unwrap_or_default();
    assert!(letter.starts_with("- ") && letter.contains("expired"), "{letter}");
    assert_eq!(outputs[1], "1 replayed\n");
    assert_eq!(client.count(&queue), 1);
}

/// A user of the shape that is often set up for one queue.
#[test]
fn check_finds_that_failed_tasks_have_nowhere_to_go_and_makes_no_queue() {
    let broker = breakable_broker();
    let mut client = broker.client();
    let queue = unique_queue("narrow");
    let dead = format!("{queue}.dead");
    client.declare(&queue);
    broker.ctl(&["add_user", "narrow", "s3cret"]);
    broker.ctl(&["set_permissions", "narrow", &format!("^{queue}$"), ".*", ".*"]);
    let check = |login: &str| {
        let url = format!("amqp://{login}@{}", broker.address());
        Command::queuectl(&["--url", &url, "--queue", &queue, "check"]).run(SOON)
    };

    let without_dead = check("narrow:s3cret");
    let free = check("guest:guest");
    let made = ["dead", "retry.5000"].map(|it| client.has(&format!("{queue}.{it}")));
    client.declare(&dead);
    let with_dead = check("narrow:s3cret");
    broker.ctl(&["delete_user", "narrow"]);

    free.assert_code(0);
    assert_eq!(made, [false; 2]);
    let cases = [(without_dead, "dead", dead), (with_dead, "retry", format!("{queue}.retry.5000"))];
    for (output, step, refused) in cases {
        output.assert_code(2);
        let stdout = output.stdout();
        let last = stdout.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("FAIL  {step}")), "{stdout}");
        assert!(last.contains(&format!("use of queue '{refused}': ACCESS_REFUSED")), "{stdout}");
    }
}

#[test]
fn check_finds_a_delay_queue_that_is_somebody_else_s() {
    let queue = unique_queue("differing");
    let client = shared_broker().client();
    client.declare(&queue);
    client.declare(&format!("{queue}.retry.20000"));

    let checked = queuectl(&queue, &["check"]);

    checked.assert_code(2);
    let stdout = checked.stdout();
    let last = stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("FAIL  retry"), "{stdout}");
    assert!(last.contains(&format!("'{queue}.retry.20000'")), "{stdout}");
}

#[test]
fn check_is_content_with_delay_queues_of_our_own() {
    let queue = unique_queue("own-delays");
    let url = shared_broker().url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new(&queue));
    for delay in (1..=4).map(|failures| RetryPolicy::new().delay_after(failures)) {
        producer.publish(Task::new("").with_delay(delay)).expect("confirmed");
    }

    queuectl(&queue, &["check"]).assert_code(0);
}

#[test]
fn status_serves_a_login_that_may_only_look() {
    let broker = breakable_broker();
    let queue = unique_queue("looked-at");
    let url = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new(&queue));
    let delay = RetryPolicy::new().delay_after(4);
    producer.publish(Task::new("").with_delay(delay)).expect("confirmed");
    broker.ctl(&["add_user", "looker", "s3cret"]);
    broker.ctl(&["set_permissions", "looker", "^$", "^$", ".*"]);
    let url = format!("amqp://looker:s3cret@{}", broker.address());

    let seen = Command::queuectl(&["--url", &url, "--queue", &queue, "status", "--json"]).run(SOON);
    broker.ctl(&["delete_user", "looker"]);

    let status = json(&seen);
    assert_eq!((&status["ready"], &status["retry"]), (&0.into(), &1.into()));
}

#[test]
fn a_drain_of_a_login_that_may_not_read_delay_queues_is_left_with_their_counts() {
    let broker = breakable_broker();
    let queue = unique_queue("unread");
    let url = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new(&queue));
    producer.publish(Task::new("").with_delay(Duration::from_secs(2))).expect("confirmed");
    broker.ctl(&["add_user", "drainer", "s3cret"]);
    broker.ctl(&["set_permissions", "drainer", ".*", ".*", &format!("^{queue}$")]);
    let url = format!("amqp://drainer:s3cret@{}", broker.address());
    let worker = Command::worker(&["--url", &url, "--queue", &queue, "--drain", "--json"]);

    let drained = worker.args(&["--", "true"]).run(SOON);
    broker.ctl(&["delete_user", "drainer"]);

    drained.assert_code(0);
    assert_eq!(json(&drained)["done"], 1);
}

#[test]
fn the_longest_name_serves_everywhere_and_a_longer_one_is_told() {
    let longest = format!("{:x<238}", unique_queue("long"));
    let longer = format!("{longest}x");
    let client = shared_broker().client();
    client.declare(&longest);
    client.declare(&longer);

    queuectl(&longest, &["status"]).assert_code(0);
    queuectl(&longest, &["check"]).assert_code(0);
    queuectl(&longest, &["dead", "list"]).assert_code(0);
    queuectl(&longest, &["dead", "replay"]).assert_code(0);

    let commands: [&[&str]; 4] =
        [&["status"], &["dead", "list"], &["dead", "replay"], &["dead", "purge", "--yes"]];
    for command in commands {
        let refused = queuectl(&longer, command);
        refused.assert_code(2);
        let stderr = refused.stderr();
        assert!(stderr.contains("may have 238 bytes at most"), "{stderr}");
    }
    let checked = queuectl(&longer, &["check"]);
    checked.assert_code(2);
    let stdout = checked.stdout();
    let last = stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("FAIL  dead") && last.contains("238 bytes at most"), "{stdout}");
}
