//! Deferred tasks: they wait like failed ones, and their attempts do not grow.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::unbounded;
use rabbit_work::{
    Broker, Delivery, EventKind, Failure, Inspector, Producer, Queue, RetryPolicy, StopReason,
    Task, Worker,
};
use serde_json::Value;

use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::ledger::Ledger;
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::{Event, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(180);
const MOMENT: Duration = Duration::from_millis(100);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

fn publish(queue: &str, ids: &[&str]) {
    let mut producer = Producer::new(&broker(), &Queue::new(queue));
    for id in ids {
        producer.publish(Task::new(*id).with_id(*id)).expect("confirmed");
    }
}

/// A worker with one thread whose command is this script.
fn worker(queue: &str, options: &[&str], script: &str) -> Command {
    let to = ["--url", shared_broker().url(), "--queue", queue, "--threads", "1"];
    Command::worker(&[&to[..], options, &["--", "sh", "-c", script]].concat())
}

fn queuectl(queue: &str, arguments: &[&str]) -> Vec<Value> {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    let output = Command::queuectl(&[&to, arguments].concat()).run(SOON);
    let parsed = |line| serde_json::from_str(line).expect("an object");
    output.success().lines().map(parsed).collect()
}

#[test]
fn a_task_deferred_fifty_times_and_then_failing_twice_has_two_attempts() {
    let queue = unique_queue("deferred");
    publish(&queue, &["1"]);
    let (tell, seen) = unbounded();
    let handler = move |delivery: &Delivery| -> Result<(), Failure> {
        let _ = tell.send((delivery.deferrals(), delivery.attempt()));
        match delivery.deferrals() {
            ..50 => Err(Failure::defer("not now", MOMENT)),
            _ => Err(Failure::retry("broken")),
        }
    };
    let policy = RetryPolicy::new().max_attempts(2).first_delay(MOMENT);
    let worker = Worker::new(&broker(), &Queue::new(&queue)).threads(1).retry(policy).drain();

    let working = Working::start(&worker, handler);
    (0..50).for_each(|_| drop(working.wait_for(EventKind::Deferred, SOON)));
    working.wait_for(EventKind::Dead, SOON);
    let summary = working.wait(SOON).expect("it ends well");

    let expected = (0..50).map(|deferrals| (deferrals, 1)).chain([(50, 1), (50, 2)]);
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!((summary.deferred, summary.retried, summary.dead), (50, 1, 1));
    assert_eq!(summary.ended, StopReason::Drained);
    let letter = &queuectl(&queue, &["dead", "list", "--json"])[0][0];
    assert_eq!((&letter["attempts"], &letter["deferrals"]), (&2.into(), &50.into()), "{letter}");
    assert_eq!(letter["reason"], "broken");
}

#[test]
fn one_deferral_too_many_is_a_dead_letter_that_says_so() {
    let queue = unique_queue("max-defers");
    publish(&queue, &["1"]);
    let options =
        ["--max-defers", "2", "--defer-delay", "100ms", "--drain", "--json", "--max-attempts", "9"];

    let output = worker(&queue, &options, "echo busy >&2; exit 75").run(SOON);

    output.assert_code(1);
    let summary: Value = serde_json::from_str(&output.stdout()).expect("a summary");
    assert_eq!((&summary["deferred"], &summary["dead"]), (&2.into(), &1.into()), "{summary}");
    assert_eq!(summary["retried"], 0);
    let letter = &queuectl(&queue, &["dead", "list", "--json"])[0][0];
    assert_eq!((&letter["deferrals"], &letter["attempts"]), (&2.into(), &1.into()), "{letter}");
    let reason = "deferred 2 times, as often as allowed: exit status 75; the end of its standard \
                  error: busy";
    assert_eq!(letter["reason"], reason);
}

/// All wait at a time, although the worker has one thread and takes one task at a time.
#[test]
fn a_command_says_how_long_its_task_waits_and_frees_its_thread() {
    let queue = unique_queue("defer-file");
    publish(&queue, &["7300", "2h", "soon", "never", "", "none"]);
    let dir = tempfile::tempdir().expect("a directory");
    let events = dir.path().join("events");
    let script = r#"x=$(cat); [ "$x" = none ] || echo "$x" >"$TASK_DEFER_FILE"; exit 75"#;
    let options = ["--max-tasks", "6", "--defer-delay", "25m", "--events"];
    let tmp = dir.path().join("tmp");
    fs::create_dir(&tmp).expect("made");

    let run = [&options[..], &[events.to_str().expect("a path")]].concat();
    let output = worker(&queue, &run, script).env("TMPDIR", &tmp).run(SOON);

    output.assert_code(0);
    let warnings = output.stderr().lines().filter(|line| line.contains("TASK_DEFER_FILE")).count();
    assert_eq!(warnings, 1, "two wrote nonsense: {}", output.stderr());
    assert!(output.stderr().contains("wrote 'soon'"), "{}", output.stderr());
    let status = &queuectl(&queue, &["status", "--json"])[0];
    assert_eq!((&status["ready"], &status["retry"]), (&0.into(), &6.into()));
    let waiting = |seconds: f64| {
        let queues = status["retry_queues"].as_array().expect("a list");
        queues.iter().find(|it| it["delay"] == seconds).map(|it| it["tasks"].clone())
    };
    assert_eq!(waiting(3.0 * 3600.0), Some(1.into()), "7300 s, rounded up");
    assert_eq!(waiting(2.0 * 3600.0), Some(1.into()));
    assert_eq!(waiting(1800.0), Some(4.into()), "the default, rounded up");
    let events = fs::read_to_string(events).expect("events");
    let deferred = events.lines().filter(|line| line.contains(r#""event":"deferred""#));
    let deferred: Vec<Value> = deferred.map(|it| serde_json::from_str(it).expect("JSON")).collect();
    assert_eq!(deferred.len(), 6);
    assert!(deferred.iter().all(|it| it["attempt"] == 1 && it["reason"] == "exit status 75"));
    assert!(is_empty(&tmp), "the worker tidies up");
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}

#[test]
fn without_a_folder_for_temporary_files_commands_run_and_defer_for_the_default_delay() {
    let queue = unique_queue("no-tmp");
    publish(&queue, &["1", "2"]);
    let options = ["--max-tasks", "2"];
    let command = worker(&queue, &options, r#"[ -z "${TASK_DEFER_FILE+x}" ] && exit 75"#);

    let output = command.env("TMPDIR", "/no/such/folder").run(SOON);

    output.assert_code(0);
    let warnings = output.stderr().lines().filter(|line| line.contains("TASK_DEFER_FILE")).count();
    assert_eq!(warnings, 1, "{}", output.stderr());
    let mut inspector = Inspector::new(&broker(), &Queue::new(&queue));
    let status = inspector.status().expect("a status");
    assert_eq!((status.ready, status.delayed_tasks()), (0, 2));
}

/// One step of a deferral at which the worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Declares,
    HasPublished,
    IsConfirmed,
}

/// Says when the worker takes this step, and does not answer it.
fn republish(session: &mut Session, step: Step) {
    session.handshake();
    while let Some(method) = session.next_method() {
        let taken = match &method.call {
            Call::QueueDeclare { queue, .. } if queue == "q.retry.5000" => Step::Declares,
            Call::Publish(_) => Step::HasPublished,
            _ => {
                session.answer(&method);
                continue;
            }
        };
        if taken == step {
            session.report("step");
            return session.stay_silent();
        }
        if taken == Step::Declares {
            session.answer(&method);
        } else {
            session.report("confirmed");
            session.ack(method.channel, 1);
        }
    }
}

#[test]
fn a_deferred_task_is_acked_after_the_confirm_at_whatever_step_its_worker_dies() {
    for step in [Step::Declares, Step::HasPublished, Step::IsConfirmed] {
        let broker = ScriptedBroker::start(move |session, number| {
            if number > 0 {
                return republish(session, step);
            }
            session.handshake();
            let consumer = session.accept_consumer();
            session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1).body("x"));
            while let Some(method) = session.answer_rpcs() {
                assert_eq!(method.call, Call::Ack { delivery_tag: 1, multiple: false });
                session.report("acked");
            }
        });
        let to = ["--url", &broker.url(), "--queue", "q", "--threads", "1", "--defer-delay", "5s"];
        let running = Command::worker(&[&to[..], &["--", "sh", "-c", "exit 75"]].concat()).start();

        if step == Step::IsConfirmed {
            let first = broker.wait_for(SOON, |it| matches!(it, Event::Reported(_)));
            assert_eq!(first, Event::Reported("confirmed".into()));
            broker.wait("acked", SOON);
            running.kill();
        } else {
            broker.wait("step", SOON);
            running.kill();
            let acked = Event::Reported("acked".into());
            let end = broker.wait_for(SOON, |it| *it == acked || *it == Event::Ended(0));
            assert_eq!(end, Event::Ended(0), "{step:?}: acked without a confirm");
        }
        running.wait(SOON);
        broker.finish(SOON);
    }
}

/// Its connection loses what goes to the broker after the command has run: the confirm comes on
/// another one, and the ack does not arrive.
#[test]
fn killed_between_the_confirm_and_the_ack_a_worker_loses_nothing_and_counts_no_attempt() {
    let queue = unique_queue("deferral-unacked");
    publish(&queue, &["1"]);
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let (runs, go_on, events) = (path("runs"), path("go-on"), path("events"));
    let note = format!("echo \"$TASK_ATTEMPT $TASK_DEFERRALS\" >>'{}'", runs.display());
    let proxy = Proxy::start(shared_broker().address());
    let to = ["--url", &proxy.url(), "--queue", &queue, "--threads", "1"];
    let options = ["--defer-delay", "2s", "--events", events.to_str().expect("a path")];
    let script =
        format!("{note}; until [ -e '{}' ]; do sleep 0.05; done; exit 75", go_on.display());
    let command = ["--", "sh", "-c", &script];
    let running = Command::worker(&[&to[..], &options, &command].concat()).start();
    let lines = |file: &Path| fs::read_to_string(file).unwrap_or_default();
    poll("its command runs", SOON, || (lines(&runs) == "1 0\n").then_some(()));
    proxy.only(1);
    proxy.set(Direction::ToBroker, Toxic::Timeout);
    fs::write(&go_on, "").expect("written");
    poll("the worker has acked", SOON, || {
        lines(&events).contains(r#""event":"deferred""#).then_some(())
    });
    running.kill();
    running.wait(SOON);
    proxy.cut();

    fs::remove_file(&runs).expect("removed");
    worker(&queue, &["--drain"], &note).run(SOON).assert_code(0);

    let runs = lines(&runs);
    assert!(runs.contains("1 0\n") && runs.contains("1 1\n"), "it and its copy: {runs}");
    assert!(runs.lines().all(|run| run.starts_with("1 ")), "no attempt is counted: {runs}");
}

#[test]
fn a_killed_worker_leaves_nothing_in_the_folder_for_temporary_files() {
    let queue = unique_queue("deferral-tmp");
    publish(&queue, &["1", "2"]);
    let dir = tempfile::tempdir().expect("a directory");
    let tmp = dir.path().join("tmp");
    fs::create_dir(&tmp).expect("made");
    let ran = dir.path().join("ran");
    // By a rename, as a program does that writes a file as a whole.
    let script = format!(
        "echo 1h >'{0}.new'; mv '{0}.new' \"$TASK_DEFER_FILE\"; echo >>'{0}'; exit 75",
        ran.display()
    );
    let running = worker(&queue, &[], &script).env("TMPDIR", &tmp).start();
    let mut inspector = Inspector::new(&broker(), &Queue::new(&queue));
    poll("both are deferred, as long as they said", SOON, || {
        let status = inspector.status().expect("a status");
        let waits = |it: &&rabbit_work::DelayQueue| it.delay == Duration::from_secs(3600);
        (status.delayed.iter().filter(waits).map(|it| it.tasks).sum::<u64>() == 2).then_some(())
    });

    running.kill();
    running.wait(SOON);

    assert!(is_empty(&tmp));
}

/// Each task is deferred twice, and then done.
const SCRIPT: &str = r#"echo "S $TASK_ID" >>"$LEDGER"
    if [ "$TASK_DEFERRALS" -lt 2 ]; then echo 0.1 >"$TASK_DEFER_FILE"; exit 75; fi
    echo "F $TASK_ID" >>"$LEDGER""#;

#[test]
fn killed_in_the_middle_of_deferrals_a_worker_loses_nothing() {
    let queue = unique_queue("deferrals");
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open(&dir.path().join("ledger"));
    let ids: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    ids.iter().for_each(|id| ledger.attempted(id));
    publish(&queue, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    ids.iter().for_each(|id| ledger.confirmed(id));
    let worker = |options: &[&str]| {
        let options = [options, &["--threads", "4", "--prefetch", "5"]].concat();
        let to = ["--url", shared_broker().url(), "--queue", &queue];
        Command::worker(&[&to[..], &options, &["--", "sh", "-c", SCRIPT]].concat())
            .env("LEDGER", ledger.path())
            .env("TMPDIR", dir.path())
    };
    let started = || ledger.records().started.values().sum::<usize>();

    for round in 0..6 {
        let running = worker(&[]).start();
        let wanted = started() + 20 + 13 * round;
        poll("the worker goes on", SOON, || (started() >= wanted).then_some(()));
        running.kill();
        running.wait(SOON);
    }
    worker(&["--drain"]).run(LONG).assert_code(0);

    let verdict = ledger.verdict(&[]);
    assert!(verdict.is_valid(), "{verdict}");
    assert_eq!(verdict.finished.len(), 200, "{verdict}");
}
