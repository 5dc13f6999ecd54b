//! Limits of a run: how many tasks start in a time, and after how many dead letters it ends.

use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use rabbit_work::{Broker, Delivery, EventKind, Queue, StopReason, Worker};
use serde_json::Value;

use crate::support::broker::{poll, shared_broker};
use crate::support::client::{Client, unique_queue};
use crate::support::command::Command;
use crate::support::proxy::Proxy;
use crate::support::scripted::{Consumer, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery, Properties};
use crate::support::working::{Working, bodies};

const SOON: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const TIMED_OUT: &str = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                         Timeout value used: 1800000 ms. This timeout value can be configured, see \
                         consumers doc guide to learn more";
const HOUR: Duration = Duration::from_secs(3600);

fn worker(url: &str, queue: &str) -> Worker {
    let broker: Broker = url.parse().expect("the broker's URL is one");
    Worker::new(&broker, &Queue::new(queue))
}

/// A queue with so many tasks.
fn filled(test: &str, count: usize) -> (String, Client) {
    let queue = unique_queue(test);
    let mut client = shared_broker().client();
    client.declare(&queue);
    let ids: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    client.publish_ids(&queue, ids.iter().map(String::as_str));
    (queue, client)
}

#[test]
fn eight_threads_start_five_tasks_a_second_and_spread_them_evenly() {
    let (queue, _client) = filled("rate", 50);
    let (tell, starts) = unbounded();
    let handler = move |_: &Delivery| {
        let _ = tell.send(Instant::now());
        Ok(())
    };
    let worker = worker(shared_broker().url(), &queue).threads(8).rate(5, SECOND).max_tasks(50);

    let summary = Working::start(&worker, handler).wait(SOON).expect("it ends well");

    assert_eq!(summary.done, 50);
    let mut starts: Vec<Instant> = starts.try_iter().collect();
    starts.sort();
    let took = starts[49] - starts[0];
    println!("50 starts at 5/s took {took:?}");
    // A start may be seen late, and then the next one seems to be early.
    assert!(took > 9 * SECOND, "{took:?}");
    // A busy machine delays some starts, and each of them those that follow, but not most by half.
    let mut pauses: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    pauses.sort();
    assert!(pauses[pauses.len() / 2] < SECOND * 3 / 10, "{pauses:?}");
    for (first, start) in starts.iter().enumerate() {
        let in_a_second = starts[first..].iter().filter(|it| **it - *start < SECOND).count();
        assert!(in_a_second <= 7, "{in_a_second} starts within a second of number {first}");
    }
}

/// The others wait for their start, in an hour.
#[test]
fn a_stop_while_tasks_wait_for_their_start_is_immediate_and_requeues_them() {
    for (prefetch, threads) in [(1, 1), (1, 4), (3, 4)] {
        let (queue, client) = filled("rate-stop", 20);
        let (_bodies, handler) = bodies();
        let worker =
            worker(shared_broker().url(), &queue).threads(threads).prefetch(prefetch).rate(1, HOUR);
        let working = Working::start(&worker, handler);
        working.wait_for(EventKind::Done, SOON);
        let held = threads as u32 * u32::from(prefetch);
        client.wait_for_count(&queue, 19 - held, SOON);
        let health = worker.health();
        poll("nobody is busy who waits for a start", SOON, || {
            health.is_healthy(Some(Duration::ZERO)).then_some(())
        });

        let begun = Instant::now();
        let summary = working.stop(SOON);

        assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
        assert_eq!((summary.done, summary.ended), (1, StopReason::Stopped));
        assert_eq!(summary.requeued, u64::from(held));
        client.wait_for_count(&queue, 19, SOON);
    }
}

#[test]
fn a_task_whose_connection_is_lost_while_it_waits_for_its_start_comes_again_and_runs_once() {
    let (queue, client) = filled("rate-cut", 4);
    let proxy = Proxy::start(shared_broker().address());
    let (bodies, handler) = bodies();
    let worker = worker(&proxy.url(), &queue).threads(3).rate(1, 5 * SECOND).max_tasks(4);
    let working = Working::start(&worker, handler);
    working.wait_for(EventKind::Done, SOON);
    client.wait_for_count(&queue, 0, SOON);

    proxy.cut();
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.done, summary.orphaned), (4, 0));
    let mut bodies: Vec<Vec<u8>> = bodies.try_iter().collect();
    bodies.sort();
    assert_eq!(bodies, [b"0", b"1", b"2", b"3"]);
}

