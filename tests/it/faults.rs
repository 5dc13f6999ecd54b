//! The faults of the network and of brokers that say strange things: nothing lost, nothing hung.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::AmqpProperties;
use crossbeam_channel::{Sender, bounded};
use rabbit_work::{
    Broker, Delivery, Error, EventKind, Failure, Outcome, Producer, Queue, Receipt, Task, Worker,
};
use serde_json::Value;

use crate::support::broker::{poll, shared_broker};
use crate::support::client::{Client, unique_queue};
use crate::support::command::{Command, Running};
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::{Consumer, Event, ScriptedBroker, Session, Tuning};
use crate::support::wire::{Arguments, Call, Delivery as WireDelivery, Field, Frame, Properties};
use crate::support::working::{Working, bodies, gate};

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(120);

fn proxied(proxy: &Proxy) -> Broker {
    proxy.url().parse().expect("the proxy's URL is one")
}

fn worker(broker: &Broker, queue: &str) -> Worker {
    Worker::new(broker, &Queue::new(queue)).threads(1)
}

fn confirmed(receipts: &[Receipt]) -> BTreeSet<String> {
    let confirmed = receipts.iter().filter(|receipt| receipt.outcome == Outcome::Confirmed);
    confirmed.filter_map(|receipt| receipt.task.id().map(str::to_owned)).collect()
}

fn deliver(session: &mut Session, consumer: &Consumer, tag: u64) {
    let delivery = WireDelivery::new(consumer.channel, &consumer.tag, tag);
    session.deliver(&delivery.body(tag.to_string()));
}

