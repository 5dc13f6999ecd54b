//! `Worker` as a program uses it: bodies, acks, failures, panics and stops.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rabbit_work::{
    Broker, Delivery, EventKind, Failure, Handler, Producer, Queue, RetryPolicy, StopReason, Task,
    Worker, shutdown,
};

use crate::child::{self, LedgerWorker};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::ledger::Ledger;
use crate::support::proxy::Proxy;
use crate::support::scripted::{Consumer, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery, Properties};
use crate::support::working::{Working, bodies, gate};

const SOON: Duration = Duration::from_secs(30);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

fn worker(queue: &str) -> Worker {
    Worker::new(&broker(), &Queue::new(queue)).threads(1)
}

/// So many bytes in which every value occurs, and no piece is like the one before.
fn bytes(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

#[test]
fn an_observer_learns_of_a_session_that_began_and_was_lost() {
    let queue = unique_queue("sessions");
    shared_broker().client().declare(&queue);
    let proxy = crate::support::proxy::Proxy::start(shared_broker().address());
    let broker: Broker = proxy.url().parse().expect("the proxy's URL is one");
    let (tell, told) = crossbeam_channel::unbounded();
    let worker = Worker::new(&broker, &Queue::new(&queue)).threads(1);
    let worker = worker.longest_pause(Duration::ZERO).observer(move |event| {
        let about_task = (event.task.is_empty(), event.thread);
        let _ = tell.send((event.kind, event.reason.is_some(), about_task));
    });
    let (trigger, shutdown) = shutdown();
    let running = std::thread::spawn(move || worker.run(|_: &Delivery| Ok(()), &shutdown));
    let limit = Duration::from_secs(60);
    let next = || told.recv_timeout(limit).expect("an event");
    assert_eq!(next(), (EventKind::Connected, false, (true, 0)));
    shared_broker().client().wait_for_consumers(&queue, 1, limit);
    proxy.cut();
    assert_eq!(next(), (EventKind::Disconnected, true, (true, 0)));
    assert_eq!(next(), (EventKind::Connected, false, (true, 0)));
    trigger.stop();
    running.join().expect("no panic").expect("it ends well");
}

#[test]
fn rows_53_and_54_bodies_arrive_byte_for_byte() {
    let queue = unique_queue("bodies");
    // Since RabbitMQ 4.0 it takes no longer one, unless configured (`max_message_size`).
    let is_limited = shared_broker().client().broker_version() >= (4, 0);
    let longest = if is_limited { 16 << 20 } else { 20 << 20 };
    let mut sent: Vec<Vec<u8>> =
        [0, 1, 4_088, 131_063, 131_064, 131_065, 262_128, longest].into_iter().map(bytes).collect();
    let odd: [&[u8]; 6] = [
        b"\0",
        b"a\nb\r\n",
        b"\xff\xfe",
        b"-x --help",
        b"'; rm -rf $HOME `id`",
        "é漢\u{1f407}".as_bytes(),
    ];
    sent.extend(odd.map(<[u8]>::to_vec));

    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    for body in &sent {
        producer.publish(Task::new(body.clone())).expect("confirmed");
    }
    let (got, handler) = bodies();
    let working = Working::start(&worker(&queue).max_tasks(sent.len() as u64), handler);

    for body in &sent {
        let got = got.recv_timeout(SOON).expect("a task");
        assert!(got == *body, "a body of {} bytes came as {}", body.len(), got.len());
    }
    assert_eq!(working.wait(SOON).expect("it ends well").done, sent.len() as u64);
}

#[test]
fn the_ack_comes_after_the_handler_returned_and_on_the_same_channel() {
    let (gate, at_the_gate) = gate();
    let (entered, open) = (gate.entered, gate.open);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let [waits, runs] = [(); 2].map(|()| session.accept_consumer());
        let deliver = |session: &mut Session, to: &Consumer, body: &str| {
            session.deliver(&WireDelivery::new(to.channel, &to.tag, 1).body(body));
        };
        let expect_ack = |session: &mut Session, of: &Consumer| {
            let ack = session.answer_rpcs().expect("an ack");
            assert_eq!(ack.call, Call::Ack { delivery_tag: 1, multiple: false });
            assert_eq!(ack.channel, of.channel);
        };
        deliver(session, &waits, "waits");
        entered.recv_timeout(SOON).expect("the handler runs");
        // An ack that did not wait for it would come before that of a later task.
        deliver(session, &runs, "runs");
        expect_ack(session, &runs);
        open.send(()).expect("the handler waits");
        expect_ack(session, &waits);
        assert_eq!(session.answer_rpcs(), None);
    });
    let handler = move |delivery: &Delivery| match delivery.body() {
        b"waits" => at_the_gate.handle(delivery),
        _ => Ok(()),
    };

    let url = broker.url().parse().expect("a URL");
    let worker = Worker::new(&url, &Queue::new("q")).threads(2).max_tasks(2);
    let working = Working::start(&worker, handler);

    assert_eq!(working.wait(SOON).expect("it ends well").done, 2);
    broker.finish(SOON);
}

