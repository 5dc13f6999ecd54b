//! The progress of a draining worker on a terminal.

use std::fs;

use super::{SOON, publish, queues};
use crate::support::broker::shared_broker;
use crate::support::terminal::on_a_terminal;

/// What a worker that drains two queues of twenty tasks writes to a terminal, with this at the end of
/// its command line.
fn rows(test: &str, rest: &str) -> (Vec<String>, tempfile::TempDir) {
    let [mail, pdf] = queues(test);
    let bodies: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    publish(&mail, &bodies);
    publish(&pdf, &bodies);
    let dir = tempfile::tempdir().expect("a folder");
    let (worker, url) = (env!("CARGO_BIN_EXE_worker"), shared_broker().url());
    let to = format!("{worker} --url {url} --queue {mail}=1 --queue {pdf}=1 --drain");
    let (output, rows) = on_a_terminal(&format!("{to} {rest}"), dir.path(), SOON);
    output.assert_code(0);
    (rows, dir)
}

#[test]
fn a_drain_shows_what_ended_what_is_left_and_the_time_on_a_terminal() {
    let command = "'sleep 0.2; echo out; echo failed >&2'";
    let (rows, dir) = rows("progress", &format!("-- sh -c {command} >out"));

    let shown: Vec<&String> = rows.iter().filter(|row| row.contains(" waiting, ")).collect();
    assert!(shown[0].starts_with("0 done, 0 retried, 0 dead, "), "{rows:?}");
    let counted = |row: &&&String| row.contains(" ready + 0 waiting, ") && row.ends_with("s left");
    let counted = shown.iter().find(counted).unwrap_or_else(|| panic!("{rows:?}"));
    assert!(counted.contains("/s, "), "{counted}");
    assert!(shown.iter().any(|row| row.starts_with("40 done, ")), "{rows:?}");
    assert!(shown.iter().any(|row| row.contains(" 2 running, ")), "{rows:?}");
    // What the commands write through the worker has rows of its own, and so have log lines.
    assert_eq!(rows.iter().filter(|row| *row == "failed").count(), 40, "{rows:?}");
    let log = rows.iter().filter(|row| row.contains("INFO"));
    assert!(log.clone().count() > 2 && log.clone().all(|row| row.starts_with("20")), "{rows:?}");
    let last = |word: &str| rows.iter().rposition(|row| row.contains(word));
    assert!(last(" waiting, ") < last("40 tasks done"), "no line stays: {rows:?}");
    let written = fs::read_to_string(dir.path().join("out")).expect("written");
    assert_eq!(written.lines().count(), 40);
}

#[test]
fn no_progress_is_in_the_way_of_what_commands_write() {
    let (rows, _) = rows("hidden", "-- echo out");
    assert!(!rows.iter().any(|row| row.contains(" waiting, ")), "{rows:?}");
    assert_eq!(rows.iter().filter(|row| *row == "out").count(), 40, "{rows:?}");
}

/// The queue of its delay does not exist before, and the next count of all queues is a minute away.
#[test]
fn a_task_that_waits_for_a_retry_is_counted_soon() {
    let [queue, _] = queues("delayed");
    publish(&queue, &["x"]);
    let dir = tempfile::tempdir().expect("a folder");
    let (worker, url) = (env!("CARGO_BIN_EXE_worker"), shared_broker().url());
    let to = format!("{worker} --url {url} --queue {queue} --drain --retry-delay 5s");
    // It fails after the first count.
    let command = "'sleep 1.5; test $TASK_ATTEMPT = 2'";

    let (output, rows) = on_a_terminal(&format!("{to} -- sh -c {command} >out"), dir.path(), SOON);

    output.assert_code(0);
    let waits =
        |row: &&String| row.starts_with("0 done, 1 retried, ") && row.contains(" + 1 waiting, ");
    assert!(rows.iter().any(|row| waits(&row)), "{rows:?}");
}
