//! Cuts of a connection, at every byte and in the middle of tasks.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rabbit_work::{Broker, EventKind, Producer, Queue, Receipt, Task, Worker};

use super::{SOON, confirmed, deliver, proxied, worker};
use crate::support::broker::shared_broker;
use crate::support::client::{Client, unique_queue};
use crate::support::command::Command;
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::{Event, ScriptedBroker};
use crate::support::wire::Call;
use crate::support::working::{Working, bodies, gate};

const LONG: Duration = Duration::from_secs(120);

/// Does something for each case, as many at a time as a small machine can bear.
pub(crate) fn sweep<T>(cases: impl Iterator<Item = T> + Send, act: impl Fn(&mut Client, T) + Sync) {
    let cases = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..SWEEPERS {
            scope.spawn(|| {
                let mut client = shared_broker().client();
                loop {
                    let next = cases.lock().expect("not poisoned").next();
                    let Some(case) = next else { return };
                    act(&mut client, case);
                }
            });
        }
    });
}

/// Each of them mostly waits for a backoff.
const SWEEPERS: usize = 64;

/// A connection to be cut after so many bytes of one direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    direction: Direction,
    toxic: Toxic,
}

const BOTH: [Direction; 2] = [Direction::ToBroker, Direction::ToClient];

impl Cut {
    /// A reset, and an end in good order, after each of so many bytes.
    fn everywhere(lengths: [u64; 2]) -> impl Iterator<Item = Cut> {
        BOTH.into_iter().flat_map(move |direction| {
            let offsets = 1..lengths[direction as usize];
            let toxics = offsets.flat_map(|it| [Toxic::ResetAfter(it), Toxic::LimitData(it)]);
            toxics.map(move |toxic| Cut { direction, toxic })
        })
    }

    /// A reset after every other byte, and an end in good order after those between.
    pub(crate) fn by_turns(lengths: [u64; 2]) -> impl Iterator<Item = Cut> {
        let cuts = Cut::everywhere(lengths).enumerate();
        cuts.filter(|(number, _)| matches!(number % 4, 0 | 3)).map(|(_, cut)| cut)
    }

    fn is_before(self, lengths: [u64; 2]) -> bool {
        match self.toxic {
            Toxic::ResetAfter(offset) | Toxic::LimitData(offset) => {
                offset < lengths[self.direction as usize]
            }
            _ => false,
        }
    }

    pub(crate) fn set(self, proxy: &Proxy) {
        proxy.set(self.direction, self.toxic);
    }
}

pub(crate) fn forwarded(proxy: &Proxy) -> [u64; 2] {
    BOTH.map(|direction| proxy.bytes(direction))
}

/// How many bytes went each way since.
pub(crate) fn since(before: [u64; 2], proxy: &Proxy) -> [u64; 2] {
    let now = forwarded(proxy);
    BOTH.map(|direction| now[direction as usize] - before[direction as usize])
}

/// Publishes two tasks through a proxy that was let through so far, and ends.
fn publish_two(
    proxy: &Proxy,
    queue: &str,
    prefix: &str,
    fault: impl FnOnce(&Proxy),
) -> Vec<Receipt> {
    // Many of these at a time, on a small machine.
    let mut producer = Producer::new(&proxied(proxy), &Queue::new(queue)).timeout(LONG);
    producer.connect().expect("the first connection is let through");
    fault(proxy);
    let mut receipts = Vec::new();
    for number in 0..2 {
        let task = Task::new("0123456789").with_id(format!("{prefix}.{number}"));
        receipts.extend(producer.send(task));
    }
    receipts.extend(producer.flush());
    receipts
}

#[test]
fn row_25_a_cut_after_every_byte_of_a_publish_loses_nothing() {
    let queue = unique_queue("sweep");
    let client = shared_broker().client();
    client.declare(&queue);
    let whole = Proxy::start(shared_broker().address());
    let mut before = [0; 2];
    publish_two(&whole, &queue, "whole", |proxy| before = forwarded(proxy));
    let cuts = Cut::everywhere(since(before, &whole));
    assert_eq!(client.purge(&queue), 2);

    let in_doubt = AtomicUsize::new(0);
    sweep(cuts.enumerate(), |_, (number, cut)| {
        let proxy = Proxy::start(shared_broker().address());
        proxy.heal_at(2);
        let receipts = publish_two(&proxy, &queue, &number.to_string(), |proxy| cut.set(proxy));
        let ids: BTreeSet<String> = (0..2).map(|task| format!("{number}.{task}")).collect();
        assert_eq!(confirmed(&receipts), ids, "{cut:?}: {receipts:?}");
        assert_eq!(receipts.len(), 2);
        in_doubt.fetch_add(2, Ordering::SeqCst);
    });

    let messages = client.get_all(&queue);
    let ids: BTreeSet<_> = messages.iter().filter_map(|it| it.message_id.clone()).collect();
    let wanted = in_doubt.load(Ordering::SeqCst);
    assert_eq!(ids.len(), wanted, "each task is on the queue");
    assert!(messages.len() <= 2 * wanted, "{} messages of {wanted} tasks", messages.len());
}