#[test]
fn each_thread_has_one_task_at_a_time_and_all_have_one() {
    let queue = unique_queue("level");
    let ids: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ids.iter().map(String::as_str));
    let (gate, handler) = gate();
    let entered = || gate.entered.recv_timeout(SOON).expect("a task runs");

    let worker = worker(&queue).threads(4).prefetch(5).max_tasks(40);
    let working = Working::start(&worker, handler);
    for _ in 0..4 {
        entered();
    }
    client.wait_for_count(&queue, 20, SOON);
    let too_many = gate.entered.try_recv();
    // Whichever thread goes on has a next task as long as the queue has.
    for _ in 0..16 {
        gate.open.send(()).expect("four wait");
        entered();
    }
    let too_many_later = gate.entered.try_recv();
    drop(gate);

    assert!(too_many.is_err() && too_many_later.is_err(), "a fifth task ran");
    assert_eq!(working.wait(SOON).expect("it ends well").done, 40);
}

#[test]
fn a_stop_gives_back_what_is_prefetched_at_once_and_waits_for_what_runs() {
    let queue = unique_queue("stop");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["running", "a", "b", "c"]);
    let (gate, handler) = gate();
    let working = Working::start(&worker(&queue).prefetch(10), handler);
    assert_eq!(gate.entered.recv_timeout(SOON).as_deref(), Ok("running"));

    working.trigger().stop();
    client.wait_for_count(&queue, 3, SOON);
    gate.open.send(()).expect("the handler waits");
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.done, summary.requeued, summary.ended), (1, 3, StopReason::Stopped));
    assert_eq!(client.count(&queue), 3);
}

#[test]
fn an_abort_leaves_what_runs_behind_and_gives_it_back() {
    let queue = unique_queue("abort");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["running", "a"]);
    let (gate, handler) = gate();
    let working = Working::start(&worker(&queue).prefetch(10), handler);
    gate.entered.recv_timeout(SOON).expect("the task runs");

    let begun = Instant::now();
    working.trigger().abort();
    let summary = working.wait(SOON).expect("it ends well");

    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((summary.ended, summary.running), (StopReason::Aborted, 1));
    client.wait_for_count(&queue, 2, SOON);
}

#[test]
fn row_13_a_panic_is_a_failed_task_and_the_thread_goes_on() {
    let queue = unique_queue("panic");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["boom", "fine"]);
    let handler = |delivery: &Delivery| {
        let first = delivery.attempt() == 1;
        assert!(!(first && delivery.body() == b"boom"), "on purpose");
        Ok(())
    };
    let policy = RetryPolicy::new().first_delay(Duration::from_millis(300));

    let working = Working::start(&worker(&queue).prefetch(5).retry(policy), handler);

    assert_eq!(working.wait_for(EventKind::Done, SOON), "fine");
    assert_eq!(working.wait_for(EventKind::Done, SOON), "boom");
    let summary = working.stop(SOON);
    assert_eq!((summary.done, summary.retried, summary.dead), (2, 1, 0));
}

