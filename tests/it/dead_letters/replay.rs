//! Replaying dead letters: attempts, refused replays, expiry, and one connection.

use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use rabbit_work::{Producer, Queue, Task};

use super::{LONG, SOON, broker, die, ids, json, let_die, queuectl};
use crate::support::broker::{breakable_broker, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::vhost::Vhost;

/// The broker's count overtakes what was given back just before.
#[test]
fn a_replay_right_after_a_peek_replays_all() {
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

    let commands = include_str!("../../../docs/failures.md").lines().map(str::trim);
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

#[test]
fn letters_are_replayed_over_one_connection_where_the_broker_allows_no_second() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q"];
    Command::producer(&to).args(&["--repeat", "3", "x"]).run(SOON).assert_code(0);
    let fail = ["--drain", "--max-attempts", "1", "--", "false"];
    Command::worker(&to).args(&fail).run(SOON).assert_code(1);
    vhost.allow_connections(1);

    let begun = Instant::now();
    let replayed = Command::queuectl(&to).args(&["dead", "replay", "--limit", "2"]).run(LONG);
    let took = begun.elapsed();

    assert_eq!(replayed.success(), "2 replayed\n");
    assert!(took < Duration::from_secs(20), "{took:?}");
}