/// A broker that is faster than a real one: this is done some hundred times.
fn prompt_broker() -> ScriptedBroker {
    ScriptedBroker::start(|session, _| session.serve())
}

#[test]
fn row_25_a_cut_in_the_first_handshake_delays_a_producer_and_a_worker_and_no_more() {
    let broker = prompt_broker();
    let whole = Proxy::start(broker.address());
    let connected = Producer::new(&unhurried(&whole), &Queue::new("q")).connect();
    connected.expect("it is let through");

    sweep(Cut::by_turns(forwarded(&whole)).step_by(HANDSHAKE_STEP), |_, cut| {
        let proxies = [(); 2].map(|()| Proxy::start(broker.address()));
        for proxy in &proxies {
            cut.set(proxy);
            proxy.heal_at(2);
        }
        let [to_producer, to_worker] = proxies.each_ref().map(unhurried);
        let (done, handler) = bodies();

        let working = Working::start(&worker(&to_worker, "q"), handler);
        let sent = Producer::new(&to_producer, &Queue::new("q")).publish(Task::new("task"));

        assert!(sent.is_ok(), "{cut:?}: {sent:?}");
        assert_eq!(done.recv_timeout(SOON).as_deref(), Ok(&b"task"[..]), "{cut:?}");
        working.stop(SOON);
    });
}

/// A handshake has a thousand bytes or so: a cut comes after every third.
const HANDSHAKE_STEP: usize = 3;

/// Without heartbeats, of which no script thinks by itself.
fn unhurried(proxy: &Proxy) -> Broker {
    proxied(proxy).heartbeat(Duration::ZERO)
}

#[test]
fn row_25_a_cut_after_every_byte_of_a_worker_s_session_loses_nothing() {
    let whole = Proxy::start(shared_broker().address());
    let mut before = [0; 2];
    let mut client = shared_broker().client();
    work_two(&mut client, &whole, |proxy| before = forwarded(proxy));
    let session = since(before, &whole);
    let connect = length_of_a_connect(&client).map(|it| it - NAMES_DIFFER_BY);

    let (early, late): (Vec<_>, Vec<_>) =
        Cut::by_turns(session).partition(|cut| cut.is_before(connect));
    sweep(early.chunks(CUTS_OF_A_WORKER), reconnect_through);
    sweep(late.into_iter(), |client, cut| {
        let proxy = Proxy::start(shared_broker().address());
        work_two(client, &proxy, |proxy| cut.set(proxy));
    });
}

/// Cuts before the first delivery cost a worker nothing but a pause, so it takes several in a row.
const CUTS_OF_A_WORKER: usize = 12;

/// How much longer one connect may be than another, by the names of queues and connections.
const NAMES_DIFFER_BY: u64 = 32;

/// What a worker and a broker send each other until the worker consumes.
fn length_of_a_connect(client: &Client) -> [u64; 2] {
    let queue = unique_queue("connect");
    client.declare(&queue);
    let proxy = Proxy::start(shared_broker().address());
    let working = Working::start(&impatient(&proxy, &queue), bodies().1);
    client.wait_for_consumers(&queue, 1, SOON);
    let length = forwarded(&proxy);
    working.stop(SOON);
    client.delete(&queue);
    length
}

/// Works a task in one session. Each connect after that is cut, until one is not: in its session
/// another task must be done.
fn reconnect_through(client: &mut Client, cuts: &[Cut]) {
    let queue = unique_queue("session");
    client.declare(&queue);
    client.publish_id(&queue, "1");
    let proxy = Proxy::start(shared_broker().address());
    let (done, handler) = bodies();
    let working = Working::start(&impatient(&proxy, &queue), handler);
    assert_eq!(done.recv_timeout(SOON).as_deref(), Ok(&b"1"[..]));
    working.wait_for(EventKind::Done, SOON);

    proxy.fault_each(cuts.iter().map(|cut| (cut.direction, cut.toxic)));
    proxy.cut();
    client.publish_id(&queue, "2");
    // The first comes again when its ack was cut off.
    while done.recv_timeout(LONG).expect("the second task is done") != b"2" {}

    assert!(proxy.connections() >= cuts.len() + 2, "not each of them lost a connection: {cuts:?}");
    working.stop(SOON);
    client.delete(&queue);
}

/// A worker whose pauses do not grow.
fn impatient(proxy: &Proxy, queue: &str) -> Worker {
    worker(&proxied(proxy), queue).longest_pause(Duration::ZERO)
}

