//! The error that ends a command is printed once, whatever RUST_LOG says.

use serde_json::Value;

use super::{Bench, SOON, executable};
use crate::support::command::{Command, Output};

/// What a command says of its end where nothing is logged, and where everything that matters is.
fn silenced_and_logged(command: impl Fn() -> Command) -> [Output; 2] {
    ["off", "info"].map(|level| command().env("RUST_LOG", level).run(SOON))
}

#[test]
fn what_ends_a_command_is_reported_once_whatever_is_logged() {
    let nobody = ["--url", "amqp://127.0.0.1:1"];
    let table: [(&str, Vec<&str>, i32); 3] = [
        ("producer", vec!["--timeout", "1s", "x"], 69),
        ("worker", vec!["--no-reconnect", "--", "true"], 69),
        ("queuectl", vec!["status"], 69),
    ];
    for (name, arguments, code) in table {
        let command = |format| {
            let arguments = [&nobody[..], &["--log-format", format], &arguments].concat();
            match name {
                "producer" => Command::producer(&arguments),
                "worker" => Command::worker(&arguments),
                _ => Command::queuectl(&arguments),
            }
        };
        let [silenced, logged] = silenced_and_logged(|| command("text"));
        silenced.assert_code(code);
        let stderr = silenced.stderr();
        let told = format!("{name}: no broker reached (127.0.0.1:1: ");
        assert!(stderr.starts_with(&told) && stderr.lines().count() == 1, "{name}: {stderr}");
        let stderr = logged.stderr();
        let is_end = |line: &&str| line.contains("no broker reached") && !line.contains("next try");
        let lines = stderr.lines().filter(is_end);
        let [line] = lines.collect::<Vec<_>>()[..] else { panic!("{name}: {stderr}") };
        assert!(line.starts_with(&told), "{name}: {stderr}");

        for output in silenced_and_logged(|| command("json")) {
            output.assert_code(code);
            let said = output.stderr();
            let records =
                said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            let errors: Vec<Value> = records.filter(|it| it["level"] == "error").collect();
            let [error] = &errors[..] else { panic!("{name}: {said}") };
            let message = error["message"].as_str().expect("a text");
            assert!(message.starts_with("no broker reached (127.0.0.1:1: "), "{name}: {said}");
        }
    }
}

#[test]
fn that_there_is_no_command_any_more_is_the_last_line_whatever_is_logged() {
    let bench = Bench::new("untold");
    let vanishes = || {
        executable(&bench, "once", b"#!/bin/sh\nrm once\n");
        bench.publish(&[b"first", b"second"]);
        bench.worker(&["--threads", "1"], &["./once"])
    };
    let [silenced, logged] = silenced_and_logged(vanishes);
    assert_eq!(silenced.stderr().lines().count(), 1, "{}", silenced.stderr());
    // The moment when it happened, which may be long before the end.
    let when = " ERROR the worker ends: the command ./once cannot be executed";
    assert_eq!(logged.stderr().matches(when).count(), 1, "{}", logged.stderr());
    for output in [silenced, logged] {
        output.assert_code(2);
        let stderr = output.stderr();
        let told = "worker: the command ./once cannot be executed";
        assert!(stderr.lines().last().is_some_and(|line| line.starts_with(told)), "{stderr}");
        assert_eq!(stderr.matches(told).count(), 1, "{stderr}");
    }
}

#[test]
fn how_far_it_came_is_reported_whatever_is_logged() {
    let bench = Bench::new("howfar");
    let producer = || bench.producer(&["--lines"]).stdin([&vec![b'x'; 129 << 20][..]].concat());
    let [silenced, _] = silenced_and_logged(producer);
    silenced.assert_code(1);
    let told = "producer: line 1 is not published: it has more than 134217728 bytes\n";
    assert_eq!(silenced.stderr(), told);
}
