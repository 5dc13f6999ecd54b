//! `queuectl delete` and `purge --retry`, and the filters by correlation id and time of death.

use std::time::{Duration, SystemTime};

use rabbit_work::{
    Broker, DeadLetterFilter, DeadLetters, Delivery, Failure, Inspector, Producer, Queue, Task,
    Worker, shutdown,
};

use crate::dead_letters::queuectl;
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;

const SOON: Duration = Duration::from_secs(60);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

/// A queue with a ready task, two delayed ones and two dead letters.
fn filled(test: &str) -> String {
    let name = unique_queue(test);
    let queue = Queue::new(&name);
    let mut producer = Producer::new(&broker(), &queue);
    for id in ["a", "b"] {
        producer.publish(Task::new("x").with_correlation_id(id).with_id(id)).expect("confirmed");
    }
    let (_trigger, shutdown) = shutdown();
    let reject = |_: &Delivery| -> Result<(), Failure> { Err(Failure::reject("no")) };
    Worker::new(&broker(), &queue).threads(1).drain().run(reject, &shutdown).expect("it ends well");
    let late = |seconds| Task::new("late").with_delay(Duration::from_secs(seconds));
    for task in [late(600), late(3600), Task::new("ready")] {
        producer.publish(task).expect("confirmed");
    }
    let _ = producer.close();
    name
}

#[test]
fn a_delete_says_what_it_would_delete_and_deletes_all_of_it_with_yes() {
    let queue = filled("deleted");
    let parts = [
        format!("'{queue}' with 1 tasks"),
        format!("'{queue}.retry.600000' with 1 tasks"),
        format!("'{queue}.retry.3600000' with 1 tasks"),
        format!("'{queue}.dead' with 2 tasks"),
    ];

    let refused = queuectl(&queue, &["delete"]);
    refused.assert_code(2);
    let text = refused.stderr();
    assert!(parts.iter().all(|it| text.contains(it)) && text.contains("--yes"), "{text}");
    let mut client = shared_broker().client();
    assert!(client.has(&queue), "nothing is deleted yet");

    let deleted = queuectl(&queue, &["delete", "--yes"]).success();
    assert_eq!(deleted.lines().collect::<Vec<_>>(), parts);
    for suffix in ["", ".retry.600000", ".retry.3600000", ".dead"] {
        assert!(!client.has(&format!("{queue}{suffix}")), "{suffix} is left");
    }
    queuectl(&queue, &["delete", "--yes"]).assert_code(1);
}

#[test]
fn a_purge_of_retries_removes_what_is_delayed_and_nothing_else() {
    let queue = filled("retries");
    let refused = queuectl(&queue, &["purge", "--retry"]);
    refused.assert_code(2);
    assert!(refused.stderr().contains("every delayed task"), "{}", refused.stderr());
    assert_eq!(queuectl(&queue, &["purge", "--retry", "--yes"]).success(), "2 thrown away\n");
    let mut inspector = Inspector::new(&broker(), &Queue::new(&queue));
    poll("only the delayed ones are gone", SOON, || {
        let status = inspector.status().expect("a status");
        ((status.ready, status.delayed_tasks(), status.dead) == (1, 0, 2)).then_some(())
    });
    inspector.delete().expect("deleted");
}

#[test]
fn dead_letters_are_chosen_by_their_correlation_id_and_by_when_they_died() {
    let queue = filled("chosen");
    let letters = DeadLetters::new(&broker(), &Queue::new(&queue));
    let ids = |filter: DeadLetterFilter| {
        let mut ids = Vec::new();
        let all = letters.for_each(&filter, |letter| {
            ids.push(letter.task().id().unwrap_or_default().to_string());
            std::ops::ControlFlow::Continue(())
        });
        all.expect("they can be read");
        ids
    };
    let now = SystemTime::now();
    assert_eq!(ids(DeadLetterFilter::all().correlation_id("b")), ["b"]);
    assert_eq!(ids(DeadLetterFilter::all().since(now - SOON * 10)).len(), 2);
    assert!(ids(DeadLetterFilter::all().since(now + SOON * 10)).is_empty());
    let shown = queuectl(&queue, &["dead", "list", "--correlation-id", "a", "--since", "1h"]);
    let shown = shown.success();
    assert_eq!(shown.lines().count(), 2, "a heading and one letter: {shown}");
    assert_eq!(
        queuectl(&queue, &["dead", "purge", "--correlation-id", "a", "--yes"]).success(),
        "1 thrown away\n"
    );
    assert_eq!(ids(DeadLetterFilter::all()), ["b"]);
    Inspector::new(&broker(), &Queue::new(&queue)).delete().expect("deleted");
}