/// Does something for each case, as many at a time as a small machine can bear.
fn sweep<T>(cases: impl Iterator<Item = T> + Send, act: impl Fn(&mut Client, T) + Sync) {
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
struct Cut {
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
    fn by_turns(lengths: [u64; 2]) -> impl Iterator<Item = Cut> {
        let cuts = Cut::everywhere(lengths).enumerate();
        cuts.filter(|(number, _)| matches!(number % 4, 0 | 3)).map(|(_, cut)| cut)
    }

    fn set(self, proxy: &Proxy) {
        proxy.set(self.direction, self.toxic);
    }
}

fn forwarded(proxy: &Proxy) -> [u64; 2] {
    BOTH.map(|direction| proxy.bytes(direction))
}

/// How many bytes went each way since.
fn since(before: [u64; 2], proxy: &Proxy) -> [u64; 2] {
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

    sweep(Cut::by_turns(since(before, &whole)), |client, cut| {
        let proxy = Proxy::start(shared_broker().address());
        work_two(client, &proxy, |proxy| cut.set(proxy));
    });
}

/// Works a task in one session and another in the next, which the fault may end at any point,
/// also after the task or during the stop. Each task must be done.
fn work_two(client: &mut Client, proxy: &Proxy, fault: impl FnOnce(&Proxy)) {
    let queue = unique_queue("session");
    client.declare(&queue);
    client.publish_id(&queue, "1");
    let (done, handler) = bodies();
    let working = Working::start(&worker(&proxied(proxy), &queue), handler);
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
fn row_27_a_blackhole_is_noticed_within_two_heartbeats_and_left_when_it_ends() {
    let queue = unique_queue("blackhole");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let proxy = Proxy::start(shared_broker().address());
    let url = format!("{}?heartbeat=1", proxy.url());
    let running = Command::worker(&["--url", &url, "--queue", &queue]).start();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);

    let begun = Instant::now();
    proxy.set_both(Toxic::Timeout);
    running.wait_for_stderr_line(|line| line.contains("missed two heartbeats"), SOON);
    let noticed = begun.elapsed();
    proxy.set_both(Toxic::Pass);
    proxy.cut();
    let begun = Instant::now();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    client.publish_id(&queue, "again");
    running.wait_for_stdout_line(|line| line == " [x] Received 'again'", SOON);

    // Two heartbeats, a second, and what a machine with much to do takes on top.
    assert!(noticed < Duration::from_secs(6), "{noticed:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn signals_in_a_blackhole_end_a_worker_in_bounded_time() {
    for signals in [&["INT"][..], &["TERM", "TERM"]] {
        let queue = unique_queue("dark");
        let mut client = shared_broker().client();
        client.declare(&queue);
        let proxy = Proxy::start(shared_broker().address());
        let arguments =
            ["--url", &proxy.url(), "--queue", &queue, "--threads", "2", "--grace", "1s"];
        let running = Command::worker(&arguments).start();
        running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
        client.publish_id(&queue, "long..........");
        running.wait_for_stdout_line(|line| line.contains("Received"), SOON);

        proxy.set_both(Toxic::Timeout);
        running.signal(signals[0]);
        running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
        let begun = Instant::now();
        signals[1..].iter().for_each(|signal| running.signal(signal));
        let output = running.wait(SOON);

        let limit = if signals.len() == 1 { 6 } else { 2 };
        assert!(begun.elapsed() < Duration::from_secs(limit), "{:?}", begun.elapsed());
        output.assert_code(if signals.len() == 1 { 3 } else { 130 });
        proxy.set_both(Toxic::Pass);
        drop(proxy);
        client.wait_for_count(&queue, 1, SOON);
    }
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

/// By the time the process goes on, the broker has given everything to others.
#[test]
fn what_a_process_that_stood_still_had_buffered_is_never_started() {
    let queue = unique_queue("still");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1.", "2.", "3.", "4.", "5."]);
    let url = format!("{}?heartbeat=1", shared_broker().url());
    let arguments = ["--url", &url, "--queue", &queue, "--threads", "1", "--prefetch", "5"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received '1.'"), SOON);
    client.wait_for_count(&queue, 0, SOON);

    running.signal("STOP");
    client.wait_for_count(&queue, 5, SOON);
    client.purge(&queue);
    running.signal("CONT");
    running.wait_for_stderr_line(|line| line.contains("lost the session"), SOON);
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    assert_eq!(output.stdout().matches("Received").count(), 1, "{}", output.stdout());
}

/// It is the shorter of the two proposed that counts, and what comes on late changes nothing.
#[test]
fn the_heartbeat_of_the_broker_s_tells_a_process_that_it_stood_still_where_it_is_shorter() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake_with(Tuning { heartbeat: 2, ..Tuning::default() });
        let consumer = session.accept_consumer();
        if number == 0 {
            for tag in 1..=5 {
                let delivery = WireDelivery::new(consumer.channel, &consumer.tag, tag);
                session.deliver(&delivery.body(format!("{tag}..")));
            }
            session.beat_until_silent(Duration::from_secs(5));
            session.heartbeat();
            session.report("silent");
        }
        session.beat_until_closed();
    });
    let url = format!("amqp://{}?heartbeat=60", broker.address());
    let arguments = ["--url", &url, "--threads", "1", "--prefetch", "5"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received '1..'"), SOON);

    running.signal("STOP");
    broker.wait("silent", SOON);
    running.signal("CONT");
    running.wait_for_stderr_line(|line| line.contains("lost the session"), SOON);
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    running.signal("INT");
    running.signal("INT");
    let output = running.wait(SOON);

    assert_eq!(output.stdout().matches("Received").count(), 1, "{}", output.stdout());
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

#[test]
fn row_30_a_peer_that_never_speaks_is_given_up_after_the_handshake_timeout() {
    let silent = ScriptedBroker::start(|session, _| session.stay_silent());
    let broker: Broker = silent.url().parse().expect("a URL");
    let broker = broker.handshake_timeout(Duration::from_millis(500));

    let begun = Instant::now();
    let (_, handler) = bodies();
    let working = Working::start(&worker(&broker, "q").no_reconnect(), handler);
    let ended = working.wait(SOON);

    let Err(Error::Unreachable { attempts, .. }) = ended else { panic!("{ended:?}") };
    assert!(attempts[0].contains("handshake"), "{attempts:?}");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(400) && took < Duration::from_secs(3), "{took:?}");
}

/// What a worker says whose only try met a peer that acts like this.
fn first_try(
    url: impl Fn(&str) -> String,
    act: impl Fn(&mut Session) + Send + Sync + 'static,
) -> Error {
    let peer = ScriptedBroker::start(move |session, _| act(session));
    let broker: Broker = url(&peer.address().to_string()).parse().expect("a URL");
    let begun = Instant::now();
    let working = Working::start(&worker(&broker, "q").no_reconnect(), bodies().1);
    let ended = working.wait(SOON);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    ended.expect_err("no broker")
}

#[test]
fn a_peer_of_another_protocol_is_known_at_once_by_what_it_answers() {
    for (answer, told) in [
        (&b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"[..], "\"HTTP/1.1 400 Bad Request\""),
        (b"AMQP\0\x01\0\0", "\"AMQP\\x00\\x01\\x00\\x00\""),
        (b"\x15\x03\x03\0\x02\x02\x0a", "amqps://"),
    ] {
        let error = first_try(
            |address| format!("amqp://{address}"),
            |session| {
                session.expect_protocol_header();
                session.raw(answer);
                session.read_until_closed();
            },
        );
        let Error::Unreachable { attempts, .. } = &error else { panic!("{error:?}") };
        assert!(attempts[0].contains("not AMQP 0-9-1"), "{attempts:?}");
        assert!(attempts[0].contains(told), "{attempts:?}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn a_port_without_tls_is_a_lasting_error_of_tls_and_a_cut_is_not() {
    let url = |address: &str| format!("amqps://{address}");
    let plain = first_try(url, |session| {
        session.raw(b"AMQP\0\0\x09\x01");
        session.hang_up();
    });
    assert!(
        matches!(&plain, Error::Tls { reason, .. } if reason.contains("127.0.0.1")),
        "{plain:?}"
    );

    let cut = first_try(url, Session::hang_up);
    assert!(matches!(cut, Error::Unreachable { .. }), "{cut:?}");
}

#[test]
fn a_cut_at_the_login_that_comes_at_once_is_no_refusal() {
    let told = told_of_a_login(Session::hang_up);
    assert!(told.contains("during the login"), "{told}");
}

#[test]
fn the_broker_s_own_words_are_told_also_where_it_closes_at_the_login() {
    let told = told_of_a_login(|session| {
        session.close_connection(320, "CONNECTION_FORCED - under maintenance");
        session.read_until_closed();
    });
    assert!(told.contains("320 CONNECTION_FORCED - under maintenance"), "{told}");
}

/// What is told of a login that is answered like this.
fn told_of_a_login(answer: impl Fn(&mut Session) + Send + Sync + 'static) -> String {
    let error = first_try(
        |address| format!("amqp://{address}"),
        move |session| {
            session.expect_protocol_header();
            session.send_start();
            session.expect_method();
            answer(session);
        },
    );
    let Error::Unreachable { attempts, .. } = error else { panic!("{error:?}") };
    attempts[0].clone()
}

/// How many connections a producer makes that loses a hundred tasks in flight, which then run
/// out of time one after the other, to a broker that from then on acts like this.
fn connections_for_a_hundred_tasks(
    timeout: Duration,
    act: impl Fn(&mut Session) + Send + Sync + 'static,
) -> usize {
    let fickle = ScriptedBroker::start(move |session, number| {
        session.report("connected");
        if number > 0 {
            return act(session);
        }
        session.handshake();
        for _ in 0..100 {
            session.read_publish();
        }
        session.hang_up();
    });
    let broker: Broker = fickle.url().parse().expect("a URL");
    let mut producer = Producer::new(&broker, &Queue::new("q")).timeout(timeout);
    let mut receipts = Vec::new();
    for _ in 0..100 {
        receipts.extend(producer.send(Task::new("x")));
        thread::sleep(Duration::from_millis(2));
    }
    receipts.extend(producer.flush());
    assert_eq!(receipts.len(), 100);
    assert!(confirmed(&receipts).is_empty(), "{receipts:?}");
    let connected = |event: &Event| *event == Event::Reported("connected".into());
    fickle.events().try_iter().filter(connected).count()
}

#[test]
fn tasks_that_run_out_of_time_start_no_connection_each() {
    let silent = connections_for_a_hundred_tasks(Duration::from_secs(2), Session::stay_silent);
    assert_eq!(silent, 2, "one that was lost, and one that is waited for");

    // The deadlines fall into the first pause, which is half a second at least.
    let closed = connections_for_a_hundred_tasks(Duration::from_millis(600), Session::hang_up);
    assert!(closed <= 2, "{closed}: one that was lost, and one for each pause that has passed");
}

#[test]
fn row_31_a_peer_that_drops_the_first_packet_is_given_up_after_the_connect_timeout() {
    let (full, _queued) = full_listener();
    let url = format!("amqp://{full}?connection_timeout=400");

    let begun = Instant::now();
    let output = Command::worker(&["--url", &url, "--no-reconnect"]).run(SOON);

    output.assert_code(69);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(350) && took < Duration::from_secs(3), "{took:?}");
}

/// A listener that accepts nothing and whose queue of connections is full: the system answers
/// no further one.
fn full_listener() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    rustix::net::listen(&listener, 0).expect("a shorter queue");
    let address = listener.local_addr().expect("an address");
    let brief = Duration::from_millis(200);
    let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&address, brief).ok());
    let queued = queued.take(64).collect::<Vec<_>>();
    assert!(queued.len() < 64, "the queue never fills");
    (address, (listener, queued))
}

