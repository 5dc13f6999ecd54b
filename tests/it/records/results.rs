//! `worker --results`: a folder or a line for each task, whole or not there.

use std::fs;

use serde_json::Value;

use super::{Bench, SOON, names_in};
use crate::support::broker::poll;

const FILES: [&str; 4] = ["attempt", "exit", "stderr", "stdout"];

fn result(bench: &Bench, id: &str) -> [String; 4] {
    assert_eq!(names_in(&bench.path(&format!("out/{id}"))), FILES, "a result is whole");
    FILES.map(|name| bench.read(&format!("out/{id}/{name}")))
}

#[test]
fn each_task_has_a_folder_with_its_last_attempt() {
    let bench = Bench::new("folders");
    for (id, body) in [
        ("good", "echo result; echo remark >&2"),
        ("../bad", "echo attempt $TASK_ATTEMPT; exit 3"),
        ("never", "exit 65"),
        ("killed", "kill -9 $$"),
        ("files", "readlink /proc/self/fd/1 /proc/self/fd/2"),
    ] {
        bench.publish(id, body.as_bytes());
    }
    let options = "--drain --max-attempts 2 --retry-delay 0 --results out --events events";
    let options: Vec<&str> = options.split(' ').collect();

    let output = bench.worker(&options, &["sh", "-c", "{}"]).run(SOON);

    output.assert_code(1);
    assert_eq!(output.stdout(), "", "the output is in files");
    let names = names_in(&bench.path("out"));
    assert_eq!(names, ["%2E.%2Fbad", "files", "good", "killed", "never"]);
    assert_eq!(result(&bench, "good"), ["1\n", "0\n", "remark\n", "result\n"]);
    assert_eq!(result(&bench, "%2E.%2Fbad"), ["2\n", "3\n", "", "attempt 2\n"]);
    assert_eq!(result(&bench, "never"), ["1\n", "65\n", "", ""]);
    assert_eq!(result(&bench, "killed"), ["2\n", "137\n", "", ""]);
    let files = &result(&bench, "files")[3];
    assert!(files.contains("/stdout\n") && files.contains("/stderr\n"), "no pipes: {files}");
    check_events(&bench.read("events"));
}

fn check_events(events: &str) {
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let end_of = |task: &str, kind: &str| {
        let found = events.iter().find(|it| it["task"] == task && it["event"] == kind);
        found.map(|it| (it["exit"].as_i64(), it["signal"].as_i64(), it["bytes"].as_u64()))
    };
    assert_eq!(end_of("good", "done"), Some((Some(0), None, Some(28))));
    assert_eq!(end_of("../bad", "retried"), Some((Some(3), None, Some(34))));
    assert_eq!(end_of("never", "dead"), Some((Some(65), None, Some(7))));
    assert_eq!(end_of("killed", "dead"), Some((None, Some(9), Some(10))));
    assert_eq!(end_of("good", "started"), Some((None, None, Some(28))));
}

/// The command's own folder gets a pipe where the worker writes the exit status: it waits there,
/// after the command has ended and before the rename, until it is killed.
#[test]
fn kill_9_between_the_end_of_a_command_and_the_rename_leaves_no_half_result() {
    let bench = Bench::new("half");
    let halt = "mkfifo \"$(dirname \"$(readlink /proc/$$/fd/1)\")/exit\"";
    let first = format!("echo one; {halt}");
    let second = format!("echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || exit 3; {halt}");
    for (id, body, before) in [("first", first, None), ("second", second, Some("1\n"))] {
        bench.publish(id, body.as_bytes());
        let options = ["--threads", "1", "--retry-delay", "0", "--results", "out"];
        let worker = bench.worker(&options, &["sh", "-c", "{}"]).start();
        let halted = || {
            let names = names_in(&bench.path("out"));
            names.into_iter().find(|it| {
                it.starts_with(".tmp-") && bench.path(&format!("out/{it}/exit")).exists()
            })
        };
        let part = poll("the command has ended", SOON, || {
            bench.path("out").exists().then(halted).flatten()
        });

        worker.signal("KILL");
        worker.wait(SOON);

        match before {
            None => assert_eq!(names_in(&bench.path("out")), [part.as_str()], "no result yet"),
            Some(attempt) => {
                let [kept, exit, _, stdout] = result(&bench, id);
                assert_eq!((kept.as_str(), exit.as_str()), (attempt, "3\n"), "the one before");
                assert_eq!(stdout, "attempt 1\n");
            }
        }
        fs::remove_dir_all(bench.path("out").join(part)).expect("removed");
        bench.broker.client().wait_for_count(&bench.queue, 1, SOON);
        let rest = ["--threads", "1", "--drain", "--results", "out"];
        bench.worker(&rest, &["echo", "whole"]).run(SOON).assert_code(0);
        assert_eq!(result(&bench, id)[3], "whole\n");
        assert!(names_in(&bench.path("out")).iter().all(|it| !it.starts_with('.')));
        fs::remove_dir_all(bench.path("out")).expect("removed");
    }
}

#[test]
fn results_that_cannot_be_written_leave_the_task_in_the_queue() {
    for results in ["out", "out.jsonl"] {
        let bench = Bench::new("fullresults");
        (0..2).for_each(|n| bench.publish(&format!("id-{n}"), b""));
        let options = ["--threads", "1", "--drain", "--results", results];

        let output = bench.worker_with_file_limit(0, &options, &["true"]).run(SOON);

        output.assert_code(1);
        let stderr = output.stderr();
        assert!(stderr.contains("worker: --results cannot be written: File too large"), "{stderr}");
        assert_eq!(bench.left(), 2, "nothing was acked");
        match results {
            "out" => assert_eq!(names_in(&bench.path("out")), [""; 0]),
            _ => assert_eq!(bench.read(results), ""),
        }
    }
}

