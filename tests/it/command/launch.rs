//! Programs that cannot be executed, or not at the moment.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

use super::{Bench, SOON, executable};
use crate::support::broker::poll;
use crate::support::command::Running;

#[test]
fn row_11_what_cannot_be_run_is_reported_before_anything_is_consumed() {
    let bench = Bench::new("notfound");
    bench.publish(&[b"x"]);
    fs::write(bench.path("plain"), "#!/bin/sh\n").expect("written");
    for (command, why) in [
        ("no-such-program", "not found in PATH"),
        ("./no-such-program", "not found"),
        ("./plain", "not executable"),
    ] {
        let output = bench.worker(&[], &[command]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(why), "{}", output.stderr());
    }
    let left = bench.left();
    assert!(left.len() == 1 && !left[0].redelivered, "nobody had it: {left:?}");
}

#[test]
fn nothing_after_the_dashes_is_a_usage_error_and_consumes_nothing() {
    let bench = Bench::new("nothing");
    bench.publish(&[b"x"]);

    let output = bench.worker(&["--drain"], &[]).arg("--").run(SOON);

    output.assert_code(2);
    assert!(output.stderr().contains("missing after --"), "{}", output.stderr());
    let left = bench.left();
    assert!(left.len() == 1 && !left[0].redelivered, "nobody had it: {left:?}");
}

#[test]
fn a_script_that_the_system_cannot_execute_is_reported_before_anything_is_consumed() {
    let bench = Bench::new("script");
    bench.publish(&[b"x"]);
    for (script, why) in [
        (
            "#!/bin/sh\r\ntrue\r\n",
            r#"its interpreter "/bin/sh\r" does not exist or is not executable"#,
        ),
        ("\u{feff}#!/bin/sh\ntrue\n", "neither a program nor a script"),
    ] {
        executable(&bench, "script", script.as_bytes());
        let output = bench.worker(&["--drain"], &["./script"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(why), "{}", output.stderr());
    }
    let left = bench.left();
    assert!(left.len() == 1 && !left[0].redelivered, "nobody had it: {left:?}");
}

#[test]
fn a_program_that_the_system_does_not_know_ends_the_worker() {
    let bench = Bench::new("unknown");
    bench.publish(&[b"x"]);
    executable(&bench, "unknown", b"no program\0");

    let output = bench.worker(&["--drain"], &["./unknown"]).run(SOON);

    output.assert_code(2);
    assert!(output.stderr().contains("./unknown cannot be executed"), "{}", output.stderr());
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn a_program_that_no_descriptors_are_left_for_is_started_once_there_are() {
    let bench = Bench::new("nofile");
    let options = ["--threads", "1", "--events", "events", "--json"];
    let worker = bench.worker(&options, &["sh", "-c", "echo attempt $TASK_ATTEMPT"]).start();
    bench.publish(&[b""]);
    worker.wait_for_stdout_line(|line| line == "attempt 1", SOON);
    poll("it is done", SOON, || bench.read("events").contains("done").then_some(()));

    // What is open stays open, and nothing more can be.
    let usual = getrlimit(Resource::Nofile);
    limit_descriptors(&worker, Rlimit { current: Some(3), ..usual });
    let starved = Instant::now();
    bench.publish(&[b""]);
    for pause in ["1s", "2s", "4s"] {
        let requeued = format!("attempt 1 of 5, is requeued in {pause}");
        let line = worker.wait_for_stderr_line(|line| line.contains("is requeued in"), SOON);
        assert!(line.contains(&requeued) && line.contains("Too many open files"), "{line}");
    }
    assert!(starved.elapsed() >= Duration::from_secs(1 + 2), "it does not spin");
    limit_descriptors(&worker, usual);
    worker.wait_for_stdout_line(|line| line == "attempt 1", SOON);
    worker.signal("TERM");
    let summary = worker.wait(SOON).success();

    assert!(summary.contains(r#""dead":0,"done":2,"ended":"signal","retried":0"#), "{summary}");
    let events = events(&bench);
    assert!(events.iter().all(|(_, attempt)| *attempt == 1), "{events:?}");
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    let starts = ["done", "returned", "returned", "returned", "done"];
    assert_eq!(kinds, starts.map(|end| ["started", end]).concat());
}

#[test]
fn a_last_task_that_could_not_be_started_is_reported_in_the_status_after_its_pause() {
    let bench = Bench::new("unstarted");
    let options = ["--threads", "1", "--max-tasks", "1", "--json"];
    let worker = bench.worker(&options, &["true"]).start();
    worker.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    limit_descriptors(&worker, Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) });
    let starved = Instant::now();

    bench.publish(&[b"x"]);
    let output = worker.wait(SOON);

    output.assert_code(1);
    assert!(starved.elapsed() >= Duration::from_secs(1), "the next one would spin");
    let summary = output.stdout();
    let told = r#""dead":0,"done":0,"ended":"max-tasks","retried":0,"returned":1"#;
    assert!(summary.contains(told), "{summary}");
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn a_task_that_could_not_be_started_does_not_count_while_others_may_be() {
    let bench = Bench::new("uncounted");
    let options = ["--threads", "1", "--max-tasks", "2"];
    let worker = bench.worker(&options, &["echo", "up"]).start();
    worker.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    let usual = getrlimit(Resource::Nofile);
    limit_descriptors(&worker, Rlimit { current: Some(3), ..usual });
    bench.publish(&[b"1"]);
    worker.wait_for_stderr_line(|line| line.contains("is requeued in"), SOON);

    limit_descriptors(&worker, usual);
    bench.publish(&[b"2"]);
    let output = worker.wait(SOON);

    assert_eq!(output.success(), "up\nup\n");
    assert!(bench.left().is_empty());
}

fn limit_descriptors(worker: &Running, limit: Rlimit) {
    let worker = i32::try_from(worker.id()).ok().and_then(Pid::from_raw);
    prlimit(worker, Resource::Nofile, limit).expect("the parent may");
}

/// The kind of each event, and the number of the attempt.
fn events(bench: &Bench) -> Vec<(String, u64)> {
    let text = bench.read("events");
    let events = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let event = |it: Value| Some((it["event"].as_str()?.to_string(), it["attempt"].as_u64()?));
    events.map(event).collect::<Option<_>>().expect("a name and a number")
}
