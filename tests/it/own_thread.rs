//! A prefetch of 1: the thread that owns the channel calls the handler itself. What ends a worker, a
//! connection or a channel meanwhile must not wait for the handler.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rabbit_work::{
    Broker, Delivery, EventKind, Failure, Queue, RetryPolicy, StopReason, Worker, shutdown,
};

use crate::support::broker::{poll, shared_broker};
use crate::support::client::{Client, unique_queue};
use crate::support::command::{Command, Running};
use crate::support::proxy::Proxy;
use crate::support::scripted::{Consumer, Event, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery, Method};
use crate::support::working::{Working, gate};

const SOON: Duration = Duration::from_secs(60);

fn queue_of(name: &str, ids: &[&str]) -> (String, Client) {
    let queue = unique_queue(name);
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ids.iter().copied());
    (queue, client)
}

fn worker(url: &str, queue: &str) -> Worker {
    let broker: Broker = url.parse().expect("a URL");
    Worker::new(&broker, &Queue::new(queue)).threads(1)
}

fn deliver(session: &mut Session, to: &Consumer, tag: u64, body: &str) {
    session.deliver(&WireDelivery::new(to.channel, &to.tag, tag).body(body));
}

#[test]
fn with_a_prefetch_of_1_one_thread_consumes_and_calls_the_handler() {
    let (queue, _client) = queue_of("one", &["1"]);
    let (name, names) = bounded(1);
    let handler = move |_: &Delivery| {
        let _ = name.send(std::thread::current().name().map(str::to_string));
        Ok(())
    };
    let working = Working::start(&worker(shared_broker().url(), &queue).max_tasks(1), handler);
    assert_eq!(names.recv_timeout(SOON), Ok(Some("rw-consumer-1".to_string())));
    assert_eq!(working.wait(SOON).expect("it ends well").done, 1);
}

/// An ack before the cancel would bring another task, only for it to be requeued.
#[test]
fn after_a_stop_the_running_task_is_acked_only_once_nothing_can_come_in_its_place() {
    let (gate, handler) = gate();
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let [busy, idle] = [(); 2].map(|()| session.accept_consumer());
        deliver(session, &busy, 1, "runs");
        let cancel = session.expect_cancel(&idle);
        session.report("stopped");
        session.answer(&cancel);
        let cancel = session.expect_cancel(&busy);
        session.answer(&cancel);
        let ack = session.answer_rpcs().expect("an ack");
        assert_eq!(ack.call, Call::Ack { delivery_tag: 1, multiple: false });
        assert_eq!(session.answer_rpcs(), None);
    });
    let working = Working::start(&worker(&broker.url(), "q").threads(2), handler);
    gate.entered.recv_timeout(SOON).expect("the task runs");
    working.trigger().stop();
    broker.wait("stopped", SOON);
    gate.open.send(()).expect("the handler waits");
    assert_eq!(working.wait(SOON).expect("it ends well").done, 1);
    broker.finish(SOON);
}

fn leaves_its_task(stop: impl FnOnce(&Working), prepare: impl FnOnce(Worker) -> Worker) {
    let (queue, client) = queue_of("left", &["runs", "waits"]);
    let (gate, handler) = gate();
    let worker = prepare(worker(shared_broker().url(), &queue));
    let working = Working::start(&worker, handler);
    assert_eq!(gate.entered.recv_timeout(SOON).as_deref(), Ok("runs"));

    let begun = Instant::now();
    stop(&working);
    assert_eq!(working.wait_for(EventKind::Requeued, SOON), "runs");
    let summary = working.wait(SOON).expect("it ends well");

    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((summary.running, summary.requeued, summary.done), (1, 1, 0));
    client.wait_for_count(&queue, 2, SOON);
    client.delete(&queue);
}

#[test]
fn an_abort_requeues_a_task_whose_handler_does_not_end() {
    leaves_its_task(|working| working.trigger().abort(), |worker| worker);
}

#[test]
fn a_kill_requeues_a_task_whose_handler_does_not_end() {
    leaves_its_task(|working| working.trigger().kill(), |worker| worker);
}

#[test]
fn the_end_of_the_grace_requeues_a_task_whose_handler_does_not_end() {
    let no_grace = |worker: Worker| worker.grace(Duration::from_millis(10));
    leaves_its_task(|working| working.trigger().stop(), no_grace);
}

#[test]
fn a_cancelled_handler_that_ends_in_its_time_is_waited_for() {
    let (queue, client) = queue_of("cancelled", &["runs"]);
    let handler = |delivery: &Delivery| {
        let _ = delivery.cancelled().recv();
        Err(Failure::requeue("cut short"))
    };
    struct Patient<H>(H);
    impl<H: rabbit_work::Handler> rabbit_work::Handler for Patient<H> {
        fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
            self.0.handle(delivery)
        }
        fn cancel_timeout(&self) -> Duration {
            SOON
        }
    }
    let working = Working::start(&worker(shared_broker().url(), &queue), Patient(handler));
    working.wait_for(EventKind::Started, SOON);
    working.trigger().abort();
    let summary = working.wait(SOON).expect("it ends well");
    assert_eq!((summary.running, summary.requeued), (0, 1));
    assert_eq!(summary.ended, StopReason::Aborted);
    client.wait_for_count(&queue, 1, SOON);
    client.delete(&queue);
}

