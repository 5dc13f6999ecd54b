//! The `producer`: what it prints, how it ends, and what is on the queue afterwards.

use std::ffi::OsStr;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rabbit_work::{Outcome, Producer, Queue, Task};
use serde_json::Value;

use crate::support::broker::{breakable_broker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output, Running};
use crate::support::proxy::{Direction, Proxy};
use crate::support::scripted::{ScriptedBroker, Tuning};
use crate::support::wire::{Arguments, Call, Frame, Properties, content};

const SOON: Duration = Duration::from_secs(30);

fn producer(queue: &str, arguments: &[&str]) -> Command {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::producer(&[&to, arguments].concat())
}

/// The lines that are errors, without time and level.
fn errors(output: &Output) -> Vec<String> {
    let text = output.stderr();
    let errors = text.lines().filter_map(|line| line.split_once(" ERROR "));
    errors.map(|(_, said)| said.to_owned()).collect()
}

fn json(output: &Output) -> Value {
    let text = output.stdout();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn hello_world_is_sent_persistent_with_an_id() {
    let broker = breakable_broker();
    let script = format!("exec '{}' --url {}", env!("CARGO_BIN_EXE_producer"), broker.url());

    let output = Command::program("sh", &["-c", &format!("{script} </dev/null")]).run(SOON);
    let messages = broker.client().get_all("task_queue");
    broker.client().delete("task_queue");

    assert_eq!(output.success(), " [x] Sent 'Hello World!'\n");
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].text(), "Hello World!");
    assert_eq!(*messages[0].properties.delivery_mode(), Some(2));
    assert!(messages[0].message_id.is_some());
}

#[test]
fn words_are_joined_and_repeated() {
    let queue = unique_queue("words");

    let output = producer(&queue, &["--repeat", "3", "a", "task", "..."]).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'a task ...'\n".repeat(3));
    let messages = shared_broker().client().get_all(&queue);
    assert_eq!(messages.len(), 3);
    assert!(messages.iter().all(|message| message.text() == "a task ..."));
}

#[test]
fn words_may_be_any_bytes() {
    let queue = unique_queue("bytes");

    let word = OsStr::from_bytes(b"\xff\xfe");
    let output = producer(&queue, &["a"]).arg(word).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'a \u{fffd}\u{fffd}'\n");
    assert_eq!(shared_broker().client().get_all(&queue)[0].body, b"a \xff\xfe");
}

#[test]
fn an_empty_url_in_the_environment_is_none_and_an_empty_option_is_wrong() {
    let unset = Command::queuectl(&["check"]).run(SOON);
    let empty = Command::queuectl(&["check"]).env("AMQP_URL", "").run(SOON);
    let option = Command::queuectl(&["--url", "", "check"]).run(SOON);

    // Whatever is at the default address.
    assert_eq!((empty.code, empty.stdout()), (unset.code, unset.stdout()));
    assert!(!empty.stderr().contains("URL"), "{}", empty.stderr());
    option.assert_code(2);
}

#[test]
fn a_transient_task_is_not_persistent() {
    let queue = unique_queue("transient");

    producer(&queue, &["--transient", "x"]).run(SOON).success();

    let messages = shared_broker().client().get_all(&queue);
    assert_eq!(*messages[0].properties.delivery_mode(), Some(1));
}

#[test]
fn twenty_thousand_lines_are_pipelined_in_order_and_all_confirmed() {
    let queue = unique_queue("lines");
    let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}")).collect();

    let begun = Instant::now();
    let input = lines.join("\n") + "\n";
    let output = producer(&queue, &["--lines", "--json"]).stdin(input).run(SOON);
    let took = begun.elapsed();

    output.assert_code(0);
    let summary = json(&output);
    assert_eq!((&summary["published"], &summary["confirmed"]), (&20_000.into(), &20_000.into()));
    // One round trip each would take 0.1 ms at the very least, 1 ms on a disk.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 20_000);
    let got: Vec<String> = client.get_all(&queue).iter().map(|message| message.text()).collect();
    assert_eq!(got, lines);
}

#[test]
fn lines_are_not_confirmed_one_by_one() {
    let window = 50;
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        // Nothing is acked until the whole window is here.
        let publishes: Vec<_> = (0..window).map(|_| session.read_publish()).collect();
        session.ack_up_to(publishes[0].channel, window);
        assert_eq!(session.answer_rpcs(), None);
    });

    let input = "x\n".repeat(window as usize);
    let arguments = ["--url", &broker.url(), "--lines", "--window", &window.to_string()];
    let output = Command::producer(&arguments).stdin(input).run(SOON);

    output.assert_code(0);
    broker.finish(SOON);
}

#[test]
fn row_61_empty_input_and_a_last_line_without_newline_are_defined() {
    let queue = unique_queue("input");

    let empty = producer(&queue, &["--lines", "--json"]).run(SOON);
    let torn = producer(&queue, &["--lines", "--json"]).stdin("one\n\nthree").run(SOON);

    empty.assert_code(0);
    assert_eq!(json(&empty)["published"], 0);
    torn.assert_code(0);
    let got: Vec<String> =
        shared_broker().client().get_all(&queue).iter().map(|message| message.text()).collect();
    assert_eq!(got, ["one", "", "three"]);
}

