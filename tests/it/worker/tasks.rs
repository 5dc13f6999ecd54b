//! Which tasks a worker takes, how it acks them, and what happens to them when it is killed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{SOON, json, started, wait_for_task, worker};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;

#[test]
fn hello_world_is_received_done_and_acked() {
    let queue = unique_queue("hello");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "Hello World!");

    let output = worker(&queue, &["--max-tasks", "1"]).run(SOON);

    assert_eq!(output.success(), " [x] Received 'Hello World!'\n [x] Done\n");
    assert_eq!(client.count(&queue), 0);
}

#[test]
fn a_dot_is_a_second_of_work() {
    let queue = unique_queue("dots");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "two..");

    let running = started(&queue, &["--max-tasks", "1"]);
    let begun = Instant::now();
    let output = running.wait(SOON);

    output.assert_code(0);
    assert!(begun.elapsed() > Duration::from_millis(1700), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_body_that_is_not_text_is_shown_and_done() {
    let queue = unique_queue("binary");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish(&queue, b"\xff\0\n'", crate::support::client::persistent("x"));

    let output = worker(&queue, &["--max-tasks", "1"]).run(SOON);

    assert!(output.success().ends_with(" [x] Done\n"));
    assert_eq!(client.count(&queue), 0);
}

#[test]
fn max_tasks_is_exact_and_the_rest_stays() {
    let queue = unique_queue("max");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let ids: Vec<String> = (0..30).map(|number| format!("task {number}")).collect();
    client.publish_ids(&queue, ids.iter().map(String::as_str));

    let arguments = ["--max-tasks", "7", "--threads", "3", "--prefetch", "5", "--json"];
    let output = worker(&queue, &arguments).run(SOON);

    output.assert_code(0);
    let done = output.stdout().lines().filter(|line| *line == " [x] Done").count();
    assert_eq!(done, 7);
    let stdout = output.stdout();
    let summary = json(stdout.lines().last().expect("a summary"));
    assert_eq!(summary["done"], 7);
    assert_eq!(client.count(&queue), 23);
}

#[test]
fn without_a_prefetch_limit_three_workers_take_every_third_task() {
    let queue = unique_queue("round");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let arguments = ["--threads", "1", "--prefetch", "0"];
    let workers = [(); 3].map(|()| started(&queue, &arguments));

    let ids: Vec<String> = (0..9).map(|number| format!("task {number}")).collect();
    client.publish_ids(&queue, ids.iter().map(String::as_str));
    for worker in &workers {
        for _ in 0..3 {
            worker.wait_for_stdout_line(|line| line == " [x] Done", SOON);
        }
    }

    let mut residues = BTreeSet::new();
    for worker in workers {
        worker.signal("INT");
        let stdout = worker.wait(SOON).success();
        let numbers: Vec<u32> = stdout
            .lines()
            .filter_map(|line| {
                line.strip_prefix(" [x] Received 'task ")?.strip_suffix('\'')?.parse().ok()
            })
            .collect();
        assert_eq!(numbers.len(), 3, "{stdout}");
        assert!(numbers.iter().all(|number| number % 3 == numbers[0] % 3), "{numbers:?}");
        residues.insert(numbers[0] % 3);
    }
    assert_eq!(residues.len(), 3);
}

#[test]
fn row_69_with_prefetch_1_the_idle_worker_takes_what_the_busy_one_cannot() {
    let queue = unique_queue("fair");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let workers = [(); 2].map(|()| started(&queue, &["--threads", "1"]));

    client.publish_id(&queue, "heavy...");
    let ids: Vec<String> = (0..20).map(|number| format!("light {number}")).collect();
    client.publish_ids(&queue, ids.iter().map(String::as_str));
    client.wait_for_count(&queue, 0, Duration::from_secs(2));

    let shares = workers.map(|worker| {
        worker.signal("INT");
        let stdout = worker.wait(SOON).success();
        let heavy = stdout.contains("heavy");
        (heavy, stdout.lines().filter(|line| line.contains("Received")).count())
    });
    let mut shares = shares.to_vec();
    shares.sort_unstable();
    assert_eq!(shares, [(false, 20), (true, 1)]);
}

#[test]
fn row_1_kill_9_in_a_task_gives_it_to_another_worker_at_once() {
    let queue = unique_queue("kill");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let victim = started(&queue, &["--threads", "1"]);
    client.publish_id(&queue, "long...");
    wait_for_task(&victim, "long...");
    let other = started(&queue, &["--threads", "1", "--max-tasks", "1"]);

    let begun = Instant::now();
    victim.kill();
    wait_for_task(&other, "long...");

    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    other.wait(SOON).assert_code(0);
    assert_eq!(client.count(&queue), 0);
}

#[test]
fn with_auto_ack_a_killed_worker_loses_what_it_had() {
    let queue = unique_queue("auto");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let victim = started(&queue, &["--threads", "1", "--auto-ack"]);
    client.publish_id(&queue, "long...");
    wait_for_task(&victim, "long...");

    victim.kill();
    let _ = victim.wait(SOON);

    client.wait_for_consumers(&queue, 0, SOON);
    assert_eq!(client.count(&queue), 0);
}
