//! Dead-letter queues: of a quorum queue, with other arguments, and those that cannot be used.

use rabbit_work::{Producer, Queue, QueueType, Task};

use super::{LONG, SOON, broker, dead};
use crate::child::LedgerWorker;
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;

#[test]
fn a_killer_on_a_quorum_queue_becomes_a_dead_letter_that_says_so() {
    let queue = unique_queue("killer");
    let quorum = Queue::new(&queue).queue_type(QueueType::Quorum).delivery_limit(2);
    Producer::new(&broker(), &quorum).publish(Task::new("").with_id("1")).expect("confirmed");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let quorum_flags = ["--queue-type", "quorum", "--delivery-limit", "2"];
    // The worker declares the dead letters before the broker needs them.
    let worker = Command::worker(&[&to[..], &quorum_flags, &["--max-tasks", "1"]].concat());
    let running = worker.start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    running.wait(SOON).assert_code(0);
    Producer::new(&broker(), &quorum).publish(Task::new("").with_id("2")).expect("confirmed");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    let killer = LedgerWorker::killer(shared_broker().url(), &queue, &path);
    for _ in 0..3 {
        let output = killer.command().env("IT_NO_DECLARE", "1").run(SOON);
        assert_eq!(output.signal, Some(9));
    }
    let client = shared_broker().client();
    client.wait_for_count(&dead(&queue), 1, SOON);
    let list = [&to[..], &quorum_flags, &["dead", "list", "--json"]].concat();
    let listed = Command::queuectl(&list).run(SOON).success();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["id"], "2");
    let reason = listed[0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("delivery limit"), "{reason}");
}

/// Somebody else's queue of dead letters serves as well.
#[test]
fn a_queue_of_dead_letters_with_other_arguments_is_used_as_it_is() {
    let queue = unique_queue("classic-dead");
    let client = shared_broker().client();
    client.declare(&dead(&queue));
    let flags = ["--url", shared_broker().url(), "--queue", &queue, "--queue-type", "quorum"];
    Command::producer(&[&flags[..], &["x"]].concat()).run(SOON).assert_code(0);
    let once = ["--max-attempts", "1", "--drain", "--", "false"];

    let worked = Command::worker(&[&flags[..], &once].concat()).run(LONG);

    worked.assert_code(1);
    let told = format!("'{}' cannot be declared", dead(&queue));
    let stderr = worked.stderr();
    assert!(
        stderr.lines().any(|it| it.contains(&told) && it.contains("used as it is")),
        "{stderr}"
    );
    assert_eq!(client.count(&dead(&queue)), 1);
    let checked = Command::queuectl(&[&flags[..], &["check"]].concat()).run(SOON);
    checked.assert_code(0);
    let stdout = checked.stdout();
    assert!(
        stdout.contains("ok    dead") && stdout.contains("used although it differs"),
        "{stdout}"
    );
}

#[test]
fn a_queue_of_dead_letters_that_cannot_be_used_is_named() {
    let queue = unique_queue("locked-dead");
    let client = shared_broker().client();
    client.declare_exclusive(&dead(&queue));
    let flags = ["--url", shared_broker().url(), "--queue", &queue, "--queue-type", "quorum"];

    let refused = Command::worker(&[&flags[..], &["--", "false"]].concat()).run(SOON);

    refused.assert_code(2);
    let stderr = refused.stderr();
    assert!(stderr.contains(&format!("use of queue '{}'", dead(&queue))), "{stderr}");
}
