//! What a producer that waits shows on a terminal.

use super::{SOON, scripted_worker};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::terminal::on_a_terminal;

#[test]
fn a_wait_shows_its_counts_and_outputs_have_rows_of_their_own() {
    let (url, queue) = (shared_broker().url(), unique_queue("terminal"));
    let dir = tempfile::tempdir().expect("a folder");
    let script = "read n; sleep 0.1; echo \"output of $n\"";
    let worker = scripted_worker(url, &queue, &["--threads", "1"], script);
    let producer = env!("CARGO_BIN_EXE_producer");
    let line = format!("seq 20 | {producer} --url {url} --queue {queue} --lines --wait --output");

    let (output, rows) = on_a_terminal(&line, dir.path(), SOON);

    output.assert_code(0);
    let shows = |text: &str| rows.iter().any(|row| row.contains(text));
    assert!(shows("done 0, dead 0, left 20"), "{rows:?}");
    let counted = |row: &&String| row.contains("% ") && row.ends_with(" s left");
    let counted = rows.iter().find(counted).unwrap_or_else(|| panic!("{rows:?}"));
    assert!(counted.contains(", dead 0, left ") && counted.contains("/s, "), "{counted}");
    let mut printed: Vec<&String> = rows.iter().filter(|row| row.contains("output of")).collect();
    let mut expected: Vec<String> = (1..=20).map(|n| format!("output of {n}")).collect();
    printed.sort();
    expected.sort();
    assert_eq!(printed, expected.iter().collect::<Vec<_>>(), "{rows:?}");
    let last = |word: &str| rows.iter().rposition(|row| row.contains(word));
    assert!(last(", dead 0, left ") < last("20 tasks done"), "no bar stays: {rows:?}");
    drop(worker);
}
