//! The threads of a worker: which tasks they take and requeue, and how a run ends.

use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue};
use crossbeam_channel::bounded;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::broker::{Lent, breakable_broker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output, Running};
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::vhost::Vhost;
use crate::support::wire::{Call, Delivery, Properties};

const SOON: Duration = Duration::from_secs(30);

/// How a worker with these options exits, and by its own words ended, whose first task a signal
/// meets; it is told to end the task after that.
fn interrupted(options: &[&str], tasks: usize) -> (Output, Value) {
    let queue = unique_queue("interrupted");
    let mut client = shared_broker().client();
    client.declare(&queue);
    for _ in 0..tasks {
        client.publish_id(&queue, "task");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let go_on = dir.path().join("go-on").to_string_lossy().into_owned();
    let script = r#"echo begun; until [ -e "$0" ]; do sleep 0.1; done"#;
    let running = Command::worker(&["--url", shared_broker().url(), "--queue", &queue, "--json"])
        .args(&["--threads", "1"])
        .args(options)
        .args(&["--", "sh", "-c", script, &go_on])
        .start();
    running.wait_for_stdout_line(|line| line == "begun", SOON);
    running.signal("TERM");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    std::fs::write(&go_on, "").expect("the task is told");
    let output = running.wait(SOON);
    client.delete(&queue);
    let stdout = output.stdout();
    let json = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (output, json.expect("a summary"))
}

#[test]
fn a_batch_that_a_signal_ends_before_it_is_through_exits_with_4() {
    for options in [&["--drain"][..], &["--max-tasks", "2"], &["--drain", "--max-tasks", "9"]] {
        let (output, json) = interrupted(options, 2);
        output.assert_code(4);
        assert_eq!((&json["ended"], &json["done"]), (&"signal".into(), &1.into()), "{options:?}");
    }
}

#[test]
fn a_worker_without_an_end_of_its_own_is_stopped_with_0() {
    let (output, json) = interrupted(&[], 2);
    output.assert_code(0);
    assert_eq!(json["ended"], "signal");
}

#[test]
fn a_signal_after_the_last_of_max_tasks_has_begun_changes_nothing() {
    let (output, json) = interrupted(&["--max-tasks", "1"], 2);
    output.assert_code(0);
    assert_eq!((&json["ended"], &json["done"]), (&"max-tasks".into(), &1.into()));
}

#[test]
fn a_drain_says_that_it_drained_and_meanwhile_what_it_waits_for() {
    let queue = unique_queue("awaited");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    Command::producer(&to).args(&["--delay", "10s", "later"]).run(SOON).assert_code(0);
    let drained = Command::worker(&to).args(&["--drain", "--json", "--", "true"]).run(SOON);
    drained.assert_code(0);
    let stderr = drained.stderr();
    let told = "waiting for delayed tasks; the last one is due within 10 s";
    assert_eq!(stderr.matches(told).count(), 1, "{stderr}");
    let stdout = drained.stdout();
    assert!(stdout.contains("\"ended\":\"drained\""), "{stdout}");
    shared_broker().client().delete(&queue);
}

/// A broker that sends so many tasks at once; the signal comes when the first of them runs, which
/// goes on until what `given_back` waits for has come.
fn stopped_in_the_first_of(tasks: u64, given_back: impl Fn(&mut Session) + Send + Sync + 'static) {
    let (tell, told) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        for tag in 1..=tasks {
            let body = if tag == 1 { "." } else { "" };
            session.deliver(&Delivery::new(consumer.channel, &consumer.tag, tag).body(body));
        }
        let _ = told.recv_timeout(SOON);
        let cancel = session.expect_cancel(&consumer);
        session.answer(&cancel);
        given_back(session);
        assert_eq!(session.answer_rpcs(), None, "nothing more is settled");
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--prefetch", "0"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    running.signal("INT");
    tell.send(()).expect("the script waits");
    running.wait(SOON).assert_code(0);
    broker.finish(SOON);
}

fn settled(session: &mut Session) -> Call {
    session.answer_rpcs().expect("something is settled").call
}

#[test]
fn many_that_a_stop_gives_back_go_by_one_nack_that_covers_no_task_that_runs() {
    stopped_in_the_first_of(3000, |session| {
        let acked = settled(session);
        assert!(matches!(acked, Call::Ack { delivery_tag: 1, .. }), "{acked:?}");
        let nacked = settled(session);
        let all = Call::Nack { delivery_tag: 3000, multiple: true, requeue: true };
        assert_eq!(nacked, all);
    });
}

#[test]
fn a_few_that_a_stop_gives_back_do_not_wait_for_the_task_that_runs() {
    stopped_in_the_first_of(3, |session| {
        for delivery_tag in [2, 3] {
            let one = Call::Nack { delivery_tag, multiple: false, requeue: true };
            assert_eq!(settled(session), one);
        }
        let acked = settled(session);
        assert!(matches!(acked, Call::Ack { delivery_tag: 1, .. }), "{acked:?}");
    });
}

#[test]
fn no_more_is_taken_than_max_tasks_allows() {
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let deliver = |session: &mut Session, tag| {
            session.deliver(&Delivery::new(consumer.channel, &consumer.tag, tag).body("task"));
        };
        deliver(session, 1);
        let acked = settled(session);
        assert!(matches!(acked, Call::Ack { delivery_tag: 1, .. }), "{acked:?}");
        deliver(session, 2);
        // Only then is there room for another one.
        let cancel = session.expect_cancel(&consumer);
        session.answer(&cancel);
        let acked = settled(session);
        assert!(matches!(acked, Call::Ack { delivery_tag: 2, .. }), "{acked:?}");
        assert_eq!(session.answer_rpcs(), None);
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-tasks", "2", "--json"];
    let output = Command::worker(&arguments).run(SOON);
    output.assert_code(0);
    assert!(output.stdout().contains("\"ended\":\"max-tasks\""), "{}", output.stdout());
    broker.finish(SOON);
}

#[test]
fn workers_of_many_threads_that_do_some_tasks_each_return_none_of_them() {
    let queue = unique_queue("some-each");
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--queue-type", "quorum"];
    let tasks = Command::producer(&to).args(&["--repeat", "12", "task"]).run(SOON);
    tasks.assert_code(0);
    for most in ["1", "5", "6"] {
        let options = ["--threads", "8", "--prefetch", "3", "--max-tasks", most, "--json"];
        let output = Command::worker(&to).args(&options).args(&["--", "true"]).run(SOON);
        output.assert_code(0);
        let stdout = output.stdout();
        let json: Value =
            stdout.lines().last().and_then(|it| serde_json::from_str(it).ok()).expect("a summary");
        assert_eq!(json["done"].to_string(), most);
        assert_eq!(json["returned"], 0);
    }
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 0);
    client.delete(&queue);
}