#[test]
fn row_32_a_slow_network_is_no_dead_one() {
    for toxic in
        [Toxic::Slicer(1), Toxic::Latency(Duration::from_millis(200)), Toxic::Bandwidth(4096)]
    {
        let queue = unique_queue("slow");
        let proxy = Proxy::start(shared_broker().address());
        proxy.set_both(toxic);
        let broker = proxied(&proxy).heartbeat(Duration::from_secs(2));

        let mut producer = Producer::new(&broker, &Queue::new(&queue));
        let mut receipts = Vec::new();
        for number in 0..20 {
            receipts.extend(producer.send(Task::new(vec![b'x'; 100]).with_id(number.to_string())));
        }
        receipts.extend(producer.flush());
        let (_, handler) = bodies();
        let working = Working::start(&worker(&broker, &queue).max_tasks(20), handler);
        let summary = working.wait(SOON).expect("it ends well");

        assert_eq!(confirmed(&receipts).len(), 20, "{toxic:?}");
        assert_eq!((summary.done, summary.orphaned), (20, 0), "{toxic:?}");
        assert_eq!(proxy.connections(), 2, "{toxic:?}: one each, none was lost");
    }
}

/// A proxy of three, so that every byte is late, on a line of 1 KB/s, and alone in its write at
/// the end.
struct SlowLine {
    client_side: Proxy,
    _middle: Proxy,
    _broker_side: Proxy,
}

impl SlowLine {
    fn start() -> SlowLine {
        let slow = |upstream, to_broker, to_client| {
            let proxy = Proxy::start(upstream);
            proxy.set(Direction::ToBroker, to_broker);
            proxy.set(Direction::ToClient, to_client);
            proxy
        };
        let (slices, narrow) = (Toxic::Slicer(1), Toxic::Bandwidth(1024));
        let far = Toxic::Latency(Duration::from_millis(200));
        let broker_side = slow(shared_broker().address(), slices, narrow);
        let middle = slow(broker_side.address(), far, far);
        let client_side = slow(middle.address(), narrow, slices);
        SlowLine { client_side, _middle: middle, _broker_side: broker_side }
    }

    fn url(&self) -> String {
        format!("{}?heartbeat=2", self.client_side.url())
    }
}

#[test]
fn row_32_a_slow_far_and_sliced_network_costs_time_and_neither_tasks_nor_memory() {
    let queue = unique_queue("slower");
    let client = shared_broker().client();
    client.declare(&queue);
    let line = SlowLine::start();
    let url = line.url();
    let to = ["--url", &url, "--queue", &queue];
    // More than fits into the memory that the producer may have.
    let plenty = format!("{:0100}\n", 0).repeat(800_000);

    let arguments = ["--lines", "--json", "--window", "20", "--timeout", "90s"];
    let sending = Command::producer(&to).args(&arguments).stdin(plenty).start();
    poll("the first task is there", SOON, || (client.count(&queue) > 0).then_some(()));
    let sending_at_first = sending.peak_memory();
    poll("ten tasks are there", SOON, || (client.count(&queue) >= 10).then_some(()));
    let sending_peak = sending.peak_memory();
    sending.signal("INT");
    let sent = sending.wait(SOON).stdout();
    let sent: Value = serde_json::from_str(&sent).expect("a summary");
    let there = client.count(&queue);
    let working = Command::worker(&to).args(&["--threads", "1", "--prefetch", "10"]).start();
    working.wait_for_stdout_line(|line| line == " [x] Done", SOON);
    let working_at_first = working.peak_memory();
    for _ in 1..10 {
        working.wait_for_stdout_line(|line| line == " [x] Done", SOON);
    }
    let working_peak = working.peak_memory();
    working.signal("INT");
    working.wait(SOON).assert_code(0);

    assert_eq!(sent["confirmed"], there, "{sent}");
    assert!(there < 60, "{there}: the window holds 20");
    assert_eq!(line.client_side.connections(), 2, "one each, none was lost");
    for (at_first, peak) in [(sending_at_first, sending_peak), (working_at_first, working_peak)] {
        assert!(peak < 64 << 20, "{peak} bytes");
        assert!(peak < at_first + (4 << 20), "{at_first} bytes grew to {peak}");
    }
    client.delete(&queue);
}

