//! The error that ends a command is printed once, whatever RUST_LOG says.

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
        let command = || {
            let arguments = [&nobody[..], &arguments].concat();
            match name {
                "producer" => Command::producer(&arguments),
                "worker" => Command::worker(&arguments),
                _ => Command::queuectl(&arguments),
            }
        };
        let [silenced, logged] = silenced_and_logged(command);
        silenced.assert_code(code);
        let stderr = silenced.stderr();
        let told = format!("{name}: no broker reached (127.0.0.1:1: ");
        assert!(stderr.starts_with(&told) && stderr.lines().count() == 1, "{name}: {stderr}");
        let stderr = logged.stderr();
        assert_eq!(stderr.matches(" ERROR no broker reached").count(), 1, "{name}: {stderr}");
        assert!(!stderr.contains(&told), "{name}: {stderr}");
    }
}

#[test]
fn that_there_is_no_command_any_more_is_reported_once_whatever_is_logged() {
    let bench = Bench::new("untold");
    let vanishes = || {
        executable(&bench, "once", b"#!/bin/sh\nrm once\n");
        bench.publish(&[b"first", b"second"]);
        bench.worker(&["--threads", "1"], &["./once"])
    };
    for (output, before) in silenced_and_logged(vanishes).iter().zip(["worker: ", "ends: "]) {
        output.assert_code(2);
        let stderr = output.stderr();
        let told = format!("{before}the command ./once cannot be executed");
        assert_eq!(stderr.matches(&told).count(), 1, "{stderr}");
        assert_eq!(stderr.contains("worker: "), before == "worker: ", "{stderr}");
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
