//! The real brokers: the shared one with the independent client, a private one with its faults.

use std::time::Duration;

use amiquip::AmqpProperties;

use crate::support::broker::{PrivateBroker, shared_broker};
use crate::support::client::{Client, unique_queue};

const SOON: Duration = Duration::from_secs(30);

fn persistent(id: &str) -> AmqpProperties {
    AmqpProperties::default().with_delivery_mode(2).with_message_id(id.to_owned())
}

#[test]
fn the_client_gets_what_it_published() {
    let queue = unique_queue("client");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish(&queue, b"one", persistent("1"));
    let many: Vec<_> = (2..=100).map(|id| persistent(&id.to_string())).collect();
    client.publish_all(&queue, many.into_iter().map(|p| (&b"more"[..], p)));
    assert_eq!(client.count(&queue), 100);
    let messages = client.get_all(&queue);
    assert_eq!(messages.len(), 100);
    assert_eq!(messages[0].text(), "one");
    assert_eq!(messages[99].message_id.as_deref(), Some("100"));
    assert!(!messages[0].redelivered);
    assert_eq!((client.count(&queue), client.purge(&queue)), (0, 0));
    client.delete(&queue);
}

#[test]
#[ignore = "starts a node of its own and three times again: about a minute"]
fn a_private_broker_survives_what_is_done_to_it() {
    let broker = PrivateBroker::start();
    let queue = unique_queue("private");
    let mut client = broker.client();
    client.declare(&queue);
    client.publish(&queue, b"kept", persistent("1"));
    broker.kill();
    broker.restart();
    let counts = broker.wait_for_queue(&queue, |counts| counts.ready == 1, SOON);
    assert_eq!((counts.unacked, counts.consumers), (0, 0));
    broker.stop();
    broker.resume();
    broker.stop_app();
    broker.start_app();
    broker.alarm();
    assert!(broker.ctl(&["status"]).contains("alarm"));
    broker.clear_alarm();
    broker.restart();
    let client = Client::connect(broker.url());
    assert_eq!(client.get_all(&queue)[0].text(), "kept");
    assert_eq!(broker.queue_counts(&queue).ready, 0);
}
