//! Property tests of the acks, with a broker that does what AMQP says as the model.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::amqp::channel::Settlement;
use crate::worker::in_flight::{InFlight, UnackedDelivery};

proptest! {
    /// Of each batch, some tasks are done and the others stay, whatever becomes of them.
    #[test]
    fn acks_settle_what_is_done_once_and_nothing_else(
        batches in vec(vec(any::<bool>(), 0..12), 1..6)
    ) {
        let mut ledger = InFlight::new();
        ledger.begin_subscription(0);
        let (mut held, mut stay, mut last) = (BTreeSet::new(), BTreeSet::new(), 0);
        for batch in batches {
            let mut done = BTreeMap::new();
            for is_done in batch {
                last += 1;
                let delivery = UnackedDelivery { duty: Some(last), event: None };
                prop_assert!(ledger.take(last, delivery).is_ok());
                held.insert(last);
                if is_done {
                    done.insert(last, ());
                } else {
                    stay.insert(last);
                }
            }
            while let Some(ack) = ledger.next_ack(&mut done) {
                let tag = ack.duty.expect("a delivery");
                let settled: Vec<u64> = match ack.how {
                    Settlement::Ack => held.take(&tag).into_iter().collect(),
                    Settlement::AckUpTo => take_up_to(tag, &mut held),
                    other => panic!("no ack: {other:?}"),
                };
                prop_assert_eq!(settled, ack.done.into_keys().collect::<Vec<_>>());
            }
            prop_assert_eq!(&held, &stay);
            prop_assert_eq!(ledger.len(), stay.len());
        }
    }
}

/// Removes and returns those up to this one.
fn take_up_to(last: u64, from: &mut BTreeSet<u64>) -> Vec<u64> {
    let others = from.split_off(&(last + 1));
    mem::replace(from, others).into_iter().collect()
}
