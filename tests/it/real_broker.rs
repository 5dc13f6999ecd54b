//! Faults of a real broker: stopped, killed, frozen, short of memory. One node, which these tests
//! break one after the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rabbit_work::{Broker, Delivery, Outcome, Producer, Queue, Task, Worker};

use crossbeam_channel::{Receiver, bounded, select_biased, tick};

use crate::child::{AtTheEnd, LedgerWorker};
use crate::support::broker::{PrivateBroker, breakable_broker, poll};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Running};
use crate::support::ledger::{Ledger, Verdict};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(90);
/// The longest pause before a next try, with what a machine with much to do takes on top.
const RECOVERY: Duration = Duration::from_secs(45);
/// Sessions that were short make the pauses long, and what is published meanwhile much.
const BACKLOG_IS_DONE: Duration = Duration::from_secs(300);

/// A worker that has begun to consume, with heartbeats of a second.
fn worker(broker: &PrivateBroker, queue: &str, arguments: &[&str]) -> Running {
    let url = format!("{}?heartbeat=1", broker.url());
    let running = Command::worker(&["--url", &url, "--queue", queue]).args(arguments).start();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    running
}

fn producer(broker: &PrivateBroker, queue: &str, arguments: &[&str]) -> Command {
    let url = format!("{}?heartbeat=1", broker.url());
    Command::producer(&["--url", &url, "--queue", queue]).args(arguments)
}

/// Publishes while the fault is on, works in a process of its own, and gives the verdict. The
/// fault is handed what waits until further tasks are published and done, as it must come soon.
fn under(broker: &PrivateBroker, fault: impl FnOnce(&dyn Fn())) -> Verdict {
    let queue = unique_queue("ledger");
    broker.client().declare(&queue);
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Arc::new(Ledger::open(&dir.path().join("ledger")));
    let working = ledger_worker(broker, &queue, ledger.path());
    let (fault_is_over, over) = bounded::<()>(0);
    let publishing = thread::spawn({
        let (url, queue, ledger) = (broker.url().to_owned(), queue.clone(), Arc::clone(&ledger));
        move || publish(&url, &queue, &ledger, &over)
    });
    working.wait_for_stdout_line(|line| line.ends_with("first task"), SOON);

    let go_on = || {
        let before = ledger.records();
        poll("tasks are confirmed and done again", RECOVERY, || {
            let now = ledger.records();
            let confirmed = now.confirmed.len() > before.confirmed.len();
            (confirmed && now.finished.len() > before.finished.len()).then_some(())
        });
    };
    fault(&go_on);
    drop(fault_is_over);
    publishing.join().expect("the producer does not panic");
    // A restarted broker counts nothing in a quorum queue for some seconds.
    broker.wait_until_quiet(|it| it == queue, Duration::from_secs(6), BACKLOG_IS_DONE);
    working.signal("INT");
    working.wait(SOON).assert_code(0);

    let left = broker.client().get_all(&queue);
    let left: Vec<String> = left.into_iter().filter_map(|message| message.message_id).collect();
    broker.client().delete(&queue);
    ledger.verdict(&left)
}

const THREADS: usize = 2;
const PREFETCH: u16 = 5;
const WINDOW: usize = 200;

fn ledger_worker(broker: &PrivateBroker, queue: &str, ledger: &Path) -> Running {
    let worker = LedgerWorker {
        url: broker.url(),
        queue,
        ledger,
        threads: THREADS,
        prefetch: PREFETCH,
        task: Duration::from_millis(2),
        at_the_end: AtTheEnd::Return,
    };
    worker.command().start()
}