/// One thread, and a queue of dead letters that is full and refuses: the good tasks stand behind so
/// many that fail, each after so many seconds.
fn the_good_are_done_behind(bad: usize, each: &str, kind: &str) {
    const GOOD: usize = 3;
    let queue = unique_queue("refused");
    let dead = format!("{queue}.dead");
    let mut client = shared_broker().client();
    client.declare_bounded(&dead, 0);
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--queue-type", kind];
    Command::worker(&to).args(&["--drain", "--", "true"]).run(SOON).assert_code(0);
    let names = (0..bad).map(|it| format!("bad-{it}")).collect::<Vec<_>>();
    client.publish_ids(&queue, names.iter().map(String::as_str).chain(["good"; GOOD]));
    let script = r#"x=$(cat); echo "$x"; case $x in good) ;; *) sleep "$0"; exit 1;; esac"#;
    let options = ["--threads", "1", "--max-attempts", "1", "--", "sh", "-c", script, each];
    let running = Command::worker(&to).args(&options).start();
    for _ in 0..GOOD {
        running.wait_for_stdout_line(|line| line == "good", SOON * 8);
    }
    let refused = |line: &str| line.contains(&format!("could not be published to '{dead}'"));
    running.wait_for_stderr_line(refused, SOON);
    running.signal("INT");
    let output = running.wait(SOON);
    output.assert_code(0);
    let (stdout, stderr) = (output.stdout(), output.stderr());
    let first = stdout.split("good").next().expect("there is one");
    assert_eq!(first.matches("bad").count(), bad, "each once before the good ones: {stdout}");
    assert_eq!(stderr.matches("takes other tasks while").count(), 1, "{stderr}");
    client.wait_for_count(&queue, u32::try_from(bad).expect("few"), SOON);
    client.delete(&queue);
    client.delete(&dead);
}

