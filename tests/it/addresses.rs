//! Several addresses of one broker: which is tried when, and how long a silent one delays.

use std::thread;
use std::time::Duration;

use rabbit_work::{Broker, Outcome, Producer, Queue, Task};

use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::ScriptedBroker;

const SOON: Duration = Duration::from_secs(60);

/// So many addresses of the shared broker.
fn addresses<const COUNT: usize>() -> [Proxy; COUNT] {
    [(); COUNT].map(|()| Proxy::start(shared_broker().address()))
}

fn broker(proxies: &[Proxy]) -> Broker {
    Broker::new(proxies.iter().map(Proxy::url)).expect("their URLs")
}

fn urls(proxies: &[Proxy]) -> String {
    proxies.iter().map(Proxy::url).collect::<Vec<_>>().join(",")
}

fn publish(producer: &mut Producer, body: &str) {
    let published = producer.publish(Task::new(body));
    assert!(published.is_ok(), "{body}: {published:?}");
}

#[test]
fn after_a_frozen_address_the_others_are_tried_first() {
    let proxies: [Proxy; 2] = addresses();
    let broker = broker(&proxies).in_order().heartbeat(Duration::from_secs(1));
    let mut producer = Producer::new(&broker, &Queue::new(unique_queue("frozen")));
    publish(&mut producer, "first");

    proxies[0].set_both(Toxic::Timeout);
    publish(&mut producer, "second");

    assert_eq!(proxies[0].connections(), 1, "it was not asked again");
    assert_eq!(proxies[1].connections(), 1);
}

#[test]
fn an_address_that_was_silent_is_tried_after_one_that_lost_a_connection() {
    let proxies: [Proxy; 2] = addresses();
    proxies[0].set_both(Toxic::Timeout);
    let broker = broker(&proxies).in_order();
    let mut producer = Producer::new(&broker, &Queue::new(unique_queue("silent")));
    publish(&mut producer, "first");
    assert_eq!(proxies[0].connections(), 1, "it was the first");

    proxies[1].cut();
    publish(&mut producer, "second");

    assert_eq!(proxies[0].connections(), 1, "it was not asked again");
    assert_eq!(proxies[1].connections(), 2);
}

#[test]
fn what_one_producer_learns_of_an_address_spares_the_next_of_the_same_broker() {
    let proxies: [Proxy; 2] = addresses();
    proxies[0].set_both(Toxic::Timeout);
    let broker = broker(&proxies).in_order();
    let queue = Queue::new(unique_queue("learnt"));

    publish(&mut Producer::new(&broker, &queue), "first");
    publish(&mut Producer::new(&broker.clone(), &queue), "second");

    assert_eq!((proxies[0].connections(), proxies[1].connections()), (1, 2));
}

#[test]
fn a_producer_whose_address_freezes_in_the_middle_confirms_everything_in_time() {
    let queue = unique_queue("frozen-first");
    let proxies: [Proxy; 3] = addresses();
    let urls = urls(&proxies);
    let producer = ["--url", &urls, "--url-order", "given", "--queue", &queue, "--lines"];
    let mut running = Command::producer(&producer).open_stdin().start();
    running.write(b"1\n2\n3\n");
    let client = shared_broker().client();
    poll("the first are there", SOON, || {
        // The queue itself comes with the producer.
        (proxies[0].bytes(Direction::ToClient) > 0 && shared_broker().client().has(&queue))
            .then(|| client.count(&queue))
            .filter(|count| *count == 3)
    });

    proxies[0].set_both(Toxic::Timeout);
    running.write(b"4\n5\n6\n");
    running.end_input();

    let output = running.wait(SOON);
    output.assert_code(0);
    // A task whose confirm the freeze held up is there twice.
    assert!(client.count(&queue) >= 6, "{}", client.count(&queue));
}

#[test]
fn addresses_are_tried_in_the_order_given_where_that_is_asked_for() {
    let queue = unique_queue("given");
    let proxies: [Proxy; 2] = addresses();
    let urls = urls(&proxies);
    for _ in 0..3 {
        let producer = ["--url", &urls, "--url-order", "given", "--queue", &queue, "x"];
        Command::producer(&producer).run(SOON).assert_code(0);
    }
    assert_eq!((proxies[0].connections(), proxies[1].connections()), (3, 0));
}

#[test]
fn a_fleet_spreads_over_its_addresses() {
    let queue = unique_queue("spread");
    let proxies: [Proxy; 2] = addresses();
    let urls = urls(&proxies);
    poll("each address had somebody", SOON, || {
        Command::producer(&["--url", &urls, "--queue", &queue, "x"]).run(SOON).assert_code(0);
        proxies.iter().all(|proxy| proxy.connections() > 0).then_some(())
    });
}

#[test]
fn a_task_is_tried_once_more_just_before_its_time_ends() {
    let queue = unique_queue("last-try");
    let producers = (0..10).map(|_| {
        let queue = Queue::new(&queue);
        thread::spawn(move || {
            let proxy = Proxy::start(shared_broker().address());
            let broker: Broker = proxy.url().parse().expect("a URL");
            let mut producer = Producer::new(&broker, &queue).timeout(Duration::from_secs(8));
            publish(&mut producer, "before");
            proxy.set_both(Toxic::Down);
            let comes_back = thread::spawn(move || {
                // The fault itself: a broker that is away for nearly all of a task's time.
                thread::sleep(Duration::from_millis(5500));
                proxy.set_both(Toxic::Pass);
                proxy
            });
            let mut receipts = producer.send(Task::new("meanwhile"));
            receipts.extend(producer.flush());
            let _proxy = comes_back.join().expect("it comes back");
            receipts
        })
    });
    for producer in producers.collect::<Vec<_>>() {
        let receipts = producer.join().expect("it ends");
        assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "{receipts:?}");
        assert_eq!(receipts.len(), 1);
    }
}

/// A broker that takes publishes and confirms none.
fn unconfirming() -> ScriptedBroker {
    ScriptedBroker::start(|session, number| {
        session.handshake();
        session.read_publish();
        session.report(format!("published on {number}"));
        session.beat_until_closed();
    })
}

/// So does a channel of RabbitMQ 4.0 to 4.3 that publishes for the first time while a quorum queue has no
/// leader. A new channel asks the next leader.
#[test]
fn a_connection_that_confirms_nothing_is_left_once_for_another() {
    let (first, second) = (unconfirming(), unconfirming());
    let urls = format!("{},{}", first.url(), second.url());
    let to = ["--url", &urls, "--url-order", "given", "--timeout", "24s"];
    let producer = Command::producer(&to).arg("task").start();

    first.wait("published on 0", SOON);
    second.wait("published on 0", SOON);
    let output = producer.wait(SOON);

    output.assert_code(1);
    let stderr = output.stderr();
    assert_eq!(stderr.matches("no confirm for 10s on a new connection").count(), 1, "{stderr}");
    assert!(stderr.contains("no confirm within 24s"), "{stderr}");
}

/// It may be that of a load balancer.
#[test]
fn a_connection_to_the_only_address_that_confirms_nothing_is_left_once_as_well() {
    let broker = unconfirming();
    let producer = Command::producer(&["--url", &broker.url(), "--timeout", "24s", "task"]).start();

    broker.wait("published on 0", SOON);
    broker.wait("published on 1", SOON);

    producer.wait(SOON).assert_code(1);
}