/// The record itself has room: the line holds 1 MiB of the output, and the status is another file.
#[test]
fn a_command_whose_output_found_no_room_has_not_failed() {
    for results in ["out", "out.jsonl"] {
        let bench = Bench::new("noroom");
        bench.publish("a", b"head -c 3000000 /dev/zero | tr '\\0' x; exit 3");
        let options = ["--drain", "--max-attempts", "1", "--results", results];

        let output = bench.worker_with_file_limit(2048, &options, &["sh", "-c", "{}"]).run(SOON);

        output.assert_code(1);
        let stderr = output.stderr();
        assert!(stderr.contains("worker: --results cannot be written: File too large"), "{stderr}");
        assert_eq!(bench.left(), 1, "not dead");
        match results {
            "out" => assert_eq!(names_in(&bench.path("out")), [""; 0]),
            _ => assert_eq!(bench.read(results), ""),
        }
    }
}

#[test]
fn the_output_of_a_command_is_beside_the_file_of_results() {
    let bench = Bench::new("beside");
    bench.publish("a", b"");
    let options = ["--drain", "--results", "out.jsonl"];

    bench.worker(&options, &["readlink", "/proc/self/fd/1"]).run(SOON).assert_code(0);

    let line: Value = serde_json::from_str(&bench.read("out.jsonl")).expect("JSON");
    let folder = bench.path("").canonicalize().expect("a folder");
    let file = line["stdout"].as_str().expect("text");
    assert!(file.starts_with(folder.to_str().expect("text")), "{file}");
    assert_eq!(names_in(&bench.path("")), ["out.jsonl"], "the files have no names");
}

#[test]
fn a_file_has_one_line_for_each_task_after_its_last_attempt() {
    let bench = Bench::new("lines");
    bench.publish("good", b"echo result; echo remark >&2");
    bench.publish("bad", b"echo attempt $TASK_ATTEMPT; exit 3");
    bench.publish("bytes", b"printf '\\377'");
    bench.publish("long", b"head -c 1048575 /dev/zero | tr '\\0' x; printf '\\303\\251more'");
    let options = "--drain --max-attempts 2 --retry-delay 0 --results out.jsonl";
    let options: Vec<&str> = options.split(' ').collect();

    let output = bench.worker(&options, &["sh", "-c", "{}"]).run(SOON);

    output.assert_code(1);
    assert_eq!(output.stdout(), "", "the output is in the file");
    let text = bench.read("out.jsonl");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 4, "one for each task");
    let line = |id: &str| lines.iter().find(|it| it["task"] == id).expect("a line");
    let good = line("good");
    assert_eq!((&good["exit"], &good["attempt"]), (&0.into(), &1.into()));
    assert_eq!((&good["stdout"], &good["stderr"]), (&"result\n".into(), &"remark\n".into()));
    assert!(good["host"].is_string() && good["started"].is_f64() && good["seconds"].is_f64());
    assert_eq!((&good["reason"], &good["stdout_cut"]), (&Value::Null, &Value::Null));
    let bad = line("bad");
    assert_eq!((&bad["attempt"], &bad["stdout"]), (&2.into(), &"attempt 2\n".into()));
    assert_eq!((&bad["exit"], &bad["reason"]), (&3.into(), &"exit status 3".into()));
    assert_eq!(line("bytes")["stdout_base64"], "/w==");
    let long = line("long");
    assert_eq!(long["stdout"].as_str().expect("text").len(), 1_048_575, "no half letter");
    assert_eq!(long["stdout_cut"], 6);
}

#[test]
fn a_task_that_no_command_ran_for_has_a_line_too() {
    let bench = Bench::new("unstarted");
    bench.publish("good", b"fine");
    bench.publish("nul", b"a\0b");
    bench.publish("long", &[b'x'; 4 << 20]);
    let options = ["--drain", "--results", "out.jsonl", "--joblog", "log"];

    bench.worker(&options, &["echo", "{}"]).run(SOON).assert_code(1);

    let text = bench.read("out.jsonl");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3, "one for each task: {text}");
    for id in ["nul", "long"] {
        let line = lines.iter().find(|it| it["task"] == id).expect("a line");
        assert!(line["reason"].is_string() && line["attempt"] == 1, "{line}");
        for key in ["exit", "signal", "started", "stdout"] {
            assert_eq!(line[key], Value::Null, "no command ran: {line}");
        }
    }
    assert_eq!(bench.read("log").lines().count(), 2, "the heading and the one run");
}

#[test]
fn results_that_have_no_place_are_refused_before_a_task_is_taken() {
    let bench = Bench::new("noplace");
    fs::write(bench.path("file"), "x").expect("written");
    fs::create_dir(bench.path("folder.jsonl")).expect("created");
    bench.publish("a", b"x");
    for (options, expected) in [
        (&["--results", "file"][..], "--results: file: File exists"),
        (&["--results", "folder.jsonl"], "it is not a regular file"),
        (&["--results", "-"], "it cannot be standard output; name a file"),
        (&["--results", "out", "--tag"], "cannot be used with"),
        (&["--results", "l.jsonl", "--joblog", "l.jsonl"], "--results names the same file"),
    ] {
        let output = bench.worker(&[options, &["--drain"]].concat(), &["true"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(expected), "{}", output.stderr());
    }
    assert_eq!(bench.left(), 1);
}
