//! Every way to end, many times: what the library's handler makes of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rabbit_work::{Broker, Command, Delivery, Failure, Handler, Queue, Summary, Worker, shutdown};

use super::Bench;

/// Those that end a program that does nothing about them.
const DEADLY: [u32; 22] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 29, 30, 31];
const ROUNDS: usize = 36;

/// How often each answer was given.
type Verdicts = Arc<Mutex<BTreeMap<String, usize>>>;

#[test]
fn each_of_10_000_ends_is_read_as_what_it_is() {
    let bench = Bench::new("verdicts");
    let statuses = (0..256).map(|status| format!("exit {status}"));
    let signals = DEADLY.map(|signal| format!("ulimit -c 0; kill -{signal} $$"));
    let ends: Vec<String> = statuses.chain(signals).collect();
    for _ in 0..ROUNDS {
        bench.publish(&ends.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
    let total = ROUNDS * ends.len();
    assert!(total >= 10_000);
    let verdicts = Verdicts::default();
    let summary = run(&bench, total as u64, &verdicts);
    assert_eq!((summary.done, summary.failed, summary.returned), (total as u64, 0, 0));
    assert!(bench.left().is_empty());
    let verdicts = verdicts.lock().expect("no thread panicked");
    assert_eq!(*verdicts, expected());
}

fn run(bench: &Bench, total: u64, verdicts: &Verdicts) -> Summary {
    let command = Command::new("sh", ["-c", "eval \"$(cat)\""]).expect("sh is there");
    let noted = Arc::clone(verdicts);
    // Whatever the answer, the task is done with: this is about the answers.
    let handler = move |delivery: &Delivery| {
        let answer = match command.handle(delivery) {
            Ok(()) => "done".to_string(),
            Err(Failure::Reject { .. }) => "reject".to_string(),
            Err(failure) => format!("{failure}"),
        };
        let mut noted = noted.lock().map_err(|_| Failure::retry("poisoned"))?;
        *noted.entry(answer).or_default() += 1;
        Ok(())
    };
    let broker: Broker = bench.broker.url().parse().expect("the broker's URL is one");
    let (_trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &Queue::new(&bench.queue)).threads(4).max_tasks(total);
    worker.run(handler, &shutdown).expect("the worker runs")
}

fn expected() -> BTreeMap<String, usize> {
    let statuses = (0..256).map(|status| match status {
        0 => "done".to_string(),
        65 => "reject".to_string(),
        status => format!("exit status {status}"),
    });
    let signals = DEADLY.map(|signal| format!("killed by signal {signal}"));
    statuses.chain(signals).map(|answer| (answer, ROUNDS)).collect()
}
