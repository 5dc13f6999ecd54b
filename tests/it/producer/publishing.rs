//! What a producer publishes: bodies, properties, ids, and many tasks with few round trips.

use std::time::{Duration, Instant};

use super::{SOON, errors, json, producer};
use crate::support::broker::{breakable_broker, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::ScriptedBroker;

#[test]
fn hello_world_is_sent_persistent_with_an_id() {
    let broker = breakable_broker();
    let script = format!("exec '{}' --url {}", env!("CARGO_BIN_EXE_producer"), broker.url());

    let output = Command::program("sh", &["-c", &format!("{script} </dev/null")]).run(SOON);
    let messages = broker.client().get_all("task_queue");
    broker.client().delete("task_queue");

    assert_eq!(output.success(), " [x] Sent 'Hello World!'\n");
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].text(), "Hello World!");
    assert_eq!(*messages[0].properties.delivery_mode(), Some(2));
    assert!(messages[0].message_id.is_some());
}

#[test]
fn a_transient_task_is_not_persistent() {
    let queue = unique_queue("transient");

    producer(&queue, &["--transient", "x"]).run(SOON).success();

    let messages = shared_broker().client().get_all(&queue);
    assert_eq!(*messages[0].properties.delivery_mode(), Some(1));
}

#[test]
fn twenty_thousand_lines_are_pipelined_in_order_and_all_confirmed() {
    let queue = unique_queue("lines");
    let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}")).collect();

    let begun = Instant::now();
    let input = lines.join("\n") + "\n";
    let output = producer(&queue, &["--lines", "--json"]).stdin(input).run(SOON);
    let took = begun.elapsed();

    output.assert_code(0);
    let summary = json(&output);
    assert_eq!((&summary["published"], &summary["confirmed"]), (&20_000.into(), &20_000.into()));
    // One round trip each would take 0.1 ms at the very least, 1 ms on a disk.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 20_000);
    let got: Vec<String> = client.get_all(&queue).iter().map(|message| message.text()).collect();
    assert_eq!(got, lines);
}

#[test]
fn lines_are_not_confirmed_one_by_one() {
    let window = 50;
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        // Nothing is acked until the whole window is here.
        let publishes: Vec<_> = (0..window).map(|_| session.read_publish()).collect();
        session.ack_up_to(publishes[0].channel, window);
        assert_eq!(session.answer_rpcs(), None);
    });

    let input = "x\n".repeat(window as usize);
    let arguments = ["--url", &broker.url(), "--lines", "--window", &window.to_string()];
    let output = Command::producer(&arguments).stdin(input).run(SOON);

    output.assert_code(0);
    broker.finish(SOON);
}

#[test]
fn row_56_names_of_255_bytes_work_and_longer_or_empty_ones_are_refused_here() {
    let prefix = unique_queue("name");
    let fitting = format!("{prefix}{}é", "x".repeat(253 - prefix.len()));
    let too_long = format!("{fitting}y");

    let fits = producer(&fitting, &["x"]).run(SOON);
    let over = producer(&too_long, &["x"]).run(SOON);
    let empty = producer("", &["x"]).run(SOON);

    fits.assert_code(0);
    let client = shared_broker().client();
    assert_eq!(client.count(&fitting), 1);
    client.delete(&fitting);
    over.assert_code(2);
    assert!(errors(&over)[0].contains("at most 255"), "{}", over.stderr());
    empty.assert_code(2);
}

#[test]
fn the_summary_counts_as_published_what_was_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let output = Command::producer(&["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "--lines"])
        .args(&["--json", "--failed", &failed.to_string_lossy()])
        .stdin("1\n2\n3\n4\n5\n")
        .run(SOON);

    output.assert_code(69);
    let summary = json(&output);
    assert_eq!((&summary["published"], &summary["unconfirmed"]), (&0.into(), &5.into()));
}

#[test]
fn row_62_what_a_killed_producer_said_was_sent_is_on_the_queue() {
    let queue = unique_queue("killed");
    let running = producer(&queue, &["--repeat", "1000000", "x"]).start();
    for _ in 0..200 {
        running.wait_for_stdout_line(|line| line.contains("Sent"), SOON);
    }

    running.kill();
    let output = running.wait(SOON);

    assert_eq!(output.signal, Some(9));
    let said = output.stdout().lines().count();
    let client = shared_broker().client();
    assert!(client.count(&queue) as usize >= said, "{said} said");
    client.delete(&queue);
}
