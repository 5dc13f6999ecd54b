//! Tests of the unacked deliveries without a broker: a plain number stands for a delivery.

use super::*;
use crate::model::handler::test_delivery;
use crate::model::task::Task;
use crate::worker::event::EventKind;

const SECOND: Duration = Duration::from_secs(1);

fn delivery(tag: u64) -> UnackedDelivery<u64> {
    UnackedDelivery { duty: Some(tag), event: None }
}

fn job(tag: u64) -> Job {
    Job { tag, delivery: Box::new(test_delivery(Task::new(""))) }
}

fn event() -> Event {
    Event::of(EventKind::Retried, &test_delivery(Task::new("")), "host", Duration::ZERO)
}

/// A ledger that has taken the deliveries up to `last` on one subscription.
fn taken(prefetch: u16, last: u64) -> InFlight<u64> {
    let mut ledger = InFlight::new();
    ledger.begin_subscription(prefetch);
    (1..=last).for_each(|tag| ledger.take(tag, delivery(tag)).expect("there is room"));
    ledger
}

/// What the nacks settle with, how, and for how many.
fn nacks(ledger: &mut InFlight<u64>, few: usize) -> Vec<(Option<u64>, Settlement, u64)> {
    let nacks = std::iter::from_fn(|| ledger.next_nack(few));
    nacks.map(|nack| (nack.duty, nack.how, nack.count)).collect()
}

#[test]
fn a_broker_that_ignores_the_prefetch_or_repeats_a_tag_is_found_out() {
    let mut ledger = taken(2, 2);
    let too_many = ledger.take(3, delivery(3)).expect_err("no room");
    assert_eq!(too_many, "the broker sent more deliveries than the prefetch of 2 allows");
    assert_eq!(ledger.finish(1).and_then(|it| it.duty), Some(1));
    let repeated = ledger.take(3, delivery(3)).expect_err("it came before");
    assert_eq!(repeated, "the broker sent delivery tag 3 after 3");
    ledger.take(4, delivery(4)).expect("one was settled");
    assert_eq!(ledger.len(), 2);
}

#[test]
fn without_a_prefetch_any_number_is_taken() {
    assert_eq!(taken(0, 1000).len(), 1000);
}

#[test]
fn deliveries_of_earlier_subscriptions_take_no_room_on_the_next() {
    let mut ledger = taken(2, 2);
    ledger.begin_subscription(1);
    ledger.take(3, delivery(3)).expect("the others are of the first");
    assert_eq!([1, 2, 3].map(|tag| ledger.makes_room(tag)), [false, false, true]);
    assert!(ledger.take(4, delivery(4)).is_err());
}

#[test]
fn a_task_that_is_handed_over_is_taken_back_once() {
    let mut ledger = taken(1, 1);
    ledger.hand_over(1, event());
    assert!(ledger.is_waiting());
    assert!(ledger.take_back(1).is_some());
    assert!(ledger.take_back(1).is_none());
    assert!(!ledger.is_waiting());
}

#[test]
fn a_paused_task_is_requeued_when_its_pause_is_over() {
    let (mut ledger, now) = (taken(1, 1), Instant::now());
    assert_eq!(ledger.next_due(), None);
    assert_eq!(ledger.pause(1, now), SECOND);
    assert_eq!(ledger.next_due(), Some(now + SECOND));
    ledger.requeue_due(now);
    assert_eq!(nacks(&mut ledger, 10), [], "not due");
    assert!(ledger.due_makes_room());
    ledger.requeue_due(now + SECOND);
    assert_eq!(nacks(&mut ledger, 10), [(Some(1), Settlement::RequeueUpTo, 1)]);
    assert!(!ledger.is_waiting() && ledger.len() == 0);
}

#[test]
fn pauses_in_a_row_grow_until_a_task_is_done() {
    let (mut ledger, now) = (taken(0, 10), Instant::now());
    assert_eq!([ledger.pause(1, now), ledger.pause(2, now)], [SECOND; 2], "they share a pause");
    ledger.skip_pauses();
    assert_eq!(ledger.pause(3, now), SECOND * 2);
    ledger.skip_pauses();
    ledger.note_done();
    assert_eq!(ledger.pause(4, now), SECOND);
}

