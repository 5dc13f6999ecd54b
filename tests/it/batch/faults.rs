//! Batches under faults, by ledger: no task lost, no outcome counted twice, none missing.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rabbit_work::{Batch, Broker, Delivery, EventKind, Producer, Queue, Task, Worker, shutdown};
use serde_json::Value;

use super::{SOON, assert_all_done, ended, noting, runs, scripted_worker, text, waiting};
use crate::support::broker::{breakable_broker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Output, Running};
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery, Properties, Publish};
use crate::support::working::{Working, bodies};

const BATCH: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn one_of_two_workers_killed_in_the_middle_leaves_no_outcome_missing() {
    const COUNT: usize = 60;
    let (url, queue) = (shared_broker().url(), unique_queue("killed-worker"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    let script = noting(&ledger, "sleep 0.02");
    let [killed, other] =
        [(); 2].map(|()| scripted_worker(url, &queue, &["--threads", "2"], &script));

    let running = waiting(url, &queue, COUNT, &["--outcomes", text(&file)]).start();
    poll("some tasks have ended", SOON, || (ended(&file) > COUNT / 4).then_some(()));
    killed.kill();
    running.wait(SOON).assert_code(0);

    assert_all_done(&file, COUNT as u64);
    assert_eq!(runs(&ledger).len(), COUNT);
    drop((killed, other));
}

#[test]
fn a_broker_restart_while_waiting_leaves_no_outcome_missing() {
    const COUNT: usize = 40;
    let broker = breakable_broker();
    let (url, queue) = (broker.url(), unique_queue("restart"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    let script = noting(&ledger, "sleep 0.1");
    let worker = scripted_worker(url, &queue, &["--threads", "2"], &script);
    let running = waiting(url, &queue, COUNT, &["--outcomes", text(&file)]).start();
    poll("some tasks have ended", SOON, || (ended(&file) > COUNT / 4).then_some(()));

    broker.kill();
    broker.restart();
    running.wait(SOON * 2).assert_code(0);

    assert_all_done(&file, COUNT as u64);
    assert_eq!(runs(&ledger).len(), COUNT);
    drop(worker);
}

#[test]
fn a_deleted_queue_of_outcomes_holds_up_no_worker_and_ends_the_wait() {
    const COUNT: usize = 20;
    let (url, queue) = (shared_broker().url(), unique_queue("deleted"));
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let broker: Broker = url.parse().expect("a URL");
    let mut batch = Batch::new(&broker, &Queue::new(&queue));
    for n in 1..=COUNT {
        let _ = batch.send(Task::new(format!("{n}\n"))).expect("sent");
    }
    assert!(batch.flush().len() <= COUNT);
    let outcomes = batch.queue_of_outcomes();
    let client = shared_broker().client();
    let (_trigger, shutdown) = shutdown();
    let waiting = thread::spawn(move || batch.wait(Some(SOON), &shutdown));
    client.wait_for_consumers(&outcomes, 1, SOON);

    client.delete(&outcomes);
    let error = waiting.join().expect("no panic").expect_err("the outcomes are lost");
    let says = format!(
        "'{outcomes}' does not exist: it was deleted, or has expired, with the outcomes of up to"
    );
    assert!(error.to_string().contains(&says), "{error}");

    let worker =
        scripted_worker(url, &queue, &["--threads", "2", "--drain"], &noting(&ledger, "true"));
    let output = worker.wait(SOON);
    output.assert_code(0);
    assert!(output.stderr().contains("nobody waits for batch"), "{}", output.stderr());
    let runs = runs(&ledger);
    assert_eq!((runs.len(), runs.values().sum()), (COUNT, COUNT));
}

/// The second run finds the queue missing before it waits.
#[test]
fn a_deleted_queue_of_outcomes_leaves_a_summary_of_what_is_confirmed_and_has_not_ended() {
    let (url, queue) = (shared_broker().url(), unique_queue("deleted-summary"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, failed) = (dir.path().join("file"), dir.path().join("failed"));
    let options = ["--outcomes", text(&file), "--failed", text(&failed), "--json"];
    let running = waiting(url, &queue, 5, &options).start();
    running.wait_for_stderr_line(|line| line.contains("5 tasks confirmed and 0 not"), SOON);
    let header = std::fs::read_to_string(&file).expect("a file");
    let header: Value = serde_json::from_str(header.lines().next().expect("a line")).expect("JSON");
    let outcomes = format!("{queue}.batch.{}", header["batch"].as_str().expect("an id"));
    shared_broker().client().wait_for_consumers(&outcomes, 1, SOON);
    shared_broker().client().delete(&outcomes);

    let counts = |output: &Output| {
        output.assert_code(2);
        let summary: Value = serde_json::from_str(&output.stdout()).expect("JSON");
        ["confirmed", "unconfirmed", "done", "dead", "left"].map(|key| summary[key].as_u64())
    };
    assert_eq!(counts(&running.wait(SOON)), [5, 0, 0, 0, 5].map(Some));

    // Tasks 6 and 7 are new, and not published.
    let again = waiting(url, &queue, 7, &options).run(SOON);
    assert_eq!(counts(&again), [0, 2, 0, 0, 5].map(Some));
    assert_eq!(std::fs::read_to_string(&failed).expect("a file"), "6\n7\n");
    assert_eq!(shared_broker().client().count(&queue), 5);
    shared_broker().client().delete(&queue);
}

#[test]
fn a_worker_answers_no_forged_reply_to() {
    let (url, queue) = (shared_broker().url(), unique_queue("forged"));
    let (victim, id) = (unique_queue("victim"), BATCH);
    let client = shared_broker().client();
    let of_victim = format!("{victim}.batch.{id}");
    [&victim, &of_victim].into_iter().for_each(|it| client.declare(it));
    // The worker of a quorum queue declares the queue of its dead letters ahead.
    client.declare_classic(&queue);
    let broker: Broker = url.parse().expect("a URL");
    let mut producer = Producer::new(&broker, &Queue::new(&queue));
    let forged = [
        victim.clone(),
        of_victim.clone(),
        format!("{queue}.dead"),
        queue.clone(),
        format!("{queue}.batch.{id}.settling"),
        format!("{queue}.batch.{}", id.to_uppercase()),
    ];
    for reply_to in &forged {
        let task = Task::new("x").with_reply_to(reply_to).with_correlation_id(format!("{id}/1"));
        producer.publish(task).expect("published");
    }
    let (done, handler) = bodies();
    let worker = Worker::new(&broker, &Queue::new(&queue)).threads(1).drain();

    let summary = Working::start(&worker, handler).wait(SOON).expect("drained");

    assert_eq!((summary.done, done.try_iter().count()), (forged.len() as u64, forged.len()));
    for other in [&victim, &of_victim] {
        assert_eq!(client.count(other), 0, "{other}");
        client.delete(other);
    }
    assert!(!shared_broker().client().has(&format!("{queue}.dead")));
}

#[test]
fn an_alarm_while_outcomes_are_due_holds_their_tasks_and_loses_none() {
    const COUNT: u64 = 2;
    let broker = breakable_broker();
    let (url, queue) = (broker.url(), unique_queue("alarm"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    let go_on = dir.path().join("go-on");
    let then = format!("until test -e '{}'; do sleep 0.05; done", go_on.display());
    let worker = scripted_worker(url, &queue, &["--threads", "2"], &noting(&ledger, &then));
    let options = ["--outcomes", text(&file)];
    let running = waiting(url, &queue, COUNT as usize, &options).start();
    poll("the tasks run", SOON, || (runs(&ledger).len() as u64 == COUNT).then_some(()));

    broker.alarm();
    std::fs::write(&go_on, "").expect("written");
    // Both may be counted at once, or the second may come after the warning.
    let is_told = |line: &str| {
        line.contains("no confirm for 2s: ")
            && line.contains(" outcomes of batches are unconfirmed, and their tasks stay unacked")
    };
    worker.wait_for_stderr_line(is_told, SOON);
    broker.wait_for_queue(&queue, |it| it.unacked == COUNT, SOON);
    assert_eq!(ended(&file), 0);
    broker.clear_alarm();
    running.wait(SOON).assert_code(0);

    assert_all_done(&file, COUNT);
    let runs = runs(&ledger);
    assert_eq!(runs.values().sum::<usize>() as u64, COUNT, "none ran twice: {runs:?}");
    drop(worker);
}

/// Its task is done, and does not run again for that.
#[test]
fn an_outcome_without_a_confirm_is_reported_and_published_again_while_its_task_is_kept() {
    let broker = broker_of_one_batch_task(|session| {
        static FIRST: OnceLock<Publish> = OnceLock::new();
        let published = session.read_publish();
        let first = FIRST.get_or_init(|| published.clone());
        assert_eq!(first.routing_key, format!("q.batch.{BATCH}").into_bytes());
        assert_eq!((&first.body, first.mandatory), (&published.body, true));
        assert_eq!(first.properties, published.properties);
        assert_eq!(first.properties.delivery_mode, Some(2), "persistent");
        assert_eq!(first.properties.kind.as_deref(), Some(&b"rabbit-work.outcome"[..]));
        // A new connection that confirms nothing is left for another.
        if session.number() == 1 {
            return session.beat_until_closed();
        }
        session.report("published again");
        session.ack(published.channel, 1);
    });
    // The script sends none.
    let url = format!("amqp://{}?heartbeat=0", broker.address());
    let running = scripted_worker(&url, "q", &["--threads", "1"], "true");
    let told = "no confirm for 2s: 1 outcomes of batches are unconfirmed, and their tasks stay";
    running.wait_for_stderr_line(|line| line.contains(told), SOON);

    broker.wait("published again", SOON * 2);
    broker.wait("acked", SOON);

    assert_one_done(running);
}

/// By a return, though the queue exists when the worker asks for it, and by a nack, such as of a queue
/// that is down.
#[test]
fn an_outcome_that_is_refused_is_published_again_while_its_task_is_kept() {
    let broker = broker_of_one_batch_task(|session| {
        let returned = session.read_publish();
        session.return_message(&returned, 312, "NO_ROUTE");
        session.ack(returned.channel, 1);
        let nacked = session.read_publish();
        session.nack(nacked.channel, 2);
        let again = session.read_publish();
        assert_eq!((&returned.body, &nacked.body), (&again.body, &again.body));
        session.ack(again.channel, 3);
    });
    let url = format!("amqp://{}?heartbeat=0", broker.address());
    let running = scripted_worker(&url, "q", &["--threads", "1"], "true");

    broker.wait("acked", SOON);

    assert_one_done(running);
}

/// Sends one task of a batch, waits for its ack, and lets `confirm` answer the publishes of its
/// outcome.
fn broker_of_one_batch_task(confirm: fn(&mut Session)) -> ScriptedBroker {
    ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            let properties = Properties {
                correlation_id: Some(format!("{BATCH}/7").into()),
                reply_to: Some(format!("q.batch.{BATCH}").into()),
                ..Properties::default()
            };
            let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
            session.deliver(&delivery.properties(properties).body("x"));
            let acked = session.answer_rpcs().expect("it is acked");
            assert_eq!(acked.call, Call::Ack { delivery_tag: 1, multiple: false });
            session.report("acked");
        } else {
            confirm(session);
        }
        let _ = session.answer_rpcs();
    })
}

fn assert_one_done(running: Running) {
    running.signal("INT");
    let output = running.wait(SOON);
    assert!(output.stderr().contains(" 1 tasks done, 0 retried,"), "{}", output.stderr());
}

/// From when a task is done, one connection of the worker is cut after so many bytes: the one that
/// publishes the outcome, also before all of its confirm has come, or the one that acks the task.
#[test]
fn a_cut_after_every_few_bytes_of_an_outcome_leaves_none_missing_and_none_twice() {
    let whole = work_two(|_| {});
    let cuts = |connection, direction, until, step| {
        (1..until).step_by(step).map(move |bytes| (connection, direction, bytes))
    };
    let of_outcomes = cuts(OUTCOMES, Direction::ToBroker, whole.to_broker, 31);
    let of_confirms = cuts(OUTCOMES, Direction::ToClient, whole.to_client, SHORTER_THAN_A_CONFIRM);
    let of_acks = cuts(MAIN, Direction::ToBroker, 22, 4);
    let cuts: Vec<_> = of_acks.chain(of_confirms).chain(of_outcomes).collect();
    assert!(cuts.len() > 60, "{}", cuts.len());
    let (next, outcomes_again) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..SWEEPERS {
            scope.spawn(|| {
                while let Some(cut) = cuts.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let (connection, direction, bytes) = *cut;
                    let toxic = match bytes % 2 {
                        0 => Toxic::ResetAfter(bytes),
                        _ => Toxic::LimitData(bytes),
                    };
                    let worked = work_two(|proxy| {
                        proxy.only(connection);
                        proxy.heal_at(3);
                        proxy.set(direction, toxic);
                    });
                    outcomes_again.fetch_add(worked.runs_of_first - 1, Ordering::SeqCst);
                }
            });
        }
    });
    assert!(outcomes_again.into_inner() > 0, "the cuts made no outcome come twice");
}

/// The connections of a worker: the first, and the one that it opens for the first outcome.
const MAIN: usize = 1;
const OUTCOMES: usize = 2;
const SHORTER_THAN_A_CONFIRM: usize = 17;
/// Each of them mostly waits for a backoff.
const SWEEPERS: usize = 16;

/// What happened while a batch of two tasks was worked, from when the first was done.
struct Worked {
    to_broker: u64,
    to_client: u64,
    runs_of_first: usize,
}

/// Works a batch of two tasks. The second waits until the outcome of the first has come, whatever
/// fault that met: an outcome that came again would come before the last one, and count.
fn work_two(fault: impl Fn(&Proxy) + Send + Sync) -> Worked {
    let (url, queue) = (shared_broker().url(), unique_queue("cut-outcome"));
    let direct: Broker = url.parse().expect("a URL");
    let mut batch = Batch::new(&direct, &Queue::new(&queue));
    for body in ["first", "second"] {
        let _ = batch.send(Task::new(body)).expect("sent");
    }
    let proxy = Arc::new(Proxy::start(shared_broker().address()));
    let through: Broker = proxy.url().parse().expect("a URL");
    let (is_done, done) = crossbeam_channel::bounded::<()>(0);
    let (go_on, may_go_on) = crossbeam_channel::bounded::<()>(0);
    let (count_first, first_counts) = crossbeam_channel::bounded::<Infallible>(0);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = move |delivery: &Delivery| {
        if delivery.body() == b"second" {
            let _ = first_counts.recv_timeout(SOON);
        } else if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            let _ = is_done.send(());
            let _ = may_go_on.recv_timeout(SOON);
        }
        Ok(())
    };
    let worker = Worker::new(&through, &Queue::new(&queue)).threads(1);
    let working = Working::start(&worker, handler);
    done.recv_timeout(SOON).expect("the task runs");
    fault(&proxy);
    let bytes = || [Direction::ToBroker, Direction::ToClient].map(|it| proxy.bytes(it));
    let before = bytes();
    go_on.send(()).expect("the handler waits");

    let (_trigger, shutdown) = shutdown();
    let (mut outcomes, mut count_first) = (Vec::new(), Some(count_first));
    let summary = batch.wait_each(Some(SOON), &shutdown, |group| {
        outcomes.extend(group.iter().map(|it| it.n));
        drop(count_first.take());
        std::ops::ControlFlow::Continue(())
    });

    let summary = summary.expect("waited");
    assert_eq!((summary.done, summary.left, &outcomes[..]), (2, 0, &[1, 2][..]));
    // Stopped before the confirm of an outcome, it would requeue the task.
    while !working.wait_for(EventKind::Done, SOON).ends_with("-2") {}
    working.stop(SOON);
    let client = shared_broker().client();
    client.wait_for_count(&queue, 0, Duration::from_secs(30));
    client.delete(&queue);
    let after = bytes();
    Worked {
        to_broker: after[0] - before[0],
        to_client: after[1] - before[1],
        runs_of_first: runs.load(Ordering::SeqCst),
    }
}
