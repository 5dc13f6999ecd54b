//! Waits for tasks of a quorum queue, whose delivery limit ends a task without an outcome.

use super::{SOON, waiting};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;

const NO_END: &str = "at the delivery limit, without an outcome, and this wait would not end";

#[test]
fn a_wait_on_a_quorum_queue_without_a_limit_is_warned_of() {
    let (url, queue) = (shared_broker().url(), unique_queue("no-end"));
    let quorum = ["--queue-type", "quorum"];
    let running = waiting(url, &queue, 1, &quorum).start();
    running.wait_for_stderr_line(|line| line.contains("WARN") && line.contains(NO_END), SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(4);

    let limited = [&quorum[..], &["--wait-timeout", "0.2s"]].concat();
    let output = waiting(url, &queue, 1, &limited).run(SOON);
    output.assert_code(4);
    assert!(!output.stderr().contains(NO_END), "{}", output.stderr());
    shared_broker().client().delete(&queue);
}

#[test]
fn a_wait_on_a_classic_queue_is_not_warned_of() {
    let (url, queue) = (shared_broker().url(), unique_queue("has-end"));
    shared_broker().client().declare_classic(&queue);
    let running = waiting(url, &queue, 1, &["--no-declare"]).start();
    running.wait_for_stderr_line(|line| line.contains("tasks confirmed and 0 not"), SOON);
    shared_broker().client().wait_for_count(&queue, 1, SOON);
    running.signal("INT");
    let output = running.wait(SOON);
    output.assert_code(4);
    assert!(!output.stderr().contains(NO_END), "{}", output.stderr());
    shared_broker().client().delete(&queue);
}