#[test]
fn kept_tasks_wait_for_others_in_flight_and_paused_ones_are_none() {
    let (mut ledger, now) = (taken(0, 3), Instant::now());
    ledger.keep(1, now);
    assert!(ledger.next_due().is_some_and(|due| due > now + SECOND), "two others are in flight");
    ledger.pause(2, now + SECOND);
    ledger.finish(3);
    assert_eq!(ledger.next_due(), Some(now + SECOND));
    ledger.requeue_due(now + SECOND);
    assert_eq!(nacks(&mut ledger, 10), [(Some(1), Settlement::RequeueUpTo, 1)]);
    assert_eq!(ledger.next_due(), Some(now + SECOND * 2), "the paused one");
}

#[test]
fn a_nack_covers_what_it_can_and_the_rest_go_one_by_one_if_they_are_few() {
    let mut ledger = taken(0, 6);
    ledger.requeue_unstarted([1, 2, 4, 6].map(job));
    let together = (Some(2), Settlement::RequeueUpTo, 2);
    let one = |tag| (Some(tag), Settlement::Requeue, 1);
    assert_eq!(nacks(&mut ledger, 2), [together, one(4), one(6)]);
    assert_eq!(ledger.len(), 2, "3 and 5 stay");
}

#[test]
fn many_wait_until_one_nack_covers_them() {
    let mut ledger = taken(0, 6);
    ledger.requeue_unstarted([1, 2, 4, 5, 6].map(job));
    assert_eq!(nacks(&mut ledger, 2), [(Some(2), Settlement::RequeueUpTo, 2)]);
    ledger.finish(3);
    assert_eq!(nacks(&mut ledger, 2), [(Some(6), Settlement::RequeueUpTo, 3)]);
}

#[test]
fn a_nack_brings_the_jobs_that_the_journal_has_not_seen() {
    let (mut ledger, now) = (taken(0, 2), Instant::now());
    ledger.pause(1, now);
    ledger.skip_pauses();
    ledger.requeue_unstarted([job(2)]);
    let nack = ledger.next_nack(10).expect("two go back");
    assert_eq!(nack.count, 2);
    assert_eq!(nack.unstarted.iter().map(|job| job.tag).collect::<Vec<_>>(), [2]);
}

#[test]
fn after_all_are_drained_those_that_were_paused_are_in_the_journal_already() {
    let (mut ledger, now) = (taken(0, 4), Instant::now());
    ledger.pause(1, now);
    ledger.skip_pauses();
    ledger.requeue_unstarted([job(2)]);
    ledger.hand_over(3, event());
    let tags: Vec<u64> = ledger.drain_all().into_keys().collect();
    assert_eq!(tags, [1, 2, 3, 4]);
    assert_eq!(
        tags.iter().map(|tag| ledger.forget(*tag)).collect::<Vec<_>>(),
        [false, true, true, true]
    );
    assert!(ledger.len() == 0 && !ledger.is_waiting() && ledger.take_republishing().is_empty());
}

#[test]
fn failed_tasks_that_fill_the_prefetch_stall_the_subscription() {
    let (mut ledger, now) = (taken(2, 2), Instant::now());
    ledger.hand_over(1, event());
    assert_eq!(ledger.stall(now), Stall::No, "the other one may end");
    ledger.hand_over(2, event());
    assert_eq!(ledger.stall(now), Stall::Until(now + REPUBLISH_TIME));
    ledger.take_back(2);
    ledger.keep(2, now + SECOND);
    assert_eq!(ledger.stall(now + SECOND), Stall::Until(now), "it will not be republished soon");
    ledger.begin_subscription(2);
    assert_eq!(ledger.stall(now), Stall::No, "they take no room here");
}

#[test]
fn no_more_than_20_000_are_kept_of_earlier_subscriptions() {
    let (mut ledger, now) = (taken(20_000, 20_000), Instant::now());
    for tag in 1..=20_000 {
        ledger.keep(tag, now);
    }
    assert_eq!(ledger.stall(now), Stall::Until(now));
    ledger.begin_subscription(1);
    ledger.take(20_001, delivery(20_001)).expect("there is room");
    ledger.keep(20_001, now);
    assert_eq!(ledger.stall(now), Stall::Full);
}

#[test]
fn one_nack_covers_what_goes_back_up_to_the_first_delivery_that_stays() {
    let covered = |unacked: &[u64], requeuing: &[u64]| {
        assert!(requeuing.iter().all(|it| unacked.contains(it)));
        covered_by_one(unacked.iter(), requeuing.iter())
    };
    assert_eq!(covered(&[], &[]), 0);
    assert_eq!(covered(&[1, 2, 3], &[]), 0);
    assert_eq!(covered(&[1, 2, 3], &[1, 2, 3]), 3);
    assert_eq!(covered(&[3, 7, 20], &[3, 7, 20]), 3, "what is settled leaves gaps");
    assert_eq!(covered(&[1, 2, 3], &[2, 3]), 0, "the first one stays");
    assert_eq!(covered(&[1, 2, 3], &[1, 2]), 2, "the last one stays");
    assert_eq!(covered(&[1, 4, 5, 9], &[1, 4, 9]), 2, "one in the middle stays");
    assert_eq!(covered(&[1, 4, 5, 9], &[4, 5, 9]), 0);
}

