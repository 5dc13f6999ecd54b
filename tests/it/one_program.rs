//! `rabbit-work`: the commands as its subcommands, and by the names of links to it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};

const SOON: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_rabbit-work");

/// A folder with links to the program, each with the name of a command.
fn links() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    for name in ["producer", "worker", "queuectl"] {
        symlink(PROGRAM, folder.path().join(name)).expect("a link");
    }
    folder
}

/// Runs a command by each of its names: as a subcommand, and as a link.
fn both(links: &Path, name: &str, subcommand: &str, arguments: &[&str]) -> [Output; 2] {
    let link = links.join(name);
    let long = [&[subcommand], arguments].concat();
    [
        Command::program(PROGRAM, &long).run(SOON),
        Command::program(link.to_str().expect("a path in UTF-8"), arguments).run(SOON),
    ]
}

#[test]
fn every_command_works_as_a_subcommand_and_by_the_name_of_a_link() {
    let (broker, links) = (shared_broker(), links());
    let queue = unique_queue("oneprogram");
    let to = ["--url", broker.url(), "--queue", &queue];
    let run = |name, subcommand, arguments: &[&str]| {
        both(links.path(), name, subcommand, &[&to, arguments].concat()).map(|it| it.success())
    };

    run("producer", "producer", &["a task"]);
    for status in run("queuectl", "queue", &["status", "--json"]) {
        assert!(status.contains("\"ready\":2,"), "{status}");
    }
    let [first, second] = run(
        "worker",
        "worker",
        &["--max-tasks", "1", "--threads", "1", "--", "sh", "-c", "cat; echo"],
    );

    assert_eq!([first, second], ["a task\n", "a task\n"]);
    broker.client().delete(&queue);
}

#[test]
fn each_form_shows_the_name_that_the_user_wrote() {
    let links = links();
    let table = [("producer", "producer"), ("worker", "worker"), ("queuectl", "queue")];
    for (name, subcommand) in table {
        let long = format!("rabbit-work {subcommand}");
        let shows = |arguments: &[&str], code: i32, expected: &dyn Fn(&str) -> String| {
            let outputs = both(links.path(), name, subcommand, arguments);
            for (output, form) in outputs.iter().zip([long.as_str(), name]) {
                output.assert_code(code);
                let shown = [output.stdout(), output.stderr()].concat();
                let expected = expected(form);
                assert!(shown.contains(&expected), "{form} does not show {expected:?}: {shown}");
            }
        };
        let version = env!("CARGO_PKG_VERSION");
        shows(&["--help"], 0, &|form| format!("\nUsage: {form} [OPTIONS] "));
        shows(&["--version"], 0, &|form| format!("{} {version}\n", form.replace(' ', "-")));
        shows(&["--nonsense"], 2, &|form| format!("\nUsage: {form} [OPTIONS] "));
    }
}

#[test]
fn the_error_that_ends_a_command_names_it_as_the_user_did() {
    let links = links();
    let no_broker = ["--url", "amqp://127.0.0.1:1"];
    let table = [
        ("producer", "producer", vec!["--timeout", "1s", "x"]),
        ("worker", "worker", vec!["--no-reconnect", "--", "true"]),
        ("queuectl", "queue", vec!["status"]),
    ];
    for (name, subcommand, arguments) in table {
        let link = links.path().join(name);
        let arguments = [&no_broker[..], &arguments].concat();
        let long = Command::program(PROGRAM, &[&[subcommand], &arguments[..]].concat());
        let short = Command::program(link.to_str().expect("a path in UTF-8"), &arguments);
        let forms = [(long, format!("rabbit-work {subcommand}")), (short, name.to_string())];
        for (command, form) in forms {
            let output = command.env("RUST_LOG", "off").run(SOON);
            output.assert_code(69);
            let expected = format!("{form}: no broker reached (127.0.0.1:1: ");
            assert!(output.stderr().starts_with(&expected), "{form}: {}", output.stderr());
        }
    }
}

#[test]
fn what_follows_two_dashes_is_no_subcommand_and_hints_remain() {
    let run = |arguments: &[&str]| Command::program(PROGRAM, arguments).run(SOON);
    let table: [(&[&str], &str); 5] = [
        (&["worker", "--queue", "mail", "./send"], "put -- before the command: -- ./send"),
        (&["worker", "--"], "command: missing after --; add one"),
        (&["producer", "--"], "MESSAGE: there is none after --; add one"),
        (&["queuectl"], "a similar subcommand exists: 'queue'"),
        (&[], "Usage: rabbit-work <COMMAND>"),
    ];
    for (arguments, expected) in table {
        let output = run(arguments);
        output.assert_code(2);
        assert!(output.stderr().contains(expected), "{arguments:?}: {}", output.stderr());
    }
}

#[test]
fn a_login_before_the_subcommand_is_not_repeated() {
    let url = "--url=amqp://me:secret@host";
    for arguments in [vec![url, "worker"], vec!["worker", "--nonsense=amqp://me:secret@host"]] {
        let output = Command::program(PROGRAM, &arguments).run(SOON);
        output.assert_code(2);
        assert!(!output.stderr().contains("secret"), "{arguments:?}: {}", output.stderr());
    }
}
