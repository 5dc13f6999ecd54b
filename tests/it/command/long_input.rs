//! Input that is only partly published: too long tasks, and where to continue after a stop.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::{Bench, SOON};
use crate::support::broker::poll;
use crate::support::client::Message;
use crate::support::command::Command;

/// More than a broker takes.
const TOO_LONG: u64 = 400 << 20;

/// A file with a line before and one behind a line that is too long, of NULs that take no room.
fn holey(bench: &Bench) {
    let file = File::create(bench.path("lines")).expect("a file");
    file.write_all_at(b"first\n", 0).expect("written");
    file.write_all_at(b"\nlast\n", TOO_LONG).expect("written");
}

fn summary(json: &str) -> Value {
    serde_json::from_str(json).expect("JSON")
}

#[test]
fn a_line_that_is_too_long_is_reported_and_neither_held_in_memory_nor_in_the_way() {
    let bench = Bench::new("toolong");
    holey(&bench);
    let mut producer = bench.producer(&["--lines", "/dev/stdin", "--json"]).open_stdin().start();
    // Kept open to the end, so that its memory can be asked for.
    let mut file = File::open(bench.path("lines")).expect("a file");
    producer.feed(&mut file);
    producer.write(b"after\n");
    poll("the last is in the queue", SOON, || {
        (bench.broker.client().count(&bench.queue) == 3).then_some(())
    });
    assert!(producer.peak_memory() < 250 << 20, "{} bytes", producer.peak_memory());
    producer.end_input();
    let output = producer.wait(SOON);

    output.assert_code(1);
    let told = "line 2 is not published: it has more than 134217728 bytes";
    assert!(output.stderr().contains(told), "{}", output.stderr());
    let left: Vec<String> = bench.left().iter().map(Message::text).collect();
    assert_eq!(left, ["first", "last", "after"]);
    let summary = summary(&output.stdout());
    assert_eq!((&summary["confirmed"], &summary["unconfirmed"]), (&3.into(), &1.into()));
}

#[test]
fn what_is_too_long_is_in_failed_byte_for_byte() {
    let bench = Bench::new("toolongfailed");
    let too_long = vec![b'x'; (128 << 20) + 1];
    // At the end of the input one needs no end of its own.
    for (option, end) in [("--lines", b'\n'), ("--null", 0)] {
        let input = [&b"first"[..], &[end], &too_long, &[end], b"last", &[end], &too_long].concat();
        let output = bench.producer(&["--failed", "failed", option]).stdin(input).run(SOON * 2);
        output.assert_code(1);
        let failed = std::fs::read(bench.path("failed")).expect("a file");
        let wanted = [&too_long[..], &[end], &too_long, &[end]].concat();
        assert!(failed == wanted, "{option}: {} bytes", failed.len());
        let left: Vec<String> = bench.left().iter().map(Message::text).collect();
        assert_eq!(left, ["first", "last"], "{option}");
    }
}

#[test]
fn a_stop_in_the_middle_of_what_is_too_long_is_heeded() {
    let bench = Bench::new("toolongstop");
    let options = ["--lines", "/dev/zero", "--json"];
    let producer = bench.producer(&options).start();
    producer.wait_for_stderr_line(|line| line.contains("line 1 is not published"), SOON);
    producer.signal("TERM");
    producer.wait_for_stderr_line(|line| line.ends_with("continue with line 2"), SOON);
    producer.wait(SOON).assert_code(1);
}

#[test]
fn after_a_stop_the_log_and_the_summary_say_where_to_go_on() {
    for (option, unit, end) in [("--lines", "line", "\n"), ("--null", "task", "\0")] {
        let bench = Bench::new("goon");
        let mut producer = bench.producer(&[option, "--json"]).open_stdin().start();
        producer.write(format!("1{end}2{end}3{end}half").as_bytes());
        poll("all are in the queue", SOON, || {
            (bench.broker.client().count(&bench.queue) == 3).then_some(())
        });
        producer.signal("INT");
        let told = format!("stopped after 3 tasks were read; continue with {unit} 4");
        producer.wait_for_stderr_line(|line| line.ends_with(&told), SOON);
        let output = producer.wait(SOON);
        output.assert_code(1);
        assert_eq!(summary(&output.stdout())["read"], 3);
        assert_eq!(bench.left().len(), 3);
    }
}

#[test]
fn what_was_not_published_is_read_all_the_same_where_failed_has_it() {
    let bench = Bench::new("readall");
    let unreached = ["--url", "amqp://127.0.0.1:1", "--timeout", "1s"];
    let options = ["--lines", "--json", "--failed", "failed"];
    let producer = Command::producer(&[unreached, options].concat());
    let output = producer.current_dir(bench.dir.path()).stdin("1\n2\n3\n").run(SOON);
    output.assert_code(69);
    assert_eq!(summary(&output.stdout())["read"], 3);
    assert_eq!(bench.read("failed"), "1\n2\n3\n");
}