#[test]
fn a_session_knows_when_all_that_was_taken_is_settled() {
    let count = InFlightCount::default();
    assert_eq!(count.all_settled(), Some(0));
    count.add_taken();
    assert_eq!((count.taken(), count.all_settled()), (1, None));
    count.add_settled(1);
    assert_eq!(count.all_settled(), Some(1));
}

/// What the acks settle with, how, and which tasks.
fn acks(
    ledger: &mut InFlight<u64>,
    done: impl IntoIterator<Item = u64>,
) -> Vec<(u64, Settlement, Vec<u64>)> {
    let mut done = done.into_iter().map(|tag| (tag, ())).collect();
    let acks = std::iter::from_fn(|| ledger.next_ack(&mut done));
    let acks = acks.map(|ack| {
        assert_eq!(ack.count, ack.done.len() as u64);
        (ack.duty.expect("a delivery"), ack.how, ack.done.into_keys().collect())
    });
    acks.collect()
}

#[test]
fn one_ack_covers_all_that_are_done_if_nothing_before_them_stays() {
    let mut ledger = taken(0, 5);
    assert_eq!(acks(&mut ledger, [2, 1, 3]), [(3, Settlement::AckUpTo, vec![1, 2, 3])]);
    assert_eq!(acks(&mut ledger, [4]), [(4, Settlement::Ack, vec![4])]);
    assert_eq!(ledger.len(), 1);
}

#[test]
fn an_ack_reaches_no_task_that_stays() {
    let kept: [fn(&mut InFlight<u64>, u64); 4] = [
        |_, _| {},
        |ledger, tag| ledger.hand_over(tag, event()),
        |ledger, tag| assert!(!ledger.pause(tag, Instant::now()).is_zero()),
        |ledger, tag| assert!(!ledger.keep(tag, Instant::now()).is_zero()),
    ];
    for keep in kept {
        let mut ledger = taken(0, 5);
        keep(&mut ledger, 3);
        let expected = [
            (2, Settlement::AckUpTo, vec![1, 2]),
            (4, Settlement::Ack, vec![4]),
            (5, Settlement::Ack, vec![5]),
        ];
        assert_eq!(acks(&mut ledger, [1, 2, 4, 5]), expected);
        assert_eq!(ledger.finish(3).and_then(|it| it.duty), Some(3));
    }
}

#[test]
fn an_ack_reaches_no_task_of_an_earlier_subscription() {
    let mut ledger = taken(2, 2);
    ledger.hand_over(1, event());
    ledger.hand_over(2, event());
    ledger.begin_subscription(2);
    (3..=4).for_each(|tag| ledger.take(tag, delivery(tag)).expect("there is room"));
    let one_by_one = [(3, Settlement::Ack, vec![3]), (4, Settlement::Ack, vec![4])];
    assert_eq!(acks(&mut ledger, [3, 4]), one_by_one);
    assert_eq!(ledger.len(), 2);
}

#[test]
fn an_ack_up_to_the_last_leaves_nothing_of_an_earlier_subscription() {
    let mut ledger = taken(2, 2);
    ledger.begin_subscription(2);
    (3..=4).for_each(|tag| ledger.take(tag, delivery(tag)).expect("there is room"));
    let together = [(3, Settlement::AckUpTo, vec![1, 2, 3])];
    assert_eq!(acks(&mut ledger, [1, 2, 3]), together);
    ledger.take(5, delivery(5)).expect("one was settled");
    assert!(ledger.take(6, delivery(6)).is_err(), "two of this subscription are unacked");
}

#[test]
fn with_automatic_acks_there_is_nothing_to_ack() {
    let mut ledger = InFlight::<u64>::new();
    ledger.begin_subscription(0);
    for tag in 1..=2 {
        ledger.take(tag, UnackedDelivery { duty: None, event: None }).expect("there is room");
    }
    let mut done = BTreeMap::from([(1, ()), (2, ())]);
    let ack = ledger.next_ack(&mut done).expect("both");
    assert_eq!((ack.duty, ack.count), (None, 2));
}
