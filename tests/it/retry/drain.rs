//! Drains that wait for delayed tasks, large tasks and other workers.

use std::fs;
use std::time::{Duration, Instant};

use amiquip::AmqpProperties;
use rabbit_work::Task;

use super::{SOON, publish};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::proxy::{Direction, Proxy, Toxic};

/// It is in the queue no more, and not with the worker yet.
#[test]
fn a_drain_waits_for_a_large_task_on_a_slow_line() {
    let queue = unique_queue("slow");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish(&queue, &vec![b'x'; 1 << 20], AmqpProperties::default());
    let proxy = Proxy::start(shared_broker().address());
    proxy.set(Direction::ToClient, Toxic::Bandwidth(150_000));

    let arguments = ["--url", &proxy.url(), "--queue", &queue, "--drain", "--threads", "1"];
    let output = Command::worker(&[&arguments[..], &["--", "true"]].concat()).run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("1 tasks done, 0 retried"), "{}", output.stderr());
}

#[test]
fn several_workers_that_drain_one_queue_all_end_and_report_their_own_dead_letters() {
    let queue = unique_queue("drained");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let produce = |arguments: &[&str]| {
        Command::producer(&[&to, arguments].concat()).run(SOON).assert_code(0);
    };
    produce(&["--repeat", "50", "good"]);
    produce(&["bad"]);
    produce(&["--delay", "2s", "later"]);
    let begun = Instant::now();
    let drain = [&to[..], &["--drain", "--threads", "2", "--json"]].concat();
    let policy = ["--max-attempts", "2", "--retry-delay", "100ms"];
    let fails_if_bad = ["--", "sh", "-c", "test \"$(cat)\" != bad"];
    let worker = || Command::worker(&[&drain[..], &policy, &fails_if_bad].concat()).start();
    let workers = [worker(), worker(), worker()];

    let outputs = workers.map(|worker| worker.wait(SOON));

    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    let (mut done, mut died) = (0, 0);
    for output in &outputs {
        let summary: serde_json::Value =
            serde_json::from_str(&output.stdout()).expect("JSON and nothing else");
        let dead = summary["dead"].as_u64().expect("a number");
        output.assert_code(dead.min(1) as i32);
        done += summary["done"].as_u64().expect("a number");
        died += dead;
    }
    assert_eq!((done, died), (51, 1));
}

#[test]
fn a_worker_that_waits_for_delayed_tasks_uses_no_measurable_time() {
    let queue = unique_queue("idle");
    publish(&queue, Task::new(""));
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--drain", "--threads", "4"];
    // Fails at its first attempt, so that the hand-over has its connection, and has nothing to do.
    let once = ["--", "sh", "-c", "echo run; test \"$TASK_ATTEMPT\" = 2"];
    let worker = Command::worker(&[&to[..], &["--retry-delay", "5s"], &once].concat()).start();
    worker.wait_for_stdout_line(|line| line == "run", SOON);
    let (mut client, waiting) = (shared_broker().client(), format!("{queue}.retry.5000"));
    poll("it waits for its retry", SOON, || {
        (client.has(&waiting) && client.count(&waiting) == 1).then_some(())
    });
    let before = processor_ticks(worker.id());
    worker.wait_for_stdout_line(|line| line == "run", SOON);
    let used = processor_ticks(worker.id()) - before;
    // A tick is 10 ms: at most 2 % of one processor over about 5 s.
    assert!(used <= 10, "{used} ticks");
    worker.wait(SOON).assert_code(0);
}

fn processor_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("/proc");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<u64>().expect("a number");
    ticks(11) + ticks(12)
}