#[test]
fn row_14_a_thousand_panics_in_every_thread_kill_no_connection_and_lose_no_task() {
    let queue = unique_queue("panics");
    let proxy = Proxy::start(shared_broker().address());
    let mut client = shared_broker().client();
    client.declare(&queue);
    // As many more as the threads that are ahead may hold.
    let total = 4 * (EACH + 250);
    let ids: BTreeSet<String> = (0..total).map(|number| number.to_string()).collect();
    client.publish_ids(&queue, ids.iter().map(String::as_str));
    let broker = proxy.url().parse().expect("a URL");
    let policy = RetryPolicy::new().max_attempts(1);
    let worker = Worker::new(&broker, &Queue::new(&queue)).threads(4).prefetch(250).retry(policy);
    let turns = Arc::new(Turns::default());
    let handler = {
        let turns = Arc::clone(&turns);
        move |_: &Delivery| -> Result<(), Failure> {
            turns.take();
            std::panic::panic_any("on purpose")
        }
    };

    let working = Working::start(&worker, handler);
    for _ in 0..total {
        working.wait_for(EventKind::Dead, SOON);
    }
    let summary = working.stop(SOON);

    let turns: Vec<u64> = turns.taken().values().copied().collect();
    assert!(turns.len() == 4 && turns.iter().all(|turns| *turns >= EACH), "{turns:?}");
    assert_eq!((summary.dead, summary.failed, summary.orphaned), (total, 0, 0));
    // One for the tasks, one for what is handed over.
    assert_eq!(proxy.connections(), 2);
    assert_eq!(client.count(&queue), 0);
    let dead = client.get_all(&format!("{queue}.dead"));
    let dead_ids = dead.iter().filter_map(|message| message.message_id.clone()).collect();
    assert_eq!((dead.len(), ids), (total as usize, dead_ids));
}

/// Panics when it is dropped, too.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::panic_any("again, on purpose");
    }
}

#[test]
fn an_observer_that_panics_with_what_panics_holds_up_no_task() {
    let queue = unique_queue("bomb");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1", "2", "3"]);
    let worker = worker(&queue).max_tasks(3).observer(|_| std::panic::panic_any(Bomb));
    let (end, ended) = crossbeam_channel::bounded(1);
    let (_trigger, shutdown) = shutdown();

    thread::spawn(move || end.send(worker.run(|_: &Delivery| Ok(()), &shutdown)));

    let summary = ended.recv_timeout(SOON).expect("it ends").expect("it ends well");
    assert_eq!(summary.done, 3);
}

/// Waits in each task until the test ends, and panics where it is asked how long that takes.
struct Deaf(Mutex<crossbeam_channel::Receiver<()>>);

impl Handler for Deaf {
    fn handle(&self, _: &Delivery) -> Result<(), Failure> {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).recv();
        Ok(())
    }

    fn cancel_timeout(&self) -> Duration {
        std::panic::panic_any("on purpose")
    }
}

#[test]
fn a_stop_is_bounded_also_where_the_handler_panics_at_it() {
    let queue = unique_queue("deaf");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1"]);
    let (_open, closed) = crossbeam_channel::bounded(0);
    let worker = worker(&queue).grace(Duration::ZERO);

    let working = Working::start(&worker, Deaf(Mutex::new(closed)));
    working.wait_for(EventKind::Started, SOON);
    let begun = Instant::now();
    let summary = working.stop(SOON);

    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(summary.ended, StopReason::GraceExceeded);
    client.delete(&queue);
}

/// How often every thread panics, at the least.
const EACH: u64 = 1000;

/// How many turns each thread has had.
#[derive(Default)]
struct Turns {
    taken: Mutex<HashMap<ThreadId, u64>>,
    changed: Condvar,
}