#[test]
fn json_has_the_fields_of_the_contract_and_nothing_else_on_stdout() {
    let queue = unique_queue("json");

    let output = producer(&queue, &["--json", "x"]).run(SOON);

    let summary = json(&output);
    let keys: Vec<&String> = summary.as_object().expect("an object").keys().collect();
    let wanted = ["confirmed", "nacked", "published", "returned", "seconds", "unconfirmed"];
    assert_eq!(keys, wanted);
    for field in ["nacked", "returned", "unconfirmed"] {
        assert_eq!(summary[field], 0, "{field}");
    }
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
}

/// The ladder has 39 rungs.
#[test]
fn the_help_names_every_delay() {
    for program in [Command::producer(&["--help"]), Command::worker(&["--help"])] {
        let help = program.run(SOON).success();
        let (_, ladder) = help.split_once("are rounded up to\n").expect("the ladder");
        let (ladder, _) = ladder.split_once("\n\n").expect("its end");
        let rungs: Vec<&str> = ladder.split([' ', ',', '\n']).filter(|it| !it.is_empty()).collect();
        assert_eq!((rungs.len(), rungs.last()), (39, Some(&"42d")), "{ladder}");
    }
}

#[test]
fn whatever_keeps_a_producer_from_publishing_has_a_summary_too() {
    let (url, queue) = (shared_broker().url(), unique_queue("absent"));
    let bad_login = format!("amqp://guest:wrong@{}", shared_broker().address());
    let bad_vhost = format!("{url}/no-such-vhost");
    let table: [&[&str]; 4] = [
        &["--url", &bad_login, "x"],
        &["--url", &bad_vhost, "x"],
        &["--url", url, "--queue", &queue],
        &["--url", "nonsense", "x"],
    ];
    for arguments in table {
        let output = Command::producer(&["--json"]).args(arguments).run(SOON);
        output.assert_code(2);
        let stdout = output.stdout();
        let summary: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(summary["confirmed"], 0, "{arguments:?}");
        assert!(summary["read"].is_u64(), "{arguments:?}");
    }
}

#[test]
fn row_44_refused_tasks_are_nacked_exit_1_and_written_to_failed_exactly() {
    let queue = unique_queue("full");
    shared_broker().client().declare_bounded(&queue, 1);
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let failed_at = failed.to_string_lossy();

    let arguments =
        ["--no-declare", "--lines", "--json", "--timeout", "2s", "--failed", &failed_at];
    let input: String = (0..200).map(|number| format!("task {number}\n")).collect();
    let output = producer(&queue, &arguments).stdin(input.clone()).run(SOON);

    output.assert_code(1);
    let kept: Vec<String> =
        shared_broker().client().get_all(&queue).iter().map(|message| message.text()).collect();
    let refused: String = input
        .lines()
        .filter(|line| !kept.iter().any(|kept| kept == line))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(!kept.is_empty() && kept.len() < 200, "{} kept", kept.len());
    let mut written: Vec<String> =
        fs::read_to_string(&failed).expect("--failed").lines().map(str::to_owned).collect();
    let mut wanted: Vec<String> = refused.lines().map(str::to_owned).collect();
    written.sort();
    wanted.sort();
    assert_eq!(written, wanted);
    assert_eq!(json(&output)["nacked"], wanted.len());
    assert_eq!(json(&output)["confirmed"], kept.len());
}

#[test]
fn a_delayed_task_for_a_queue_that_is_not_there_is_returned_as_well() {
    let queue = unique_queue("ghost");
    let mut client = shared_broker().client();

    let arguments = ["--no-declare", "--delay", "1s", "--json", "--repeat", "2", "x"];
    let missing = producer(&queue, &arguments).run(SOON);
    let is_made = client.has(&format!("{queue}.retry.1000"));
    client.declare(&queue);
    let there = producer(&queue, &arguments).run(SOON);

    missing.assert_code(1);
    assert_eq!(json(&missing)["returned"], 2);
    assert!(
        errors(&missing)[0].contains(&format!("queue '{queue}' does not exist")),
        "{missing:?}"
    );
    assert!(!is_made, "nor is a delay queue made for it");
    there.assert_code(0);
    client.wait_for_count(&queue, 2, SOON);
}

#[test]
fn row_57_a_task_without_a_queue_is_returned() {
    let queue = unique_queue("nowhere");

    let output = producer(&queue, &["--no-declare", "--json", "x"]).run(SOON);

    output.assert_code(1);
    assert_eq!((&json(&output)["returned"], &json(&output)["confirmed"]), (&1.into(), &0.into()));
    assert!(output.stderr().contains("312 NO_ROUTE"), "{}", output.stderr());
}

#[test]
fn row_37_a_queue_deleted_while_publishing_shows_in_returns() {
    let queue = unique_queue("deleted");
    let client = shared_broker().client();
    client.declare(&queue);
    let mut running =
        producer(&queue, &["--lines", "--json", "--window", "1"]).open_stdin().start();
    running.write(b"one\n");
    client.wait_for_count(&queue, 1, SOON);

    client.delete(&queue);
    running.write(b"two\nthree\n");
    running.end_input();
    let output = running.wait(SOON);

    output.assert_code(1);
    let summary = json(&output);
    assert_eq!((&summary["confirmed"], &summary["returned"]), (&1.into(), &2.into()));
}