#[test]
fn row_36_a_queue_deleted_while_consuming_is_declared_and_consumed_again() {
    let queue = unique_queue("gone");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let arguments = ["--url", shared_broker().url(), "--queue", &queue, "--threads", "2"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);

    let begun = Instant::now();
    client.delete(&queue);
    running.wait_for_stderr_line(|line| line.contains("cancelled the consumer"), SOON);
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    client.publish_id(&queue, "after");
    running.wait_for_stdout_line(|line| line == " [x] Received 'after'", SOON);

    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

const TIMED_OUT: &str = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                         Timeout value used: 1800000 ms. This timeout value can be configured, see \
                         consumers doc guide to learn more";

/// A broker that takes the consumer's rights away during its task, once it is told to, and from
/// then on must see no ack; and how to tell it.
fn runs_out_of_patience(
    fault: impl Fn(&mut Session, &Consumer) + Send + Sync + 'static,
) -> (ScriptedBroker, Sender<()>) {
    let (tell, told) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1).body("late....."));
        let _ = told.recv_timeout(SOON);
        fault(session, &consumer);
        loop {
            let method = session.expect_method();
            if matches!(method.call, Call::Consume { .. }) {
                let _ = session.let_in(method);
                break;
            }
            assert!(!matches!(method.call, Call::Ack { .. }), "no ack");
            session.answer(&method);
        }
        session.report("consuming again");
        let left = session.answer_rpcs();
        assert_eq!(left, None, "no ack");
    });
    (broker, tell)
}

#[test]
fn row_43_a_delivery_timeout_is_named_and_the_late_ack_is_not_sent() {
    let (broker, patience_ends) = runs_out_of_patience(|session, consumer| {
        session.close_channel(consumer.channel, 406, TIMED_OUT);
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--json"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    patience_ends.send(()).expect("the script waits");
    running.wait_for_stderr_line(|line| line.contains("consumer_timeout"), SOON);
    running.wait_for_stderr_line(|line| line.contains("may run twice"), SOON);
    broker.wait("consuming again", SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert!(stderr.contains("406 PRECONDITION_FAILED - delivery acknowledgement"), "{stderr}");
    let stdout = output.stdout();
    assert!(stdout.lines().last().is_some_and(|it| it.contains("\"done\":0")), "{stdout}");
    broker.finish(SOON);
}

#[test]
fn row_43_a_consumer_cancelled_during_a_task_sends_no_late_ack_and_consumes_again() {
    let (broker, patience_ends) = runs_out_of_patience(Session::cancel_consumer);

    let arguments = ["--url", &broker.url(), "--threads", "1"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    patience_ends.send(()).expect("the script waits");
    running.wait_for_stderr_line(|line| line.contains("consumer_timeout"), SOON);
    running.wait_for_stderr_line(|line| line.contains("may run twice"), SOON);
    broker.wait("consuming again", SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("cancelled the consumer"), "{}", output.stderr());
    broker.finish(SOON);
}

#[test]
fn row_43_a_cancel_of_the_broker_s_that_crosses_ours_sends_no_late_ack() {
    let (it_runs, it_ran) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1).body("late..."));
        let _ = it_ran.recv_timeout(SOON);
        let ours = session.expect_cancel(&consumer);
        session.cancel_consumer(&consumer);
        session.answer(&ours);
        let left = session.answer_rpcs();
        assert_eq!(left, None, "no ack");
    });

    let arguments = ["--url", &broker.url(), "--threads", "1"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    it_runs.send(()).expect("the script waits");
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert!(stderr.contains(" 0 tasks done,") && stderr.contains(" 1 may run twice,"), "{stderr}");
    broker.finish(SOON);
}

/// A line that stands still holds up what was delivered, and not what another line tells.
#[test]
fn what_was_on_its_way_when_the_queue_was_empty_is_worked_before_a_drain_ends() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        // The looks find nothing in any queue.
        let consumer = session.accept_consumer();
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
        if number == 0 {
            let cancel = session.expect_cancel(&consumer);
            session.deliver(&delivery);
            session.answer(&cancel);
            let back = session.answer_rpcs().expect("it goes back");
            assert!(matches!(back.call, Call::Nack { requeue: true, .. }), "{back:?}");
        } else {
            session.deliver(&delivery);
            let acked = session.answer_rpcs().expect("it is acked");
            assert!(matches!(acked.call, Call::Ack { .. }), "{acked:?}");
        }
        let _ = session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--drain"];
    let output = Command::worker(&arguments).run(SOON);

    output.assert_code(0);
    let told = output.stderr();
    assert!(told.contains("tasks arrived during the drain"), "{told}");
    assert!(told.contains(" 1 tasks done,"), "{told}");
    broker.finish(SOON);
}

