//! How a program gets the body of its task, and that no body or header decides what runs.

use std::collections::BTreeSet;
use std::fs;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use super::{Bench, SOON, last_words, worker_after};

#[test]
fn a_body_arrives_byte_for_byte_whatever_its_length() {
    let bench = Bench::new("body");
    let mut bodies: Vec<Vec<u8>> = [0, 1, 65_536, 131_063, 131_064, 131_065, 262_128, 3 << 20]
        .into_iter()
        .map(|length| (0..length).map(|n: u32| (n * 7 + length) as u8).collect())
        .collect();
    bodies.extend([b"\xff\0\n\r".to_vec(), b"-rf".to_vec(), b"$(id); `id` | id".to_vec()]);
    let mut client = bench.broker.client();
    for (number, body) in bodies.iter().enumerate() {
        let properties = AmqpProperties::default().with_message_id(number.to_string());
        client.publish(&bench.queue, body, properties);
    }
    let count = bodies.len().to_string();
    let worker = bench.worker(&["--max-tasks", &count], &["sh", "-c", "cat > body.$TASK_ID"]);
    worker.run(SOON).assert_code(0);
    for (number, body) in bodies.iter().enumerate() {
        let arrived = fs::read(bench.path(&format!("body.{number}"))).expect("a body");
        assert!(arrived == *body, "body {number} of {} bytes is another", body.len());
    }
}

/// Where a body is, as its command sees it; whatever is wrong with the disk, it arrives.
#[cfg(target_os = "linux")]
#[test]
fn a_large_body_is_in_the_folder_for_temporary_files_where_that_is_fit_for_it() {
    let bench = Bench::new("tmpdir");
    let look = ["sh", "-c", "readlink /proc/self/fd/0 >> places; wc -c >> sizes"];
    let in_a_folder = bench.dir.path().to_str().expect("a text").to_string();
    for (length, folder) in [(65_535, "."), (65_536, "."), (1 << 20, "/no/such/folder")] {
        bench.broker.client().publish(&bench.queue, &vec![7; length], AmqpProperties::default());
        let worker = bench.worker(&["--max-tasks", "1"], &look).env("TMPDIR", folder);
        worker.run(SOON).assert_code(0);
    }
    let places = fs::read_to_string(bench.path("places")).expect("the places");
    let places: Vec<&str> = places.lines().collect();
    assert!(places[0].starts_with("/memfd:"), "{places:?}");
    assert!(places[1].starts_with(&in_a_folder), "{places:?}");
    assert!(places[2].starts_with("/memfd:"), "{places:?}");
    let sizes = fs::read_to_string(bench.path("sizes")).expect("the sizes");
    assert_eq!(sizes, "65535\n65536\n1048576\n");
    assert_eq!(fs::read_dir(bench.dir.path()).expect("the folder").count(), 2);
}

#[test]
fn no_body_and_no_header_can_say_what_is_run() {
    let bench = Bench::new("inject");
    let bodies: [&[u8]; 7] =
        [b"; touch PWNED", b"$(touch PWNED)", b"`touch PWNED`", b"--help", b"a b\nc", b"\"'", b"*"];
    let mut headers = FieldTable::new();
    for name in ["PATH", "LD_PRELOAD", "=x", "A\nB=c", "TASK_ID"] {
        headers.insert(name.into(), AmqpValue::LongString("/evil $(touch PWNED)".into()));
    }
    let mut client = bench.broker.client();
    for body in bodies {
        let properties = AmqpProperties::default().with_headers(headers.clone());
        client.publish(&bench.queue, body, properties);
    }
    let worker = bench
        .worker(
            &["--threads", "1", "--max-tasks", "7"],
            &["sh", "-c", "printf '%s|' \"$#\" \"$@\"; env -0 >> env", "sh", "--", "{}", "x{}y"],
        )
        .env("TASK_SECRET", "inherited");
    let written = worker.run(SOON).success();
    let wanted: String = bodies
        .iter()
        .map(|body| String::from_utf8_lossy(body))
        .map(|body| format!("3|--|{body}|x{body}y|"))
        .collect();
    assert_eq!(written, wanted);
    assert!(!bench.path("PWNED").exists());
    let environment = bench.read("env");
    let evil = environment.split('\0').filter(|variable| variable.contains("/evil"));
    let evil: BTreeSet<&str> = evil.filter_map(|it| Some(it.split_once('=')?.0)).collect();
    let prefixed = ["PATH", "LD_PRELOAD", "_X", "A_B_C", "TASK_ID"];
    let prefixed = prefixed.map(|name| format!("TASK_HEADER_{name}"));
    assert_eq!(evil, prefixed.iter().map(String::as_str).collect());
    assert!(!environment.contains("TASK_SECRET"), "inherited");
}

#[test]
fn a_command_is_part_of_the_trace_of_its_producer_and_not_of_its_worker() {
    let bench = Bench::new("trace");
    let ours = bench.producer(&["--header", "baggage=a=1", "ours"]);
    let ours = ours.env("TRACEPARENT", "00-of-the-producer").env("BAGGAGE", "b=2");
    let ours = ours.env("TRACESTATE", "vendor=1");
    ours.run(SOON).assert_code(0);
    bench.producer(&["nobody's"]).run(SOON).assert_code(0);

    let print = "echo $TRACEPARENT ${TRACESTATE-none} ${BAGGAGE-none}";
    let worker = bench.worker(&["--drain", "--threads", "1"], &["sh", "-c", print]);
    let output = worker.env("TRACEPARENT", "00-of-the-worker").env("BAGGAGE", "c=3").run(SOON);

    assert_eq!(output.success(), "00-of-the-producer vendor=1 a=1\nnone none\n");
}

#[test]
fn what_becomes_of_a_task_is_in_no_variable() {
    let bench = Bench::new("bookkeeping");
    bench.producer(&["--header", "k=v", "--delay", "100ms", "x"]).run(SOON).assert_code(0);
    let options = ["--max-attempts", "2", "--retry-delay", "100ms", "--drain", "--threads", "1"];

    let output = bench.worker(&options, &["sh", "-c", "env | grep TASK_HEADER; exit 1"]).run(SOON);

    output.assert_code(1);
    assert_eq!(output.stdout(), "TASK_HEADER_K=v\n".repeat(2));
}

#[test]
fn a_body_with_a_nul_is_no_argument_and_runs_nothing() {
    let bench = Bench::new("nul");
    bench.publish(&[b"a\0b"]);
    bench.worker(&["--drain"], &["touch", "ran", "{}"]).run(SOON).assert_code(1);
    assert!(last_words(&bench).contains("holds a NUL"));
    assert!(!bench.path("ran").exists());
}

#[test]
fn a_body_beyond_the_limit_on_files_fails_and_holds_up_no_other() {
    let bench = Bench::new("fsize");
    bench.publish(&[&[b'x'; 1 << 20], b"small\n"]);
    let options = ["--threads", "1", "--drain", "--max-attempts", "1"];
    let limited = worker_after(&bench, "ulimit -f 100", &options, &["sed", ""]).run(SOON);
    limited.assert_code(1);
    assert!(limited.stderr().contains("File too large"), "{}", limited.stderr());
    assert_eq!(limited.stdout(), "small\n");
    assert!(bench.left().is_empty());
}
