//! The progress bar of a producer on a terminal.

use std::fs;
use std::thread;
use std::time::Duration;

use super::Bench;
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Output;
use crate::support::terminal;

/// For tasks that go one by one.
const LATER: Duration = Duration::from_secs(90);

/// What a bar tells.
#[derive(Debug)]
struct Frame {
    percent: u64,
    confirmed: u64,
    failed: u64,
    rate: u64,
    left: String,
}

#[test]
fn the_bar_shows_the_rate_what_became_of_the_tasks_and_the_time_left() {
    let bench = Bench::new("bar");
    let queue = unique_queue("bar");
    let client = shared_broker().client();
    client.declare(&queue);
    fs::write(bench.path("lines"), "a task of many\n".repeat(4000)).expect("written");

    let to = format!("--queue {queue} --no-declare --lines lines --window 1");
    // The tasks after that are returned.
    let delete = thread::spawn(move || {
        poll("some tasks are confirmed", LATER, || (client.count(&queue) > 200).then_some(()));
        client.delete(&queue);
    });
    let rows = rows(&bench, &to);
    delete.join().expect("it deletes the queue");

    let frames: Vec<Frame> = rows.iter().filter_map(|row| frame(row)).collect();
    assert!(!frames.is_empty(), "{rows:?}");
    assert!(frames.iter().all(|it| it.percent <= 100), "{frames:?}");
    let done: Vec<u64> = frames.iter().map(|it| it.confirmed + it.failed).collect();
    assert!(done.is_sorted() && done.iter().all(|it| *it <= 4000), "{frames:?}");
    let telling = |it: &&Frame| it.confirmed > 0 && it.failed > 0 && it.rate > 0;
    let telling = frames.iter().find(telling).unwrap_or_else(|| panic!("{frames:?}"));
    assert!(telling.percent > 0, "{telling:?}");
    assert!(telling.left.starts_with(|it: char| it.is_ascii_digit()), "{telling:?}");
}

#[test]
fn the_bar_shows_something_from_the_first_and_log_lines_have_rows_of_their_own() {
    let bench = Bench::new("rows");
    let full = bench.full_queue(3);
    fs::write(bench.path("lines"), "a task\n".repeat(300)).expect("written");

    let rows = rows(&bench, &format!("--queue {full} --no-declare --lines lines --window 1"));

    let shown: Vec<&String> = rows.iter().filter(|row| row.contains(" left")).collect();
    let first = shown.first().and_then(|row| frame(row));
    let first = first.unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!((first.confirmed, first.failed, first.rate), (0, 0, 0));
    assert!(shown.iter().all(|row| frame(row).is_some()), "{rows:?}");
    // What an error of the command begins with, and the time of a record of the log.
    for (word, start) in [("producer: ", "producer: task "), ("INFO", "20")] {
        let row = rows.iter().find(|row| row.contains(word)).unwrap_or_else(|| panic!("{rows:?}"));
        assert!(row.starts_with(start), "{row}");
    }
    let last = |word: &str| rows.iter().rposition(|row| row.contains(word));
    assert!(last(" left") < last("INFO"), "no bar stays: {rows:?}");
}

#[test]
fn the_bar_is_right_also_while_nothing_comes() {
    let bench = Bench::new("lull");
    let options = format!("--queue {} --lines", bench.queue);

    let (output, rows) = on_a_terminal(&bench, "(seq 500; sleep 1) |", &options);

    output.assert_code(0);
    let at_rest = |row: &&String| row.contains(" 500 confirmed, 0 failed, ");
    assert!(rows.iter().any(|row| at_rest(&row)), "{rows:?}");
}

#[test]
fn no_bar_is_in_the_way_of_what_is_typed() {
    let bench = Bench::new("typed");
    let options = format!("--queue {} --lines", bench.queue);

    let (output, rows) = on_a_terminal(&bench, "", &options);

    output.assert_code(0);
    assert!(!rows.iter().any(|row| row.contains(" confirmed, ")), "{rows:?}");
}

/// What a producer that does not confirm everything writes to a terminal, each time that it
/// begins a row, or the same one anew.
fn rows(bench: &Bench, options: &str) -> Vec<String> {
    let (output, rows) = on_a_terminal(bench, "", options);
    output.assert_code(1);
    rows
}

/// With this before it on the command line.
fn on_a_terminal(bench: &Bench, before: &str, options: &str) -> (Output, Vec<String>) {
    let (producer, url) = (env!("CARGO_BIN_EXE_producer"), bench.broker.url());
    let line = format!("{before} {producer} --url {url} {options}");
    terminal::on_a_terminal(&line, bench.dir.path(), LATER)
}

/// `BAR 83%  3 confirmed, 2352 failed, 5/s, 0s left`, as it is to be.
fn frame(row: &str) -> Option<Frame> {
    let (bar, told) = row.split_once("%  ")?;
    let (confirmed, told) = told.split_once(" confirmed, ")?;
    let (failed, told) = told.split_once(" failed, ")?;
    let (rate, left) = told.split_once("/s, ")?;
    Some(Frame {
        percent: bar.rsplit(' ').next()?.parse().ok()?,
        confirmed: confirmed.parse().ok()?,
        failed: failed.parse().ok()?,
        rate: rate.parse().ok()?,
        left: left.strip_suffix(" left")?.to_string(),
    })
}
