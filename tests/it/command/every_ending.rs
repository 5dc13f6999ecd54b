//! Every exit status and signal, many times: each task is settled as documented, and the worker
//! keeps no process, thread or descriptor.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use amiquip::AmqpValue;
use serde_json::Value;

use super::{Bench, SOON, children};
use crate::support::broker::poll;
use crate::support::client::Message;
use crate::support::command::Running;

/// The signals that end a program that does nothing about them.
const DEADLY: [u32; 22] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 29, 30, 31];
const ROUNDS: usize = 36;
const REASON: &str = "x-rabbit-work-reason";
const LONG: Duration = Duration::from_secs(180);

#[test]
fn row_11_each_of_10_000_ends_is_settled_as_what_it_is() {
    let bench = Bench::new("verdicts");
    let ends = ends();
    assert!(ROUNDS * ends.len() >= 10_000);
    let publish = |rounds: usize| {
        let all: Vec<&[u8]> = (0..rounds).flat_map(|_| &ends).map(String::as_bytes).collect();
        bench.publish(&all);
    };
    // A dead letter is acked once it is confirmed; a thread with one task at a time waits for that.
    // A deferred task does not come back before the end of the test.
    let options = "--threads 4 --prefetch 100 --max-attempts 1 --defer-delay 42d --events events \
                   --json";
    let options: Vec<&str> = options.split(' ').collect();
    let script = ["sh", "-c", "ulimit -c 0; eval \"$1\"", "sh", "{}"];
    let worker = bench.worker(&options, &script).env("RUST_LOG", "error").start();

    publish(1);
    wait_until_settled(&bench, ends.len());
    let before = idle(&worker);
    publish(ROUNDS - 1);
    wait_until_settled(&bench, ROUNDS * ends.len());
    poll("as many threads, descriptors and children as before", SOON, || {
        (idle(&worker) == before).then_some(())
    });

    worker.signal("TERM");
    let summary: Value = serde_json::from_str(&worker.wait(SOON).success()).expect("JSON");
    let dead = (ends.len() - 2) * ROUNDS;
    assert_eq!(summary["deferred"], ROUNDS, "{summary}");
    assert_eq!((&summary["done"], &summary["dead"]), (&ROUNDS.into(), &dead.into()), "{summary}");
    assert_eq!((&summary["retried"], &summary["returned"]), (&0.into(), &0.into()), "{summary}");
    assert!(bench.left().is_empty());
    let letters = bench.broker.client().get_all(&format!("{}.dead", bench.queue));
    assert_eq!(reasons(&letters), expected());
}

fn ends() -> Vec<String> {
    let statuses = (0..256).map(|status| format!("exit {status}"));
    let signals = DEADLY.iter().map(|signal| format!("kill -{signal} $$"));
    statuses.chain(signals).collect()
}

/// How often each reason stands on a dead letter, together with what was to be run.
fn reasons(letters: &[Message]) -> BTreeMap<(String, String), usize> {
    let mut reasons = BTreeMap::new();
    for letter in letters {
        let reason = match letter.headers.get(REASON) {
            Some(AmqpValue::LongString(reason)) => reason.clone(),
            other => panic!("no reason on a dead letter: {other:?} of {:?}", letter.headers),
        };
        *reasons.entry((letter.text(), reason)).or_default() += 1;
    }
    reasons
}

fn expected() -> BTreeMap<(String, String), usize> {
    let statuses = (1..256)
        .filter(|it| *it != 75)
        .map(|it| (format!("exit {it}"), format!("exit status {it}")));
    let signals =
        DEADLY.iter().map(|it| (format!("kill -{it} $$"), format!("killed by signal {it}")));
    statuses.chain(signals).map(|reason| (reason, ROUNDS)).collect()
}

fn wait_until_settled(bench: &Bench, count: usize) {
    poll("every task is settled", LONG, || {
        let events = fs::read_to_string(bench.path("events")).unwrap_or_default();
        let ends = ["done", "dead", "deferred"].map(|it| format!(r#""event":"{it}""#));
        let settled = |line: &&str| ends.iter().any(|end| line.contains(end));
        (events.lines().filter(settled).count() == count).then_some(())
    });
}

/// How many descriptors, threads and children, zombies too, a worker has that runs nothing.
fn idle(worker: &Running) -> (usize, usize, usize) {
    let count = |folder: &str| {
        fs::read_dir(format!("/proc/{}/{folder}", worker.id())).expect("its folder").count()
    };
    (count("fd"), count("task"), children(worker.id()).len())
}