/// Publishes from before the fault until it is over, at a pace that does not fill the disk.
fn publish(url: &str, queue: &str, ledger: &Ledger, over: &Receiver<()>) {
    let broker: Broker = url.parse().expect("a URL");
    let broker = broker.heartbeat(Duration::from_secs(2));
    let mut producer = Producer::new(&broker, &Queue::new(queue)).window(WINDOW).timeout(SOON);
    let mut receipts = Vec::new();
    let pace = tick(Duration::from_millis(2));
    for number in 0.. {
        let id = number.to_string();
        ledger.attempted(&id);
        receipts.extend(producer.send(Task::new("x").with_id(id)));
        note(ledger, &mut receipts);
        select_biased! {
            recv(over) -> _ => break,
            recv(pace) -> _ => {}
        }
    }
    receipts.extend(producer.flush());
    note(ledger, &mut receipts);
}

fn note(ledger: &Ledger, receipts: &mut Vec<rabbit_work::Receipt>) {
    for receipt in receipts.drain(..) {
        assert_eq!(receipt.outcome, Outcome::Confirmed, "{receipt:?}");
        ledger.confirmed(receipt.task.id().expect("it has an id"));
    }
}

/// How often a broker is stopped or killed, unless the environment says how often.
fn rounds(usual: usize) -> usize {
    match std::env::var("RW_TEST_ROUNDS") {
        Ok(text) => text.parse().expect("RW_TEST_ROUNDS is a number"),
        Err(_) => usual,
    }
}

/// Nothing is lost, all that was attempted is done, and no more twice than the losses of so many
/// sessions can explain: what a worker held unacked, and what a producer had in flight.
fn assert_survived(verdict: &Verdict, rounds: usize) {
    println!("{rounds} rounds: {verdict}");
    assert!(verdict.is_valid(), "{verdict}");
    let all = verdict.attempted.len();
    assert_eq!((verdict.confirmed.len(), verdict.finished.len()), (all, all), "{verdict}");
    let bound = rounds * (THREADS * usize::from(PREFETCH) + WINDOW);
    assert!(verdict.duplicated.len() <= bound, "{verdict}");
}

#[test]
fn row_21_graceful_restarts_lose_nothing_and_the_worker_comes_back() {
    let broker = breakable_broker();
    let rounds = rounds(2);

    let verdict = under(&broker, |go_on| {
        for _ in 0..rounds {
            broker.stop_app();
            broker.start_app();
            go_on();
        }
    });

    assert_survived(&verdict, rounds);
}

#[test]
fn row_22_kill_9_of_the_broker_loses_nothing_that_was_confirmed() {
    let broker = breakable_broker();
    let rounds = rounds(1);

    let verdict = under(&broker, |go_on| {
        for _ in 0..rounds {
            broker.kill();
            broker.restart();
            go_on();
        }
    });

    assert_survived(&verdict, rounds);
}

/// RabbitMQ confirms what a new queue takes before it has written down that there is one.
#[test]
fn row_22_kill_9_right_after_the_first_confirm_of_a_new_queue_loses_nothing() {
    let broker = breakable_broker();
    let queues = [("quorum", unique_queue("new")), ("classic", unique_queue("new"))];
    let for_each = |run: &dyn Fn(&[&str])| {
        for (kind, queue) in &queues {
            run(&["--url", broker.url(), "--queue", queue, "--queue-type", kind]);
        }
        broker.kill();
        broker.restart();
    };

    for_each(&|to| Command::producer(&[to, &["x"]].concat()).run(SOON).assert_code(0));
    for (_, queue) in &queues {
        broker.wait_for_queue(queue, |it| it.ready == 1, SOON);
    }

    let options = ["--max-attempts", "1", "--max-tasks", "1", "--", "false"];
    for_each(&|to| Command::worker(&[to, &options].concat()).run(SOON).assert_code(1));
    // The ack behind it may be forgotten, and the task be there, too.
    for (_, queue) in &queues {
        broker.wait_for_queue(&format!("{queue}.dead"), |it| it.ready == 1, SOON);
    }
}

const TWO_HEARTBEATS: Duration = Duration::from_secs(2);
/// The second within which it is to be noticed, and what a machine with much to do takes on top.
const SLOW_MACHINE: Duration = Duration::from_secs(4);