#[test]
fn row_38_a_queue_with_other_arguments_is_told_in_one_line_and_exit_2() {
    let queue = unique_queue("mismatch");
    shared_broker().client().declare(&queue);

    let transient = producer(&queue, &["--transient-queue", "x"]).run(SOON);
    let quorum = producer(&queue, &["--queue-type", "quorum", "x"]).run(SOON);

    transient.assert_code(2);
    let lines = errors(&transient);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let wanted = format!("queue '{queue}'");
    assert!(lines[0].contains(&wanted) && lines[0].contains("durable is true"), "{lines:?}");
    assert!(lines[0].contains("false was asked for"), "{lines:?}");
    quorum.assert_code(2);
    // Which of the arguments of a quorum queue is named first is the broker's choice.
    let wanted = "is not set there, and";
    assert!(errors(&quorum)[0].contains(wanted), "{}", quorum.stderr());
}

#[test]
fn row_39_an_exclusive_queue_of_another_is_refused_in_one_line_and_exit_2() {
    let queue = unique_queue("exclusive");
    let client = shared_broker().client();
    client.declare_exclusive(&queue);

    let output = producer(&queue, &["--transient-queue", "x"]).run(SOON);

    output.assert_code(2);
    assert_eq!(errors(&output).len(), 1);
    assert!(errors(&output)[0].contains("RESOURCE_LOCKED"), "{}", output.stderr());
}

#[test]
fn row_39_a_queue_that_may_not_be_declared_is_refused_in_one_line_and_exit_2() {
    let text = "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'";
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let look = session.expect_declare();
        session.answer(&look);
        let declare = session.expect_declare();
        session.close_channel(declare.channel, 403, text);
        assert_eq!(session.answer_rpcs(), None);
    });

    let output = Command::producer(&["--url", &broker.url(), "--queue", "q", "x"]).run(SOON);

    output.assert_code(2);
    assert_eq!(errors(&output).len(), 1);
    assert!(errors(&output)[0].contains(text), "{}", output.stderr());
}

#[test]
fn row_56_names_of_255_bytes_work_and_longer_or_empty_ones_are_refused_here() {
    let prefix = unique_queue("name");
    let fitting = format!("{prefix}{}é", "x".repeat(253 - prefix.len()));
    let too_long = format!("{fitting}y");

    let fits = producer(&fitting, &["x"]).run(SOON);
    let over = producer(&too_long, &["x"]).run(SOON);
    let empty = producer("", &["x"]).run(SOON);

    fits.assert_code(0);
    let client = shared_broker().client();
    assert_eq!(client.count(&fitting), 1);
    client.delete(&fitting);
    over.assert_code(2);
    assert!(errors(&over)[0].contains("at most 255"), "{}", over.stderr());
    empty.assert_code(2);
}

#[test]
fn row_46_a_confirm_that_never_comes_is_unconfirmed_after_the_timeout() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        let _ = session.answer_rpcs();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let begun = Instant::now();
    let output = Command::producer(&["--url", &broker.url(), "--timeout", "1s", "--json", "kept"])
        .arg("--failed")
        .arg(&failed)
        .run(SOON);

    output.assert_code(1);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(json(&output)["unconfirmed"], 1);
    assert_eq!(fs::read(&failed).expect("--failed"), b"kept\n");
}

/// A program does something else meanwhile, or waits for whoever reads its output.
#[test]
fn what_was_confirmed_in_time_is_confirmed_however_late_anybody_asks() {
    let queue = unique_queue("late");
    let broker = shared_broker().url().parse().expect("a URL");
    let limit = Duration::from_secs(2);
    let mut producer = Producer::new(&broker, &Queue::new(&queue)).timeout(limit);
    producer.connect().expect("connected");

    let sent = Instant::now();
    let receipts = producer.send(Task::new("x"));
    poll("its time is up", SOON, || (sent.elapsed() > 2 * limit).then_some(()));
    let receipts: Vec<_> = receipts.into_iter().chain(producer.flush()).collect();

    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].outcome, Outcome::Confirmed);
}

#[test]
fn a_task_that_is_too_large_fails_alone_and_the_rest_is_sent() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publish = session.read_publish();
        session.ack(publish.channel, 1);
        let second = session.read_publish();
        if number == 0 {
            let text = "PRECONDITION_FAILED - message size 5 is larger than configured max size 4";
            session.close_channel(second.channel, 406, text);
            session.read_until_closed();
        } else {
            session.ack(second.channel, 2);
            assert_eq!(session.answer_rpcs(), None);
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let output = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--window", "1", "--failed", &failed.to_string_lossy()])
        .stdin("1\n22222\n3\n4\n")
        .run(SOON);

    output.assert_code(1);
    assert_eq!(
        (&json(&output)["unconfirmed"], &json(&output)["confirmed"]),
        (&1.into(), &3.into())
    );
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), "22222\n");
    broker.finish(SOON);
}

#[test]
fn the_input_is_not_overwritten_by_what_failed_whatever_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("input");
    fs::write(&path, "kept\n").expect("a file");
    fs::hard_link(&path, dir.path().join("other")).expect("a second name");
    let script = format!("exec '{}' --lines --failed other <input", env!("CARGO_BIN_EXE_producer"));

    let redirected = Command::program("sh", &["-c", &script]).current_dir(dir.path()).run(SOON);
    let named = Command::producer(&["--lines", "input", "--failed", "other"])
        .current_dir(dir.path())
        .run(SOON);

    for output in [redirected, named] {
        output.assert_code(2);
        assert!(errors(&output)[0].contains("overwrite the input"), "{}", output.stderr());
    }
    assert_eq!(fs::read(&path).expect("the input"), b"kept\n");
}

