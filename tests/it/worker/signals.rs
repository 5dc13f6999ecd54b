//! Signals: a worker stops in bounded time, and each task is finished or requeued.

use std::time::{Duration, Instant};

use super::{SOON, errors, json, started, wait_for_task};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Running};
use crate::support::scripted::ScriptedBroker;

#[test]
fn rows_3_and_6_each_signal_ends_an_idle_worker_at_once_with_0() {
    for signal in ["INT", "TERM", "HUP"] {
        let queue = unique_queue("idle");
        let running = started(&queue, &["--threads", "4"]);

        let begun = Instant::now();
        running.signal(signal);
        let output = running.wait(SOON);

        assert!(begun.elapsed() < Duration::from_secs(1), "{signal}: {:?}", begun.elapsed());
        output.assert_code(0);
        assert!(errors(&output).is_empty(), "{signal}: {}", output.stderr());
        assert_eq!(shared_broker().client().consumers(&queue), 0);
    }
}

#[test]
fn rows_4_and_6_a_busy_worker_gives_back_at_once_and_finishes_what_runs() {
    for signal in ["INT", "TERM", "HUP"] {
        let queue = unique_queue("busy");
        let mut client = shared_broker().client();
        client.declare(&queue);
        client.publish_id(&queue, "running...");
        let running = started(&queue, &["--threads", "1", "--prefetch", "10", "--json"]);
        wait_for_task(&running, "running...");
        let ids: Vec<String> = (0..20).map(|number| format!("waiting {number}")).collect();
        client.publish_ids(&queue, ids.iter().map(String::as_str));
        client.wait_for_count(&queue, 11, SOON);

        let begun = Instant::now();
        running.signal(signal);
        client.wait_for_count(&queue, 20, Duration::from_millis(1500));
        let gave_back = begun.elapsed();
        let output = running.wait(SOON);

        output.assert_code(0);
        assert!(gave_back < Duration::from_millis(1500) && begun.elapsed() > gave_back);
        let stdout = output.stdout();
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(lines[..2], [" [x] Received 'running...'", " [x] Done"], "{signal}");
        assert_eq!(lines.len(), 3, "{signal}: {stdout}");
        let summary = json(lines[2]);
        assert_eq!((&summary["done"], &summary["returned"]), (&1.into(), &9.into()));
        assert_eq!(client.get_all(&queue).len(), 20, "{signal}");
    }
}

#[test]
fn row_5_a_second_signal_ends_it_within_two_seconds_with_130_and_nothing_is_lost() {
    for signals in [&["INT", "INT"][..], &["TERM", "INT", "INT"], &["HUP", "TERM"]] {
        let queue = unique_queue("twice");
        let mut client = shared_broker().client();
        client.declare(&queue);
        let running = started(&queue, &["--threads", "2", "--prefetch", "2"]);
        let ids = ["a..........", "b..........", "c..........", "d.........."];
        client.publish_ids(&queue, ids);
        for _ in 0..2 {
            running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
        }

        running.signal(signals[0]);
        client.wait_for_count(&queue, 2, SOON);
        running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
        let begun = Instant::now();
        for signal in &signals[1..] {
            running.signal(signal);
        }
        let output = running.wait(SOON);

        assert!(begun.elapsed() < Duration::from_secs(2), "{signals:?}: {:?}", begun.elapsed());
        output.assert_code(130);
        client.wait_for_count(&queue, 4, SOON);
    }
}

#[test]
fn row_8_a_task_beyond_the_grace_goes_back_and_the_exit_is_3() {
    let queue = unique_queue("grace");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let running = started(&queue, &["--threads", "1", "--grace", "500ms"]);
    client.publish_id(&queue, "long..........");
    wait_for_task(&running, "long..........");

    let begun = Instant::now();
    running.signal("INT");
    let output = running.wait(SOON);

    let took = begun.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_millis(2500), "{took:?}");
    output.assert_code(3);
    client.wait_for_count(&queue, 1, SOON);
}

#[test]
fn a_signal_before_any_connection_ends_it_at_once() {
    let silent = ScriptedBroker::start(|session, _| session.stay_silent());
    for url in ["amqp://127.0.0.1:1", &silent.url()] {
        let running = Command::worker(&["--url", url]).env("RUST_LOG", "debug").start();
        if url == silent.url() {
            silent.wait_for(SOON, |event| format!("{event:?}").starts_with("Connected"));
        } else {
            running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
        }

        let begun = Instant::now();
        running.signal("TERM");
        let output = running.wait(SOON);

        assert!(begun.elapsed() < Duration::from_secs(1), "{url}: {:?}", begun.elapsed());
        output.assert_code(0);
    }
}

/// From the start-ok to the consume-ok of a worker with one thread.
const STEPS: usize = 7;

fn at_each_step() -> Vec<(ScriptedBroker, Running)> {
    let start = |step| {
        let broker = ScriptedBroker::silent_after(step);
        let url = broker.url();
        let running = Command::worker(&["--url", &url, "--threads", "1", "--grace", "1s"]).start();
        (broker, running)
    };
    let started: Vec<_> = (0..=STEPS).map(start).collect();
    for (broker, _) in &started {
        broker.wait("silent", SOON);
    }
    started
}

#[test]
fn a_signal_at_any_step_of_a_silent_broker_ends_it_within_the_grace_and_5_s() {
    let started = at_each_step();

    let begun = Instant::now();
    started.iter().for_each(|(_, running)| running.signal("INT"));

    for (step, (_broker, running)) in started.into_iter().enumerate() {
        let output = running.wait(SOON);
        assert!(begun.elapsed() < Duration::from_secs(6), "{step}: {:?}", begun.elapsed());
        assert!(matches!(output.code, Some(0 | 3)), "{step}: {output:?}");
    }
}

#[test]
fn a_second_signal_at_any_step_of_a_silent_broker_ends_it_within_2_s() {
    let started = at_each_step();
    started.iter().for_each(|(_, running)| running.signal("INT"));

    let mut seconds = Vec::new();
    for (_, running) in &started {
        // Where the first is enough, it has ended without a word.
        let stopping = running.next_stderr_line(|line| line.contains("stopping"), SOON);
        seconds.push(Instant::now());
        if stopping.is_some() {
            running.signal("INT");
        }
    }

    for (step, (_broker, running)) in started.into_iter().enumerate() {
        let output = running.wait(SOON);
        let took = seconds[step].elapsed();
        assert!(took < Duration::from_secs(2), "{step}: {took:?}");
        assert!(matches!(output.code, Some(0 | 130)), "{step}: {output:?}");
    }
}
