//! One program for each task: what it gets, what it writes, and how it ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

use super::{Bench, SOON, UNBLOCK, UNREAD, children, lives, run_into_full_pipe, wait_until_full};
use crate::support::broker::poll;
use crate::support::command::{Command, Running};
use crate::support::proxy::{Proxy, Toxic};

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
fn what_becomes_of_a_task_is_in_no_variable() {
    let bench = Bench::new("bookkeeping");
    bench.producer(&["--header", "k=v", "--delay", "100ms", "x"]).run(SOON).assert_code(0);
    let options = ["--max-attempts", "2", "--retry-delay", "100ms", "--drain", "--threads", "1"];

    let output = bench.worker(&options, &["sh", "-c", "env | grep TASK_HEADER; exit 1"]).run(SOON);

    output.assert_code(1);
    assert_eq!(output.stdout(), "TASK_HEADER_K=v\n".repeat(2));
}

#[test]
fn row_11_what_cannot_be_run_is_told_before_anything_is_consumed() {
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
    assert!(output.stderr().contains("no command after --"), "{}", output.stderr());
    let left = bench.left();
    assert!(left.len() == 1 && !left[0].redelivered, "nobody had it: {left:?}");
}

#[test]
fn a_script_that_the_system_cannot_execute_is_told_before_anything_is_consumed() {
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

pub(super) fn executable(bench: &Bench, name: &str, content: &[u8]) {
    fs::write(bench.path(name), content).expect("written");
    Command::program("chmod", &["+x", &bench.path(name).to_string_lossy()]).run(SOON).success();
}

/// What stands on the only dead letter.
fn last_words(bench: &Bench) -> String {
    let letters = bench.broker.client().get_all(&format!("{}.dead", bench.queue));
    assert_eq!(letters.len(), 1);
    match &letters[0].headers["x-rabbit-work-reason"] {
        AmqpValue::LongString(reason) => reason.clone(),
        other => panic!("no reason: {other:?}"),
    }
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
fn a_dead_letter_tells_how_it_ended_and_what_was_said_last() {
    let bench = Bench::new("lastwords");
    bench.publish(&[b"x"]);
    let script = "seq 1 10000 >&2; exit 65";
    bench.worker(&["--drain"], &["sh", "-c", script]).run(SOON).assert_code(1);
    let said: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    let last = said[said.len() - 4096..].trim_end();
    let wanted = format!("exit status 65; the end of its standard error: {last}");
    assert_eq!(last_words(&bench), wanted);
}

#[test]
fn a_list_of_dead_letters_shows_how_each_ended_and_what_was_said_last() {
    let bench = Bench::new("listed");
    bench.publish(&[b"exit 7", b"kill -9 $$"]);
    let options = ["--threads", "1", "--max-attempts", "1", "--drain"];
    let script = ["sh", "-c", "echo begun >&2; echo 'no such photo' >&2; eval \"$1\"", "sh", "{}"];
    bench.worker(&options, &script).run(SOON).assert_code(1);
    let list = ["--url", bench.broker.url(), "--queue", &bench.queue, "dead", "list"];

    let rows = Command::queuectl(&list).run(SOON).success();
    let letters = Command::queuectl(&list).arg("--json").run(SOON).success();

    let letters: Value = serde_json::from_str(&letters).expect("JSON");
    for (number, end) in ["exit status 7", "killed by signal 9"].iter().enumerate() {
        let said = format!("{end}; the end of its standard error: begun\nno such photo");
        assert_eq!(letters[number]["reason"], said, "{letters}");
        let row = rows.lines().nth(number + 1).unwrap_or_default();
        assert!(row.ends_with(&said.replace('\n', " ")), "{rows}");
    }
}

#[test]
fn programs_that_have_ended_are_gone_while_others_run() {
    let bench = Bench::new("reaped");
    let bodies = [&["exec sleep 600"][..], &["exit 3"; 30], &["true & kill -9 $$"; 30]].concat();
    bench.publish(&bodies.iter().map(|body| body.as_bytes()).collect::<Vec<_>>());
    let options = ["--threads", "2", "--max-attempts", "1", "--grace", "0s", "--events", "events"];
    let worker = bench.worker(&options, &["sh", "-c", "eval \"$1\"", "sh", "{}"]);
    let worker = worker.env("RUST_LOG", "error").start();

    poll("60 have ended", SOON, || {
        let events = fs::read_to_string(bench.path("events")).unwrap_or_default();
        (events.matches(r#""event":"dead""#).count() == 60).then_some(())
    });

    let children = children(worker.id());
    assert!(children.len() == 1 && lives(&children[0]), "{children:?}");
    worker.signal("TERM");
    worker.wait(SOON).assert_code(3);
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
        let goes_back = format!("attempt 1 of 5, goes back to the queue in {pause}");
        let line = worker.wait_for_stderr_line(|line| line.contains("goes back"), SOON);
        assert!(line.contains(&goes_back) && line.contains("Too many open files"), "{line}");
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
fn a_last_task_that_could_not_be_started_is_told_in_the_status_after_its_pause() {
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
    worker.wait_for_stderr_line(|line| line.contains("goes back to the queue"), SOON);

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

#[test]
fn row_10_what_a_task_leaves_in_the_background_does_not_hold_it_up() {
    let bench = Bench::new("background");
    bench.publish(&[b"x"]);
    let started = Instant::now();
    let script = "(sleep 60; true) & echo $! > pid; echo said >&2; exit 0";
    let worker = bench.worker(&["--max-tasks", "1", "--tag"], &["sh", "-c", script]);
    // The background program holds the pipe to us too.
    let worker = worker.start();
    worker.wait_for_stderr_line(|line| line.contains("1 tasks done"), SOON);
    assert!(started.elapsed() < Duration::from_secs(30));
    let pid = bench.read("pid");
    assert!(lives(&pid), "it was let be");
    Command::program("pkill", &["-P", pid.trim()]).run(SOON);
    worker.wait(SOON).assert_code(0);
}

#[test]
fn row_12_at_the_time_limit_the_whole_group_ends() {
    let bench = Bench::new("limit");
    bench.publish(&[b"x"]);
    let script = "sleep 600 & echo $! > pid; echo stuck >&2; wait";
    let options = ["--max-tasks", "1", "--task-timeout", "500ms"];
    let started = Instant::now();
    let output = bench.worker(&options, &["sh", "-c", script]).run(SOON);
    assert!(started.elapsed() < Duration::from_secs(5), "SIGTERM was enough");
    let stderr = output.stderr();
    assert!(
        stderr.contains("time limit of 500ms; the end of its standard error: stuck"),
        "{stderr}"
    );
    assert!(!lives(&bench.read("pid")));
}

#[test]
fn row_12_the_others_go_on_while_a_program_runs_into_its_time_limit() {
    let bench = Bench::new("others");
    let quick = [&b"quick"[..]; 20];
    bench.publish(&[&[&b"stuck"[..]], &quick[..]].concat());
    let script = "if [ $(cat) = quick ]; then echo quick >> order; exit; fi
        trap 'echo stuck >> order; exit 1' TERM; sleep 600 & wait";
    let options = ["--threads", "2", "--max-tasks", "21", "--task-timeout", "4s"];

    bench.worker(&options, &["sh", "-c", script]).run(SOON);

    assert_eq!(bench.read("order"), "quick\n".repeat(20) + "stuck\n");
}

#[test]
fn rows_9_and_12_a_program_that_ignores_the_time_limit_is_killed() {
    let bench = Bench::new("ignores");
    bench.publish(&[b"x"]);
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done";
    let options = ["--max-tasks", "1", "--task-timeout", "500ms"];
    let output = bench.worker(&options, &["sh", "-c", script]).run(SOON);
    assert!(output.stderr().contains("time limit"), "{}", output.stderr());
    assert!(!lives(&bench.read("pid")));
}

#[test]
fn each_line_has_its_tag() {
    let bench = Bench::new("tag");
    let properties = AmqpProperties::default().with_message_id("id-1".into());
    bench.broker.client().publish(&bench.queue, b"x", properties);
    let script = "printf 'one\\ntwo'; printf 'three' >&2";
    let options = ["--threads", "1", "--max-tasks", "1", "--tag"];
    let output = bench.worker(&options, &["sh", "-c", script]).run(SOON);
    assert_eq!(output.success(), "[1 id-1] one\n[1 id-1] two\n");
    assert!(output.stderr().contains("\n[1 id-1] three\n"), "{}", output.stderr());
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

/// Begun by a shell that does `setting` first.
fn worker_after(bench: &Bench, setting: &str, options: &[&str], command: &[&str]) -> Command {
    let script = format!("{setting}; exec \"$0\" \"$@\"");
    let worker = env!("CARGO_BIN_EXE_worker");
    let address = ["-c", &script, worker, "--url", bench.broker.url(), "--queue", &bench.queue];
    Command::program("bash", &[&address, options, &["--"], command].concat())
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

#[test]
fn where_ends_of_children_are_ignored_they_are_told_all_the_same() {
    let bench = Bench::new("ignored");
    bench.publish(&[b"0", b"65"]);
    let command = ["sh", "-c", "exit $(cat)"];
    let output = worker_after(&bench, "trap '' CHLD", &["--drain", "--json"], &command).run(SOON);
    output.assert_code(1);
    let summary: Value = serde_json::from_str(&output.stdout()).expect("a summary");
    assert_eq!((&summary["done"], &summary["dead"]), (&1.into(), &1.into()));
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

#[test]
fn a_time_limit_of_nothing_is_refused() {
    let bench = Bench::new("no-time");
    let output = bench.worker(&["--task-timeout", "0"], &["true"]).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("--task-timeout: 0 would"), "{}", output.stderr());
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

/// The task is somebody else's by then: nothing is known to be done.
#[test]
fn a_session_that_is_lost_during_the_last_task_lets_it_finish_and_is_told_in_the_status() {
    let bench = Bench::new("last");
    bench.publish(&[b"x"]);
    let proxy = Proxy::start(bench.broker.address());
    let url = proxy.url();
    let options = ["--url", &url, "--queue", &bench.queue, "--max-tasks", "1", "--grace", "0s"];
    let command = ["--", "sh", "-c", "echo up; sleep 2; echo through"];
    let worker = Command::worker(&[&options[..], &command].concat()).start();
    worker.wait_for_stdout_line(|line| line == "up", SOON);
    proxy.cut();
    worker.wait_for_stdout_line(|line| line == "through", SOON);
    worker.wait(SOON).assert_code(1);
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn the_health_file_is_there_while_all_is_well() {
    let bench = Bench::new("health");
    let file = bench.path("health");
    let options = ["--threads", "2", "--health-file", "health", "--task-timeout", "1h"];
    let worker = bench.worker(&options, &["true"]).start();
    poll("the health file", SOON, || file.exists().then_some(()));
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
    assert!(!file.exists(), "removed at exit");
    let options = ["--health-file", "no/such/folder/health"];
    bench.worker(&options, &["true"]).run(SOON).assert_code(2);
}

#[test]
fn a_health_file_that_is_no_file_is_left_alone() {
    let bench = Bench::new("device");
    bench.publish(&[b"x"]);
    symlink("/dev/null", bench.path("link")).expect("a link");
    Command::program("mkfifo", &["fifo"]).current_dir(bench.dir.path()).run(SOON).success();
    for name in ["link", "fifo", "."] {
        let output = bench.worker(&["--drain", "--health-file", name], &["true"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("not a regular file"), "{}", output.stderr());
    }
    assert!(bench.path("link").is_symlink() && bench.path("fifo").exists());
    let left = bench.left();
    assert!(left.len() == 1 && !left[0].redelivered, "nobody had it: {left:?}");
}

#[test]
fn a_health_file_of_somebody_else_s_is_left_alone() {
    let bench = Bench::new("precious");
    fs::write(bench.path("job"), "#!/bin/sh\n").expect("a file");
    let options = ["--drain", "--health-file", "job"];
    let output = bench.worker(&options, &["true"]).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("more than a process id"), "{}", output.stderr());
    assert!(bench.path("job").exists());

    let absolute = bench.path("both").display().to_string();
    for events in ["both", "./both", &absolute] {
        let options = ["--drain", "--health-file", "both", "--events", events];
        let output = bench.worker(&options, &["true"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("--events names the same file"), "{}", output.stderr());
    }

    let options = ["--drain", "--health-file", "printed"];
    let printing = worker_after(&bench, "exec >printed", &options, &["true"]);
    let output = printing.current_dir(bench.dir.path()).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("standard output or"), "{}", output.stderr());

    fs::write(bench.path("stale"), "4711\n").expect("what a killed worker leaves");
    let options = ["--drain", "--health-file", "stale"];
    bench.worker(&options, &["true"]).run(SOON).assert_code(0);
}

/// How often the health file is touched, and how old it is when it counts as stale.
const TOUCHED_EVERY: Duration = Duration::from_secs(2);
const STALE: Duration = Duration::from_secs(10);
/// For a worker that connects again, after a pause that has grown.
const LATER: Duration = Duration::from_secs(60);

#[test]
fn the_health_file_is_not_kept_fresh_while_the_connection_is_lost() {
    let bench = Bench::new("unhealthy");
    let proxy = Proxy::start(bench.broker.address());
    let file = bench.path("health");
    let options = ["--url", &proxy.url(), "--queue", &bench.queue, "--health-file", "health"];
    let worker = Command::worker(&options).args(&["--", "true"]).current_dir(bench.dir.path());
    let worker = worker.start();
    let wait_for_failed_try = || {
        worker.wait_for_stderr_line(|line| line.contains("next try in"), LATER);
    };
    poll("the health file", LATER, || file.exists().then_some(()));

    proxy.set_both(Toxic::Down);
    wait_for_failed_try();
    wait_for_failed_try();
    fs::remove_file(&file).expect("it was there");
    let removed = Instant::now();
    while removed.elapsed() < 2 * TOUCHED_EVERY {
        wait_for_failed_try();
    }
    assert!(!file.exists(), "no thread consumed");

    proxy.set_both(Toxic::Pass);
    poll("the health file again", LATER, || file.exists().then_some(()));
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn the_health_file_goes_stale_while_a_task_is_stuck_past_its_time_limit() {
    let bench = Bench::new("stuck");
    let file = bench.path("health");
    let options = "--threads 1 --health-file health --task-timeout 1s --max-attempts 1";
    let worker = bench.unread_worker(&format!("{options} -- sh -c \"$SCRIPT\""));
    let worker = worker.env("SCRIPT", UNREAD).env("RUST_LOG", "off").start();
    let age = || fs::metadata(&file).and_then(|it| it.modified()).ok()?.elapsed().ok();
    poll("the health file", SOON, age);

    bench.publish(&[b"x"]);
    worker.wait_for_stdout_line(|line| line == "up", SOON);
    poll("it is stale", LATER, || age().filter(|age| *age > STALE));

    let reader = Command::program("cat", &["full"]).current_dir(bench.dir.path()).start();
    poll("it is fresh", SOON, || age().filter(|age| *age < STALE));
    assert!(!lives(&bench.read("pid")), "its time was over");
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
    drop(reader);
}

#[test]
fn a_time_limit_of_any_length_is_taken() {
    let bench = Bench::new("longest");
    let options = ["--drain", "--health-file", "health", "--task-timeout", LONGEST];
    bench.worker(&options, &["true"]).run(SOON).assert_code(0);
}

const LONGEST: &str = "18446744073709551615s";

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
    // A quorum queue would count the consumer as long as its task is in hand.
    let bench = Bench::with_classic("heartbeats");
    bench.publish(&[b"x"]);
    let url = format!("{}?heartbeat=1", bench.broker.url());
    let worker = ["-c", "exec \"$0\" \"$@\" 2>&1", env!("CARGO_BIN_EXE_worker")];
    let options = ["--url", &url, "--queue", &bench.queue, "--threads", "1"];
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
fn events_that_cannot_be_written_are_told_once() {
    let bench = Bench::new("unwritable");
    bench.publish(&[b"1", b"2", b"3"]);

    let output = bench.worker(&["--drain", "--events", "/dev/full"], &["true"]).run(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert_eq!(stderr.matches("--events cannot be written").count(), 1, "{stderr}");
}