/// Waits in the task `late`, and runs the others at once.
fn late_handler() -> (crossbeam_channel::Sender<()>, impl Fn(&Delivery) -> Result<(), Failure>) {
    let (open, opened): (_, Receiver<()>) = bounded(0);
    let handler = move |delivery: &Delivery| {
        if delivery.body() == b"late" && !delivery.redelivered() {
            let _ = opened.recv();
        }
        Ok(())
    };
    (open, handler)
}

#[test]
fn a_cut_during_a_task_has_the_other_threads_consume_again_and_later_its_own() {
    let (queue, mut client) = queue_of("cut", &["late"]);
    let proxy = Proxy::start(shared_broker().address());
    let (open, handler) = late_handler();
    let working = Working::start(&worker(&proxy.url(), &queue).threads(2), handler);
    assert_eq!(working.wait_for(EventKind::Started, SOON), "late");

    proxy.cut();
    // Again, by the other thread, and then others by it.
    assert_eq!(working.wait_for(EventKind::Done, SOON), "late");
    client.publish_ids(&queue, ["a"]);
    assert_eq!(working.wait_for(EventKind::Done, SOON), "a");
    client.wait_for_consumers(&queue, 1, SOON);
    drop(open);

    assert_eq!(working.wait_for(EventKind::Orphaned, SOON), "late");
    client.wait_for_consumers(&queue, 2, SOON);
    let summary = working.stop(SOON);
    assert_eq!((summary.done, summary.orphaned, summary.requeued), (2, 1, 0));
    client.delete(&queue);
}

#[test]
fn a_late_task_is_acked_on_no_later_session() {
    let (go_on, waits) = bounded(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        let consumer = session.accept_consumer();
        if number == 0 {
            deliver(session, &consumer, 1, "late");
            let _ = waits.recv_timeout(SOON);
            session.hang_up();
            return;
        }
        deliver(session, &consumer, 1, "next");
        let ack = session.answer_rpcs().expect("an ack");
        assert_eq!(ack.call, Call::Ack { delivery_tag: 1, multiple: false });
        session.report("acked");
        assert_eq!(session.answer_rpcs(), None, "one ack in all");
    });
    let (open, handler) = late_handler();
    let working = Working::start(&worker(&broker.url(), "q"), handler);
    working.wait_for(EventKind::Started, SOON);
    go_on.send(()).expect("the script waits");
    broker.wait_for(SOON, |event| *event == Event::Connected(1));
    drop(open);
    working.wait_for(EventKind::Orphaned, SOON);
    broker.wait("acked", SOON);
    let summary = working.stop(SOON);
    assert_eq!((summary.done, summary.orphaned), (1, 1));
    broker.finish(SOON);
}

/// The folder of the thread that publishes what has to be confirmed before an ack. It is there as
/// long as the thread.
fn publishing_thread(worker: &Running) -> Option<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{}/task", worker.id())).expect("its threads");
    let name = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).unwrap_or_default();
    threads
        .filter_map(|thread| Some(thread.ok()?.path()))
        .find(|it| name(it).trim_end() == "rw-republisher")
}

#[test]
fn every_thread_has_a_name_of_ours() {
    let (queue, client) = queue_of("names", &[]);
    let running = Command::worker(&["--url", shared_broker().url(), "--queue", &queue]).start();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);

    let threads = fs::read_dir(format!("/proc/{}/task", running.id())).expect("its threads");
    let comm = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm"));
    let names: Vec<String> = threads.flatten().filter_map(|it| comm(it).ok()).collect();

    let is_ours = |name: &str| name.starts_with("rw-") || ["worker", "ctrl-c"].contains(&name);
    assert!(names.iter().all(|name| is_ours(name.trim_end())), "{names:?}");
    running.signal("TERM");
    running.wait(SOON).assert_code(0);
    client.delete(&queue);
}

#[test]
fn a_lost_session_ends_whole_before_the_next_while_its_handler_runs() {
    let (cut, is_cut) = bounded::<()>(1);
    let (go_on, waits) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, number| {
        if number == 0 {
            session.handshake();
            let consumer = session.accept_consumer();
            deliver(session, &consumer, 1, "late");
            let _ = is_cut.recv_timeout(SOON);
            session.hang_up();
            return;
        }
        let _ = waits.recv_timeout(SOON);
        session.handshake();
        let _ = session.accept_consumer();
        session.report("consumes");
        assert_eq!(session.answer_rpcs(), None);
    });
    let dir = tempfile::tempdir().expect("a directory");
    let end = dir.path().join("end").to_string_lossy().into_owned();
    let script = r#"echo begun; until [ -e "$0" ]; do sleep 0.1; done"#;
    let worker = Command::worker(&["--url", &broker.url(), "--queue", "q", "--threads", "1"])
        .args(&["--", "sh", "-c", script, &end])
        .start();
    worker.wait_for_stdout_line(|line| line == "begun", SOON);
    let of_first = poll("its thread", SOON, || publishing_thread(&worker));

    cut.send(()).expect("the script waits");
    broker.wait_for(SOON, |event| *event == Event::Connected(1));
    poll("its end", Duration::from_secs(10), || (!of_first.exists()).then_some(()));

    go_on.send(()).expect("the script waits");
    fs::write(&end, "").expect("the task is told");
    broker.wait("consumes", SOON);
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
    broker.finish(SOON);
}