/// The broker may take a lost connection for a living one, and tells of no task that it keeps for
/// it.
#[test]
fn a_drain_waits_until_the_broker_must_have_noticed_that_a_connection_was_lost() {
    let (running, proxy) = draining_a_task(&["--grace", "30s"], "heartbeat=3", "sleep 1");

    proxy.cut();
    let begun = Instant::now();
    running.wait(SOON).assert_code(0);

    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// What one thread asks for is answered behind the tasks of the others.
#[test]
fn threads_that_fill_a_slow_line_do_not_take_it_for_a_silent_one() {
    const TASKS: u64 = 4;
    let queue = unique_queue("slow");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let body = vec![b'x'; 400_000];
    (0..TASKS).for_each(|_| client.publish(&queue, &body, AmqpProperties::default()));
    let proxy = Proxy::start(shared_broker().address());
    proxy.set(Direction::ToClient, Toxic::Bandwidth(150_000));
    let broker = proxied(&proxy).call_timeout(Duration::from_secs(3));
    let worker = worker(&broker, &queue).threads(TASKS as usize).max_tasks(TASKS);

    let summary = Working::start(&worker, |_: &Delivery| Ok(())).wait(SOON);

    assert_eq!(summary.expect("it ends well").done, TASKS);
    assert_eq!(proxy.connections(), 1, "none was lost");
    assert_eq!(client.count(&queue), 0);
}

/// The broker ends a channel, and then says nothing any more, to the close of the connection
/// neither.
#[test]
fn a_drain_waits_as_long_where_the_connection_is_lost_behind_a_channel() {
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            deliver(session, &consumer, 1);
            session.close_channel(consumer.channel, 406, TIMED_OUT);
            session.stay_silent();
        }
        while let Some(method) = session.next_method() {
            session.answer(&method);
        }
    });

    let url = format!("amqp://{}?heartbeat=3", broker.address());
    let arguments = ["--url", &url, "--threads", "1", "--drain", "--", "true"];
    let running = Command::worker(&arguments).start();

    let wanted = "may hold tasks for the lost connection";
    running.wait_for_stderr_line(|line| line.contains(wanted), SOON);
}

#[test]
fn a_drain_lets_a_task_of_a_lost_session_end_that_another_thread_has_done_since() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = dir.path().join("first");
    let once = format!("if mkdir {}; then sleep 12; fi", first.display());
    let (running, proxy) =
        draining_a_task(&["--grace", "1s", "--threads", "2"], "heartbeat=1", &once);
    poll("the task has begun", SOON, || first.exists().then_some(()));

    proxy.cut();
    let output = running.wait(SOON);

    output.assert_code(0);
    let summary: Value = serde_json::from_str(&output.stdout()).expect("a summary");
    assert_eq!((&summary["done"], &summary["returned"]), (&1.into(), &0.into()), "{summary}");
}

/// A worker that drains a queue with one task, through a proxy, and has begun with it.
fn draining_a_task(options: &[&str], parameter: &str, command: &str) -> (Running, Proxy) {
    let queue = unique_queue("drained");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish_id(&queue, "1");
    let proxy = Proxy::start(shared_broker().address());
    let url = format!("{}?{parameter}", proxy.url());
    let to = ["--url", &url, "--queue", &queue, "--drain", "--json"];
    let command = ["--", "sh", "-c", command];
    let running = Command::worker(&[&to[..], options, &command].concat()).start();
    poll("the task is taken", SOON, || (client.count(&queue) == 0).then_some(()));
    (running, proxy)
}

/// Nothing can be given back: it is lost, and the status says so.
#[test]
fn what_comes_at_the_end_of_a_drain_with_auto_ack_is_told_as_lost() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            let cancel = session.expect_cancel(&consumer);
            session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1));
            session.answer(&cancel);
        }
        let _ = session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--drain", "--auto-ack"];
    let output = Command::worker(&arguments).run(SOON);

    output.assert_code(1);
    assert!(output.stderr().contains(" 1 lost,"), "{}", output.stderr());
}

#[test]
fn a_hand_over_that_is_not_confirmed_is_told() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            deliver(session, &consumer, 1);
        } else {
            session.read_publish();
        }
        let _ = session.answer_rpcs();
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-attempts", "1"];

    let running = Command::worker(&[&arguments[..], &["--", "false"]].concat()).start();
    let told = "no confirm for 2s: 1 tasks are unconfirmed";
    running.wait_for_stderr_line(|line| line.contains(told), SOON);

    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(130);
}

/// Of two that are handed over the first is confirmed, and then the broker reads no more: what it
/// is asked about the second it does not answer.
#[test]
fn an_alarm_in_the_middle_of_a_hand_over_is_told_and_what_was_confirmed_is_acked() {
    let (both_failed, both_have_failed) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            for (tag, body) in [(1, "65"), (2, "1")] {
                let delivery = WireDelivery::new(consumer.channel, &consumer.tag, tag);
                session.deliver(&delivery.body(body));
            }
            let acked = session.answer_rpcs().expect("the first is acked");
            assert!(matches!(acked.call, Call::Ack { delivery_tag: 1, .. }), "{acked:?}");
            session.report("acked");
            let _ = session.answer_rpcs();
        } else {
            let publish = session.read_publish();
            let _ = both_have_failed.recv_timeout(SOON);
            session.ack(publish.channel, 1);
            session.blocked("low on memory");
            session.stay_silent();
        }
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--prefetch", "2"];
    let command = ["--", "sh", "-c", "exit $0", "{}"];

    let running = Command::worker(&[&arguments[..], &command].concat()).start();
    running.wait_for_stderr_line(|line| line.contains("is tried again in"), SOON);
    both_failed.send(()).expect("the script waits");
    broker.wait("acked", Duration::from_secs(10));
    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    assert!(output.stderr().contains("blocks publishers: low on memory"), "{output:?}");
}