#[test]
fn what_failed_is_not_written_over_what_is_printed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("both");
    fs::write(&path, "kept\n").expect("a file");
    for stream in ["", "2"] {
        let to = ["--lines", "--failed", "both"].join(" ");
        let script = format!("exec '{}' {to} {stream}>>both", env!("CARGO_BIN_EXE_producer"));
        let output = Command::program("sh", &["-c", &script]).current_dir(dir.path()).run(SOON);
        output.assert_code(2);
        let told = fs::read_to_string(&path).expect("text") + &output.stderr();
        assert!(told.starts_with("kept\n") && told.contains("goes to that file"), "{told}");
    }
}

#[test]
fn an_input_that_is_not_read_is_not_taken_for_none() {
    let queue = unique_queue("unread");
    let producer = env!("CARGO_BIN_EXE_producer");
    let to = format!("'{producer}' --url {} --queue {queue}", shared_broker().url());
    let run = |script: &str| Command::program("sh", &["-c", script]).run(SOON);

    for input in ["</etc/passwd", "--", "</dev/null", "<&-", "--repeat 2 </dev/null"] {
        let script = format!("exec {to} {input}");
        let output = run(&script);
        output.assert_code(2);
        assert!(errors(&output)[0].contains("MESSAGE: there is none"), "{}", output.stderr());
    }
}

#[test]
fn when_it_gives_up_the_rest_of_the_input_is_in_failed() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let publish = session.read_publish();
        session.ack(publish.channel, 1);
        // The second is taken, and nothing is said of it.
        session.read_publish();
        let _ = session.answer_rpcs();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let lines: Vec<String> = (0..5000).map(|number| format!("{number}\n")).collect();

    let output = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--window", "1", "--timeout", "1s", "--failed", &failed.to_string_lossy()])
        .stdin(lines.concat())
        .run(SOON);

    output.assert_code(1);
    assert_eq!(
        (&json(&output)["unconfirmed"], &json(&output)["confirmed"]),
        (&4999.into(), &1.into())
    );
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), lines[1..].concat());
}

#[test]
fn long_tasks_that_the_broker_does_not_take_are_not_read_into_memory() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        session.stay_silent();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let line = [vec![b'x'; 1 << 20], vec![b'\n']].concat();
    let mut running = Command::producer(&["--url", &broker.url(), "--lines"])
        .args(&["--timeout", "4s", "--failed", &failed.to_string_lossy()])
        .open_stdin()
        .start();

    // It reads on when it has given up.
    for _ in 0..200 {
        running.write(&line);
    }
    let peak = running.peak_memory();
    running.end_input();
    let output = running.wait(SOON);

    output.assert_code(1);
    assert!(peak < 80 << 20, "{peak} bytes");
    assert_eq!(fs::metadata(&failed).expect("--failed").len(), 200 * line.len() as u64);
}

#[test]
fn the_summary_counts_as_published_what_was_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let output = Command::producer(&["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "--lines"])
        .args(&["--json", "--failed", &failed.to_string_lossy()])
        .stdin("1\n2\n3\n4\n5\n")
        .run(SOON);

    output.assert_code(69);
    let summary = json(&output);
    assert_eq!((&summary["published"], &summary["unconfirmed"]), (&0.into(), &5.into()));
}

#[test]
fn stopped_it_does_not_say_that_it_reads_the_rest() {
    let (sent, published) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        session.read_publish();
        let _ = sent.send(());
        let _ = session.answer_rpcs();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let mut running = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--window", "1", "--timeout", "5s", "--failed", &failed.to_string_lossy()])
        .open_stdin()
        .start();
    running.write(b"1\n2\n3\n");
    published.recv_timeout(SOON).expect("the first is published");

    running.signal("TERM");
    let output = running.wait(SOON);

    output.assert_code(1);
    assert!(!output.stderr().contains("the rest of the input"), "{}", output.stderr());
    let summary = json(&output);
    let sum = |fields: [&str; 2]| fields.map(|it| summary[it].as_u64().expect("a count"));
    let [published, unconfirmed] = sum(["published", "unconfirmed"]);
    assert!(published < unconfirmed && unconfirmed == 3, "{summary}");
    assert_eq!(fs::read(&failed).expect("--failed"), b"1\n2\n3\n");
}

#[test]
fn when_no_broker_is_reached_the_input_is_in_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let input: String = (0..5000).map(|number| format!("{number}\n")).collect();

    let output = Command::producer(&["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "--lines"])
        .args(&["--failed", &failed.to_string_lossy()])
        .stdin(input.clone())
        .run(SOON);

    output.assert_code(69);
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), input);
}

#[test]
fn row_45_a_nack_before_an_ack_of_many_refuses_exactly_its_own() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let publishes: Vec<_> = (0..5).map(|_| session.read_publish()).collect();
        let channel = publishes[0].channel;
        session.nack(channel, 3);
        session.ack_up_to(channel, 5);
        for tag in 6.. {
            let Some(again) = session.try_read_publish() else { return };
            assert_eq!(again.body, b"3");
            session.nack(channel, tag);
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let output = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--timeout", "2s"])
        .arg("--failed")
        .arg(&failed)
        .stdin("1\n2\n3\n4\n5\n")
        .run(SOON);

    output.assert_code(1);
    assert_eq!((&json(&output)["nacked"], &json(&output)["confirmed"]), (&1.into(), &4.into()));
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), "3\n");
    broker.finish(SOON);
}

