//! What programs write: tagged lines, full pipes, and outputs that nobody reads any more.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use amiquip::AmqpProperties;

use super::{Bench, SOON, UNBLOCK, run_into_full_pipe, worker_after};
use crate::support::command::Command;

#[test]
fn each_line_has_its_tag() {
    let bench = Bench::new("tag");
    let properties = AmqpProperties::default().with_message_id("id-1".into());
    bench.broker.client().publish(&bench.queue, b"x", properties);
    let script = "printf 'one\\ntwo'; printf 'three' >&2";
    let options = ["--threads", "1", "--max-tasks", "1", "--tag"];
    let output = bench.worker(&options, &["sh", "-c", script]).run(SOON);
    assert_eq!(output.success(), "[1 id-1] one\n[1 id-1] two\n");
    assert!(output.stderr().lines().any(|it| it == "[1 id-1] three"), "{}", output.stderr());
}

#[test]
fn whole_lines_of_many_tasks_do_not_mix() {
    let bench = Bench::new("lines");
    let bodies: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    bench.publish(&bodies.iter().map(String::as_bytes).collect::<Vec<_>>());
    let script = "for n in $(seq 200); do echo \"$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0\" >&2; done";
    let options = ["--threads", "4", "--max-tasks", "8"];
    let output = bench.worker(&options, &["sh", "-c", script, "{}"]).run(SOON);
    output.assert_code(0);
    let stderr = output.stderr();
    let lines = stderr.lines().filter(|line| !line.contains("INFO"));
    let whole = |line: &str| line.len() == 16 && line.bytes().all(|it| it == line.as_bytes()[0]);
    assert_eq!(lines.filter(|line| whole(line)).count(), 8 * 200, "{stderr}");
}

#[test]
fn lines_as_long_as_a_pipe_takes_whole_do_not_mix_on_standard_output() {
    let bench = Bench::new("pipebuf");
    let bodies: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    bench.publish(&bodies.iter().map(String::as_bytes).collect::<Vec<_>>());
    // Each line is one write of 4096 bytes, into a pipe that is full: its reader takes little.
    let script =
        "yes \"$(printf %04095d \"$0\")\" | dd bs=4096 iflag=fullblock count=25 status=none";
    let reader = "\"$0\" \"$@\" | dd bs=500 status=none";
    let address = ["--url", bench.broker.url(), "--queue", &bench.queue];
    let options = ["--threads", "4", "--max-tasks", "8", "--", "sh", "-c", script, "{}"];
    let worker = ["-c", reader, env!("CARGO_BIN_EXE_worker")];
    let output = Command::program("sh", &[&worker[..], &address, &options].concat()).run(SOON);
    let written = output.success();
    let mut lines: Vec<&str> = written.lines().collect();
    lines.sort_unstable();
    let wanted = bodies.iter().flat_map(|body| vec![format!("{body:0>4095}"); 25]);
    assert!(lines == wanted.collect::<Vec<_>>(), "lines are mixed");
}

#[test]
fn what_is_passed_on_waits_for_room_also_where_a_command_has_made_it_non_blocking() {
    let bench = Bench::new("unblocked");
    bench.publish(&[b"x"]);
    let script = format!("{UNBLOCK}; seq 100000 >&2");
    let worker = worker_after(&bench, "exec 2>&1", &["--drain"], &["sh", "-c", &script]);

    let (output, written) = run_into_full_pipe(worker.env("RUST_LOG", "off"));

    output.assert_code(0);
    let wanted: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(written == wanted, "{} bytes of {}", written.len(), wanted.len());
}

#[test]
fn tagged_output_waits_for_room_also_where_it_is_non_blocking() {
    let bench = Bench::new("untagged");
    bench.publish(&[b"x"]);
    let options = ["--threads", "1", "--drain", "--tag"];
    let worker = worker_after(&bench, UNBLOCK, &options, &["seq", "100000"]);

    let (output, written) = run_into_full_pipe(worker);

    output.assert_code(0);
    let wanted: String = (1..=100_000).map(|n| format!("[1 -] {n}\n")).collect();
    assert!(written == wanted, "{} bytes of {}", written.len(), wanted.len());
}