/// Until then it would keep the unacked tasks.
#[test]
fn a_broker_learns_of_the_end_of_a_connection_while_its_handler_runs() {
    let (started, has_started) = bounded(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        let consumer = session.accept_consumer();
        if number > 0 {
            assert_eq!(session.answer_rpcs(), None);
            return;
        }
        deliver(session, &consumer, 1, "late");
        let _ = has_started.recv_timeout(SOON);
        session.raw(&[0xFF; 64]);
        session.read_until_closed();
        session.report("closed");
    });
    let (open, handler) = late_handler();
    let working = Working::start(&worker(&broker.url(), "q"), handler);
    working.wait_for(EventKind::Started, SOON);
    started.send(()).expect("the script waits");
    broker.wait("closed", SOON);
    drop(open);
    working.wait_for(EventKind::Orphaned, SOON);
    assert_eq!(working.stop(SOON).orphaned, 1);
    broker.finish(SOON);
}

fn serve_no_task(session: &mut Session, method: Method) {
    match method.call {
        Call::Consume { .. } => drop(session.let_in(method)),
        _ => drop(session.answer(&method)),
    }
}

/// The broker ends the channel of a running task in this way. Another channel has to be opened, or
/// the session has to end, before the handler does.
fn is_noticed(end: impl Fn(&mut Session, &Consumer) + Send + Sync + 'static) {
    let (open, handler) = late_handler();
    let (started, has_started) = bounded(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number > 0 {
            session.report("noticed");
            while let Some(method) = session.next_method() {
                serve_no_task(session, method);
            }
            return;
        }
        let consumer = session.accept_consumer();
        deliver(session, &consumer, 1, "late");
        let _ = has_started.recv_timeout(SOON);
        end(session, &consumer);
        loop {
            let Some(method) = session.next_method() else { return };
            assert!(!matches!(method.call, Call::Ack { .. }), "no ack of a channel that has ended");
            if matches!(method.call, Call::ChannelOpen) {
                session.report("noticed");
            }
            serve_no_task(session, method);
        }
    });
    let working = Working::start(&worker(&broker.url(), "q"), handler);
    working.wait_for(EventKind::Started, SOON);
    started.send(()).expect("the script waits");
    broker.wait("noticed", SOON);
    drop(open);
    working.wait_for(EventKind::Orphaned, SOON);
    assert_eq!(working.stop(SOON).orphaned, 1);
    broker.finish(SOON);
}

#[test]
fn a_channel_that_is_closed_for_a_late_task_is_replaced_before_the_task_ends() {
    is_noticed(|session, consumer| {
        let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout \
                    value used: 1000 ms.";
        session.close_channel(consumer.channel, 406, text);
    });
}

#[test]
fn a_consumer_that_is_cancelled_during_its_task_is_replaced_before_the_task_ends() {
    is_noticed(|session, consumer| session.cancel_consumer(consumer));
}

#[test]
fn a_channel_that_is_closed_for_another_reason_ends_the_session_before_the_task_ends() {
    is_noticed(|session, consumer| {
        session.close_channel(consumer.channel, 404, "NOT_FOUND - home node is down");
    });
}

/// The only place of the prefetch is taken by the failed task until its copy is confirmed.
#[test]
fn a_failed_task_holds_the_only_place_until_its_copy_is_confirmed() {
    let (queue, client) = queue_of("place", &["bad", "good"]);
    let handler = |delivery: &Delivery| match (delivery.body(), delivery.attempt()) {
        (b"bad", 1) => Err(Failure::retry("on purpose")),
        _ => Ok(()),
    };
    let policy = RetryPolicy::new().first_delay(Duration::from_secs(5));
    let working =
        Working::start(&worker(shared_broker().url(), &queue).retry(policy).max_tasks(3), handler);
    assert_eq!(working.wait_for(EventKind::Retried, SOON), "bad");
    assert_eq!(working.wait_for(EventKind::Done, SOON), "good");
    assert_eq!(working.wait_for(EventKind::Done, SOON), "bad");
    assert_eq!(working.wait(SOON).expect("it ends well").done, 2);
    poll("an empty queue", SOON, || (client.count(&queue) == 0).then_some(()));
}

#[test]
fn the_handler_is_dropped_when_the_run_has_ended() {
    let (queue, client) = queue_of("dropped", &["1"]);
    let (alive, dropped) = bounded::<()>(0);
    let handler = move |_: &Delivery| {
        let _ = &alive;
        Ok(())
    };
    let (_trigger, shutdown) = shutdown();
    let worker = worker(shared_broker().url(), &queue).threads(2).max_tasks(1);
    worker.run(handler, &shutdown).expect("it ends well");
    assert!(matches!(dropped.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected)));
    client.delete(&queue);
}
