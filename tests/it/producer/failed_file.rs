//! The file of `--failed`, which holds each task that was not published.

use std::fs;

use super::{SOON, errors, json};
use crate::support::broker::poll;
use crate::support::command::Command;
use crate::support::proxy::{Direction, Proxy};
use crate::support::scripted::{ScriptedBroker, Tuning};
use crate::support::wire::Call;

#[test]
fn the_input_is_not_overwritten_by_what_failed_whatever_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("input");
    fs::write(&path, "kept\n").expect("a file");
    fs::hard_link(&path, dir.path().join("other")).expect("a second name");
    let script = format!("exec '{}' --lines --failed other <input", env!("CARGO_BIN_EXE_producer"));

    let redirected = Command::program("sh", &["-c", &script]).current_dir(dir.path()).run(SOON);
    let named = Command::producer(&["--lines", "input", "--failed", "other"])
        .current_dir(dir.path())
        .run(SOON);

    for output in [redirected, named] {
        output.assert_code(2);
        assert!(errors(&output)[0].contains("overwrite the input"), "{}", output.stderr());
    }
    assert_eq!(fs::read(&path).expect("the input"), b"kept\n");
}

#[test]
fn what_failed_is_not_written_over_what_is_printed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("both");
    fs::write(&path, "kept\n").expect("a file");
    for stream in ["", "2"] {
        let to = ["--lines", "--failed", "both"].join(" ");
        let script = format!("exec '{}' {to} {stream}>>both", env!("CARGO_BIN_EXE_producer"));
        let output = Command::program("sh", &["-c", &script]).current_dir(dir.path()).run(SOON);
        output.assert_code(2);
        let told = fs::read_to_string(&path).expect("text") + &output.stderr();
        assert!(told.starts_with("kept\n") && told.contains("goes to that file"), "{told}");
    }
}

#[test]
fn when_it_gives_up_the_rest_of_the_input_is_in_failed() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let publish = session.read_publish();
        session.ack(publish.channel, 1);
        // The second is taken, and nothing is said of it.
        session.read_publish();
        let _ = session.answer_rpcs();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let lines: Vec<String> = (0..5000).map(|number| format!("{number}\n")).collect();

    let output = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--window", "1", "--timeout", "5s", "--failed", &failed.to_string_lossy()])
        .stdin(lines.concat())
        .run(SOON);

    output.assert_code(1);
    assert_eq!(
        (&json(&output)["unconfirmed"], &json(&output)["confirmed"]),
        (&4999.into(), &1.into())
    );
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), lines[1..].concat());
}

#[test]
fn when_no_broker_is_reached_the_input_is_in_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let input: String = (0..5000).map(|number| format!("{number}\n")).collect();

    let output = Command::producer(&["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "--lines"])
        .args(&["--failed", &failed.to_string_lossy()])
        .stdin(input.clone())
        .run(SOON);

    output.assert_code(69);
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), input);
}

/// Nobody reads its output, so there is no orderly end.
#[test]
fn stopped_while_it_cannot_print_it_reports_how_far_it_came_and_keeps_what_failed() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let first = session.read_publish();
        let channel = session.read_publish().channel;
        session.return_message(&first, 312, "NO_ROUTE");
        session.ack(channel, 1);
        session.ack(channel, 2);
        let _ = session.answer_rpcs();
        session.stay_silent();
    });
    let dir = tempfile::tempdir().expect("a directory");
    // dd fills the pipe and fails; fd 3 keeps it open.
    let script = format!(
        "mkfifo full; exec 3<>full; dd if=/dev/zero of=full bs=4096 oflag=nonblock 2>&-; \
         exec '{}' --url '{}' --repeat 200000 --window 2 --timeout 1s --failed failed task >full",
        env!("CARGO_BIN_EXE_producer"),
        broker.url()
    );
    let running = Command::program("sh", &["-c", &script]).current_dir(dir.path()).start();
    let failed = || fs::read_to_string(dir.path().join("failed")).ok();
    poll("it is kept", SOON, || failed().filter(|kept| kept == "task\n"));

    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(1);
    let said = output.stderr();
    let (_, told) = said.split_once("exited early after ").expect("how far it came");
    let counts = told.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let counts: Vec<u64> = counts.collect();
    assert_eq!(counts[0] - counts[1], 2, "{said}");
    assert_eq!(failed().as_deref(), Some("task\n"));
}

/// The broker reads nothing of it.
#[test]
fn a_second_signal_in_the_middle_of_a_large_task_leaves_it_in_failed() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake_with(Tuning { frame_max: 4096, ..Tuning::default() });
        while let Some(method) = session.next_method() {
            session.answer(&method);
            if matches!(method.call, Call::ConfirmSelect { .. }) {
                break;
            }
        }
        session.stay_silent();
    });
    let proxy = Proxy::start(broker.address());
    let dir = tempfile::tempdir().expect("a directory");
    let body = vec![b'x'; 64 << 20];
    fs::write(dir.path().join("body"), &body).expect("written");
    let options = ["--url", &proxy.url(), "--body-file", "body", "--failed", "failed"];
    let running = Command::producer(&options).current_dir(dir.path()).start();
    proxy.wait_for_bytes(Direction::ToBroker, 100_000, SOON);

    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(130);
    assert!(fs::read(dir.path().join("failed")).expect("the failed") == body, "{output:?}");
}
