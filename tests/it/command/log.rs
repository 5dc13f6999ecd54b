//! The log and the events of a worker: ids that forge lines, files that cannot be written.

use std::fs;
use std::time::{Duration, Instant};

use amiquip::AmqpProperties;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;

use super::{Bench, SOON, UNBLOCK, run_into_full_pipe, wait_until_full, worker_after};
use crate::support::broker::poll;
use crate::support::client::typed;
use crate::support::command::Command;

#[test]
fn log_lines_wait_for_room_also_where_it_is_non_blocking() {
    let bench = Bench::new("logged");
    bench.publish(&[b"x".as_slice(); 800]);
    let options = ["--threads", "1", "--prefetch", "100", "--drain", "--max-attempts", "1"];
    let worker = worker_after(&bench, &format!("exec 2>&1; {UNBLOCK}"), &options, &["false"]);

    let (output, written) = run_into_full_pipe(worker);

    output.assert_code(1);
    let told = written.lines().filter(|it| it.ends_with(" dead letters: exit status 1")).count();
    assert_eq!(told, 800);
}

#[test]
fn an_id_cannot_forge_a_line_of_the_log() {
    let bench = Bench::new("forged");
    let id = "evil\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[31m";
    let properties = AmqpProperties::default().with_message_id(id.to_owned());
    bench.broker.client().publish(&bench.queue, b"x", properties);
    let output = bench.worker(&["--drain", "--max-attempts", "1"], &["false"]).run(SOON);
    let log = output.stderr();
    assert!(log.contains("evil?2026-01-01") && !log.contains('\u{1b}'), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00")), "{log}");
}

/// A disk that was full left a part of a line.
#[test]
fn an_event_begins_a_line_of_its_own_whatever_is_there() {
    let bench = Bench::new("torn");
    for (there, lines) in [("{\"ev", 1), ("{}\n", 1), ("", 0)] {
        fs::write(bench.path("events"), there).expect("a file");
        bench.publish(&[b"x"]);
        let output = bench.worker(&["--drain", "--events", "events"], &["true"]).run(SOON);
        output.assert_code(0);
        let events = bench.read("events");
        let events: Vec<&str> = events.lines().skip(lines).collect();
        assert!(!events.is_empty());
        for event in events {
            let event: Value = serde_json::from_str(event).expect("an event");
            assert!(event["event"].is_string(), "{event}");
        }
    }
}

/// The client library's thread has records, too, and it sends the heartbeats.
#[test]
fn a_standard_error_that_nobody_reads_stops_no_heartbeats() {
    // A quorum queue would count the consumer as long as its task is in hand, and with a prefetch of
    // 1 it lasts as long.
    let bench = Bench::with_classic("heartbeats");
    bench.publish(&[b"x"]);
    let url = format!("{}?heartbeat=1", bench.broker.url());
    let worker = ["-c", "exec \"$0\" \"$@\" 2>&1", env!("CARGO_BIN_EXE_worker")];
    let options = ["--url", &url, "--queue", &bench.queue, "--threads", "1", "--prefetch", "2"];
    let command = ["--", "sh", "-c", "yes words >&2"];
    let (end, pipe) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let same = pipe.try_clone().expect("another descriptor");
    let worker = Command::program("sh", &[&worker[..], &options, &command].concat());
    let worker = worker.env("RUST_LOG", "debug").stdout(pipe).start();
    wait_until_full(&same);

    // Its own word on that waits, and what is logged waits for that.
    worker.signal("TERM");
    let client = bench.broker.client();
    client.wait_for_consumers(&bench.queue, 0, SOON);
    let begun = Instant::now();
    poll("five heartbeats and more", SOON, || {
        assert_eq!(client.count(&bench.queue), 0, "given to others after {:?}", begun.elapsed());
        (begun.elapsed() > Duration::from_secs(6)).then_some(())
    });
    worker.kill();
    drop(end);
    worker.wait(SOON);
}

#[test]
fn events_that_cannot_be_written_are_reported_once() {
    let bench = Bench::new("unwritable");
    bench.publish(&[b"1", b"2", b"3"]);

    let output = bench.worker(&["--drain", "--events", "/dev/full"], &["true"]).run(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert_eq!(stderr.matches("--events cannot be written").count(), 1, "{stderr}");
}

#[test]
fn a_log_in_json_has_the_task_and_the_reason_in_fields_of_their_own() {
    let bench = Bench::new("json-log");
    let json = ["--log-format", "json"];
    bench.producer(&json).args(&["--id", "one", "x"]).run(SOON).assert_code(0);
    let once = ["--drain", "--threads", "1", "--max-attempts", "1"];
    let worker =
        bench.worker(&[&json[..], &once].concat(), &["sh", "-c", "echo \"no\" >&2; exit 3"]);

    let said = worker.run(SOON).stderr();

    let records = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let records: Vec<Value> = records.collect();
    let of_task: Vec<&Value> = records.iter().filter(|it| it["task"] == "one").collect();
    let [failed] = of_task[..] else { panic!("one record of the task: {said}") };
    assert_eq!(
        (&failed["level"], &failed["queue"]),
        (&"warn".into(), &bench.queue.as_str().into())
    );
    assert_eq!((&failed["thread"], &failed["attempt"]), (&1.into(), &1.into()));
    assert!(failed["reason"].as_str().is_some_and(|it| it.contains("exit status 3")), "{failed}");
    assert!(failed["message"].as_str().is_some_and(|it| it.contains("task one")), "{failed}");
    assert!(records.iter().all(|it| it["time"].is_string()), "{said}");
    assert_eq!(said.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>(), ["no"]);
}

/// The record in JSON of a line, if its message contains this.
fn record(line: &str, wanted: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(line).ok()?;
    record["message"].as_str()?.contains(wanted).then_some(record)
}

#[test]
fn records_of_a_task_that_is_not_published_have_its_fields() {
    let bench = Bench::with_classic("json-refused");
    let client = bench.broker.client();
    let dead = format!("{}.dead", bench.queue);
    client.declare_with(&dead, typed("stream"));
    bench.producer(&["--id", "one", "x"]).run(SOON).assert_code(0);
    let options = ["--log-format", "json", "--threads", "1", "--max-attempts", "1"];

    let worker = bench.worker(&options, &["false"]).start();

    let next = |wanted: &str| {
        let line = worker.wait_for_stderr_line(|line| record(line, wanted).is_some(), SOON);
        record(&line, wanted).expect("the record")
    };
    let refused = next("could not be published to");
    let delivered_again = next("was delivered before");
    for record in [&refused, &delivered_again] {
        assert_eq!(record["queue"], bench.queue.as_str(), "{record}");
        assert_eq!(record["task"], "one", "{record}");
        assert_eq!((&record["thread"], &record["attempt"]), (&1.into(), &1.into()), "{record}");
    }
    assert!(refused["reason"].as_str().is_some_and(|it| it.contains("a stream")), "{refused}");
    worker.signal("INT");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_producer_s_record_of_a_task_that_is_not_confirmed_has_its_fields() {
    let bench = Bench::new("json-unconfirmed");
    let full = bench.full_queue(0);
    let options = ["--log-format", "json", "--no-declare", "--timeout", "500ms", "--id", "one"];
    let producer = Command::producer(&["--url", bench.broker.url(), "--queue", &full]);

    let output = producer.args(&options).arg("x").run(SOON);

    output.assert_code(1);
    let log = output.stderr();
    let record = log.lines().find_map(|line| record(line, "task one: ")).expect("its record");
    assert_eq!((&record["level"], &record["task"]), (&"error".into(), &"one".into()), "{record}");
    let (reason, message) = (record["reason"].as_str(), record["message"].as_str());
    let reason = reason.expect("a reason");
    assert_eq!(message, Some(&*format!("task one: {reason}")), "{record}");
}
