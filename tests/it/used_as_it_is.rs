//! Queues that others declared, with `--no-declare`: what a worker and `queuectl check` say of them.

use std::time::Duration;

use amiquip::AmqpValue;

use crate::support::broker::{breakable_broker, shared_broker};
use crate::support::client::{typed, unique_queue};
use crate::support::command::{Command, Output};

const SOON: Duration = Duration::from_secs(60);

/// The broker compares declarations only for those who may declare.
#[test]
fn a_stream_is_refused_to_a_login_that_may_declare_nothing() {
    let broker = breakable_broker();
    let queue = unique_queue("stream");
    let client = broker.client();
    client.declare_with(&queue, typed("stream"));
    broker.ctl(&["add_user", "reader", "s3cret"]);
    broker.ctl(&["set_permissions", "reader", "^$", ".*", ".*"]);
    let url = format!("amqp://reader:s3cret@{}", broker.address());
    let to = ["--url", &url, "--queue", &queue, "--no-declare"];

    let worked = Command::worker(&to).args(&["--drain", "--", "true"]).run(SOON);
    let checked = Command::queuectl(&to).arg("check").run(SOON);
    broker.ctl(&["delete_user", "reader"]);
    client.delete(&queue);

    worked.assert_code(2);
    assert!(worked.stderr().contains("it is a stream"), "{}", worked.stderr());
    checked.assert_code(2);
    assert!(checked.stdout().contains("it is a stream"), "{}", checked.stdout());
}

#[test]
fn a_queue_of_tasks_is_drained_by_a_login_that_may_declare_nothing() {
    let broker = breakable_broker();
    broker.ctl(&["add_user", "worker", "s3cret"]);
    broker.ctl(&["set_permissions", "worker", "^$", ".*", ".*"]);
    let url = format!("amqp://worker:s3cret@{}", broker.address());
    let client = broker.client();
    for kind in ["classic", "quorum"] {
        let queue = unique_queue(kind);
        client.declare_with(&queue, typed(kind));
        let to = ["--url", &url, "--queue", &queue, "--no-declare"];
        Command::producer(&to).arg("x").run(SOON).assert_code(0);

        let worked = Command::worker(&to).args(&["--drain", "--json", "--", "true"]).run(SOON);
        client.delete(&queue);

        worked.assert_code(0);
        assert!(worked.stdout().contains("\"done\":1"), "{}", worked.stdout());
    }
    broker.ctl(&["delete_user", "worker"]);
}

/// A worker that drains a quorum queue with a delivery limit, and a check of it.
fn drain_and_check(with_route: bool, options: &[&str]) -> (String, Output) {
    let queue = unique_queue("limited");
    let client = shared_broker().client();
    let mut arguments = typed("quorum");
    arguments.insert("x-delivery-limit".into(), AmqpValue::LongLongInt(3));
    if with_route {
        arguments.insert("x-dead-letter-exchange".into(), AmqpValue::LongString(String::new()));
    }
    client.declare_with(&queue, arguments);
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--no-declare"];
    let worked = Command::worker(&to).args(options).args(&["--drain", "--", "true"]).run(SOON);
    let checked = Command::queuectl(&to).args(options).arg("check").run(SOON);
    client.delete(&queue);
    client.delete(&format!("{queue}.dead"));
    worked.assert_code(0);
    (worked.stderr(), checked)
}

#[test]
fn a_quorum_queue_that_drops_tasks_is_warned_of_and_fails_the_check() {
    let (log, checked) = drain_and_check(false, &[]);
    assert!(log.contains("drops a task for good after 3 deliveries"), "{log}");
    checked.assert_code(2);
}

#[test]
fn a_quorum_queue_with_a_route_for_dead_letters_is_not_warned_of() {
    for (with_route, options) in [(true, &[][..]), (false, &["--queue-type", "quorum"])] {
        let (log, checked) = drain_and_check(with_route, options);
        assert!(!log.contains("drops a task"), "{log}");
        checked.assert_code(0);
    }
}
