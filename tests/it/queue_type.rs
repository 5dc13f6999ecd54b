//! Queue types: virtual hosts whose default is not classic, declared arguments, and priorities.

use std::time::Duration;

use amiquip::{AmqpValue, FieldTable};

use crate::support::broker::{breakable_broker, shared_broker};
use crate::support::client::{Client, typed, unique_queue};
use crate::support::command::{Command, Running};
use crate::support::vhost::Vhost;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

#[test]
fn where_quorum_is_the_default_a_new_queue_is_one_with_a_route_for_what_kills_its_worker() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q", "--delivery-limit", "2"];
    let published = Command::producer(&to).args(&["killer"]).run(SOON);
    let again = Command::producer(&to).args(&["good"]).run(SOON);
    // What is acked after its worker has been killed comes back to the others.
    let kill = ["--threads", "1", "--", "sh", "-c", "test good = $(cat) || kill -9 $PPID"];
    for _ in 0..3 {
        Command::worker(&to).args(&kill).start().wait(LONG);
    }

    let drained = Command::worker(&to).args(&["--drain", "--", "true"]).run(LONG);
    let listed = Command::queuectl(&to).args(&["dead", "list"]).run(SOON);

    published.assert_code(0);
    let log = published.stderr();
    assert!(log.contains("'q' is declared as with --queue-type quorum"), "{log}");
    assert!(log.contains("queue 'q' did not exist: created"), "{log}");
    again.assert_code(0);
    assert!(!again.stderr().contains("did not exist"), "{}", again.stderr());
    drained.assert_code(0);
    assert!(listed.success().contains("delivery limit"), "the broker has not dropped it");
    assert_eq!(vhost.queues(), ["q quorum", "q.dead quorum"]);
}

#[test]
fn where_quorum_is_the_default_what_fails_waits_and_dies_in_queues_of_named_types() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q"];
    Command::producer(&to).args(&["x"]).run(SOON).assert_code(0);
    let fail = ["--drain", "--max-attempts", "2", "--retry-delay", "100ms", "--", "false"];

    let worked = Command::worker(&to).args(&fail).run(LONG);
    let replayed = Command::queuectl(&to).args(&["dead", "replay"]).run(SOON);

    worked.assert_code(1);
    assert_eq!(replayed.success(), "1 replayed\n");
    assert_eq!(vhost.queues(), ["q quorum", "q.dead quorum", "q.retry.100 quorum"]);
}

#[test]
fn where_quorum_is_the_default_a_wait_without_a_limit_is_warned_of() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    let running = Command::producer(&["--url", &url, "--queue", "q", "--wait", "x"]).start();
    running.wait_for_stderr_line(|line| line.contains("this wait would not end"), SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(4);
}

#[test]
fn a_quorum_queue_that_somebody_else_declared_without_arguments_is_used_as_it_is() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q"];
    let client = Client::connect(&url);
    client.declare("q");

    let published = Command::producer(&to).args(&["x"]).run(SOON);
    let reject = ["--drain", "--", "sh", "-c", "exit 65"];
    let worked = Command::worker(&to).args(&reject).run(LONG);

    published.assert_code(0);
    assert!(published.stderr().contains("'q' is a quorum queue"), "{}", published.stderr());
    worked.assert_code(1);
    assert_eq!(vhost.queues(), ["q quorum", "q.dead quorum"]);
}

/// As the log says where RabbitMQ would drop the task.
#[test]
fn a_policy_sends_what_kills_its_worker_to_the_dead_letters() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    Client::connect(&url).declare("q");
    let policy = r#"{"delivery-limit":1,"dead-letter-exchange":"","dead-letter-routing-key":"q.dead",
        "dead-letter-strategy":"at-least-once","overflow":"reject-publish"}"#;
    broker.ctl(&["set_policy", "-p", &vhost.name, "--apply-to", "queues", "q", "^q$", policy]);
    let to = ["--url", &url, "--queue", "q", "--queue-type", "quorum", "--no-declare"];
    Command::producer(&to).arg("killer").run(SOON).assert_code(0);

    for _ in 0..2 {
        let kill = ["--threads", "1", "--", "sh", "-c", "kill -9 $PPID"];
        Command::worker(&to).args(&kill).start().wait(LONG);
    }

    Client::connect(&url).wait_for_count("q.dead", 1, SOON);
}

