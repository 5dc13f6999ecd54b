//! What a producer reads from files and pipes, what it sends along, what it writes to `--failed`.

use std::fs;

use amiquip::AmqpValue;

use super::{Bench, SOON, UNBLOCK, run_into_full_pipe};
use crate::support::broker::poll;
use crate::support::command::Command;

fn texts(bench: &Bench) -> Vec<String> {
    bench.left().iter().map(crate::support::client::Message::text).collect()
}

#[test]
fn lines_and_nul_separated_tasks_are_taken_byte_for_byte() {
    let bench = Bench::new("pieces");
    bench.producer(&["--lines"]).stdin("a\r\n\n b ").run(SOON).assert_code(0);
    assert_eq!(texts(&bench), ["a\r", "", " b "]);
    bench.producer(&["--null"]).stdin(&b"a\nb\0\0c\xff"[..]).run(SOON).assert_code(0);
    let bodies: Vec<Vec<u8>> = bench.left().into_iter().map(|it| it.body).collect();
    assert_eq!(bodies, [&b"a\nb"[..], b"", b"c\xff"]);
    bench.producer(&["--lines"]).run(SOON).assert_code(0);
    assert!(bench.left().is_empty());
}

#[test]
fn standard_input_that_is_none_is_a_usage_error_and_an_empty_one_is_not() {
    let bench = Bench::new("stdin");
    for input in [&["--lines"][..], &["--null"], &["--body-file", "-"]] {
        for setting in ["exec <&-", "exec 0>>written"] {
            let output = producer_after(&bench, setting, input).run(SOON);
            output.assert_code(2);
            assert!(output.stderr().contains("standard input is closed"), "{}", output.stderr());
        }
        assert_eq!(bench.broker.client().count(&bench.queue), 0, "{input:?}");
        producer_after(&bench, "exec </dev/null", input).run(SOON).assert_code(0);
    }
    assert_eq!(texts(&bench), [""], "the whole of an empty input is a task");
    // Where the tasks come from elsewhere, it does not matter.
    producer_after(&bench, "exec <&-", &["x"]).run(SOON).assert_code(0);
}

/// Begun by a shell that does `setting` first.
fn producer_after(bench: &Bench, setting: &str, options: &[&str]) -> Command {
    let script = format!("{setting}; exec \"$0\" \"$@\"");
    let producer = env!("CARGO_BIN_EXE_producer");
    let address = ["-c", &script, producer, "--url", bench.broker.url(), "--queue", &bench.queue];
    Command::program("bash", &[&address, options].concat()).current_dir(bench.dir.path())
}

#[test]
fn what_was_sent_is_reported_also_where_standard_output_is_non_blocking() {
    let bench = Bench::new("told");

    let producer = producer_after(&bench, UNBLOCK, &["--repeat", "10000", "x"]);
    let (output, written) = run_into_full_pipe(producer);

    output.assert_code(0);
    assert!(written == " [x] Sent 'x'\n".repeat(10_000), "{} bytes", written.len());
}

#[test]
fn a_directory_is_no_input_and_leaves_what_had_failed() {
    let bench = Bench::new("folder");
    fs::write(bench.path("failed"), "precious\n").expect("written");
    let options = ["--failed", "failed", "--lines"];

    for (setting, input) in [(":", "."), ("exec <.", "-")] {
        let output = producer_after(&bench, setting, &options).arg(input).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("it is a directory"), "{}", output.stderr());
        assert_eq!(bench.read("failed"), "precious\n");
    }
}

#[test]
fn what_would_be_taken_for_something_else_is_refused() {
    let bench = Bench::new("taken");
    let table = [
        (["--failed", "-"], "write /dev/stdout"),
        (["--header", "x-rabbit-work-attempts=4"], "workers use the names"),
        (["--timeout", "5M"], "M is for months"),
        (["--timeout", "0"], "0 leaves no time to reach a broker"),
    ];
    for (option, told) in table {
        let output = bench.producer(&[&option[..], &["x"]].concat()).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(told), "{option:?}: {}", output.stderr());
    }
    let output = bench.worker(&["--events", "-"], &["true"]).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("write /dev/stdout"), "{}", output.stderr());
    assert!(!bench.path("-").exists());
}

#[test]
fn a_file_is_one_task() {
    let bench = Bench::new("file");
    let body: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    fs::write(bench.path("body"), &body).expect("written");
    bench.producer(&["--body-file", "body"]).run(SOON).assert_code(0);
    bench.producer(&["--body-file", "-"]).stdin(body.clone()).run(SOON).assert_code(0);
    let left = bench.left();
    assert!(left.len() == 2 && left.iter().all(|it| it.body == body));
    let missing = bench.producer(&["--body-file", "missing"]).run(SOON);
    missing.assert_code(2);
    assert!(missing.stderr().contains("missing: No such file"), "{}", missing.stderr());
}

#[test]
fn properties_travel_with_each_task() {
    let bench = Bench::new("properties");
    let options = "--header a=1 --header b=x=y --content-type text/plain --priority 7 \
                   --expiration 90s x";
    let options: Vec<&str> = options.split_whitespace().collect();
    bench.producer(&options).run(SOON).assert_code(0);
    let left = bench.left();
    let message = &left[0];
    assert_eq!(message.headers["a"], AmqpValue::LongString("1".into()));
    assert_eq!(message.headers["b"], AmqpValue::LongString("x=y".into()));
    assert_eq!(message.properties.content_type().as_deref(), Some("text/plain"));
    assert_eq!(*message.properties.priority(), Some(7));
    assert_eq!(message.properties.expiration().as_deref(), Some("90000"));
    bench.producer(&["--header", "novalue", "x"]).run(SOON).assert_code(2);
}

