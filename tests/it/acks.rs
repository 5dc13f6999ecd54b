//! Acks of several tasks together: one ack covers no task that stays.

use std::collections::BTreeSet;
use std::time::Duration;

use rabbit_work::{Delivery, Failure, Queue, Worker};

use crate::support::scripted::{Consumer, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(60);

/// How many tasks the broker sends at a time.
const BATCH: u64 = 10;

/// What the broker has sent and not got back.
#[derive(Default)]
struct Held {
    tags: BTreeSet<u64>,
    last: u64,
    /// The task that is not done.
    kept: Option<u64>,
    /// How many acks covered several tasks.
    together: usize,
}

impl Held {
    fn send_batch(&mut self, session: &mut Session, to: &Consumer, kept: Option<u64>) {
        self.kept = kept.map(|place| self.last + place);
        for tag in self.last + 1..=self.last + BATCH {
            let body = if self.kept == Some(tag) { "later" } else { "done" };
            session.deliver(&WireDelivery::new(to.channel, &to.tag, tag).body(body));
            self.tags.insert(tag);
        }
        self.last += BATCH;
    }

    /// Reads acks until all that were sent are settled.
    fn read_acks(&mut self, session: &mut Session) {
        while !self.tags.is_empty() {
            let settled = session.answer_rpcs().expect("an ack or a nack").call;
            match settled {
                Call::Ack { delivery_tag, multiple: false } => self.ack(&[delivery_tag]),
                Call::Ack { delivery_tag, multiple: true } => {
                    let covered: Vec<u64> = self.tags.range(..=delivery_tag).copied().collect();
                    assert!(covered.len() > 1, "one of {delivery_tag} alone is enough");
                    self.together += 1;
                    self.ack(&covered);
                }
                Call::Nack { delivery_tag, .. } => {
                    assert_eq!(self.kept.take(), Some(delivery_tag));
                    self.tags.remove(&delivery_tag);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn ack(&mut self, tags: &[u64]) {
        for tag in tags {
            assert!(self.tags.remove(tag), "{tag} is acked twice");
            assert_ne!(self.kept, Some(*tag), "it is not done");
        }
    }
}

#[test]
fn one_ack_covers_tasks_that_are_done_and_none_that_stays() {
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let mut held = Held::default();
        for place in [1, 3, BATCH] {
            held.send_batch(session, &consumer, Some(place));
            held.read_acks(session);
        }
        // Single ones suffice if the machine is so busy that no two results wait together.
        for _ in 0..100 {
            if held.together > 0 {
                break;
            }
            held.send_batch(session, &consumer, None);
            held.read_acks(session);
        }
        assert!(held.together > 0, "no ack covered several tasks");
        session.report("acked");
        assert_eq!(session.answer_rpcs(), None);
    });
    let handler = |delivery: &Delivery| match delivery.body() {
        b"later" => Err(Failure::requeue("on purpose")),
        _ => Ok(()),
    };
    let url = broker.url().parse().expect("a URL");
    let worker = Worker::new(&url, &Queue::new("q")).threads(1).prefetch(10);
    let working = Working::start(&worker, handler);
    broker.wait("acked", SOON);
    let summary = working.stop(SOON);
    assert_eq!(summary.returned, 3);
    broker.finish(SOON);
}
