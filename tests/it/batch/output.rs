//! The standard output of commands, as it comes back to `producer --wait --output`.

use std::fs;

use super::{SOON, outcomes, scripted_worker, text, waiting};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;

#[test]
fn outputs_come_in_the_order_of_the_input_and_again_at_the_next_run() {
    let (url, queue) = (shared_broker().url(), unique_queue("order"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    // The first ends last.
    let script = "read n; test $n != 1 || sleep 1; echo \"$n a\"; echo \"$n b\"; test $n != 3";
    let options = ["--threads", "4", "--max-attempts", "1"];
    let worker = scripted_worker(url, &queue, &options, script);
    let options = ["--output", "--keep-order", "--outcomes", text(&file)];

    let first = waiting(url, &queue, 4, &options).run(SOON);
    let again = waiting(url, &queue, 4, &options).run(SOON);

    let expected: String = (1..=4).map(|n| format!("{n} a\n{n} b\n")).collect();
    for output in [first, again] {
        output.assert_code(1);
        assert_eq!(output.stdout(), expected);
    }
    worker.signal("INT");
    let worker = worker.wait(SOON);
    assert!(worker.stdout().contains("3 a\n"), "the worker passes it on as well: {worker:?}");
}

#[test]
fn without_an_order_outputs_come_as_the_tasks_end() {
    let (url, queue) = (shared_broker().url(), unique_queue("arrival"));
    let script = "read n; test $n != 1 || sleep 2; echo $n";
    let worker = scripted_worker(url, &queue, &["--threads", "2"], script);
    let output = waiting(url, &queue, 3, &["--output"]).run(SOON).success();
    assert!(output.ends_with("1\n") && output.len() == 6, "{output}");
    drop(worker);
}

#[test]
fn long_output_is_cut_and_marked_and_any_bytes_come_back() {
    let (url, queue) = (shared_broker().url(), unique_queue("cut"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let script = r#"read n; case $n in
        1) head -c 65536 /dev/zero | tr '\0' x;;
        2) head -c 70000 /dev/zero | tr '\0' y;;
        3) printf '\377\000\n';;
        5) yes é | head -c 70000;;
        *) ;; esac"#;
    let worker = scripted_worker(url, &queue, &["--threads", "1"], script);
    let options = ["--output", "--keep-order", "--outcomes", text(&file)];

    let output = waiting(url, &queue, 5, &options).run(SOON);

    output.assert_code(0);
    let mut expected = vec![b'x'; 65536];
    expected.extend_from_slice(&[b'y'; 65536]);
    expected.extend_from_slice(b"\n[task 2: cut after 65536 of 70000 bytes]\n\xff\0\n");
    // Lines of three bytes: 64 KiB end in the middle of a letter.
    expected.extend_from_slice("é\n".repeat(21_845).as_bytes());
    expected.extend_from_slice(b"[task 5: cut after 65535 of 70000 bytes]\n");
    assert!(output.stdout == expected, "{} bytes", output.stdout.len());
    let outcomes = outcomes(&file);
    assert_eq!(outcomes[&3]["output_base64"], "/wAK");
    assert_eq!(
        (&outcomes[&2]["output_bytes"], &outcomes[&4]["output"]),
        (&70000.into(), &"".into())
    );
    assert!(outcomes[&1].get("output_bytes").is_none());
    assert!(outcomes[&5]["output"].is_string(), "text stays text");
    drop(worker);
}

#[test]
fn without_output_a_command_has_the_workers_standard_output_itself() {
    let (url, queue) = (shared_broker().url(), unique_queue("plain"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let worker = scripted_worker(url, &queue, &["--threads", "1"], "cat; readlink /proc/$$/fd/1");
    waiting(url, &queue, 1, &["--outcomes", text(&file)]).run(SOON).assert_code(0);
    worker.signal("INT");
    let told = worker.wait(SOON).success();
    assert!(told.contains("1\n") || told.starts_with('1'), "{told}");
    assert!(outcomes(&file)[&1].get("output").is_none());
}

/// The output of every task was received, so the exit status is theirs.
#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is() {
    let (url, queue) = (shared_broker().url(), unique_queue("reader"));
    let worker = scripted_worker(url, &queue, &["--threads", "2"], "cat");
    let producer = env!("CARGO_BIN_EXE_producer");
    let base =
        format!("seq 3 | '{producer}' --url '{url}' --queue '{queue}' --lines --wait --output");
    for (to, code) in [("| true; exit ${PIPESTATUS[1]}", 0), (">/dev/full", 1)] {
        let script = format!("{base} {to}");
        Command::program("bash", &["-c", &script]).run(SOON).assert_code(code);
    }
    assert!(fs::metadata("/dev/full").is_ok());
    drop(worker);
}
