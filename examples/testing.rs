//! Tests without a broker, of a handler and of a function that publishes. A program has them in
//! `#[test]` functions.

use rabbit_work::testing::{Recorder, Verdict, delivery, verdict};
use rabbit_work::{Delivery, Error, Failure, OrFail, Outcome, Publish, RetryPolicy, Task};

/// Runs one order; the stock is a file that may be missing for a while.
fn run_order(delivery: &Delivery) -> Result<(), Failure> {
    let path = std::str::from_utf8(delivery.body()).or_reject()?;
    let stock = std::fs::read_to_string(path).or_retry()?;
    assert!(!stock.is_empty(), "the stock is empty");
    Ok(())
}

/// Takes an order.
fn order(producer: &mut impl Publish, path: &str) -> Result<(), Error> {
    producer.publish(Task::new(path).with_type("order"))?;
    Ok(())
}

fn main() {
    let policy = RetryPolicy::new().max_attempts(3);
    let verdict_on = |body: &[u8], attempt| {
        verdict(&run_order, delivery(Task::new(body)).attempt(attempt), &policy)
    };

    assert_eq!(verdict_on(b"Cargo.toml", 1), Verdict::Done);
    assert!(matches!(verdict_on(b"\xff", 1), Verdict::Dead { .. }), "bad input is rejected");
    assert!(
        matches!(verdict_on(b"/none", 2), Verdict::Retried { after, .. } if after.as_secs() == 10)
    );
    assert!(
        matches!(verdict_on(b"/none", 3), Verdict::Dead { .. }),
        "the third attempt is the last"
    );
    let reason = "panicked: the stock is empty";
    assert_eq!(verdict_on(b"/dev/null", 1).reason(), Some(reason), "a panic is a failure");

    let recorder = Recorder::new();
    recorder.next_outcome(Outcome::nacked("the queue is full"));
    assert!(order(&mut recorder.clone(), "first").is_err(), "an error reaches the customer");
    order(&mut recorder.clone(), "second").expect("confirmed");
    let [task] = &recorder.tasks()[..] else { panic!("one task is confirmed") };
    assert_eq!((task.body(), task.type_name()), (&b"second"[..], Some("order")));

    println!("the handler and the producer work as they should");
}
