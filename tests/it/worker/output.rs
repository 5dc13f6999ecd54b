//! What a worker prints: summaries, events, and outputs that nobody reads or that are full.

use std::fs;

use serde_json::Value;

use super::{SOON, errors, json, started, wait_for_task, wait_until_consuming, worker};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::proxy::{Proxy, Toxic};

#[test]
fn json_has_the_fields_of_the_contract() {
    let queue = unique_queue("json");
    let running = started(&queue, &["--json"]);

    running.signal("INT");
    let output = running.wait(SOON);

    let summary = json(&output.success());
    for field in ["done", "retried", "dead", "returned"] {
        assert_eq!(summary[field], 0, "{field}");
    }
    assert!(summary["seconds"].is_f64());
}

#[test]
fn events_are_one_object_a_line_with_the_fields_of_the_contract() {
    let queue = unique_queue("events");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "one");
    client.publish_id(&queue, "two");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("events");

    let output = worker(&queue, &["--max-tasks", "2", "--threads", "1"])
        .arg("--events")
        .arg(&file)
        .run(SOON);

    output.assert_code(0);
    let text = fs::read_to_string(&file).expect("the events");
    let events: Vec<Value> = text.lines().map(json).collect();
    let told: Vec<(&str, &str)> = events
        .iter()
        .map(|event| (event["event"].as_str().unwrap_or(""), event["task"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(told, [("started", "one"), ("done", "one"), ("started", "two"), ("done", "two")]);
    for event in &events {
        assert_eq!((&event["thread"], &event["queue"]), (&1.into(), &queue.as_str().into()));
        assert!(event["time"].is_f64() && event["ms"].is_u64(), "{event}");
        assert!(event["host"].is_string() && event["bytes"].is_u64(), "{event}");
    }
}

/// Each task gives two events; some 500 fit into the pipe, and 1000 wait.
#[test]
fn events_that_nobody_reads_hold_up_no_task_and_are_counted() {
    let queue = unique_queue("unread");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let ids: Vec<String> = (0..1500).map(|number| number.to_string()).collect();
    client.publish_ids(&queue, ids.iter().map(String::as_str));
    let dir = tempfile::tempdir().expect("a directory");
    let script = format!(
        "mkfifo events; exec 3<>events; exec '{}' --events events \"$@\" >/dev/null",
        env!("CARGO_BIN_EXE_worker")
    );
    let options = ["--print", "--threads", "4", "--prefetch", "10", "--max-tasks", "1500"];
    let broker = ["--url", shared_broker().url(), "--queue", &queue];
    let arguments = [&["-c", &script, "sh"][..], &options, &broker].concat();

    let output = Command::program("sh", &arguments).current_dir(dir.path()).run(SOON);

    output.assert_code(0);
    let said = output.stderr();
    assert_eq!(said.matches("nobody reads --events").count(), 1, "{said}");
    let count = said.lines().find_map(|it| it.split_once(" events are missing in --events"));
    let missing = count.and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(missing.is_some_and(|it| (1500..3000).contains(&it)), "{said}");
    assert!(said.contains("1500 tasks done"), "{said}");
}

#[test]
fn a_pipe_for_events_without_a_reader_holds_up_neither_a_task_nor_a_refusal() {
    let queue = unique_queue("no-reader");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "1");
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("events");
    Command::program("mkfifo", &[pipe.to_str().expect("a path")]).run(SOON).assert_code(0);
    let with_events =
        |options: &[&str]| worker(&queue, &[]).arg("--events").arg(&pipe).args(options);

    with_events(&["--", "no such command"]).run(SOON).assert_code(2);
    let output = with_events(&["--max-tasks", "1"]).run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains(" 2 events are missing in --events"), "{output:?}");
}

#[test]
fn what_was_done_is_reported_when_a_lost_connection_ends_it() {
    let queue = unique_queue("told");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1", "2", "3"]);
    let proxy = Proxy::start(shared_broker().address());
    let arguments = ["--url", &proxy.url(), "--queue", &queue, "--threads", "1"];
    let running = Command::worker(&arguments).args(&["--no-reconnect", "--json"]).start();
    for _ in 0..3 {
        running.wait_for_stdout_line(|line| line == " [x] Done", SOON);
    }

    proxy.set_both(Toxic::Down);
    let output = running.wait(SOON);

    output.assert_code(69);
    assert!(output.stderr().contains(" tasks done, 0 retried"), "{}", output.stderr());
    let stdout = output.stdout();
    let summary = json(stdout.lines().last().expect("a summary"));
    let told = summary["done"].as_u64().expect("a count");
    assert!(told >= 2, "the last may not have been acked: {summary}");
}

#[test]
fn a_broker_that_is_not_reached_has_a_summary_too() {
    let arguments = ["--url", "amqp://127.0.0.1:1", "--no-reconnect", "--json"];
    let output = Command::worker(&arguments).run(SOON);
    output.assert_code(69);
    assert_eq!(json(&output.stdout())["done"], 0);
}

#[test]
fn whatever_keeps_a_worker_from_its_work_has_a_summary_too() {
    let url = shared_broker().url();
    let bad_login = format!("amqp://guest:wrong@{}", shared_broker().address());
    let bad_vhost = format!("{url}/no-such-vhost");
    let absent = unique_queue("absent");
    let table: [&[&str]; 6] = [
        &["--url", &bad_login, "--", "true"],
        &["--url", &bad_vhost, "--", "true"],
        &["--url", url, "--queue", &absent, "--no-declare", "--", "true"],
        &["--url", url, "--queue", &absent, "--", "/no/such/command"],
        &["--url", url, "--queue", &absent, "--"],
        &["--url", "nonsense"],
    ];
    for arguments in table {
        let output = Command::worker(&["--json"]).args(arguments).run(SOON);
        output.assert_code(2);
        let summary = json(&output.stdout());
        assert_eq!(summary["ended"], "error", "{arguments:?}");
        let zeros = ["done", "retried", "dead", "returned"].map(|count| summary[count].as_u64());
        assert_eq!(zeros, [Some(0); 4], "{arguments:?}");
    }
}

#[test]
fn row_64_a_worker_whose_output_is_lost_gives_the_task_back_and_exits_1() {
    let queue = unique_queue("devfull");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "kept");
    let script = format!(
        "exec '{}' --url '{}' --queue '{queue}' --print --threads 1 >/dev/full",
        env!("CARGO_BIN_EXE_worker"),
        shared_broker().url()
    );

    let output = Command::program("sh", &["-c", &script]).run(SOON);

    output.assert_code(1);
    assert!(output.stderr().contains("standard output"), "{}", output.stderr());
    client.wait_for_count(&queue, 1, SOON);
}

#[test]
fn row_63_a_worker_whose_reader_goes_away_gives_the_task_back_and_exits_1() {
    let queue = unique_queue("pipe");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let script = format!(
        "'{}' --url '{}' --queue '{queue}' --print --threads 1 | head -n 1; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_worker"),
        shared_broker().url()
    );
    let running = Command::program("bash", &["-c", &script]).start();
    wait_until_consuming(&running);

    client.publish_id(&queue, "cut off.");
    wait_for_task(&running, "cut off.");
    let output = running.wait(SOON);

    output.assert_code(1);
    assert!(!output.stderr().contains("panic"), "{}", output.stderr());
    let lost = errors(&output);
    assert!(lost.len() == 1 && lost[0].contains("standard output"), "{lost:?}");
    client.wait_for_count(&queue, 1, SOON);
}
