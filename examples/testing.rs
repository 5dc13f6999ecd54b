//! Tests without a broker, of a handler and of a function that publishes. A program has them in
//! `#[test]` functions.

use rabbit_work::testing::{Recorder, Verdict, delivery, verdict};
use rabbit_work::{Delivery, Error, Failure, OrFail, Outcome, Publish, RetryPolicy, Task};

const IN_STOCK: u32 = 100;

/// Runs an order of so many pieces.
fn run_order(delivery: &Delivery) -> Result<(), Failure> {
    let text = std::str::from_utf8(delivery.body()).or_reject()?;
    let pieces: u32 = text.parse().or_reject()?;
    // There may be more in stock later.
    IN_STOCK.checked_sub(pieces).ok_or("not enough in stock").or_retry()?;
    Ok(())
}

/// Takes an order.
fn order(producer: &mut impl Publish, pieces: u32) -> Result<(), Error> {
    producer.publish(Task::new(pieces.to_string()).with_type("order"))?;
    Ok(())
}

fn main() {
    let policy = RetryPolicy::new().max_attempts(3);
    let verdict_on = |body: &str, attempt| {
        verdict(&run_order, delivery(Task::new(body)).attempt(attempt), &policy)
    };
    assert_eq!(verdict_on("7", 1), Verdict::Done);
    assert_eq!(verdict_on("700", 1).reason(), Some("not enough in stock"));
    assert!(
        matches!(verdict_on("700", 2), Verdict::Retried { after, .. } if after.as_secs() == 10)
    );
    assert!(matches!(verdict_on("700", 3), Verdict::Dead { .. }), "the third attempt is the last");
    assert!(matches!(verdict_on("many", 1), Verdict::Dead { .. }), "bad input is rejected");

    let recorder = Recorder::new();
    recorder.next_outcome(Outcome::nacked("the queue is full"));
    assert!(order(&mut recorder.clone(), 1).is_err(), "an error reaches the customer");
    order(&mut recorder.clone(), 2).expect("confirmed");
    let [task] = &recorder.tasks()[..] else { panic!("one task is confirmed") };
    assert_eq!((task.body(), task.type_name()), (&b"2"[..], Some("order")));

    println!("the handler and the producer work as they should");
}
