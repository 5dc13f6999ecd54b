//! The queues of one worker: their names, threads, counts and their one stop.

use std::time::{Duration, Instant};

use super::{SOON, publish, queues, summary, worker};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;

#[test]
fn by_queue_has_the_counts_of_each_queue_and_their_sums_are_beside_it() {
    let [mail, pdf] = queues("counts");
    publish(&mail, &["1", "2", "3"]);
    publish(&pdf, &["4", "bad"]);

    let command = "read -r body; test \"$body\" != bad || exit 65";
    let command = command.replace("read -r body", "body=$(cat)");
    let options = ["--drain", "--json", "--", "sh", "-c", &command];
    let output = worker(&[&format!("{mail}=2"), &pdf], &options).run(SOON);

    output.assert_code(1);
    let summary = summary(&output);
    let counts = |of: &serde_json::Value| {
        ["done", "dead", "retried"].map(|key| of[key].as_u64().expect("a number"))
    };
    assert_eq!(counts(&summary), [4, 1, 0]);
    assert_eq!(summary["ended"], "drained");
    let by_queue = &summary["by_queue"];
    assert_eq!(by_queue.as_object().map(|it| it.len()), Some(2));
    assert_eq!(counts(&by_queue[&mail]), [3, 0, 0]);
    assert_eq!(counts(&by_queue[&pdf]), [1, 1, 0]);
    assert_eq!(by_queue[&pdf]["ended"], "drained");
    assert!(by_queue[&pdf]["seconds"].as_f64() > Some(0.0));
    let log = output.stderr();
    assert!(log.contains(&format!("consuming from '{mail}'")), "{log}");
    assert!(log.contains(&format!("'{mail}': 3 tasks done, 0 retried, 0 dead")), "{log}");
    assert!(log.contains(" 4 tasks done, 0 retried, 1 dead"), "{log}");
}

#[test]
fn a_number_after_a_queue_is_how_many_threads_it_has() {
    let [mail, pdf, odd] = queues("threads");
    let odd = format!("{odd}=x");
    let running = worker(&[&format!("{mail}=3"), &pdf, &odd], &["--threads", "2"]).start();
    let mut threads = Vec::new();
    for _ in 0..3 {
        let line = running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
        threads.push(line.split_once("consuming from ").expect("checked").1.to_string());
    }
    running.signal("TERM");
    running.wait(SOON).assert_code(0);

    let has = |name: &str, count: usize| {
        let (name, count) = (format!("'{name}' at "), format!("with {count} threads"));
        threads.iter().any(|line| line.starts_with(&name) && line.ends_with(&count))
    };
    assert!(has(&mail, 3) && has(&pdf, 2) && has(&odd, 2), "{threads:?}");
}

#[test]
fn one_queue_has_no_counts_by_queue() {
    let [queue] = queues("one");
    let output = worker(&[&format!("{queue}=1")], &["--drain", "--json"]).run(SOON);
    output.assert_code(0);
    assert_eq!(summary(&output).get("by_queue"), None);
}

#[test]
fn a_queue_twice_or_without_threads_is_refused() {
    let queue = unique_queue("refused");
    for names in [[queue.clone(), format!("{queue}=2")], [queue.clone(), format!("{queue}x=0")]] {
        let output = worker(&[&names[0], &names[1]], &[]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("--queue"), "{}", output.stderr());
    }
    assert!(!shared_broker().client().has(&queue), "nothing was begun");
}

#[test]
fn one_stop_ends_the_tasks_of_all_queues_within_the_grace() {
    let names: [String; 3] = queues("stop");
    names.iter().for_each(|name| publish(name, &["task"]));
    let options = ["--threads", "1", "--grace", "1s", "--json", "--"];
    let command = ["sh", "-c", "echo begun; exec sleep 1000"];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let running = worker(&names, &[&options[..], &command].concat()).start();
    for _ in &names {
        running.wait_for_stdout_line(|line| line == "begun", SOON);
    }

    let asked = Instant::now();
    running.signal("TERM");
    let output = running.wait(SOON);

    output.assert_code(3);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(summary(&output)["returned"], 3);
    let client = shared_broker().client();
    names.iter().for_each(|name| client.wait_for_count(name, 1, SOON));
}
