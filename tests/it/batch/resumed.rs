//! `producer --wait` that is killed, and started again with the same file.

use std::fs;
use std::io::Write;

use super::{SOON, assert_all_done, ended, lines, noting, runs, scripted_worker, text, waiting};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;

/// While it publishes, when all is published, and in the middle of the outcomes.
#[test]
fn a_waiter_that_is_killed_at_three_points_goes_on_where_it_was() {
    const COUNT: usize = 60;
    let (url, queue) = (shared_broker().url(), unique_queue("killed-waiter"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    let options = ["--outcomes", text(&file)];

    let mut running = waiting(url, &queue, 0, &options).open_stdin().start();
    running.write(lines(COUNT / 2).as_bytes());
    poll("confirms are noted", SOON, || {
        fs::read_to_string(&file).is_ok_and(|it| it.contains("published")).then_some(())
    });
    running.kill();
    running.wait(SOON);

    let running = waiting(url, &queue, COUNT, &options).start();
    running.wait_for_stderr_line(|line| line.contains("tasks confirmed and 0 not"), SOON);
    running.kill();
    running.wait(SOON);

    let script = noting(&ledger, "sleep 0.02");
    let worker = scripted_worker(url, &queue, &["--threads", "2"], &script);
    let running = waiting(url, &queue, COUNT, &options).start();
    poll("some tasks have ended", SOON, || (ended(&file) > COUNT / 4).then_some(()));
    running.kill();
    running.wait(SOON);

    waiting(url, &queue, COUNT, &options).run(SOON).assert_code(0);

    assert_all_done(&file, COUNT as u64);
    let runs = runs(&ledger);
    assert_eq!(runs.len(), COUNT);
    // Those published and not noted before the first kill are published again.
    assert!(runs.values().sum::<usize>() <= COUNT + COUNT / 2, "{runs:?}");
    worker.signal("INT");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_line_that_a_crash_has_cut_is_removed() {
    let (url, queue) = (shared_broker().url(), unique_queue("torn"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let options = ["--outcomes", text(&file)];
    waiting(url, &queue, 3, &[&options[..], &["--wait-timeout", "0.1s"]].concat())
        .run(SOON)
        .assert_code(4);
    let mut torn = fs::OpenOptions::new().append(true).open(&file).expect("opened");
    torn.write_all(br#"{"type":"rabbit-work.outcome","n":2,"out"#).expect("written");
    drop(torn);

    let worker = scripted_worker(url, &queue, &["--threads", "1"], "true");
    waiting(url, &queue, 3, &options).run(SOON).assert_code(0);

    assert_all_done(&file, 3);
    drop(worker);
}

/// Its outcomes are there, and nothing more is to be asked of the broker.
#[test]
fn a_batch_that_is_complete_needs_no_broker() {
    let (url, queue) = (shared_broker().url(), unique_queue("complete"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let options = ["--outcomes", text(&file)];
    let worker = scripted_worker(url, &queue, &["--threads", "1"], "true");
    waiting(url, &queue, 3, &options).run(SOON).assert_code(0);
    waiting("amqp://127.0.0.1:1", &queue, 3, &options).run(SOON).assert_code(0);
    // A longer input is published.
    waiting(url, &queue, 5, &options).run(SOON).assert_code(0);
    assert_all_done(&file, 5);
    drop(worker);
}

#[test]
fn an_outcome_that_cannot_be_written_stays_at_the_broker() {
    let (url, queue) = (shared_broker().url(), unique_queue("full"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let worker = scripted_worker(url, &queue, &["--threads", "1"], "true");
    let producer = env!("CARGO_BIN_EXE_producer");
    // Room for the first lines, and for no outcome.
    let limited = format!(
        "ulimit -f 1; seq 8 | '{producer}' --url '{url}' --queue '{queue}' --lines --wait \
         --outcomes '{}'",
        file.display()
    );
    let output = Command::program("bash", &["-c", &limited]).run(SOON);
    output.assert_code(1);
    assert!(output.stderr().contains("--outcomes cannot be written"), "{}", output.stderr());

    waiting(url, &queue, 8, &["--outcomes", text(&file)]).run(SOON).assert_code(0);
    assert_all_done(&file, 8);
    drop(worker);
}
