//! Heartbeats with several addresses: how long a frozen node delays a producer.

use std::thread;

use rabbit_work::{Broker, Producer, Queue, Task};

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::proxy::{Proxy, Toxic};

/// Two heartbeats of 60 s are longer than a task is tried, and without heartbeats a frozen node is
/// never noticed.
#[test]
fn a_frozen_node_is_left_before_a_task_s_time_is_up_whatever_heartbeat_the_url_asks_for() {
    thread::scope(|scope| {
        for heartbeat in [60, 0] {
            scope.spawn(move || survives_a_frozen_node(heartbeat));
        }
    });
}

fn survives_a_frozen_node(heartbeat: u16) {
    let proxies = [(); 2].map(|()| Proxy::start(shared_broker().address()));
    let urls = proxies.each_ref().map(|proxy| format!("{}?heartbeat={heartbeat}", proxy.url()));
    let broker = Broker::new(urls).expect("their URLs").in_order();
    let mut producer = Producer::new(&broker, &Queue::new(unique_queue("long-heartbeat")));
    let first = producer.publish(Task::new("first"));
    assert!(first.is_ok(), "heartbeat={heartbeat}: {first:?}");

    proxies[0].set_both(Toxic::Timeout);
    let second = producer.publish(Task::new("second"));

    assert!(second.is_ok(), "heartbeat={heartbeat}: {second:?}");
    let connections = proxies.each_ref().map(Proxy::connections);
    assert_eq!(connections, [1, 1], "heartbeat={heartbeat}");
}