#[test]
fn row_23_a_frozen_broker_is_noticed_within_two_heartbeats_and_used_again_when_it_thaws() {
    let broker = breakable_broker();
    let queue = unique_queue("frozen");
    let running = worker(&broker, &queue, &[]);

    broker.stop();
    let begun = Instant::now();
    running.wait_for_stderr_line(|line| line.contains("missed two heartbeats"), SOON);
    let noticed = begun.elapsed();
    broker.resume();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    broker.client().publish_id(&queue, "thawed");
    running.wait_for_stdout_line(|line| line == " [x] Received 'thawed'", SOON);

    assert!(noticed < TWO_HEARTBEATS + SLOW_MACHINE, "{noticed:?}");
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn row_23_a_broker_that_proposes_no_heartbeat_sends_ours_and_is_noticed_when_it_freezes() {
    let broker = breakable_broker();
    let queue = unique_queue("heartless");
    broker.ctl(&["eval", "application:set_env(rabbit, heartbeat, 0)."]);
    let running = worker(&broker, &queue, &[]);

    broker.client().publish_id(&queue, "longer than two heartbeats.....");
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    let next = running.wait_for_stdout_line(|_| true, SOON);
    broker.wait_for_queue(&queue, |it| it.ready + it.unacked == 0, SOON);
    broker.stop();
    running.wait_for_stderr_line(|line| line.contains("missed two heartbeats"), SOON);
    broker.resume();
    broker.ctl(&["eval", "application:set_env(rabbit, heartbeat, 60)."]);
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    assert!(next.contains("Done"), "{next}");
    output.assert_code(0);
    let stderr = output.stderr();
    assert_eq!(stderr.matches("lost the session").count(), 1, "not before it froze: {stderr}");
}

#[test]
fn row_23_signals_to_a_worker_of_a_frozen_broker_end_it_in_bounded_time() {
    let broker = breakable_broker();
    let queue = unique_queue("frozen");
    broker.client().declare(&queue);
    broker.client().publish_ids(&queue, ["long..........", "longer............"]);
    let without_heartbeat = Command::worker(&["--url", &format!("{}?heartbeat=0", broker.url())])
        .args(&["--queue", &queue, "--threads", "1", "--grace", "1s"])
        .start();
    without_heartbeat.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    let twice = worker(&broker, &queue, &["--threads", "1"]);
    twice.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    let idle = worker(&broker, &queue, &[]);

    broker.stop();
    let begun = Instant::now();
    for running in [&without_heartbeat, &idle, &twice] {
        running.signal("INT");
    }
    twice.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    let second = Instant::now();
    twice.signal("INT");

    let output = twice.wait(SOON);
    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
    output.assert_code(130);
    let output = without_heartbeat.wait(SOON);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    output.assert_code(3);
    let output = idle.wait(SOON);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    output.assert_code(0);
    broker.resume();
    broker.wait_for_queue(&queue, |it| it.ready == 2 && it.consumers == 0, SOON);
}

#[test]
fn signals_while_the_broker_is_gone_end_a_busy_worker_in_bounded_time() {
    let broker = breakable_broker();
    let queue = unique_queue("gone");
    broker.client().declare(&queue);
    broker.client().publish_ids(&queue, ["long..........", "short..."]);
    let beyond = worker(&broker, &queue, &["--threads", "1", "--grace", "1s"]);
    beyond.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    let within = worker(&broker, &queue, &["--threads", "1", "--json"]);
    within.wait_for_stdout_line(|line| line.contains("Received"), SOON);

    broker.kill();
    let begun = Instant::now();
    for running in [&beyond, &within] {
        running.signal("TERM");
    }

    let output = within.wait(SOON);
    output.assert_code(0);
    assert!(output.stderr().contains("may run twice"), "{}", output.stderr());
    let output = beyond.wait(SOON);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    output.assert_code(3);
    broker.restart();
    broker.wait_for_queue(&queue, |it| it.ready == 2, SOON);
    broker.client().delete(&queue);
}

#[test]
fn rows_33_and_35_an_alarm_is_reported_once_and_publishing_goes_on_when_it_ends() {
    let broker = breakable_broker();
    for disk in [None, Some(())] {
        let queue = unique_queue("alarm");
        broker.client().declare(&queue);
        let consumer = worker(&broker, &queue, &["--threads", "1"]);
        let mut running = producer(&broker, &queue, &["--lines", "--json", "--timeout", "60s"])
            .open_stdin()
            .start();
        running.write(b"before..\n");
        consumer.wait_for_stdout_line(|line| line == " [x] Received 'before..'", SOON);

        disk.map_or_else(|| broker.alarm(), |()| broker.disk_alarm());
        running.write(b"during\n");
        let line = running.wait_for_stderr_line(|line| line.contains("blocks publishers"), SOON);
        // What ran meanwhile is acked all the same.
        consumer.wait_for_stdout_line(|line| line == " [x] Done", SOON);
        broker.wait_for_queue(&queue, |it| it.unacked == 0, SOON);
        running.write(b"after\n");
        disk.map_or_else(|| broker.clear_alarm(), |()| broker.clear_disk_alarm());
        let lifted = Instant::now();
        consumer.wait_for_stdout_line(|line| line == " [x] Received 'after'", SOON);
        running.end_input();
        let output = running.wait(SOON);

        output.assert_code(0);
        assert!(line.contains(if disk.is_some() { "disk" } else { "memory" }), "{line}");
        assert!(lifted.elapsed() < Duration::from_secs(10), "{:?}", lifted.elapsed());
        assert!(output.stdout().contains("\"confirmed\":3"), "{}", output.stdout());
        assert_eq!(output.stderr().matches("blocks publishers").count(), 1);
        consumer.signal("INT");
        consumer.wait(SOON).assert_code(0);
        broker.client().delete(&queue);
    }
}

#[test]
fn row_34_a_producer_stopped_during_an_alarm_ends_in_time_and_says_what_is_unconfirmed() {
    let broker = breakable_broker();
    let queue = unique_queue("alarmed");
    broker.client().declare(&queue);
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let arguments = ["--lines", "--json", "--timeout", "3s", "--failed"];
    let start = || {
        let mut running = producer(&broker, &queue, &arguments).arg(&failed).open_stdin().start();
        running.write(b"first\n");
        running
    };
    let mut once = start();
    let twice = producer(&broker, &queue, &["--lines", "--timeout", "60s"]).open_stdin();
    let mut twice = twice.start();
    twice.write(b"first\n");
    broker.wait_for_queue(&queue, |it| it.ready == 2, SOON);

    broker.alarm();
    once.write(b"kept\n");
    twice.write(b"kept\n");
    for running in [&once, &twice] {
        running.wait_for_stderr_line(|line| line.contains("blocks publishers"), SOON);
        running.signal("INT");
    }
    let begun = Instant::now();
    twice.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    twice.signal("INT");
    let second = Instant::now();

    let output = twice.wait(SOON);
    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
    output.assert_code(130);
    let output = once.wait(SOON);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    output.assert_code(1);
    assert!(output.stdout().contains("\"unconfirmed\":1"), "{}", output.stdout());
    assert!(output.stderr().contains("blocks publishers: low on memory"), "{}", output.stderr());
    assert_eq!(std::fs::read_to_string(&failed).expect("--failed"), "kept\n");
    broker.clear_alarm();
    broker.client().delete(&queue);
}

#[test]
fn row_34_an_alarm_before_the_first_delayed_task_is_reported_and_what_is_unconfirmed_kept() {
    let broker = breakable_broker();
    let queue = unique_queue("alarmed-delay");
    broker.client().declare(&queue);
    let dir = tempfile::tempdir().expect("a directory");
    let start = |timeout: &str| {
        let failed = dir.path().join(timeout);
        let arguments = ["--delay", "5s", "--lines", "--json", "--timeout", timeout, "--failed"];
        let mut running = producer(&broker, &queue, &arguments).arg(&failed).open_stdin().start();
        running.write(b"a\nb\n");
        (running, failed)
    };

    broker.alarm();
    let (twice, twice_failed) = start("60s");
    twice.wait_for_stderr_line(|line| line.contains("blocks publishers"), SOON);
    twice.signal("INT");
    twice.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    twice.signal("INT");
    let second = Instant::now();
    let output = twice.wait(SOON);
    let took = second.elapsed();
    let (mut once, once_failed) = start("6s");
    once.end_input();
    let ran_out = once.wait(SOON);

    output.assert_code(130);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(std::fs::read_to_string(&twice_failed).expect("--failed"), "a\nb\n");
    assert!(output.stdout().contains("\"unconfirmed\":2"), "{}", output.stdout());
    ran_out.assert_code(1);
    let log = ran_out.stderr();
    assert_eq!(log.matches("the broker blocks publishers: low on memory; pub").count(), 1, "{log}");
    assert!(log.contains("within 6s: the broker blocks publishers: low on memory"), "{log}");
    assert_eq!(std::fs::read_to_string(&once_failed).expect("--failed"), "a\nb\n");
    broker.clear_alarm();
    broker.client().delete(&queue);
}

#[test]
fn a_worker_stopped_during_an_alarm_acks_what_it_finished() {
    let broker = breakable_broker();
    let queue = unique_queue("acks");
    broker.client().declare(&queue);
    broker.client().publish_ids(&queue, ["runs...", "waits"]);
    broker.alarm();
    let running = worker(&broker, &queue, &["--threads", "1", "--prefetch", "5"]);
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);

    let begun = Instant::now();
    running.signal("INT");
    let output = running.wait(SOON);
    let took = begun.elapsed();

    output.assert_code(0);
    assert!(took < Duration::from_secs(6), "{took:?}");
    broker.wait_for_queue(&queue, |it| it.unacked == 0 && it.ready == 1, SOON);
    broker.clear_alarm();
    broker.client().delete(&queue);
}

