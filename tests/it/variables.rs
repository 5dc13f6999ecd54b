//! `RABBIT_WORK_<OPTION>`: options of the commands by the environment.

use std::fs;
use std::time::Duration;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};

const SOON: Duration = Duration::from_secs(60);
const NOWHERE: &str = "amqp://127.0.0.1:1";

fn refused(output: &Output, wanted: &str) {
    output.assert_code(2);
    assert!(output.stderr().contains(wanted), "{}", output.stderr());
}

#[test]
fn the_command_line_counts_before_a_variable_and_a_variable_before_a_default() {
    let (broker, queue) = (shared_broker(), unique_queue("variables"));
    let producer = |arguments: &[&str]| {
        Command::producer(arguments)
            .env("RABBIT_WORK_URL", broker.url())
            .env("RABBIT_WORK_QUEUE", &queue)
            .env("RABBIT_WORK_REPEAT", "2")
            .env("AMQP_URL", NOWHERE)
            .env("AMQP_URL_FILE", "/does/not/exist")
    };
    producer(&["x"]).run(SOON).assert_code(0);
    assert_eq!(broker.client().count(&queue), 2);
    producer(&["--repeat", "1", "x"]).run(SOON).assert_code(0);
    assert_eq!(broker.client().count(&queue), 3);
    producer(&["--repeat=", "x"]).run(SOON).assert_code(2);
    producer(&["x"]).env("RABBIT_WORK_REPEAT", "").run(SOON).assert_code(0);
    assert_eq!(broker.client().count(&queue), 4, "an empty one is not set");

    broker.client().delete(&queue);
}

#[test]
fn an_option_of_a_subcommand_has_a_variable() {
    let (broker, queue) = (shared_broker(), unique_queue("subcommands"));
    let queuectl = |arguments: &[&str]| {
        // An option that stands after the subcommand is on the command line, too.
        let command = Command::queuectl(arguments).args(&["--queue", &queue]);
        command.env("RABBIT_WORK_QUEUE", "other").env("RABBIT_WORK_URL", broker.url())
    };
    let to = ["--url", broker.url(), "--queue", &queue];
    Command::producer(&to).args(&["x", "--id", "a"]).run(SOON).assert_code(0);
    let letters = queuectl(&["dead", "list"]).env("RABBIT_WORK_JSON", "yes").run(SOON);
    assert_eq!(letters.stdout().trim(), "[]", "{}", letters.stderr());
    queuectl(&["purge"]).env("RABBIT_WORK_YES", "no").run(SOON).assert_code(2);
    assert_eq!(broker.client().count(&queue), 1);
    queuectl(&["purge"]).env("RABBIT_WORK_YES", "yes").run(SOON).assert_code(0);
    assert_eq!(broker.client().count(&queue), 0);
    let letters = queuectl(&["dead", "list"]).env("RABBIT_WORK_OLDER", "soon").run(SOON);
    refused(&letters, "'RABBIT_WORK_OLDER (--older <DUR>)'");
    broker.client().delete(&queue);
}

#[test]
fn the_first_variable_that_is_set_has_the_address() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("url");
    let reached = |set: &[&str], arguments: &[&str]| {
        let command = Command::queuectl(&["check"]).args(arguments);
        let command = set.iter().fold(command, |command, name| match name.strip_suffix("_FILE") {
            Some(_) => {
                let file = file.with_extension(name);
                fs::write(&file, format!("amqp://127.0.0.1:1/{name}")).expect("a file");
                command.env(name, file)
            }
            None => command.env(name, format!("amqp://127.0.0.1:1/{name}")),
        });
        let output = command.env("RUST_LOG", "debug").run(SOON);
        output.assert_code(69);
        output.stderr().to_owned()
    };
    let names = ["RABBIT_WORK_URL_FILE", "RABBIT_WORK_URL", "AMQP_URL_FILE", "AMQP_URL"];
    for (place, name) in names.iter().enumerate() {
        let log = reached(&names[place..], &[]);
        let is_file_read = |name: &str| log.contains(&format!("url.{name};"));
        assert_eq!(is_file_read(name), name.ends_with("_FILE"), "{name}: {log}");
        assert!(!names[place + 1..].iter().any(|it| is_file_read(it)), "{name}: {log}");
    }
    let log = reached(&names, &["--url", NOWHERE]);
    assert!(!log.contains("url."), "{log}");
}

#[test]
fn an_error_names_the_variable() {
    let worker = || Command::program(env!("CARGO_BIN_EXE_worker"), &["--", "true"]);
    let bad = worker().env("RABBIT_WORK_PREFETCH", "many").run(SOON);
    refused(&bad, "invalid value 'many' for 'RABBIT_WORK_PREFETCH (--prefetch <N>)'");
    let bad = worker().env("RABBIT_WORK_TAG", "perhaps").run(SOON);
    refused(&bad, "'RABBIT_WORK_TAG (--tag)'");
    let missing = worker().env("RABBIT_WORK_URL_FILE", "/does/not/exist").run(SOON);
    refused(&missing, "RABBIT_WORK_URL_FILE (--url-file): /does/not/exist: ");
    let both = worker().env("RABBIT_WORK_TAG", "1").env("RABBIT_WORK_RESULTS", "x").run(SOON);
    refused(&both, "'RABBIT_WORK_TAG (--tag)' cannot be used with 'RABBIT_WORK_RESULTS");
    let alone = Command::producer(&["x"]).env("RABBIT_WORK_KEEP_ORDER", "true").run(SOON);
    refused(&alone, "options are also in the environment: RABBIT_WORK_KEEP_ORDER");
}

