//! Peers that fall silent, networks that are slow, and processes that stand still.

use std::thread;
use std::time::{Duration, Instant};

use amiquip::AmqpProperties;
use rabbit_work::{Broker, Delivery, Producer, Queue, Task};
use serde_json::Value;

use super::{SOON, confirmed, proxied, worker};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::{Event, ScriptedBroker, Session, Tuning};
use crate::support::wire::Delivery as WireDelivery;
use crate::support::working::{Working, bodies};

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
fn a_shorter_heartbeat_of_the_broker_shows_a_process_that_it_stood_still() {
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