/// Works a task in one session and another in the next, which the fault may end at any point,
/// also after the task or during the stop. Each task must be done.
fn work_two(client: &mut Client, proxy: &Proxy, fault: impl FnOnce(&Proxy)) {
    let queue = unique_queue("session");
    client.declare(&queue);
    client.publish_id(&queue, "1");
    let (done, handler) = bodies();
    let working = Working::start(&impatient(proxy, &queue), handler);
    assert_eq!(done.recv_timeout(SOON).as_deref(), Ok(&b"1"[..]));
    working.wait_for(EventKind::Done, SOON);

    proxy.cut();
    fault(proxy);
    proxy.heal_at(3);
    client.publish_id(&queue, "2");
    // The first comes again when its ack was cut off.
    while done.recv_timeout(SOON).expect("the second task is done") != b"2" {}

    working.stop(SOON);
    client.delete(&queue);
}

#[test]
fn a_signal_while_reconnecting_ends_a_worker_at_once() {
    let queue = unique_queue("reconnecting");
    let proxy = Proxy::start(shared_broker().address());
    let running = Command::worker(&["--url", &proxy.url(), "--queue", &queue]).start();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    proxy.set_both(Toxic::Down);
    running.wait_for_stderr_line(|line| line.contains("no broker reached"), SOON);

    let begun = Instant::now();
    running.signal("INT");
    let output = running.wait(SOON);

    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    output.assert_code(0);
}

#[test]
fn a_task_whose_session_is_lost_is_never_acked_later_and_counts_as_orphaned() {
    let (hang_up, told) = bounded(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        let consumer = session.accept_consumer();
        deliver(session, &consumer, 1);
        if number == 0 {
            let _ = told.recv_timeout(SOON);
            session.hang_up();
            return;
        }
        let ack = session.answer_rpcs().expect("the ack of this session's own delivery");
        assert_eq!(ack.call, Call::Ack { delivery_tag: 1, multiple: false });
        session.report("acked");
        assert_eq!(session.answer_rpcs(), None, "no second ack");
    });
    let url = broker.url().parse().expect("a URL");
    let (gate, handler) = gate();
    let working = Working::start(&worker(&url, "q").threads(1), handler);
    gate.entered.recv_timeout(SOON).expect("the task runs");

    hang_up.send(()).expect("the script waits");
    broker.wait_for(SOON, |event| *event == Event::Connected(1));
    gate.open.send(()).expect("the handler waits");
    working.wait_for(EventKind::Orphaned, SOON);
    // Had the late ack been sent, the script would have had it before this one runs.
    gate.entered.recv_timeout(SOON).expect("the task runs again");
    gate.open.send(()).expect("the handler waits");
    broker.wait("acked", SOON);
    let summary = working.stop(SOON);

    assert_eq!((summary.done, summary.orphaned), (1, 1));
    broker.finish(SOON);
}

#[test]
fn what_a_dead_connection_had_buffered_is_never_started() {
    let queue = unique_queue("buffered");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1", "2", "3", "4", "5"]);
    let proxy = Proxy::start(shared_broker().address());
    let (gate, handler) = gate();
    let working = Working::start(&worker(&proxied(&proxy), &queue).prefetch(5), handler);
    assert_eq!(gate.entered.recv_timeout(SOON).as_deref(), Ok("1"));
    client.wait_for_count(&queue, 0, SOON);

    proxy.set_both(Toxic::ResetPeer);
    client.wait_for_count(&queue, 5, SOON);
    // The worker that tries to connect again has seen the death.
    proxy.wait_for_connections(2, SOON);
    gate.open.send(()).expect("the handler waits");
    working.wait_for(EventKind::Orphaned, SOON);
    // Whatever is started from here on returns at once, and the stop waits for it.
    drop(gate.open);
    working.stop(SOON);

    assert!(gate.entered.try_recv().is_err(), "a buffered task was started");
    assert_eq!(client.count(&queue), 5);
}

#[test]
fn row_15_cut_connections_are_replaced_with_all_their_consumers() {
    let queue = unique_queue("cut");
    let client = shared_broker().client();
    client.declare(&queue);
    let proxy = Proxy::start(shared_broker().address());
    let (_, handler) = bodies();
    let working = Working::start(&worker(&proxied(&proxy), &queue).threads(4), handler);
    client.wait_for_consumers(&queue, 4, SOON);

    for connection in 2..=3 {
        proxy.cut();
        client.wait_for_consumers(&queue, 0, SOON);
        let begun = Instant::now();
        proxy.wait_for_connections(connection, SOON);
        client.wait_for_consumers(&queue, 4, SOON);
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    }

    working.stop(SOON);
    assert_eq!(client.consumers(&queue), 0);
}