/// Told as confirmed, it would be lost: RabbitMQ sends a return as it was published.
/// A broker whose queue has so many tasks and consumers, or is not there, and which reports what
/// it is asked about queues before the first publish or consumer.
fn found(counts: Option<(u32, u32)>) -> ScriptedBroker {
    ScriptedBroker::start(move |session, _| {
        session.handshake();
        let mut asked: Vec<String> = Vec::new();
        while let Some(method) = session.next_method() {
            match &method.call {
                Call::QueueDeclare { queue, passive: true, .. } => {
                    asked.push(format!("look for {queue}"));
                    if let Some((ready, consumers)) = counts {
                        let found = Arguments::default().short(queue).u32(ready).u32(consumers);
                        session.send(method.channel, 50, 11, found);
                    } else {
                        session.close_channel(method.channel, 404, "NOT_FOUND - no queue");
                    }
                    continue;
                }
                Call::QueueDeclare { queue, durable, exclusive, .. } => {
                    let durable = if *durable { "durable " } else { "" };
                    let exclusive = if *exclusive { "exclusive " } else { "" };
                    asked.push(format!("declare {durable}{exclusive}{queue}"));
                }
                Call::QueueDelete { queue, .. } => asked.push(format!("delete {queue}")),
                Call::Publish(_) | Call::Consume { .. } => session.report(asked.join(", ")),
                _ => {}
            }
            session.serve_method(method);
        }
    })
}

/// RabbitMQ says that a queue is there, and confirms what it takes, before it has written down all
/// that it needs to find the queue again; with the next queue it writes the rest.
#[test]
fn a_queue_that_we_make_is_written_down_before_it_is_used() {
    // The first declaration asks for the default type, and makes no queue.
    let made = "look for new, declare durable new, declare durable new, declare durable exclusive \
                new.settling, delete new.settling";
    // The second one asks for the type.
    let existing = "look for new, declare durable new, declare durable new";
    let table = [
        (None, &[][..], made),
        (Some((0, 0)), &[], existing),
        (Some((1, 1)), &[], existing),
        (None, &["--transient-queue"], "declare new"),
    ];
    for (counts, more, asked) in table {
        let used = |run: &dyn Fn(&[&str])| {
            let broker = found(counts);
            run(&[&["--url", &broker.url(), "--queue", "new"], more].concat());
            broker.wait(asked, SOON);
            broker.finish(SOON);
        };
        used(&|to| Command::producer(to).arg("x").run(SOON).assert_code(0));
        let work = ["--max-tasks", "1", "--", "true"];
        used(&|to| Command::worker(&[to, &work].concat()).run(SOON).assert_code(0));
    }
}

#[test]
fn a_return_of_something_else_ends_the_connection_and_what_is_in_flight_is_published_again() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let mut publish = session.read_publish();
        if number == 0 {
            publish.routing_key = b"elsewhere".to_vec();
            session.return_message(&publish, 312, "NO_ROUTE");
        }
        session.ack(publish.channel, 1);
        assert_eq!(session.answer_rpcs(), None);
        session.report(format!("published to {number}"));
    });

    let output = Command::producer(&["--url", &broker.url(), "x"]).run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("returned what was not published"), "{}", output.stderr());
    broker.wait("published to 1", SOON);
}

/// All at once: when the return is seen, the confirms behind it are here.
#[test]
fn no_confirm_behind_a_return_of_something_else_counts() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publishes = [(); 3].map(|()| session.read_publish());
        let ids = publishes.each_ref().map(|it| it.message_id().expect("an id"));
        session.report(format!("{number}: {}", ids.join(" ")));
        let channel = publishes[0].channel;
        let ack = |tag: u64| Frame::method(channel, 60, 80, Arguments::default().u64(tag).u8(0));
        let acks = [1, 2, 3].map(|tag| ack(tag).to_bytes()).concat();
        if number == 0 {
            let without_id = Properties::default().to_bytes();
            let arguments = Arguments::default().u16(312).short("NO_ROUTE").short("").short("q");
            let method = Frame::method(channel, 60, 50, arguments);
            let returned = content(&method, &without_id, b"b", 4096);
            session.raw(&[returned, acks].concat());
        } else {
            session.raw(&acks);
        }
        let _ = session.answer_rpcs();
    });
    let url = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q"));

    let mut receipts = Vec::new();
    for id in ["a", "b", "c"] {
        receipts.extend(producer.send(Task::new(id).with_id(id)));
    }
    broker.wait("0: a b c", SOON);
    assert!(receipts.is_empty(), "{receipts:?}");
    let receipts = producer.flush();

    broker.wait("1: a b c", SOON);
    assert_eq!(receipts.len(), 3);
    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "{receipts:?}");
}

