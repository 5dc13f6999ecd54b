//! Limits that hold for all queues of a worker together.

use super::{SOON, publish, queues, summary, worker};
use crate::support::broker::shared_broker;

#[test]
fn max_tasks_counts_the_tasks_of_all_queues_and_the_rest_stays() {
    let [mail, pdf] = queues("max");
    let bodies: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    publish(&mail, &bodies);
    publish(&pdf, &bodies);

    let options = ["--max-tasks", "7", "--threads", "2", "--json", "--", "sleep", "0.1"];
    let output = worker(&[&mail, &pdf], &options).run(SOON);

    output.assert_code(0);
    let summary = summary(&output);
    assert_eq!((&summary["done"], &summary["ended"]), (&7.into(), &"max-tasks".into()));
    let client = shared_broker().client();
    assert_eq!(client.count(&mail) + client.count(&pdf), 13);
}

/// Neither waits for its share while the other queue has none left.
#[test]
fn the_tasks_may_all_be_in_one_queue() {
    let [empty, full] = queues("share");
    publish(&full, &["1", "2", "3", "4", "5"]);

    let options = ["--max-tasks", "5", "--threads", "4", "--json", "--", "true"];
    let output = worker(&[&empty, &full], &options).run(SOON);

    output.assert_code(0);
    assert_eq!(summary(&output)["by_queue"][&full]["done"], 5);
}

#[test]
fn max_dead_counts_the_dead_letters_of_all_queues() {
    let [mail, pdf] = queues("dead");
    publish(&mail, &["1"]);
    publish(&pdf, &["2"]);

    let options = ["--max-dead", "2", "--threads", "1", "--json", "--", "sh", "-c", "exit 65"];
    let output = worker(&[&mail, &pdf], &options).run(SOON);

    output.assert_code(1);
    let summary = summary(&output);
    assert_eq!((&summary["dead"], &summary["ended"]), (&2.into(), &"max-dead".into()));
}

#[test]
fn a_rate_holds_for_all_queues_together() {
    let [mail, pdf] = queues("rate");
    publish(&mail, &["1", "2", "3", "4", "5"]);
    publish(&pdf, &["1", "2", "3", "4", "5"]);

    let options = ["--rate", "5/s", "--drain", "--json", "--", "date", "+%s.%N"];
    let output = worker(&[&mail, &pdf], &options).run(SOON);

    output.assert_code(0);
    let stdout = output.stdout();
    let starts = stdout.lines().filter_map(|line| line.parse::<f64>().ok());
    let (first, last) =
        starts.fold((f64::MAX, f64::MIN), |(first, last), at| (first.min(at), last.max(at)));
    // Nine intervals of 0.2 s.
    assert!(last - first > 1.5, "{stdout}");
}