#[test]
fn tagged_output_that_is_lost_leaves_its_task_in_the_queue() {
    let bench = Bench::new("full");
    bench.publish(&[b"x"]);
    let worker = env!("CARGO_BIN_EXE_worker");
    let script = "exec \"$0\" \"$@\" > /dev/full";
    let url = bench.broker.url();
    let arguments = ["-c", script, worker, "--url", url, "--queue", &bench.queue, "--tag"];
    let output =
        Command::program("sh", &[&arguments[..], &["--", "echo", "hi"]].concat()).run(SOON);
    output.assert_code(1);
    assert!(output.stderr().contains("No space left"), "{}", output.stderr());
    assert_eq!(bench.left().len(), 1, "nothing was acked");
}

#[test]
fn when_nobody_reads_the_output_any_more_the_worker_stops_and_no_task_suffers() {
    let bench = Bench::new("head");
    let bodies: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    bench.publish(&bodies.iter().map(String::as_bytes).collect::<Vec<_>>());
    let script = "{ \"$0\" \"$@\"; echo status $? >&2; } | head -n 1";
    let worker = env!("CARGO_BIN_EXE_worker");
    let address = ["-c", script, worker, "--url", bench.broker.url(), "--queue", &bench.queue];
    let arguments = [&address[..], &["--threads", "2", "--", "echo", "hi"]].concat();
    let output = Command::program("sh", &arguments).run(SOON);
    assert_eq!(output.success(), "hi\n");
    assert!(output.stderr().contains("status 1"), "{}", output.stderr());
    assert!(!output.stderr().contains("is tried again"), "{}", output.stderr());
    let left = bench.left().len();
    assert!((100..200).contains(&left), "{left} left");
}

#[test]
fn a_socket_that_nobody_reads_any_more_stops_the_worker_and_no_task_suffers() {
    let bench = Bench::new("socket");
    bench.publish(&[b"1", b"2", b"3"]);
    let (reader, socket) = UnixStream::pair().expect("a pair of sockets");
    drop(reader);
    let options = ["--threads", "1", "--drain", "--max-attempts", "1"];

    let worker = bench.worker(&options, &["/bin/echo", "hi"]).stdout(OwnedFd::from(socket));
    let output = worker.run(SOON);

    output.assert_code(1);
    assert!(output.stderr().contains("nobody reads standard output"), "{}", output.stderr());
    assert_eq!(bench.left().len(), 3);
}

#[test]
fn a_socket_that_is_read_is_no_reason_to_stop_where_a_command_fails() {
    let bench = Bench::new("read");
    bench.publish(&[b"1", b"2"]);
    let (_reader, socket) = UnixStream::pair().expect("a pair of sockets");
    let options = ["--threads", "1", "--drain", "--max-attempts", "1", "--json"];

    let output = bench.worker(&options, &["false"]).stdout(OwnedFd::from(socket)).run(SOON);

    output.assert_code(1);
    assert!(output.stderr().contains("2 dead"), "{}", output.stderr());
}

#[test]
fn closed_standard_output_is_no_place_for_what_is_tagged() {
    let bench = Bench::new("closed");
    bench.publish(&[b"x"]);
    for setting in ["exec >&-", "exec 1</dev/zero", "exec 2>&-", "exec 2</dev/zero"] {
        let output =
            worker_after(&bench, setting, &["--tag", "--drain"], &["echo", "hi"]).run(SOON);
        output.assert_code(2);
        assert!(setting.contains('2') || output.stderr().contains("--tag: standard output"));
        assert_eq!(bench.broker.client().count(&bench.queue), 1, "still there");
    }
    // What a command writes to its own standard output is its own matter.
    let output =
        worker_after(&bench, "exec >&-", &["--json", "--drain"], &["echo", "hi"]).run(SOON);
    output.assert_code(0);
    assert!(bench.left().is_empty());
}

/// Without a command the worker itself writes what it received. A closed one cannot be told from
/// what Python's `subprocess.DEVNULL` is.
#[test]
fn standard_output_that_cannot_be_written_is_no_place_for_what_is_received() {
    let bench = Bench::new("unseen");
    bench.publish(&[b"x"]);
    let after = |setting: &str| {
        let script = format!("{setting}; exec \"$0\" \"$@\"");
        let worker = env!("CARGO_BIN_EXE_worker");
        let address = ["-c", &script, worker, "--url", bench.broker.url(), "--queue", &bench.queue];
        Command::program("bash", &[&address[..], &["--print", "--drain"]].concat()).run(SOON)
    };

    let output = after("exec 1</dev/null");
    output.assert_code(2);
    assert!(output.stderr().contains("standard output: it is not open"), "{}", output.stderr());
    assert_eq!(bench.broker.client().count(&bench.queue), 1, "still there");
    after("exec 1<>/dev/null").assert_code(0);
    assert!(bench.left().is_empty());
}