#[test]
fn the_pauses_grow_while_the_broker_confirms_nothing() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let _ = session.try_read_publish();
        session.hang_up();
    });
    let pause = |line: &str| {
        let after = line.split("published again in ").nth(1)?;
        after.strip_suffix(" s")?.parse::<f64>().ok()
    };

    let running = Command::producer(&["--url", &broker.url(), "--timeout", "1h", "x"]).start();

    // The first is no longer than one second.
    running.wait_for_stderr_line(|line| pause(line).is_some_and(|seconds| seconds > 1.1), SOON);
}

/// Answers up to where a producer asks for a delay queue.
fn silent_when_asked_for_a_delay_queue() -> ScriptedBroker {
    ScriptedBroker::start(|session, _| {
        session.handshake_with(Tuning { heartbeat: 0, ..Tuning::default() });
        loop {
            let Some(method) = session.next_method() else { return };
            match &method.call {
                Call::QueueDeclare { queue, .. } if queue.contains(".retry.") => {
                    session.report("asked");
                    return session.stay_silent();
                }
                _ => session.answer(&method),
            };
        }
    })
}

#[test]
fn a_delay_queue_that_is_asked_for_in_vain_is_waited_for_within_the_timeout() {
    let broker = silent_when_asked_for_a_delay_queue();

    let begun = Instant::now();
    let arguments = ["--url", &broker.url(), "--json", "--delay", "5s", "--timeout", "2s", "x"];
    let output = Command::producer(&arguments).run(SOON);

    output.assert_code(1);
    assert_eq!(json(&output)["unconfirmed"], 1);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_second_signal_while_a_delay_queue_is_asked_for_keeps_what_was_not_confirmed() {
    let broker = silent_when_asked_for_a_delay_queue();
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let arguments = ["--url", &broker.url(), "--lines", "--json", "--delay", "5s", "--failed"];
    let mut running = Command::producer(&arguments).arg(&failed).open_stdin().start();
    running.write(b"a\n");
    broker.wait("asked", SOON);

    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    let second = Instant::now();
    let output = running.wait(SOON);

    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
    output.assert_code(130);
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), "a\n");
    assert_eq!(json(&output)["unconfirmed"], 1);
    assert!(!output.stderr().contains("published again"), "{}", output.stderr());
}

/// A producer of two tasks, where it keeps what it could not send, and its broker.
struct Unheard {
    running: Running,
    failed: PathBuf,
    broker: ScriptedBroker,
}

impl Unheard {
    fn start(methods: usize, dir: &Path, arguments: &[&str]) -> Unheard {
        let broker = ScriptedBroker::silent_after(methods);
        let failed = dir.join(format!("{methods}{}", arguments.concat()));
        let running = Command::producer(&["--url", &broker.url(), "--lines", "--failed"])
            .arg(&failed)
            .args(arguments)
            .stdin("one\ntwo\n")
            .start();
        Unheard { running, failed, broker }
    }
}

/// From the start-ok to the publish of the second task, …
const STEPS: RangeInclusive<usize> = 0..=8;
/// … and of a delayed one, behind what is the same.
const STEPS_OF_A_DELAY: RangeInclusive<usize> = 7..=14;

/// One for each step at which a broker may fall silent, which has done so.
fn at_each_step(dir: &Path, timeout: &str) -> Vec<Unheard> {
    let at_once = STEPS.map(|step| Unheard::start(step, dir, &["--timeout", timeout]));
    let delayed = STEPS_OF_A_DELAY
        .map(|step| Unheard::start(step, dir, &["--timeout", timeout, "--delay", "5s"]));
    let started: Vec<Unheard> = at_once.chain(delayed).collect();
    for unheard in &started {
        unheard.broker.wait("silent", SOON);
    }
    started
}

fn assert_kept(unheard: Unheard, codes: &[i32]) {
    let output = unheard.running.wait(SOON);
    let name = unheard.failed.display();
    let ended = output.code.is_some_and(|code| codes.contains(&code));
    assert!(ended, "{name}: {output:?}");
    let kept = fs::read_to_string(&unheard.failed).expect("--failed");
    assert_eq!(kept, "one\ntwo\n", "{name}: {output:?}");
}

#[test]
fn a_signal_at_any_step_of_a_silent_broker_ends_it_within_its_timeout_and_5_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = at_each_step(dir.path(), "8s");

    let begun = Instant::now();
    started.iter().for_each(|unheard| unheard.running.signal("INT"));

    for unheard in started {
        assert_kept(unheard, &[1, 69]);
        assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_second_signal_at_any_step_of_a_silent_broker_ends_it_within_2_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = at_each_step(dir.path(), "60s");
    started.iter().for_each(|unheard| unheard.running.signal("INT"));

    let mut seconds = Vec::new();
    for Unheard { running, .. } in &started {
        // Where the first is enough, it has ended without a word.
        let stopping = running.next_stderr_line(|line| line.contains("stopping"), SOON);
        seconds.push(Instant::now());
        if stopping.is_some() {
            running.signal("INT");
        }
    }

    for (unheard, second) in started.into_iter().zip(seconds) {
        assert_kept(unheard, &[1, 130]);
        // It takes 1.8 s to leave a connection, and a machine with much to do takes some on top.
        assert!(second.elapsed() < Duration::from_secs(4), "{:?}", second.elapsed());
    }
}