/// The task comes again, and may be done then: that there is a letter is told all the same.
#[test]
fn a_letter_that_is_confirmed_when_its_consumer_is_gone_counts() {
    let (close, told_to_close) = bounded::<()>(1);
    let (confirm, told_to_confirm) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 1 {
            for tag in 1..=2 {
                let publish = session.read_publish();
                let _ = told_to_confirm.recv_timeout(SOON);
                session.ack(publish.channel, tag);
                session.report("confirmed");
            }
            let _ = session.answer_rpcs();
            return;
        }
        let consumers = [session.accept_consumer(), session.accept_consumer()];
        if number == 0 {
            deliver(session, &consumers[0], 1);
            deliver(session, &consumers[1], 2);
            let _ = told_to_close.recv_timeout(SOON);
            session.close_channel(consumers[0].channel, 541, "INTERNAL_ERROR");
            let acked = session.answer_rpcs().expect("the second is acked");
            assert_eq!(acked.call, Call::Ack { delivery_tag: 2, multiple: false });
        } else {
            session.report("again");
        }
        let _ = session.answer_rpcs();
    });
    let url = broker.url().parse().expect("a URL");
    let (go_on, waiting) = bounded::<()>(1);
    let handler = move |delivery: &Delivery| {
        if delivery.body() == b"2" {
            let _ = waiting.recv_timeout(SOON);
        }
        Err(Failure::reject("it cannot be done"))
    };
    let working = Working::start(&worker(&url, "q").threads(2), handler);
    broker.wait_for(SOON, |event| *event == Event::Connected(1));

    close.send(()).expect("the script waits");
    working.wait_for(EventKind::Orphaned, SOON);
    confirm.send(()).expect("the script waits");
    broker.wait("confirmed", SOON);
    go_on.send(()).expect("the handler waits");
    confirm.send(()).expect("the script waits");
    working.wait_for(EventKind::Dead, SOON);
    broker.wait("again", SOON);
    let summary = working.stop(SOON);

    assert_eq!((summary.dead, summary.orphaned), (2, 1));
    broker.finish(SOON);
}

/// Its session is lost while it is on its way, and its task is done when it comes again.
#[test]
fn a_drain_tells_of_a_letter_that_may_be_there() {
    let (published, was_published) = bounded(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        while let Some(method) = session.next_method() {
            if matches!(method.call, Call::Publish(_)) {
                published.send(()).expect("the other session waits");
            } else if let Some(consumer) = session.let_in(method.clone()) {
                deliver(session, &consumer, 1);
                if number == 0 {
                    let _ = was_published.recv_timeout(SOON);
                    session.close_connection(320, "CONNECTION_FORCED");
                }
            } else {
                session.answer(&method);
            }
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let fails_once = format!("! mkdir {}", dir.path().join("first").display());
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-attempts", "1", "--drain"];
    let command = ["--", "sh", "-c", &fails_once];

    let output = Command::worker(&[&arguments[..], &command].concat()).run(SOON);

    output.assert_code(1);
    let told = output.stderr();
    assert!(told.contains(" 1 tasks done, 0 retried, 0 dead, 1 maybe dead,"), "{told}");
}

/// Their frames are smaller than RabbitMQ's own.
const SMALL: Tuning = Tuning { channel_max: 2047, frame_max: 8192, heartbeat: 0 };

#[test]
fn a_record_makes_room_for_a_task_s_own_headers_also_where_frames_are_small() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake_with(SMALL);
        if number == 0 {
            let consumer = session.accept_consumer();
            let properties = Properties::default().header("big", Field::text("x".repeat(7800)));
            let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
            session.deliver(&delivery.properties(properties));
            let acked = session.answer_rpcs().expect("it is acked");
            assert!(matches!(acked.call, Call::Ack { .. }), "{acked:?}");
            session.report("acked");
        } else {
            let publish = session.read_publish();
            assert_eq!(publish.routing_key, b"task_queue.dead");
            let size = publish.raw_properties.len();
            assert!((7800..8192 - 20).contains(&size), "{size}");
            session.ack(publish.channel, 1);
        }
        let _ = session.answer_rpcs();
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-attempts", "1"];
    let command = ["--", "sh", "-c", "printf %0300d 7 >&2; exit 1"];

    let running = Command::worker(&[&arguments[..], &command].concat()).start();
    broker.wait("acked", SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(0);
    broker.finish(SOON);
}

#[test]
fn a_task_whose_headers_are_too_large_for_the_broker_s_frames_is_refused_and_the_next_goes_on() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake_with(SMALL);
        let publish = session.read_publish();
        assert_eq!(publish.body, b"second");
        session.ack(publish.channel, 1);
        let _ = session.answer_rpcs();
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q"));
    let large = Task::new("first").with_header("big", "x".repeat(8192));

    let mut receipts = producer.send(large);
    receipts.extend(producer.send(Task::new("second")));
    receipts.extend(producer.flush());

    let [first, second] = &receipts[..] else { panic!("{receipts:?}") };
    let Outcome::Refused { reason, .. } = &first.outcome else { panic!("{first:?}") };
    assert!(reason.contains("frame_max of 8192"), "{reason}");
    assert_eq!(second.outcome, Outcome::Confirmed);
}

#[test]
fn a_queue_of_a_kind_that_the_broker_no_longer_has_is_exit_2_with_its_words_in_one_line() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.expect_declare();
        session.close_connection(541, DENIED);
        session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--transient-queue", "--queue", "fleeting"];
    for command in [Command::worker(&arguments), Command::producer(&arguments).arg("x")] {
        let output = command.run(SOON);

        output.assert_code(2);
        let stderr = output.stderr();
        let line = stderr.lines().find(|line| line.contains("queue 'fleeting'"));
        assert!(line.is_some_and(|line| line.contains("not permitted anymore")), "{stderr}");
    }
}