#[test]
fn row_43_a_delivery_timeout_of_a_real_broker_has_the_task_run_again_and_acked_once() {
    let broker = breakable_broker();
    let queue = unique_queue("impatient");
    let dir = tempfile::tempdir().expect("a directory");
    let go_on = dir.path().join("go-on").to_string_lossy().into_owned();
    // RabbitMQ 4.3 waits for ever where a queue is no quorum queue.
    producer(&broker, &queue, &["--queue-type", "quorum", "late"]).run(SOON).assert_code(0);
    broker.shorten_consumer_timeout();
    let script = r#"[ "$TASK_ATTEMPT" = 1 ] || exec echo again
        echo begun; until [ -e "$0" ]; do sleep 0.1; done"#;
    let arguments = ["--queue-type", "quorum", "--threads", "1", "--", "sh", "-c", script, &go_on];
    let running = worker(&broker, &queue, &arguments);
    running.wait_for_stdout_line(|line| line == "begun", SOON);

    let told = running.wait_for_stderr_line(|line| line.contains("lost its consumer"), SOON);
    broker.restore_consumer_timeout();
    std::fs::write(&go_on, "").expect("the task is told");
    running.wait_for_stderr_line(|line| line.contains("may run twice"), SOON);
    running.wait_for_stdout_line(|line| line == "again", SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    assert!(told.contains("consumer_timeout"), "{told}");
    output.assert_code(0);
    let stderr = output.stderr();
    assert!(stderr.contains(" 1 tasks done,") && stderr.contains(" 1 may run twice,"), "{stderr}");
    // A late ack would have taken the place of the second one, for which it would have said so.
    assert_eq!(stderr.matches("lost the session").count(), 0, "{stderr}");
    assert!(broker.client().get_all(&queue).is_empty());
    broker.client().delete(&queue);
}

#[test]
fn a_broker_restart_keeps_a_durable_queue_with_its_persistent_tasks_only() {
    let broker = breakable_broker();
    let (durable, transient) = (unique_queue("durable"), unique_queue("transient"));
    // A quorum queue keeps all.
    broker.client().declare_classic(&durable);
    producer(&broker, &durable, &["persistent"]).run(SOON).assert_code(0);
    producer(&broker, &durable, &["--transient", "not"]).run(SOON).assert_code(0);
    producer(&broker, &transient, &["--transient-queue", "gone"]).run(SOON).assert_code(0);

    broker.restart();

    let client = broker.client();
    let kept: Vec<String> = client.get_all(&durable).iter().map(|it| it.text()).collect();
    assert_eq!(kept, ["persistent"]);
    assert!(!broker.ctl(&["list_queues", "name"]).contains(&transient));
    client.delete(&durable);
}

#[test]
fn row_20_a_worker_started_before_its_broker_consumes_soon_after_that_is_up() {
    let broker = breakable_broker();
    let queue = unique_queue("early");
    broker.kill();
    let address: Broker = broker.url().parse().expect("a URL");
    let done = BTreeSet::from(["1".to_owned()]);
    let (tell, told) = crossbeam_channel::unbounded();
    let handler = move |delivery: &Delivery| {
        let _ = tell.send(String::from_utf8_lossy(delivery.body()).into_owned());
        Ok(())
    };
    let worker = Worker::new(&address, &Queue::new(&queue)).threads(1);
    let working = Working::start(&worker, handler);

    broker.restart();
    let begun = Instant::now();
    let client_queue = broker.wait_for_queue(&queue, |it| it.consumers == 1, SOON);
    let took = begun.elapsed();
    broker.client().publish_id(&queue, "1");

    assert_eq!(client_queue.consumers, 1);
    // The pauses have grown while the broker started, to 30 s at the very most.
    assert!(took < Duration::from_secs(34), "{took:?}");
    let got: BTreeSet<String> = told.recv_timeout(SOON).into_iter().collect();
    assert_eq!(got, done);
    working.stop(SOON);
    broker.client().delete(&queue);
}

#[test]
fn row_39_a_user_without_permission_is_refused_in_one_line_and_exit_2() {
    let broker = breakable_broker();
    let queue = unique_queue("forbidden");
    broker.client().declare(&queue);
    broker.ctl(&["add_user", "nobody", "s3cretword"]);
    broker.ctl(&["set_permissions", "nobody", "^$", "^$", "^$"]);
    let url = format!("amqp://nobody:s3cretword@{}", broker.address());
    let to = ["--url", &url, "--queue", &queue];

    let declare = "access to queue";
    let outputs = [
        (Command::producer(&to).arg("x"), declare),
        (Command::worker(&to), declare),
        (Command::worker(&to).arg("--no-declare"), declare),
    ]
    .map(|(command, refused)| (command.env("RUST_LOG", "debug").run(SOON), refused));
    let sent = Command::producer(&to).args(&["--no-declare", "x"]).run(SOON);
    broker.ctl(&["delete_user", "nobody"]);

    sent.assert_code(1);
    let is_wanted = |it: &String| it.contains("ACCESS_REFUSED") && it.contains("'nobody'");
    assert!(sent.errors().iter().any(is_wanted), "{}", sent.stderr());
    assert!(!sent.stderr().contains("s3cretword"), "{}", sent.stderr());

    for (output, refused) in outputs {
        output.assert_code(2);
        let stderr = output.stderr();
        let errors = output.errors();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(errors[0].contains("ACCESS_REFUSED"), "{stderr}");
        assert!(errors[0].contains(refused) && errors[0].contains("'nobody'"), "{stderr}");
        assert!(!stderr.contains("s3cretword"), "{stderr}");
    }
    broker.client().delete(&queue);
}