impl Turns {
    /// Takes a turn of the calling thread. One that has had its share waits for the others.
    fn take(&self) {
        let mut taken = self.taken();
        *taken.entry(thread::current().id()).or_default() += 1;
        self.changed.notify_all();
        let own = |taken: &HashMap<ThreadId, u64>| taken[&thread::current().id()];
        let all = |taken: &HashMap<ThreadId, u64>| {
            taken.len() == 4 && taken.values().all(|turns| *turns >= EACH)
        };
        let waited =
            self.changed.wait_timeout_while(taken, SOON, |taken| own(taken) >= EACH && !all(taken));
        drop(waited);
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<ThreadId, u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[test]
fn what_could_not_be_tried_goes_back_after_a_pause_and_is_not_counted() {
    let queue = unique_queue("postponed");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["bad", "good"]);
    let tries = Arc::new(AtomicUsize::new(0));
    let handler = {
        let tries = Arc::clone(&tries);
        move |delivery: &Delivery| match delivery.body() {
            b"bad" => {
                assert_eq!(delivery.attempt(), 1);
                tries.fetch_add(1, Ordering::SeqCst);
                Err(Failure::requeue("on purpose"))
            }
            _ => Ok(()),
        }
    };

    let working = Working::start(&worker(&queue).prefetch(2), handler);
    assert_eq!(working.wait_for(EventKind::Done, SOON), "good");
    let begun = Instant::now();
    working.wait_for(EventKind::Requeued, SOON);
    working.wait_for(EventKind::Requeued, SOON);

    // A pause of 1 s at least lies between two tries.
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(tries.load(Ordering::SeqCst) <= 3);
    let summary = working.stop(SOON);
    assert_eq!((summary.retried, summary.dead), (0, 0));
}

#[test]
fn every_shutdown_is_new_and_a_lost_trigger_is_a_stop() {
    let queue = unique_queue("fresh");
    shared_broker().client().declare(&queue);
    let (first, stopped) = shutdown();
    first.stop();

    let (trigger, fresh) = shutdown();
    let at_once = worker(&queue).run(|_: &Delivery| Ok(()), &stopped).expect("it ends well");
    assert!(!fresh.is_stopping());
    let running = {
        let worker = worker(&queue);
        thread::spawn(move || worker.run(|_: &Delivery| Ok(()), &fresh))
    };
    shared_broker().client().wait_for_consumers(&queue, 1, SOON);
    drop(trigger);

    assert_eq!(at_once.ended, StopReason::Stopped);
    let summary = running.join().expect("no panic").expect("it ends well");
    assert_eq!(summary.ended, StopReason::Stopped);
    assert_eq!(shared_broker().client().consumers(&queue), 0);
}

#[test]
fn what_is_dropped_unfinished_leaves_no_consumer_behind() {
    let queue = unique_queue("dropped");
    let client = shared_broker().client();
    client.declare(&queue);
    let (_, handler) = bodies();
    let working = Working::start(&worker(&queue).threads(3), handler);
    client.wait_for_consumers(&queue, 3, SOON);

    drop(working);

    client.wait_for_consumers(&queue, 0, SOON);
}

#[test]
fn row_70_a_thousand_sessions_die_of_nothing_and_leave_no_thread_or_descriptor() {
    let queue = unique_queue("sessions");

    let output = child::sessions(shared_broker().url(), &queue, 1000).run(Duration::from_secs(170));

    let stdout = output.success();
    let counts =
        stdout.lines().find_map(|line| line.split_once("threads and fds ")).expect("counts");
    let (before, after) = counts.1.split_once("), ").expect("two pairs");
    assert_eq!(format!("{before})"), after, "{stdout}");
    assert_eq!(shared_broker().client().count(&queue), 0);
}

#[test]
fn rows_2_and_49_a_task_that_kills_its_worker_is_redelivered_as_such_and_done_twice() {
    let queue = unique_queue("suicide");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Arc::new(Ledger::open(&dir.path().join("ledger")));
    ledger.attempted("1");
    client.publish_id(&queue, "1");
    ledger.confirmed("1");
    let killer = LedgerWorker::killer(shared_broker().url(), &queue, ledger.path());

    let output = killer.command().run(SOON);
    let redelivered = Arc::new(AtomicBool::new(false));
    let handler = {
        let (ledger, redelivered) = (Arc::clone(&ledger), Arc::clone(&redelivered));
        move |delivery: &Delivery| {
            redelivered.store(delivery.redelivered(), Ordering::SeqCst);
            ledger.finished(delivery.task().id().unwrap_or_default());
            Ok(())
        }
    };
    Working::start(&worker(&queue).max_tasks(1), handler).wait(SOON).expect("it ends well");

    assert_eq!(output.signal, Some(9));
    assert!(redelivered.load(Ordering::SeqCst));
    let verdict = ledger.verdict(&[]);
    assert!(verdict.is_valid(), "{verdict}");
    assert_eq!(ledger.records().finished["1"], 2);
    assert_eq!(client.count(&queue), 0);
}

#[test]
fn a_quorum_queue_counts_the_deliveries_and_gives_up_on_a_killer() {
    let queue = unique_queue("killer");
    let client = shared_broker().client();
    let mut arguments = amiquip::FieldTable::new();
    let text = |text: &str| amiquip::AmqpValue::LongString(text.into());
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), amiquip::AmqpValue::LongInt(2));
    client.declare_with(&queue, arguments);
    shared_broker().client().publish_id(&queue, "1");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    let killer = LedgerWorker::killer(shared_broker().url(), &queue, &path);

    // It declares the queue as a classic one, so it must not declare it at all.
    let deaths = (0..3).map(|_| killer.command().env("IT_NO_DECLARE", "1").run(SOON).signal);

    assert_eq!(deaths.collect::<Vec<_>>(), [Some(9); 3]);
    poll("the broker drops the task", SOON, || (client.count(&queue) == 0).then_some(()));
    assert_eq!(Ledger::open(&path).records().finished["1"], 3);
}