#[test]
fn tasks_behind_many_that_cannot_be_handed_over_go_on() {
    the_good_are_done_behind(12, "0", "classic");
    the_good_are_done_behind(12, "0", "quorum");
}

#[test]
fn tasks_behind_hundreds_that_cannot_be_handed_over_go_on() {
    the_good_are_done_behind(501, "0", "classic");
}

/// They fail more slowly than a pause lasts.
#[test]
fn tasks_behind_slow_ones_that_cannot_be_handed_over_go_on() {
    the_good_are_done_behind(4, "1.5", "classic");
}

#[test]
fn a_task_that_was_delivered_before_is_reported() {
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let delivery = Delivery::new(consumer.channel, &consumer.tag, 1).redelivered();
        session.deliver(&delivery.properties(Properties::with_message_id("again")));
        let _ = session.answer_rpcs();
        assert_eq!(session.answer_rpcs(), None);
    });
    let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
    let told = |line: &str| line.contains("task again was delivered before");
    running.wait_for_stderr_line(told, SOON);
    running.wait_for_stdout_line(|line| line == " [x] Done", SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(0);
    broker.finish(SOON);
}

/// A worker whose first task is late, until it is told to end it; and how to tell it.
fn with_a_late_task(
    broker: &Lent,
    queue: &str,
    options: &[&str],
) -> (Running, impl FnOnce() -> TempDir) {
    let to = ["--url", broker.url(), "--queue", queue, "--queue-type", "quorum"];
    Command::producer(&to).arg("late").run(SOON).assert_code(0);
    broker.shorten_consumer_timeout();
    let dir = tempfile::tempdir().expect("a directory");
    let go_on = dir.path().join("go-on").to_string_lossy().into_owned();
    let script = r#"x=$(cat); echo "$x"; [ "$x" = late ] || exit 0
        until [ -e "$0" ]; do sleep 0.1; done"#;
    let running = Command::worker(&to)
        .args(&["--threads", "2", "--retry-delay", "100ms"])
        .args(options)
        .args(&["--", "sh", "-c", script, &go_on])
        .start();
    running.wait_for_stdout_line(|line| line == "late", SOON);
    (running, move || {
        std::fs::write(&go_on, "").expect("the task is told");
        // The directory is there until then.
        dir
    })
}

#[test]
fn a_task_that_outlives_the_broker_s_patience_ends_as_a_dead_letter_and_keeps_one_thread() {
    let broker = breakable_broker();
    let queue = unique_queue("late");
    let (running, go_on) = with_a_late_task(&broker, &queue, &["--max-attempts", "1"]);
    running.wait_for_stderr_line(|line| line.contains("goes to the dead letters"), SOON * 3);
    let dead = format!("{queue}.dead");
    let client = broker.client();
    let letters = poll("a dead letter", SOON, || {
        let letters = client.get_all(&dead);
        (!letters.is_empty()).then_some(letters)
    });
    broker.restore_consumer_timeout();
    let to = ["--url", broker.url(), "--queue", &queue, "--queue-type", "quorum"];
    Command::producer(&to).arg("other").run(SOON).assert_code(0);
    running.wait_for_stdout_line(|line| line == "other", SOON);
    let _dir = go_on();
    running.wait_for_stderr_line(|line| line.contains("may run twice"), SOON);
    client.wait_for_consumers(&queue, 2, SOON);
    running.signal("INT");
    let output = running.wait(SOON);
    output.assert_code(0);

    let reason = &letters[0].headers["x-rabbit-work-reason"];
    let AmqpValue::LongString(reason) = reason else { panic!("{reason:?}") };
    assert!(reason.contains("consumer_timeout"), "{reason}");
    let stderr = output.stderr();
    assert_eq!(stderr.matches("lost the session").count(), 0, "{stderr}");
    assert_eq!(output.stdout().matches("late").count(), 1, "it does not run beside itself");
    client.delete(&queue);
    client.delete(&dead);
}