#[test]
fn where_stream_is_the_default_no_queue_is_made_of_it() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "stream");
    let url = vhost.url();

    let refused = Command::producer(&["--url", &url, "--queue", "q", "x"]).run(SOON);

    refused.assert_code(2);
    assert!(refused.stderr().contains("--queue-type quorum"), "{}", refused.stderr());
    assert_eq!(vhost.queues(), [""; 0]);
}

#[test]
fn check_names_the_type_of_a_queue_that_is_another_than_is_asked_for() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "classic");
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q"];
    Command::producer(&to).args(&["--queue-type", "quorum", "x"]).run(SOON).assert_code(0);

    let checked = Command::queuectl(&to).arg("check").run(SOON);

    checked.assert_code(2);
    let told = checked.stdout();
    let last = told.lines().last().unwrap_or_default();
    assert!(last.contains("it is a quorum queue; use --queue-type quorum"), "{told}");
}

/// Only a classic queue can have them.
#[test]
fn a_queue_declared_with_priorities_is_a_classic_one_whatever_the_default_is() {
    let broker = breakable_broker();
    for default in ["classic", "quorum", "stream"] {
        let vhost = Vhost::with_default(&broker, default);
        let url = vhost.url();
        let to = ["--url", &url, "--queue", "q", "--max-priority", "5"];
        let published = Command::producer(&to).arg("x").run(SOON);
        let worked = Command::worker(&to).args(&["--drain", "--", "true"]).run(LONG);
        let checked = Command::queuectl(&to).arg("check").run(SOON);

        published.assert_code(0);
        worked.assert_code(0);
        checked.assert_code(0);
        assert_eq!(vhost.queues(), ["q classic"], "the default is {default}");
    }
}

/// The clients of others name no type there.
#[test]
fn a_queue_that_somebody_else_declared_with_priorities_is_the_same() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    let url = vhost.url();
    let mut priorities = FieldTable::new();
    priorities.insert("x-max-priority".into(), AmqpValue::LongLongInt(5));
    Client::connect(&url).declare_with("q", priorities);

    let to = ["--url", &url, "--queue", "q", "--max-priority", "5", "x"];
    Command::producer(&to).run(SOON).assert_code(0);
}

#[test]
fn a_queue_declared_with_priorities_gives_by_them() {
    let queue = unique_queue("declared-priorities");
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--max-priority", "5"];
    for flags in [&["low", "--priority", "1"][..], &["none"], &["high", "--priority", "5"]] {
        let published = Command::producer(&to).args(flags).run(SOON);
        published.assert_code(0);
        assert!(!published.stderr().contains("no effect"), "{}", published.stderr());
    }

    let tell = ["--drain", "--threads", "1", "--", "sh", "-c", "cat; echo"];
    let output = Command::worker(&to).args(&tell).run(SOON);

    output.assert_code(0);
    assert_eq!(output.stdout(), "high\nlow\nnone\n");
}

#[test]
fn a_priority_for_a_queue_without_priorities_is_a_warning() {
    let queue = unique_queue("no-priorities");
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--priority", "5", "x"];

    let output = Command::producer(&to).run(SOON);

    output.assert_code(0);
    let log = output.stderr();
    assert_eq!(
        log.lines().filter(|it| it.contains("--priority has no effect")).count(),
        1,
        "{log}"
    );
}

/// RabbitMQ 3 has no priorities in quorum queues, whoever decided the type.
#[test]
fn a_priority_for_a_quorum_queue_is_a_warning_only_where_it_has_no_effect() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    for (queue, options) in [("default", &[][..]), ("named", &["--queue-type", "quorum"])] {
        let to = ["--url", &url, "--queue", queue, "--priority", "5", "x"];
        let output = Command::producer(&to).args(options).run(SOON);
        output.assert_code(0);
        let log = output.stderr();
        let has_none = broker.client().broker_version() < (4, 0);
        assert_eq!(log.contains("--priority has no effect"), has_none, "{log}");
    }
}

#[test]
fn a_transient_queue_that_is_created_is_reported() {
    let queue = unique_queue("transient");
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--transient-queue", "x"];
    for is_new in [true, false] {
        let output = Command::producer(&to).run(SOON);
        output.assert_code(0);
        let log = output.stderr();
        assert_eq!(log.contains("did not exist: created"), is_new, "{log}");
    }
    shared_broker().client().delete(&queue);
}