#[test]
fn row_51_headers_of_every_type_do_not_stop_a_task() {
    use crate::support::wire::Field;
    let nested = Field::Array(vec![
        Field::Table(vec![(b"count".to_vec(), Field::I64(3)), (b"void".to_vec(), Field::Void)]),
        Field::Decimal(2, 314),
        Field::F32(0.5),
    ]);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let properties = Properties::with_message_id("exotic")
            .header("x-death", nested.clone())
            .header("number", Field::I16(-7))
            .header("bytes", Field::Bytes(vec![0, 255]))
            .header("when", Field::Timestamp(1_700_000_000))
            .header("yes", Field::Bool(true));
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
        session.deliver(&delivery.properties(properties).body("x"));
        let ack = session.answer_rpcs().expect("an ack");
        assert_eq!(ack.call, Call::Ack { delivery_tag: 1, multiple: false });
        assert_eq!(session.answer_rpcs(), None);
    });
    let handler = |delivery: &Delivery| {
        let task = delivery.task();
        assert_eq!(task.header_text("number").as_deref(), Some("-7"));
        assert_eq!(task.header_text("yes").as_deref(), Some("true"));
        assert_eq!((task.id(), task.header_text("x-death")), (Some("exotic"), None));
        Ok(())
    };

    let url = broker.url().parse().expect("a URL");
    let worker = Worker::new(&url, &Queue::new("q")).threads(1).max_tasks(1);
    let summary = Working::start(&worker, handler).wait(SOON).expect("it ends well");

    assert_eq!((summary.done, summary.failed), (1, 0));
    broker.finish(SOON);
}

#[test]
fn with_auto_ack_what_a_stop_cuts_short_is_counted_as_lost() {
    let queue = unique_queue("cut");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1"]);
    let worker = worker(&queue).auto_ack().grace(Duration::ZERO);
    let cut_short = |delivery: &Delivery| {
        let _ = delivery.cancelled().recv();
        Err(Failure::requeue("cut short"))
    };

    let working = Working::start(&worker, cut_short);
    working.wait_for(EventKind::Started, SOON);
    let summary = working.stop(SOON);

    assert_eq!((summary.lost, summary.requeued), (1, 0));
}