#[test]
fn a_task_that_is_late_once_counts_once_and_is_done_when_it_has_ended() {
    let broker = breakable_broker();
    let queue = unique_queue("late");
    let (running, go_on) = with_a_late_task(&broker, &queue, &["--max-attempts", "3"]);
    running.wait_for_stderr_line(|line| line.contains("attempt 1 of 3, is tried again"), SOON * 3);
    broker.restore_consumer_timeout();
    running.wait_for_stderr_line(|line| line.contains("still runs here"), SOON);
    let to = ["--url", broker.url(), "--queue", &queue, "--queue-type", "quorum"];
    Command::producer(&to).arg("other").run(SOON).assert_code(0);
    running.wait_for_stdout_line(|line| line == "other", SOON);
    let _dir = go_on();
    running.wait_for_stdout_line(|line| line == "late", SOON);
    let client = broker.client();
    poll("the end", SOON, || (client.count(&queue) == 0).then_some(()));
    running.signal("INT");
    let output = running.wait(SOON);
    output.assert_code(0);
    let (stdout, stderr) = (output.stdout(), output.stderr());
    assert!(!stderr.contains("attempt 2 of 3"), "it counts once: {stderr}");
    assert_eq!(stdout.matches("late").count(), 2, "not beside itself: {stdout}");
    assert!(!stderr.contains("goes to the dead letters"), "{stderr}");
    client.delete(&queue);
}

#[test]
fn tasks_with_the_same_body_and_no_id_are_not_taken_for_one_that_is_late() {
    const TASKS: u32 = 6;
    let queue = unique_queue("same");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let none = AmqpProperties::default().with_delivery_mode(2);
    client.publish_all(&queue, (0..TASKS).map(|_| (&b"same"[..], none.clone())));
    shared_broker().client().take_and_leave(&queue, TASKS);
    client.wait_for_count(&queue, TASKS, SOON);
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let options = ["--threads", "3", "--max-attempts", "1", "--drain", "--json"];
    let output = Command::worker(&to).args(&options).args(&["--", "sleep", "0.3"]).run(SOON);
    output.assert_code(0);
    let stdout = output.stdout();
    assert!(stdout.contains("\"done\":6"), "{stdout}");
    client.delete(&queue);
}

/// The broker reads nothing more on the only connection: it could not answer a cancel.
#[test]
fn an_alarm_on_the_only_connection_ends_no_session_while_failed_tasks_wait() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q"];
    Command::producer(&to).args(&["--repeat", "2", "task"]).run(SOON).assert_code(0);
    vhost.allow_connections(1);
    let dir = tempfile::tempdir().expect("a directory");
    let go_on = dir.path().join("go-on").to_string_lossy().into_owned();
    let script = r#"echo begun; until [ -e "$0" ]; do sleep 0.1; done; exit 1"#;
    let options = ["--threads", "1", "--max-attempts", "1", "--", "sh", "-c", script, &go_on];
    let running = Command::worker(&to).args(&options).start();
    running.wait_for_stdout_line(|line| line == "begun", SOON);
    broker.alarm();
    std::fs::write(&go_on, "").expect("the task is told");
    let refused = |line: &str| line.contains("could not be published");
    running.wait_for_stderr_line(refused, SOON * 3);
    broker.clear_alarm();
    running.signal("INT");
    let output = running.wait(SOON);
    let stderr = output.stderr();
    assert_eq!(stderr.matches("lost the session").count(), 0, "{stderr}");
}