#[test]
fn nobody_listening_is_exit_69_after_the_timeout() {
    let begun = Instant::now();
    let output =
        Command::producer(&["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "x"]).run(SOON);

    output.assert_code(69);
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
    assert!(errors(&output)[0].contains("127.0.0.1:1"), "{}", output.stderr());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn the_second_of_two_urls_is_used_when_the_first_is_down() {
    let queue = unique_queue("failover");
    let urls = format!("amqp://127.0.0.1:1,{}", shared_broker().url());

    let producer = ["--url", &urls, "--url-order", "given", "--queue", &queue, "x"];
    let output = Command::producer(&producer).run(SOON);

    output.assert_code(0);
    assert_eq!(shared_broker().client().count(&queue), 1);
}

#[test]
fn row_58_bad_addresses_and_logins_exit_2_in_one_line_without_the_password() {
    let address = shared_broker().address();
    let table = [
        ("http://u:s3cretword@host".to_owned(), "scheme"),
        ("amqp:u:s3cretword@host".to_owned(), "URL"),
        ("amqp:/u:s3cretword@host".to_owned(), "no // after the scheme"),
        ("amqp:///u:s3cretword@host".to_owned(), "a third / before the login"),
        ("amqp://u:s3cretword@host:99999".to_owned(), "port"),
        ("amqp://u:s3cretword@host/a/b".to_owned(), "virtual host"),
        ("amqp://u:s3cretword@host?frame_max=s3cretword".to_owned(), "parameters"),
        (format!("amqp://nobody:s3cretword@{address}"), "refused the login of user 'nobody'"),
        (format!("amqp://guest:s3cretword@{address}"), "refused the login of user 'guest'"),
        (format!("amqp://u:s3cretword@{address}?auth_mechanism=external"), "no login by EXTERNAL"),
    ];
    let levels = ["error", "debug", "trace", "amiquip=trace", "s3cretword=,=x"];
    let cases = table.iter().flat_map(|(url, wanted)| levels.map(|level| (url, wanted, level)));

    // All at once: the broker takes three seconds to refuse a login.
    let running = cases.map(|(url, wanted, level)| {
        let command = Command::producer(&["--url", url, "x"]).env("RUST_LOG", level);
        (url, wanted, level, command.start())
    });

    for (url, wanted, level, running) in running.collect::<Vec<_>>() {
        let output = running.wait(SOON);
        output.assert_code(2);
        let said = errors(&output);
        assert_eq!(said.len(), 1, "{url} at {level}: {}", output.stderr());
        assert!(said[0].contains(wanted), "{url}: {said:?}");
        // What is in RUST_LOG itself is quoted where it cannot be read.
        let logged =
            output.stderr().lines().filter(|line| !line.contains("warning: ")).collect::<String>();
        assert!(!logged.contains("s3cretword"), "{url} at {level}: {logged}");
        assert!(!output.stdout().contains("s3cretword"));
    }
}

#[test]
fn row_58_an_unknown_virtual_host_is_exit_2_in_one_line() {
    let url = format!("amqp://guest:guest@{}/no-such-vhost", shared_broker().address());

    let output = Command::producer(&["--url", &url, "x"]).run(SOON);

    output.assert_code(2);
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
    assert!(errors(&output)[0].contains("virtual host 'no-such-vhost'"), "{}", output.stderr());
}

#[test]
fn no_password_shows_at_any_level_when_all_goes_well_or_the_connection_is_lost() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publish = session.read_publish();
        if number == 0 {
            session.close_connection(320, "CONNECTION_FORCED - going");
            session.read_until_closed();
        } else {
            session.ack(publish.channel, 1);
            assert_eq!(session.answer_rpcs(), None);
        }
    });
    let url = format!("amqp://me:s3cretword@{}", broker.address());

    let output = Command::producer(&["--url", &url, "x"]).env("RUST_LOG", "trace").run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("320"), "{}", output.stderr());
    assert!(!output.stderr().contains("s3cretword"), "{}", output.stderr());
    broker.finish(SOON);
}

#[test]
fn no_password_shows_when_a_url_is_in_a_wrong_place() {
    let url = "amqp://me:s3cret@word@host,amqp://me:s3cretword@host";
    let commands = [
        Command::worker(&[url]),
        Command::worker(&["--prefetch", url]),
        Command::producer(&["--window", url]),
        Command::queuectl(&[url]),
        Command::queuectl(&["dead", "list", "--limit", url]),
    ];
    for command in commands {
        let output = command.run(SOON);
        output.assert_code(2);
        let said = output.stderr();
        assert!(said.contains("amqp://…@host,amqp://…@host"), "{said}");
        assert!(!said.contains("s3cret") && !said.contains("word"), "{said}");
        assert_eq!(output.stdout(), "");
    }
}

#[test]
fn row_66_a_rust_log_that_means_nothing_is_passed_over() {
    let queue = unique_queue("garbage");

    let output = producer(&queue, &["x"]).env("RUST_LOG", "==,//,\u{1}").run(SOON);

    output.assert_code(0);
}

#[test]
fn row_63_a_reader_that_goes_away_is_no_panic_and_no_loss() {
    let queue = unique_queue("pipe");
    let script = format!(
        "'{}' --url '{}' --queue '{queue}' --repeat 2000 x | head -n 1; \
         exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_producer"),
        shared_broker().url()
    );

    let output = Command::program("bash", &["-c", &script]).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'x'\n");
    assert!(!output.stderr().contains("panic"), "{}", output.stderr());
    assert_eq!(shared_broker().client().count(&queue), 2000);
}