#[test]
fn what_the_broker_would_not_take_is_refused_here() {
    let bench = Bench::new("refused");
    for (options, why) in [
        (["--expiration", "10000000000s"], "10 years"),
        (["--header", "CC=foo"], "CC"),
        (["--header", "BCC=foo"], "BCC"),
        (["--delay", "100d"], "42 days"),
    ] {
        let output = bench.producer(&options).arg("x").run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(why), "{}", output.stderr());
    }
    bench.producer(&["--expiration", "3650d", "x"]).run(SOON).assert_code(0);
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn what_failed_before_stays_when_the_input_cannot_be_read() {
    let bench = Bench::new("keep");
    fs::write(bench.path("keep"), "kept\n").expect("written");
    for input in ["--lines", "--body-file"] {
        bench.producer(&[input, "missing", "--failed", "keep"]).run(SOON).assert_code(2);
    }
    assert_eq!(bench.read("keep"), "kept\n");
}

#[test]
fn what_could_not_be_fed_again_as_it_was_is_a_usage_error() {
    let bench = Bench::new("again");
    fs::write(bench.path("body"), "body").expect("written");
    for options in [&["--body-file", "body", "--repeat", "2"][..], &["two\nlines"]] {
        let output = bench.producer(&["--failed", "failed"]).args(options).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("--failed: "), "{}", output.stderr());
    }
    assert!(bench.left().is_empty() && !bench.path("failed").exists());
}

#[test]
fn what_was_not_confirmed_can_be_fed_again_and_nothing_else() {
    let bench = Bench::new("failed");
    let full = bench.full_queue(3);
    let input: Vec<String> = (0..50).map(|n| format!("task\n{n}")).collect();
    let options = ["--queue", &full, "--no-declare", "--null", "--failed", "failed", "--json"];
    // What is refused is tried again until then.
    let address = ["--url", bench.broker.url(), "--timeout", "2s"];
    let producer = Command::producer(&[&address[..], &options].concat());
    let output = producer.current_dir(bench.dir.path()).stdin(input.join("\0")).run(SOON);
    output.assert_code(1);
    let on_queue = bench.broker.client().get_all(&full);
    let on_queue: Vec<String> = on_queue.iter().map(|it| it.text()).collect();
    let failed = bench.read("failed");
    assert!(failed.ends_with('\0'));
    let failed: Vec<&str> = failed.trim_end_matches('\0').split('\0').collect();
    let mut both: Vec<&str> = on_queue.iter().map(String::as_str).chain(failed.clone()).collect();
    both.sort_unstable();
    let mut wanted: Vec<&str> = input.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    assert_eq!(both, wanted, "each task is in exactly one place");
    let summary: serde_json::Value = serde_json::from_str(&output.stdout()).expect("JSON");
    assert_eq!(summary["nacked"], failed.len());
    bench.producer(&["--null"]).stdin(failed.join("\0")).run(SOON).assert_code(0);
    assert_eq!(texts(&bench), failed);
}

#[test]
fn stopped_it_reports_how_far_it_came_and_loses_nothing_up_to_there() {
    let bench = Bench::new("stopped");
    let mut producer =
        bench.producer(&["--lines", "--failed", "failed", "--json"]).open_stdin().start();
    let lines: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    producer.write(format!("{}\n", lines.join("\n")).as_bytes());
    poll("all are in the queue", SOON, || {
        (bench.broker.client().count(&bench.queue) == 1000).then_some(())
    });
    producer.signal("INT");
    producer.wait_for_stderr_line(|line| line.contains("stopped after 1000 tasks"), SOON);
    let output = producer.wait(SOON);
    output.assert_code(1);
    assert_eq!(bench.read("failed"), "");
    assert_eq!(texts(&bench), lines);
}

#[test]
fn stopped_in_the_middle_each_task_that_was_read_is_on_the_queue_or_in_failed() {
    let bench = Bench::new("middle");
    let full = bench.full_queue(2000);
    let lines: Vec<String> = (0..200_000).map(|n| n.to_string()).collect();
    fs::write(bench.path("lines"), lines.join("\n")).expect("written");
    let to = ["--url", bench.broker.url(), "--queue", &full, "--no-declare"];
    let options = ["--lines", "lines", "--failed", "failed", "--json", "--timeout", "5s"];
    let producer = Command::producer(&[&to[..], &options].concat());
    let producer = producer.current_dir(bench.dir.path()).start();
    poll("the queue is full", SOON, || (bench.broker.client().count(&full) >= 2000).then_some(()));

    producer.signal("INT");
    let told = producer.wait_for_stderr_line(|line| line.contains("stopped after"), SOON);
    let output = producer.wait(SOON);

    output.assert_code(1);
    let words = told.split_once("stopped after ").expect("a count").1;
    let read: usize = words.split(' ').next().and_then(|it| it.parse().ok()).expect("a count");
    assert!(read < lines.len(), "not in the middle: {told}");
    let summary: serde_json::Value = serde_json::from_str(&output.stdout()).expect("JSON");
    let count = |field: &str| summary[field].as_u64().expect("a count") as usize;
    let on_queue = bench.broker.client().get_all(&full);
    let failed = bench.read("failed");
    assert_eq!(on_queue.len(), count("confirmed"), "{summary}");
    let not_confirmed = count("nacked") + count("returned") + count("unconfirmed");
    assert_eq!(failed.lines().count(), not_confirmed, "{summary}");
    let mut both: Vec<String> = on_queue.iter().map(|it| it.text()).collect();
    both.extend(failed.lines().map(str::to_string));
    both.sort_unstable_by_key(|it| it.parse().unwrap_or(usize::MAX));
    assert!(both == lines[..read], "{} tasks, of {read} that were read", both.len());
}