#[test]
fn a_variable_gives_way_to_what_excludes_it_on_the_command_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let results = dir.path().join("results");
    let results = results.to_str().expect("a path");
    let unreachable = |command: Command| {
        let output = command.env("RABBIT_WORK_URL", NOWHERE).run(SOON);
        output.assert_code(69);
    };
    let worker = |arguments: &[&str]| {
        let command = Command::program(env!("CARGO_BIN_EXE_worker"), arguments);
        command.env("RABBIT_WORK_NO_RECONNECT", "true")
    };
    unreachable(worker(&["--results", results, "--", "true"]).env("RABBIT_WORK_TAG", "1"));
    unreachable(worker(&["--tag", "--", "true"]).env("RABBIT_WORK_RESULTS", results));
    unreachable(worker(&["--", "true"]).env("RABBIT_WORK_PRINT", "on"));
    // A false one is not set.
    let off = worker(&["--", "true"]).env("RABBIT_WORK_RESULTS", results);
    unreachable(off.env("RABBIT_WORK_TAG", "false"));
    let timeout = |command: Command| command.env("RABBIT_WORK_TIMEOUT", "100ms");
    unreachable(timeout(Command::producer(&["x"]).env("RABBIT_WORK_LINES", "/does/not/exist")));
}

#[test]
fn each_line_is_a_value_of_an_option_that_may_be_repeated() {
    let (broker, queue) = (shared_broker(), unique_queue("lines"));
    let to = ["--url", broker.url(), "--queue", &queue];
    let headers = Command::producer(&to).arg("x").env("RABBIT_WORK_HEADER", "a=1, 2\nb=3");
    headers.run(SOON).assert_code(0);
    // A line break on the command line is part of the value.
    let header = Command::producer(&to).args(&["--header", "a=1\nb=2", "y"]);
    header.run(SOON).assert_code(0);
    let script = "echo \"$TASK_HEADER_A/$TASK_HEADER_B\"";
    let shown = Command::worker(&to).args(&["--drain", "--threads=1", "--", "sh", "-c", script]);
    assert_eq!(shown.run(SOON).success(), "1, 2/3\n1\nb=2/\n");
    broker.client().delete(&queue);
}

#[test]
fn a_wrong_name_is_reported_with_the_nearest_and_those_of_other_commands_are_not() {
    let check = Command::queuectl(&["--url", NOWHERE, "check"])
        .env("RABBIT_WORK_PREFTCH", "1")
        .env("RABBIT_WORK_XYZZY", "1")
        .env("RABBIT_WORK_OLDER", "1d")
        .env("RABBIT_WORK_PREFETCH", "1")
        .env("RABBIT_WORK_WAIT", "1")
        .run(SOON);
    check.assert_code(69);
    let log = check.stderr();
    assert!(
        log.contains(
            "RABBIT_WORK_PREFTCH is no option, and is ignored; did you mean RABBIT_WORK_PREFETCH?"
        ),
        "{log}"
    );
    assert!(log.contains("RABBIT_WORK_XYZZY is no option, and is ignored; see --help"), "{log}");
    assert_eq!(log.matches("is ignored").count(), 2, "{log}");
}

#[test]
fn commands_of_a_worker_see_nothing_of_an_address_in_a_file() {
    let (broker, queue) = (shared_broker(), unique_queue("hidden"));
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("url");
    fs::write(&file, broker.url()).expect("a file");
    let worker = |options: &[&str]| {
        Command::producer(&["--url", broker.url(), "--queue", &queue, "x"])
            .run(SOON)
            .assert_code(0);
        let worker = Command::worker(options).args(&["--queue", &queue, "--drain", "--", "env"]);
        worker.env("AMQP_URL", "amqp://me:s3cretword@127.0.0.1:1")
    };
    let path = file.to_str().expect("a path");
    let by_option = worker(&["--url-file", path]).run(SOON).success();
    let by_variable = worker(&[]).env("AMQP_URL_FILE", &file).run(SOON).success();
    let (_, address) = broker.url().split_once("://").expect("a URL");
    for inherited in [by_option, by_variable] {
        // Without what says the same to this test.
        let mut inherited = inherited.lines().filter(|line| !line.starts_with("RW_"));
        assert!(inherited.all(|line| !line.contains(address) && !line.contains("s3cretword")));
    }
    let by_url = worker(&["--url", broker.url()]).run(SOON).success();
    assert!(by_url.contains("s3cretword"), "commands may publish by it: {by_url}");
    broker.client().delete(&queue);
}

#[test]
fn commands_of_a_worker_do_not_get_its_options() {
    let (broker, queue) = (shared_broker(), unique_queue("inherit"));
    let to = ["--url", broker.url(), "--queue", &queue];
    Command::producer(&to).arg("x").run(SOON).assert_code(0);
    let inherited = Command::worker(&["--drain", "--", "env"])
        .env("RABBIT_WORK_URL", broker.url())
        .env("RABBIT_WORK_QUEUE", &queue)
        .env("RABBIT_WORK_ODD", "1")
        .env("NOTIFY_SOCKET", "/does/not/exist")
        .env("WATCHDOG_USEC", "60000000")
        .env("OTHER", "1")
        .run(SOON)
        .success();
    assert!(inherited.contains("OTHER=1\n"), "{inherited}");
    for ours in ["RABBIT_WORK_", "NOTIFY_SOCKET", "WATCHDOG_"] {
        assert!(!inherited.contains(ours), "{ours} in {inherited}");
    }
    broker.client().delete(&queue);
}