/// What RabbitMQ 4.3 says of a queue that is neither durable nor exclusive.
const DENIED: &str = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\n\
                      By default, this feature is not permitted anymore.\n\
                      The feature will be removed from a future major RabbitMQ version";

#[test]
fn a_worker_that_cannot_tell_whether_its_queue_is_drained_says_so_once() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let mut consumes = false;
        while let Some(method) = session.next_method() {
            match &method.call {
                Call::QueueDeclare { passive: true, .. } if consumes => {
                    session.close_channel(method.channel, 405, "RESOURCE_LOCKED - by another");
                    session.report("refused");
                    continue;
                }
                Call::Consume { .. } => consumes = true,
                _ => {}
            }
            let _ = session.answer(&method);
        }
    });

    let running = Command::worker(&["--url", &broker.url(), "--drain"]).start();
    for _ in 0..3 {
        broker.wait("refused", SOON);
    }
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(4);
    let stderr = output.stderr();
    let told: Vec<_> = stderr.lines().filter(|line| line.contains("cannot tell")).collect();
    assert_eq!(told.len(), 1, "{stderr}");
    assert!(told[0].contains("RESOURCE_LOCKED"), "{stderr}");
}

#[test]
fn the_broker_s_own_words_are_in_the_line_that_tells_of_a_lost_session() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        session.accept_consumer();
        match number {
            0 => session.close_connection(320, "CONNECTION_FORCED - broker forced it"),
            1 => session.close_connection(541, "INTERNAL_ERROR - of its own"),
            2 => session.close_channel(1, 406, "PRECONDITION_FAILED - unknown delivery tag 7"),
            _ => session.report("consuming"),
        }
        let _ = session.answer_rpcs();
    });

    let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();

    for words in
        ["320 CONNECTION_FORCED - broker forced it", "541 INTERNAL_ERROR", "unknown delivery tag 7"]
    {
        let line = running.wait_for_stderr_line(|line| line.contains(words), SOON);
        assert!(line.contains("ERROR") && line.contains("next try in"), "{line}");
    }
    broker.wait("consuming", SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn a_message_that_cannot_be_parsed_trips_the_breaker_with_cause_and_remedy() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
        session.deliver(&delivery.routing_key([0xFF]).body("x"));
        session.read_until_closed();
    });

    let begun = Instant::now();
    let output = Command::worker(&["--url", &broker.url(), "--queue", "poisoned"]).run(SOON);

    output.assert_code(2);
    let stderr = output.stderr();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains("queue 'poisoned'") && last.contains("not UTF-8"), "{stderr}");
    assert!(last.contains("remove it with another client"), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// One ack would be for both, and nobody knows for which of the two it is missing.
#[test]
fn a_delivery_tag_that_comes_twice_ends_the_session() {
    let broker = sends_first(|consumer| {
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1).body("twice.");
        delivery.to_bytes(4096).repeat(2)
    });

    let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
    let line = running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
    running.wait_for_stdout_line(|line| line == " [x] Received '1'", SOON);

    assert!(line.contains("sent delivery tag 1 after 1"), "{line}");
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

/// Arrays within one another, so many that only their bytes are made.
fn nested(levels: u32) -> Field {
    let mut bytes = Vec::new();
    for below in (0..levels).rev() {
        bytes.extend((5 * below + 1).to_be_bytes());
        bytes.push(if below > 0 { b'A' } else { b'V' });
    }
    Field::Unknown(b'A', bytes)
}

#[test]
fn headers_that_are_nested_too_deep_trip_the_breaker_and_do_not_kill_the_process() {
    for levels in [100, 20_000] {
        let broker = ScriptedBroker::start(move |session, _| {
            session.handshake();
            let channel = session.expect_consume().channel;
            let consume_ok = Frame::method(channel, 60, 21, Arguments::default().short("tag"));
            let properties = Properties::default().header("deep", nested(levels));
            let delivery = WireDelivery::new(channel, "tag", 1).properties(properties).body("x");
            // At once, as RabbitMQ does: the consumer stands before the message ends it.
            session.raw(&[consume_ok.to_bytes(), delivery.to_bytes(0)].concat());
            session.read_until_closed();
        });

        let arguments = ["--url", &broker.url(), "--queue", "deep", "--threads", "1"];
        let output = Command::worker(&arguments).run(SOON);

        output.assert_code(2);
        let stderr = output.stderr();
        let first = stderr.lines().find(|line| line.contains("lost the session"));
        assert!(first.is_some_and(|line| line.contains("deeper than the 100 levels")), "{stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.contains("queue 'deep'") && last.contains("nested too deep"), "{stderr}");
        assert!(last.contains("remove it with another client"), "{stderr}");
    }
}

#[test]
fn a_return_that_is_nested_too_deep_ends_the_session_and_not_the_producer() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let mut publish = session.read_publish();
        if number == 0 {
            let properties = Properties::default().header("deep", nested(20_000));
            publish.raw_properties = properties.to_bytes();
            session.return_message(&publish, 312, "NO_ROUTE");
        } else {
            session.ack(publish.channel, 1);
        }
        let _ = session.answer_rpcs();
    });

    let output = Command::producer(&["--url", &broker.url(), "x"]).run(SOON);

    output.assert_code(0);
    broker.wait_for(SOON, |event| *event == Event::Connected(1));
}