#[test]
fn row_64_a_full_disk_for_the_output_is_exit_1() {
    let queue = unique_queue("devfull");
    let script = format!(
        "exec '{}' --url '{}' --queue '{queue}' x >/dev/full",
        env!("CARGO_BIN_EXE_producer"),
        shared_broker().url()
    );

    let output = Command::program("sh", &["-c", &script]).run(SOON);

    output.assert_code(1);
    assert!(errors(&output)[0].contains("standard output"), "{}", output.stderr());
    assert_eq!(shared_broker().client().count(&queue), 1);
}

#[test]
fn row_64_a_limit_on_files_is_told_as_a_full_disk_is_and_exit_1() {
    let queue = unique_queue("fsize");
    let dir = tempfile::tempdir().expect("a folder");
    let script = format!(
        "ulimit -f 1; seq 1000 | '{}' --url '{}' --no-declare --queue '{queue}' --json --lines \
         --failed failed",
        env!("CARGO_BIN_EXE_producer"),
        shared_broker().url()
    );

    let output = Command::program("bash", &["-c", &script]).current_dir(dir.path()).run(SOON);

    output.assert_code(1);
    let told = "--failed cannot be written: File too large";
    assert!(output.stderr().contains(told), "{}", output.stderr());
    assert_eq!(json(&output)["returned"], 1000);
}

/// Nobody reads its output, so there is no orderly end.
#[test]
fn stopped_while_it_cannot_print_it_tells_how_far_it_came_and_keeps_what_failed() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let first = session.read_publish();
        let channel = session.read_publish().channel;
        session.return_message(&first, 312, "NO_ROUTE");
        session.ack(channel, 1);
        session.ack(channel, 2);
        let _ = session.answer_rpcs();
        session.stay_silent();
    });
    let dir = tempfile::tempdir().expect("a directory");
    // dd fills the pipe and fails; fd 3 keeps it open.
    let script = format!(
        "mkfifo full; exec 3<>full; dd if=/dev/zero of=full bs=4096 oflag=nonblock 2>&-; \
         exec '{}' --url '{}' --repeat 200000 --window 2 --timeout 1s --failed failed task >full",
        env!("CARGO_BIN_EXE_producer"),
        broker.url()
    );
    let running = Command::program("sh", &["-c", &script]).current_dir(dir.path()).start();
    let failed = || fs::read_to_string(dir.path().join("failed")).ok();
    poll("it is kept", SOON, || failed().filter(|kept| kept == "task\n"));

    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(1);
    let said = output.stderr();
    let (_, told) = said.split_once("in the middle after ").expect("how far it came");
    let counts = told.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let counts: Vec<u64> = counts.collect();
    assert_eq!(counts[0] - counts[1], 2, "{said}");
    assert_eq!(failed().as_deref(), Some("task\n"));
}

/// The client library waits for the broker in the middle of it: of frames as small as these it takes
/// 4 MiB.
#[test]
fn a_second_signal_in_the_middle_of_a_large_task_leaves_it_in_failed() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake_with(Tuning { frame_max: 4096, ..Tuning::default() });
        while let Some(method) = session.next_method() {
            session.answer(&method);
            if matches!(method.call, Call::ConfirmSelect { .. }) {
                break;
            }
        }
        session.stay_silent();
    });
    let proxy = Proxy::start(broker.address());
    let dir = tempfile::tempdir().expect("a directory");
    let body = vec![b'x'; 64 << 20];
    fs::write(dir.path().join("body"), &body).expect("written");
    let options = ["--url", &proxy.url(), "--body-file", "body", "--failed", "failed"];
    let running = Command::producer(&options).current_dir(dir.path()).start();
    proxy.wait_for_bytes(Direction::ToBroker, 100_000, SOON);

    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(130);
    assert!(fs::read(dir.path().join("failed")).expect("the failed") == body, "{output:?}");
}

#[test]
fn row_62_what_a_killed_producer_said_was_sent_is_on_the_queue() {
    let queue = unique_queue("killed");
    let running = producer(&queue, &["--repeat", "1000000", "x"]).start();
    for _ in 0..200 {
        running.wait_for_stdout_line(|line| line.contains("Sent"), SOON);
    }

    running.kill();
    let output = running.wait(SOON);

    assert_eq!(output.signal, Some(9));
    let said = output.stdout().lines().count();
    let client = shared_broker().client();
    assert!(client.count(&queue) as usize >= said, "{said} said");
    client.delete(&queue);
}

#[test]
fn a_signal_stops_the_reading_of_an_endless_input() {
    for signal in ["INT", "TERM", "HUP"] {
        let queue = unique_queue("endless");
        let mut running = producer(&queue, &["--lines", "--json"]).open_stdin().start();
        running.write(b"one\n");
        shared_broker_has(&queue, 1);

        let begun = Instant::now();
        running.signal(signal);
        let output = running.wait(SOON);

        assert!(begun.elapsed() < Duration::from_secs(3), "{signal}: {:?}", begun.elapsed());
        output.assert_code(1);
        assert_eq!(json(&output)["confirmed"], 1, "{signal}");
    }
}

fn shared_broker_has(queue: &str, count: u32) {
    let client = shared_broker().client();
    client.declare(queue);
    client.wait_for_count(queue, count, SOON);
}