#[test]
fn arguments_reach_the_broker_and_those_that_would_lose_tasks_do_not() {
    let queue = unique_queue("arguments");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    // Priorities make it a classic queue; a quorum queue takes some more before it refuses.
    let bounded =
        "--max-priority 1 --queue-arg x-max-length=1 --queue-arg x-overflow=reject-publish";
    let bounded: Vec<&str> = bounded.split(' ').collect();
    let publish = ["--lines", "--json", "--timeout", "2s"];

    let output = Command::producer(&to).args(&bounded).args(&publish).stdin("1\n2\n").run(SOON);
    let refused = Command::producer(&to).args(&["--queue-arg", "x-message-ttl=1", "x"]).run(SOON);

    output.assert_code(1);
    let summary: serde_json::Value = serde_json::from_str(&output.stdout()).expect("JSON");
    assert_eq!(summary["confirmed"], 1, "the queue was full");
    refused.assert_code(2);
    let log = refused.stderr();
    assert!(log.contains("x-message-ttl: the broker would drop confirmed tasks"), "{log}");
}

#[test]
fn an_argument_that_is_given_twice_is_refused() {
    let nobody = ["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "--queue", "q", "x"];
    let once = ["--queue-arg", "x-max-priority=3"];
    for again in [["--queue-arg", "x-max-priority=5"], ["--max-priority", "3"]] {
        let refused = Command::producer(&nobody).args(&once).args(&again).run(SOON);
        refused.assert_code(2);
        let log = refused.stderr();
        assert!(log.contains("queue argument: x-max-priority: it is given twice"), "{log}");
    }
    Command::producer(&nobody).args(&once).run(SOON).assert_code(69);
}

/// Its count says 0, whatever is in it.
#[test]
fn a_worker_refuses_a_stream_and_does_not_take_it_for_empty() {
    let queue = unique_queue("stream");
    let mut arguments = typed("stream");
    arguments.insert("x-max-length-bytes".into(), AmqpValue::LongLongInt(100_000_000));
    let mut client = shared_broker().client();
    client.declare_with(&queue, arguments);
    client.publish_id(&queue, "1");
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--no-declare"];

    let refused = Command::worker(&to).args(&["--drain", "--", "true"]).run(SOON);
    client.delete(&queue);

    refused.assert_code(2);
    assert!(refused.stderr().contains("it is a stream"), "{}", refused.stderr());
}

/// A worker whose task dies, where the queue of dead letters is a stream.
fn with_a_stream_for_dead_letters(queue: &str, kind: &str) -> Running {
    shared_broker().client().declare_with(&format!("{queue}.dead"), typed("stream"));
    let to = ["--url", shared_broker().url(), "--queue", queue, "--queue-type", kind];
    Command::producer(&to).arg("x").run(SOON).assert_code(0);
    Command::worker(&to).args(&["--", "sh", "-c", "exit 65"]).start()
}

#[test]
fn a_worker_of_a_classic_queue_hands_no_task_over_to_a_stream() {
    let queue = unique_queue("dead-stream");
    let dead = format!("{queue}.dead");
    let client = shared_broker().client();
    client.declare_classic(&queue);

    let worker = with_a_stream_for_dead_letters(&queue, "classic");
    let refused = worker.wait_for_stderr_line(|line| line.contains("it is a stream"), SOON);
    worker.signal("INT");
    worker.wait(SOON).assert_code(0);

    assert!(refused.contains(&format!("could not be published to '{dead}'")), "{refused}");
    client.wait_for_count(&queue, 1, SOON);
    client.delete(&dead);
}

#[test]
fn a_worker_of_a_quorum_queue_refuses_a_stream_for_its_dead_letters() {
    let queue = unique_queue("dead-stream");
    let client = shared_broker().client();

    let output = with_a_stream_for_dead_letters(&queue, "quorum").wait(SOON);

    output.assert_code(2);
    let log = output.stderr();
    assert!(log.contains(&format!("'{queue}.dead'")) && log.contains("it is a stream"), "{log}");
    client.wait_for_count(&queue, 1, SOON);
    client.delete(&format!("{queue}.dead"));
}

#[test]
fn a_stream_is_called_one_also_where_it_would_be_declared_as_another_type() {
    let queue = unique_queue("stream");
    let client = shared_broker().client();
    client.declare_with(&queue, typed("stream"));
    let to = ["--url", shared_broker().url(), "--queue", &queue];

    let refused: Vec<_> = ["classic", "quorum"]
        .map(|kind| Command::worker(&to).args(&["--queue-type", kind, "--", "true"]).run(SOON))
        .into();
    client.delete(&queue);

    for output in refused {
        output.assert_code(2);
        let log = output.stderr();
        assert!(log.contains("it is a stream") && !log.contains("without declaring"), "{log}");
    }
}