#[test]
fn a_start_that_is_nested_too_deep_is_no_broker_and_told_as_the_cause() {
    let broker = ScriptedBroker::start(|session, _| {
        session.expect_protocol_header();
        session.send_start_with(vec![(b"deep".to_vec(), nested(20_000))]);
        session.read_until_closed();
    });

    let output = Command::worker(&["--url", &broker.url(), "--no-reconnect"]).run(SOON);

    output.assert_code(69);
    let stderr = output.stderr();
    assert!(stderr.contains("deeper than the 100 levels"), "{stderr}");
}

/// A delivery whose header announces a body of this size.
fn announcing(consumer: &Consumer, size: u64) -> Vec<u8> {
    let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1).body("x");
    let mut bytes = delivery.to_bytes(4096);
    let method = usize::from(u16::from_be_bytes([bytes[5], bytes[6]]));
    // Behind the method frame: a frame's head, and the class.
    let place = method + 8 + 7 + 4;
    bytes[place..place + 8].copy_from_slice(&size.to_be_bytes());
    bytes
}

/// Sends nonsense to the first consumer, and a task to the next.
fn sends_first(nonsense: impl Fn(&Consumer) -> Vec<u8> + Send + Sync + 'static) -> ScriptedBroker {
    ScriptedBroker::start(move |session, number| {
        session.handshake();
        let consumer = session.accept_consumer();
        if number == 0 {
            session.raw(&nonsense(&consumer));
        } else {
            deliver(session, &consumer, 1);
        }
        let _ = session.answer_rpcs();
    })
}

#[test]
fn an_absurd_size_ends_the_session_and_neither_the_process_nor_its_memory() {
    let brokers = [
        (sends_first(|consumer| announcing(consumer, 1 << 46)), "message of 70368744177664 bytes"),
        (sends_first(|consumer| announcing(consumer, 1 << 63)), "message of 9223372036854775808"),
        (sends_first(|_| b"\x03\0\x01\x70\0\0\0xyz".to_vec()), "one of 1879048192 bytes"),
    ];
    for (broker, cause) in brokers {
        let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
        let line = running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
        running.wait_for_stdout_line(|line| line == " [x] Received '1'", SOON);

        assert!(line.contains("lost the session") && line.contains(cause), "{line}");
        assert!(running.peak_memory() < 100 << 20, "{}", running.peak_memory());
        running.signal("INT");
        let _ = running.wait(SOON);
    }
}

/// A broker that sends this much of a message to its first consumer, and then only heartbeats; to
/// the next it sends a task.
fn stops_short(begun: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> ScriptedBroker {
    ScriptedBroker::start(move |session, number| {
        session.handshake_with(Tuning { heartbeat: 4, ..Tuning::default() });
        let consumer = session.accept_consumer();
        if number == 0 {
            let message = WireDelivery::new(consumer.channel, &consumer.tag, 1).body([b'x'; 1000]);
            session.raw(&begun(&message.to_bytes(4096)));
            session.beat_until_closed();
        } else {
            deliver(session, &consumer, 1);
            let _ = session.answer_rpcs();
        }
    })
}

/// Where the frame ends that begins here.
fn frame_end(bytes: &[u8], begin: usize) -> usize {
    begin + 8 + usize::from(u16::from_be_bytes([bytes[begin + 5], bytes[begin + 6]]))
}

#[test]
fn a_message_that_does_not_come_on_ends_the_session_though_heartbeats_do() {
    let header = |bytes: &[u8]| frame_end(bytes, 0);
    let body = move |bytes: &[u8]| frame_end(bytes, header(bytes));
    let brokers = [
        (
            stops_short(move |bytes| bytes[..header(bytes)].to_vec()),
            "the broker began a message on channel 1",
        ),
        (
            stops_short(move |bytes| bytes[..body(bytes)].to_vec()),
            "the broker began a message on channel 1",
        ),
        (stops_short(move |bytes| bytes[..body(bytes) + 50].to_vec()), "the broker began a frame"),
        // A header that takes all that follows for a part of it. It is not passed on before it is
        // whole: to the client library nothing comes.
        (
            stops_short(move |bytes| {
                let mut bytes = bytes.to_vec();
                let size = header(&bytes) + 5;
                bytes[size] = 0xFF;
                bytes
            }),
            "the broker missed two heartbeats",
        ),
    ];
    let running = brokers.map(|(broker, what)| {
        let url = format!("amqp://{}?heartbeat=4", broker.address());
        (Command::worker(&["--url", &url, "--threads", "1"]).start(), broker, what)
    });
    for (running, _broker, what) in running {
        let line = running.wait_for_stderr_line(|line| line.contains("next try in"), 2 * SOON);
        running.wait_for_stdout_line(|line| line == " [x] Received '1'", SOON);

        assert!(line.contains("lost the session") && line.contains(what), "{line}");
        running.signal("INT");
        let _ = running.wait(SOON);
    }
}

#[test]
fn a_producer_whose_channel_is_closed_publishes_what_was_not_confirmed_again() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publishes: Vec<_> = (0..3).map_while(|_| session.try_read_publish()).collect();
        let ids: Vec<_> = publishes.iter().filter_map(|it| it.message_id()).collect();
        session.report(format!("{number}: {}", ids.join(" ")));
        if number == 0 {
            session.ack(publishes[1].channel, 2);
            session.close_channel(publishes[0].channel, 541, "INTERNAL_ERROR - on purpose");
        } else {
            session.ack_up_to(publishes[0].channel, 3);
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
    receipts.extend(producer.send(Task::new("d").with_id("d")));
    receipts.extend(producer.flush());

    broker.wait("1: a c d", SOON);
    let wanted = ["a", "b", "c", "d"].map(str::to_owned);
    assert_eq!((confirmed(&receipts), receipts.len()), (wanted.into(), 4));
}