/// With a heartbeat of 1 s, a silence of more than 2 s is a lost connection.
#[test]
fn a_wait_of_more_than_two_heartbeats_costs_neither_the_task_nor_the_connection() {
    let (queue, _client) = filled("rate-heartbeat", 3);
    let proxy = Proxy::start(shared_broker().address());
    let url = format!("{}?heartbeat=1", proxy.url());
    let (_bodies, handler) = bodies();
    let worker = worker(&url, &queue).threads(2).rate(1, 3 * SECOND).max_tasks(3);

    let summary = Working::start(&worker, handler).wait(SOON).expect("it ends well");

    assert_eq!((summary.done, summary.requeued, summary.orphaned), (3, 0, 0));
    assert_eq!(proxy.connections(), 1);
}

/// A task of this id that the broker sends.
fn deliver(session: &mut Session, to: &Consumer, tag: u64, id: &str) {
    let delivery = WireDelivery::new(to.channel, &to.tag, tag).redelivered();
    session.deliver(&delivery.properties(Properties::with_message_id(id)));
}

/// Lets the worker subscribe again, on another channel.
fn accept_another_consumer(session: &mut Session) -> Consumer {
    loop {
        let method = session.expect_method();
        if matches!(method.call, Call::Consume { .. }) {
            return session.let_in(method).expect("it asks for that");
        }
        session.answer(&method);
    }
}

#[test]
fn a_task_that_waits_for_its_start_for_longer_than_consumer_timeout_has_not_failed() {
    let broker = ScriptedBroker::start(|session, number| {
        assert_eq!(number, 0, "a failed task would be published on a connection of its own");
        session.handshake();
        let consumer = session.accept_consumer();
        let acked = Some(Call::Ack { delivery_tag: 1, multiple: false });
        deliver(session, &consumer, 1, "first");
        assert_eq!(session.answer_rpcs().map(|it| it.call), acked);
        deliver(session, &consumer, 2, "second");
        session.close_channel(consumer.channel, 406, TIMED_OUT);
        let consumer = accept_another_consumer(session);
        deliver(session, &consumer, 1, "second");
        assert_eq!(session.answer_rpcs().map(|it| it.call), acked);
        assert_eq!(session.answer_rpcs(), None);
    });
    let (tell, attempts) = unbounded();
    let handler = move |delivery: &Delivery| {
        let _ = tell.send((delivery.task().id().map(str::to_owned), delivery.attempt()));
        Ok(())
    };
    let worker = worker(&broker.url(), "q").threads(1).rate(1, 3 * SECOND);
    let working = Working::start(&worker, handler);
    (0..2).for_each(|_| drop(working.wait_for(EventKind::Done, SOON)));
    let summary = working.stop(SOON);

    assert_eq!((summary.done, summary.retried, summary.orphaned), (2, 0, 0));
    let started: Vec<_> = attempts.try_iter().collect();
    assert_eq!(started, [(Some("first".into()), 1), (Some("second".into()), 1)]);
    broker.finish(SOON);
}

#[test]
fn the_command_has_a_rate_and_refuses_one_that_makes_no_sense() {
    let (queue, _client) = filled("rate-option", 5);
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let begun = Instant::now();
    let command = ["--rate", "120/m", "--drain", "--", "true"];
    Command::worker(&[&to[..], &command].concat()).run(SOON).assert_code(0);
    assert!(begun.elapsed() > 2 * SECOND, "{:?}", begun.elapsed());

    for (option, value) in
        [("--rate", "0/s"), ("--rate", "5"), ("--rate", "5/d"), ("--max-dead", "0")]
    {
        let output = Command::worker(&[&to[..], &[option, value]].concat()).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(option), "{}", output.stderr());
    }
}

#[test]
fn a_worker_ends_with_1_after_so_many_dead_letters_and_leaves_the_rest() {
    for more in [&[][..], &["--drain"]] {
        let (queue, client) = filled("max-dead", 50);
        let to = ["--url", shared_broker().url(), "--queue", &queue, "--threads", "1"];
        let options = ["--max-dead", "3", "--max-attempts", "1", "--prefetch", "9", "--json"];
        let command = [&to[..], &options, more, &["--", "false"]].concat();

        let output = Command::worker(&command).run(SOON);

        output.assert_code(1);
        assert!(output.stderr().contains("as many dead letters as allowed"), "{}", output.stderr());
        let summary: Value = serde_json::from_str(&output.stdout()).expect("a summary");
        assert_eq!(summary["ended"], "max-dead");
        // Tasks go on failing until the third letter is confirmed.
        let dead = summary["dead"].as_u64().expect("a number");
        assert!((3..50).contains(&dead), "{summary}");
        let left = || u64::from(client.count(&queue) + client.count(&format!("{queue}.dead")));
        poll("every task is in one of the two queues", SOON, || (left() == 50).then_some(()));
        assert_eq!(u64::from(client.count(&format!("{queue}.dead"))), dead);
    }
}
