//! The `worker`: what it prints, how it is stopped, and what is left on the queue.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output, Running};
use crate::support::proxy::{Proxy, Toxic};
use crate::support::scripted::ScriptedBroker;

const SOON: Duration = Duration::from_secs(30);

fn worker(queue: &str, arguments: &[&str]) -> Command {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::worker(&[&to, arguments].concat())
}

/// A worker that has begun to consume.
fn started(queue: &str, arguments: &[&str]) -> Running {
    let running = worker(queue, arguments).start();
    wait_until_consuming(&running);
    running
}

fn wait_until_consuming(running: &Running) {
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
}

fn wait_for_task(running: &Running, body: &str) {
    let wanted = format!(" [x] Received '{body}'");
    running.wait_for_stdout_line(|line| line == wanted, SOON);
}

fn errors(output: &Output) -> Vec<String> {
    let text = output.stderr();
    let errors = text.lines().filter_map(|line| line.split_once(" ERROR "));
    errors.map(|(_, said)| said.to_owned()).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

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
fn what_was_done_is_told_when_a_lost_connection_ends_it() {
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
        (&["--url", url, "--queue", &queue, "--queue-type", "quorum"], "is not set there, and"),
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
