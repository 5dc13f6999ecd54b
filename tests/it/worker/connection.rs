//! Brokers that a worker does not reach or loses, and errors that need a person.

use std::time::{Duration, Instant};

use super::{SOON, errors, wait_until_consuming};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::proxy::{Proxy, Toxic};

#[test]
fn row_20_nobody_listening_is_tried_again_until_there_is_a_broker() {
    let queue = unique_queue("late");
    let proxy = Proxy::start(shared_broker().address());
    proxy.set_both(Toxic::Down);
    let running = Command::worker(&["--url", &proxy.url(), "--queue", &queue]).start();
    running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
    running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);

    proxy.set_both(Toxic::Pass);
    let begun = Instant::now();
    wait_until_consuming(&running);

    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn row_20_without_reconnection_nobody_listening_is_exit_69_at_once() {
    let begun = Instant::now();
    let output = Command::worker(&["--url", "amqp://127.0.0.1:1", "--no-reconnect"]).run(SOON);

    output.assert_code(69);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
}

#[test]
fn without_reconnection_a_lost_connection_is_exit_69_with_its_cause() {
    let queue = unique_queue("once");
    let proxy = Proxy::start(shared_broker().address());
    let arguments = ["--url", &proxy.url(), "--queue", &queue, "--no-reconnect"];
    let running = Command::worker(&arguments).start();
    wait_until_consuming(&running);

    proxy.set_both(Toxic::Down);
    let output = running.wait(SOON);

    output.assert_code(69);
    assert!(errors(&output)[0].contains("lost the session"), "{}", output.stderr());
}

#[test]
fn rows_19_38_39_56_58_what_a_person_has_to_act_on_is_one_line_and_exit_2() {
    let queue = unique_queue("usage");
    let exclusive = unique_queue("exclusive");
    let client = shared_broker().client();
    client.declare(&queue);
    client.declare_exclusive(&exclusive);
    let (url, long) = (shared_broker().url(), "q".repeat(256));
    let bad_login = format!("amqp://guest:s3cretword@{}", shared_broker().address());
    let bad_vhost = format!("{url}/no-such-vhost");
    let absent = unique_queue("absent");
    let table: [(&[&str], &str); 10] = [
        (&["--url", url, "--queue", &queue, "--transient-queue"], "durable is true"),
        (
            &["--url", url, "--queue", &queue, "--queue-type", "quorum"],
            "is not set in the existing queue, and",
        ),
        (&["--url", url, "--queue", &exclusive], "RESOURCE_LOCKED"),
        (&["--url", url, "--queue", &absent, "--no-declare"], "NOT_FOUND"),
        (&["--url", url, "--queue", &long], "at most 255"),
        (&["--url", url, "--queue", &queue, "--threads", "3000"], "2047"),
        (&["--url", url, "--queue", &queue, "--max-tasks", "0"], "max tasks"),
        (&["--url", "http://u:s3cretword@h"], "scheme"),
        (&["--url", &bad_login], "refused the login of user 'guest'"),
        (&["--url", &bad_vhost], "virtual host 'no-such-vhost'"),
    ];

    let running = table.map(|(arguments, wanted)| {
        (Command::worker(arguments).env("RUST_LOG", "trace").start(), wanted)
    });

    for (running, wanted) in running {
        let output = running.wait(SOON);
        output.assert_code(2);
        let said = errors(&output);
        assert_eq!(said.len(), 1, "{}", output.stderr());
        assert!(said[0].contains(wanted), "{wanted}: {said:?}");
        assert!(!output.stderr().contains("s3cretword"), "{}", output.stderr());
    }
}

#[test]
fn row_18_without_file_descriptors_it_says_so_and_does_not_spin() {
    let queue = unique_queue("nofile");
    let script = format!(
        "ulimit -n 7; exec '{}' --url '{}' --queue '{queue}' --print",
        env!("CARGO_BIN_EXE_worker"),
        shared_broker().url()
    );
    let running = Command::program("sh", &["-c", &script]).start();

    let next_try = || {
        running.wait_for_stderr_line(|line| line.contains("Too many open files"), SOON);
        (Instant::now(), running.processor_time())
    };
    let (begun, used_before) = next_try();
    let mut tries = std::iter::repeat_with(next_try);
    let later = tries.find(|(now, _)| *now - begun > Duration::from_secs(2));
    let (ended, used_after) = later.expect("tries without end");
    running.signal("INT");
    let output = running.wait(SOON);

    let (used, took) = (used_after - used_before, ended - begun);
    assert!(used < took / 20, "{used:?} of processor time in {took:?}");
    output.assert_code(0);
    assert!(errors(&output).len() < 10, "{}", output.stderr());
}
