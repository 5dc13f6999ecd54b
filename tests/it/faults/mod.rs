//! Faults of the network and of brokers: no task is lost, and nothing hangs.

mod closes;
pub(crate) mod cuts;
mod drain;
mod limits;
mod login;
mod republish;
mod silence;

use std::collections::BTreeSet;
use std::time::Duration;

use rabbit_work::{Broker, Outcome, Queue, Receipt, Worker};

use crate::support::proxy::Proxy;
use crate::support::scripted::{Consumer, Session};
use crate::support::wire::Delivery as WireDelivery;

const SOON: Duration = Duration::from_secs(60);

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

const TIMED_OUT: &str = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                         Timeout value used: 1800000 ms. This timeout value can be configured, see \
                         consumers doc guide to learn more";
