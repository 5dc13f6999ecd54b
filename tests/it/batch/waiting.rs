//! What `producer --wait` waits for, says and leaves behind.

use std::fs;
use std::io::{Read, Seek, SeekFrom};

use rabbit_work::{Broker, Delivery, EventKind, Failure, Queue, Worker};
use serde_json::Value;

use super::{SOON, ended, lines, noting, outcomes, runs, scripted_worker, text, waiting};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::working::Working;

#[test]
fn each_task_ends_once_done_or_dead_and_retries_report_nothing() {
    let (url, queue) = (shared_broker().url(), unique_queue("ends"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    let script = noting(&ledger, "test \"$n\" != 3 || exit 7; test \"$n\" != 4 || exit 65");
    let options = ["--threads", "3", "--max-attempts", "3", "--retry-delay", "0.1s"];
    let worker = scripted_worker(url, &queue, &options, &script);

    let output = waiting(url, &queue, 6, &["--outcomes", text(&file), "--json"]).run(SOON);

    output.assert_code(1);
    let summary: Value = serde_json::from_str(&output.stdout()).expect("JSON");
    for (key, count) in [("published", 6), ("confirmed", 6), ("done", 4), ("dead", 2), ("left", 0)]
    {
        assert_eq!(summary[key], count, "{key}: {summary}");
    }
    let outcomes = outcomes(&file);
    assert_eq!(outcomes.len(), 6);
    let fields = |n: u64| {
        let it = &outcomes[&n];
        [&it["outcome"], &it["attempts"], &it["exit"]].map(Value::to_string).join(" ")
    };
    assert_eq!(fields(1), r#""done" 1 0"#);
    assert_eq!(fields(3), r#""dead" 3 7"#);
    assert_eq!(fields(4), r#""dead" 1 65"#);
    let dead = &outcomes[&3];
    assert_eq!(dead["reason"], "exit status 7");
    assert!(dead["task"].as_str().is_some_and(|id| id.ends_with("-3")), "{dead}");
    assert!(dead["host"].is_string() && dead["started"].is_f64() && dead["seconds"].is_f64());
    assert_eq!(runs(&ledger)[&3], 3);
    worker.signal("INT");
    worker.wait(SOON).assert_code(0);
    let id = dead["task"].as_str().expect("an id").trim_end_matches("-3");
    assert!(!shared_broker().client().has(&format!("{queue}.batch.{id}")), "it is deleted");
}

#[test]
fn commands_see_the_batch_and_nobody_else_changes() {
    let (url, queue) = (shared_broker().url(), unique_queue("properties"));
    let script = "cat >/dev/null; echo \"$TASK_ID $TASK_CORRELATION_ID $TASK_REPLY_TO\"; \
                  env | grep -c TASK_HEADER || true";
    let worker = scripted_worker(url, &queue, &["--threads", "1"], script);

    let output = waiting(url, &queue, 1, &["--output"]).run(SOON).success();

    worker.signal("INT");
    worker.wait(SOON).assert_code(0);
    let mut output = output.lines();
    let words: Vec<&str> = output.next().expect("a line").split(' ').collect();
    let id = words[0].strip_suffix("-1").expect("the number");
    assert!(id.len() == 32 && id.bytes().all(|it| it.is_ascii_hexdigit()), "{words:?}");
    assert_eq!(words[1..], [format!("{id}/1"), format!("{queue}.batch.{id}")]);
    assert_eq!(output.next(), Some("0"), "no header shows");
}

#[test]
fn a_wait_that_ends_first_exits_with_4_and_says_how_to_go_on() {
    let (url, queue) = (shared_broker().url(), unique_queue("early"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");

    let late = waiting(url, &queue, 3, &["--wait-timeout", "0.2s", "--json"]).run(SOON);
    late.assert_code(4);
    let summary: Value = serde_json::from_str(&late.stdout()).expect("JSON");
    assert_eq!((&summary["left"], &summary["done"]), (&3.into(), &0.into()));
    assert!(late.stderr().contains("3 tasks have not ended; workers go on"), "{}", late.stderr());

    for (signals, code) in [(&["INT"][..], 4), (&["TERM"], 4)] {
        let running = waiting(url, &queue, 3, &["--outcomes", text(&file)]).start();
        running.wait_for_stderr_line(|line| line.contains("tasks confirmed and 0 not"), SOON);
        signals.iter().for_each(|signal| running.signal(signal));
        let output = running.wait(SOON);
        output.assert_code(code);
        let says = format!(
            "3 tasks have not ended; to go on, run the same command again, with \
                            --outcomes {}",
            file.display()
        );
        assert!(output.stderr().contains(&says), "{}", output.stderr());
    }
}

#[test]
fn a_signal_before_it_is_connected_exits_with_4() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let says =
        format!("; to go on, run the same command again, with --outcomes {}", file.display());
    for (options, says) in [(&["--outcomes", text(&file)][..], &says), (&[], &String::new())] {
        let running = waiting("amqp://127.0.0.1:1", "q", 3, options).start();
        running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
        running.signal("INT");
        let output = running.wait(SOON);
        output.assert_code(4);
        assert!(output.stderr().contains(says), "{}", output.stderr());
    }
}

#[test]
fn a_summary_that_cannot_be_written_is_an_error() {
    let (url, queue) = (shared_broker().url(), unique_queue("no-summary"));
    let worker = scripted_worker(url, &queue, &["--threads", "1"], "true");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opened");
    let output = waiting(url, &queue, 1, &["--json"]).stdout(full).run(SOON);
    output.assert_code(1);
    assert!(output.stderr().contains("standard output cannot be written"), "{}", output.stderr());
    drop(worker);
}

#[test]
fn a_signal_before_the_input_ends_exits_with_4_and_the_next_run_goes_on() {
    let (url, queue) = (shared_broker().url(), unique_queue("early-input"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    let arguments = ["--url", url, "--queue", &queue, "--lines", "-", "--wait"];
    let outcomes_to = ["--outcomes", text(&file)];
    let command = || Command::producer(&[&arguments[..], &outcomes_to].concat());
    shared_broker().client().declare(&queue);
    let mut running = command().open_stdin().start();
    running.write(lines(5).as_bytes());
    shared_broker().client().wait_for_count(&queue, 5, SOON);
    poll("the confirms are noted", SOON, || {
        fs::read_to_string(&file).is_ok_and(|it| it.contains("\"read\":5")).then_some(())
    });
    running.signal("INT");
    let output = running.wait(SOON);
    output.assert_code(4);
    let stderr = output.stderr();
    assert!(stderr.contains("stopped after 5 tasks were read; to go on, run the same"), "{stderr}");
    assert!(
        !stderr.contains("continue with line"),
        "that would publish tasks of no batch: {stderr}"
    );

    let worker = scripted_worker(url, &queue, &["--threads", "2"], &noting(&ledger, "true"));
    command().stdin(lines(8)).run(SOON).assert_code(0);
    assert_eq!(ended(&file), 8);
    assert!(runs(&ledger).values().all(|runs| *runs == 1), "{:?}", runs(&ledger));
    assert_eq!(runs(&ledger).len(), 8);
    drop(worker);
}

#[test]
fn two_producers_do_not_share_a_file() {
    let (url, queue) = (shared_broker().url(), unique_queue("shared-file"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let first = waiting(url, &queue, 1, &["--outcomes", text(&file)]).start();
    first.wait_for_stderr_line(|line| line.contains("tasks confirmed and 0 not"), SOON);

    let second = waiting(url, &queue, 1, &["--outcomes", text(&file)]).run(SOON);

    second.assert_code(2);
    assert!(second.stderr().contains("another producer uses it"), "{}", second.stderr());
    first.signal("INT");
    first.wait(SOON).assert_code(4);
}

/// Forged, and of no batch: neither ends the wait, nor counts.
#[test]
fn messages_that_are_no_outcomes_are_ignored() {
    let (url, queue) = (shared_broker().url(), unique_queue("no-outcomes"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let running = waiting(url, &queue, 1, &["--outcomes", text(&file)]).start();
    running.wait_for_stderr_line(|line| line.contains("tasks confirmed and 0 not"), SOON);
    let text = fs::read_to_string(&file).expect("a file");
    let header: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    let id = header["batch"].as_str().expect("an id");
    let mut client = shared_broker().client();
    let beyond = r#"{"type":"rabbit-work.outcome","n":2,"outcome":"done","attempts":1}"#;
    client.publish_ids(&format!("{queue}.batch.{id}"), ["word", "{}", beyond]);
    running.wait_for_stderr_line(|line| line.contains("is not an outcome of this batch"), SOON);

    let worker = scripted_worker(url, &queue, &["--threads", "1"], "true");
    running.wait(SOON).assert_code(0);

    assert_eq!(ended(&file), 1);
    drop(worker);
}

/// The peak of a producer that has published so many lines of 800 bytes.
fn peak_of_publishing(url: &str, count: usize) -> u64 {
    let queue = unique_queue("memory-of-few");
    let input = format!("{}\n", "x".repeat(800)).repeat(count);
    let publishing = waiting(url, &queue, 0, &[]).stdin(input).start();
    publishing.wait_for_stderr_line(|line| line.contains(" tasks confirmed and 0 not"), SOON);
    shared_broker().client().wait_for_count(&queue, count as u32, SOON);
    let peak = publishing.peak_memory();
    publishing.signal("INT");
    publishing.wait(SOON).assert_code(4);
    shared_broker().client().delete(&queue);
    peak
}

/// 8 MB of bodies, and an outcome for each with a reason of 1 KiB. All but one are there when the
/// second producer begins to wait. The last comes after its peak is read.
#[test]
fn a_wait_needs_little_memory() {
    const COUNT: usize = 10_000;
    /// Less than the bodies, and than the outcomes.
    const MORE: u64 = 6 << 20;
    let (url, queue) = (shared_broker().url(), unique_queue("memory"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let input = format!("{}\n", "x".repeat(800)).repeat(COUNT - 1) + "last\n";
    let start = || {
        let options = ["--outcomes", text(&file)];
        let mut running = waiting(url, &queue, 0, &options).open_stdin().start();
        running.write(input.as_bytes());
        running.end_input();
        running.wait_for_stderr_line(|line| line.contains(" tasks confirmed and 0 not"), SOON);
        running
    };
    let publishing = start();
    let peak_of_publishing_all = publishing.peak_memory();
    publishing.signal("INT");
    publishing.wait(SOON).assert_code(4);

    let (release, is_released) = crossbeam_channel::bounded::<()>(0);
    let handler = move |delivery: &Delivery| {
        if delivery.body() == b"last" {
            let _ = is_released.recv_timeout(SOON);
        }
        Err(Failure::reject("x".repeat(1024)))
    };
    let broker: Broker = url.parse().expect("a URL");
    let worker = Worker::new(&broker, &Queue::new(&queue)).threads(1).prefetch(1000);
    let working = Working::start(&worker, handler);
    (1..COUNT).for_each(|_| drop(working.wait_for(EventKind::Dead, SOON)));
    let mut end_of_file = fs::File::open(&file).expect("opened");
    end_of_file.seek(SeekFrom::End(0)).expect("at its end");
    let running = start();
    let mut ended_now = 0;
    poll("all but one have ended", SOON, || {
        let mut lines = Vec::new();
        end_of_file.read_to_end(&mut lines).expect("read");
        ended_now += lines.iter().filter(|byte| **byte == b'\n').count();
        (ended_now == COUNT - 1).then_some(())
    });
    let peak_of_waiting = running.peak_memory();
    drop(release);

    running.wait(SOON).assert_code(1);
    assert_eq!(ended(&file), COUNT);
    let peaks = [peak_of_publishing(url, 100), peak_of_publishing_all, peak_of_waiting];
    println!("peaks of publishing a hundred, of publishing all and of waiting: {peaks:?}");
    assert!(peaks.iter().all(|peak| *peak < 30 << 20), "{peaks:?}");
    assert!(peaks.windows(2).all(|pair| pair[1] < pair[0] + MORE), "{peaks:?}");
    working.stop(SOON);
    shared_broker().client().delete(&format!("{queue}.dead"));
}
