//! A cluster: one node dies, freezes or restarts, and producers and workers that have all
//! addresses continue without a loss. `tests/cluster.sh` runs these tests, and
//! `scripts/soak.sh --cluster` runs the soak.

mod load;
mod progress;
mod soak;

use std::thread;
use std::time::{Duration, Instant};

use rabbit_work::QueueType::{Classic, Quorum};

use self::load::{Load, NO_PROGRESS};
use crate::support::client::unique_queue;
use crate::support::cluster::{NODES, cluster};
use crate::support::command::Command;

/// Twice as long as it takes to notice.
const FREEZE: Duration = Duration::from_secs(40);
/// Longer than a queue has no leader then.
const ELECTED: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(60);

/// All that the first address has made there is gone meanwhile: what waits for its next attempt
/// must not depend on it.
#[test]
#[ignore = "tests/cluster.sh runs it"]
fn the_node_that_leads_a_queue_dies_and_failed_tasks_go_on() {
    let cluster = cluster();
    let cluster = cluster.as_ref().expect("a cluster");
    let led = Load::start(cluster, Quorum, 1, &[1, 2, 3]);
    let elsewhere = Load::start(cluster, Classic, 2, &[1, 2, 3]);

    cluster.kill(1);
    led.goes_on();
    elsewhere.goes_on();
    elsewhere.retries_go_on();
    cluster.start(1);
    led.goes_on();
    led.retries_go_on();

    led.finish().assert_survived();
    elsewhere.finish().assert_survived();
}

#[test]
#[ignore = "tests/cluster.sh runs it"]
fn a_node_stands_still_whether_it_is_the_first_address_or_leads_the_queue() {
    let cluster = cluster();
    let cluster = cluster.as_ref().expect("a cluster");
    let first = Load::start(cluster, Quorum, 2, &[1, 2, 3]);
    let led = Load::start(cluster, Quorum, 1, &[2, 3]);
    let queue = unique_queue("lines");
    let options = ["--queue", &queue, "--queue-type", "quorum", "--timeout", "30s"];
    let to = |url: &str| Command::producer(&["--url", url, "--url-order", "given"]).args(&options);
    // A queue is where its first client is.
    to(&cluster.url(&[2])).arg("first").run(SOON).assert_code(0);
    let url = cluster.url(&NODES);
    let mut producer = to(&url).args(&["--lines", "--json"]).open_stdin().start();
    producer.write(b"before\n");
    cluster.client(2).wait_for_count(&queue, 2, SOON);

    cluster.freeze(1);
    let begun = Instant::now();
    let mut lines = 1;
    while begun.elapsed() < FREEZE {
        producer.write(b"meanwhile\n");
        lines += 1;
        thread::sleep(Duration::from_millis(50));
    }
    let another = to(&url).arg("another").run(NO_PROGRESS);
    first.goes_on();
    led.goes_on();
    cluster.thaw(1);
    producer.end_input();

    another.assert_code(0);
    let output = producer.wait(SOON);
    output.assert_code(0);
    assert!(output.stdout().contains(&format!("\"confirmed\":{lines}")), "{}", output.stdout());
    let client = cluster.client(2);
    assert!(client.count(&queue) >= lines + 2, "each is there, and those of the others");
    client.delete(&queue);
    first.finish().assert_survived();
    led.finish().assert_survived();
}

/// Its broker reports no tasks meanwhile (RabbitMQ 3.10.8 to 4.3.6), and gives none until another node
/// leads.
#[test]
#[ignore = "tests/cluster.sh runs it"]
fn a_drain_does_not_take_a_queue_for_empty_whose_leader_stands_still() {
    let cluster = cluster();
    let cluster = cluster.as_ref().expect("a cluster");
    let queue = unique_queue("drained");
    let options = ["--queue", &queue, "--queue-type", "quorum"];
    let lines: String = (0..100).map(|number| format!("{number}\n")).collect();
    let producer = Command::producer(&["--url", &cluster.url(&[1]), "--lines"]).args(&options);
    producer.stdin(lines).run(SOON).assert_code(0);
    cluster.wait_for_leader(&queue, 1);
    let drain = ["--drain", "--threads", "1", "--prefetch", "1", "--", "sleep", "0.1"];
    let worker = Command::worker(&["--url", &cluster.url(&[2])]).args(&options).args(&drain);
    let worker = worker.start();
    worker.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);

    cluster.freeze(1);
    let hidden = "does not report this worker as a consumer";
    worker.wait_for_stderr_line(|line| line.contains(hidden), SOON);
    thread::sleep(ELECTED);
    cluster.thaw(1);
    let output = worker.wait(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert_eq!(stderr.matches("its delay queues are empty").count(), 1, "{stderr}");
    assert!(stderr.contains(" 100 tasks done,"), "{stderr}");
    let client = cluster.client(2);
    assert_eq!(client.count(&queue), 0);
    client.delete(&queue);
}

#[test]
#[ignore = "tests/cluster.sh runs it"]
fn all_nodes_are_restarted_one_after_the_other() {
    let cluster = cluster();
    let cluster = cluster.as_ref().expect("a cluster");
    let load = Load::start(cluster, Quorum, 1, &NODES);

    for node in NODES {
        cluster.stop(node);
        load.goes_on();
        cluster.start(node);
        load.goes_on();
        load.retries_go_on();
    }

    load.finish().assert_survived();
}
