//! `queuectl status` of several queues, and its --watch.

use std::time::Duration;

use rabbit_work::{Producer, Queue, Task};
use serde_json::Value;

use super::{SOON, publish, queues};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::terminal::on_a_terminal;

fn queuectl(queues: &[&str], arguments: &[&str]) -> Command {
    let named = queues.iter().flat_map(|name| ["--queue", *name]);
    named.fold(Command::queuectl(&["--url", shared_broker().url()]), Command::arg).args(arguments)
}

#[test]
fn status_shows_several_queues_one_after_the_other() {
    let [mail, pdf] = queues("status");
    publish(&pdf, &["1", "2"]);
    let text = queuectl(&[&mail, &pdf], &["status"]).run(SOON).success();
    let blocks: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(blocks.len(), 2, "{text}");
    assert!(blocks[0].contains(&mail) && blocks[0].contains("ready      0"), "{text}");
    assert!(blocks[1].contains(&pdf) && blocks[1].contains("ready      2"), "{text}");
    let json = queuectl(&[&mail, &pdf], &["status", "--json"]).run(SOON).success();
    let ready = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["ready"].clone();
    assert_eq!(json.lines().map(ready).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn only_status_takes_several_queues() {
    for rest in ["check", "purge --yes", "dead list"] {
        let output = queuectl(&["a", "b"], &rest.split(' ').collect::<Vec<_>>()).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("--queue: "), "{}", output.stderr());
    }
}

#[test]
fn a_watch_writes_a_line_for_each_queue_each_time_until_ctrl_c() {
    let [mail, pdf] = queues("lines");
    let running = queuectl(&[&mail, &pdf], &["status", "--watch", "500ms"]).start();
    running.wait_for_stdout_line(|line| line.starts_with("time ") && line.ends_with("queue"), SOON);
    // Time, ready, retry, dead, consumers, change and queue.
    let row = |name: &str, ready: &str| {
        let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        let line = running.wait_for_stdout_line(
            |line| {
                let words = words(line);
                words.get(6).is_some_and(|it| it == name) && words[1] == ready
            },
            SOON,
        );
        words(&line)
    };
    let first = row(&mail, "0");
    assert_eq!(first[2..6], ["0", "0", "0", "-"], "{first:?}");
    assert_eq!(row(&pdf, "0")[5], "-");
    publish(&pdf, &["1", "2", "3"]);
    let more = row(&pdf, "3");
    assert!(more[5].starts_with('+') && more[5] != "+0.0", "{more:?}");
    shared_broker().client().purge(&pdf);
    assert!(row(&pdf, "0")[5].starts_with('-'));

    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn a_watch_writes_json_and_waits_for_a_queue_that_does_not_exist() {
    let ([mail], missing) = (queues("json"), unique_queue("missing"));
    let mut producer =
        Producer::new(&shared_broker().url().parse().expect("a URL"), &Queue::new(&mail));
    let delayed = || Task::new("").with_delay(Duration::from_secs(60));
    producer.publish(delayed()).expect("confirmed");
    let running = queuectl(&[&mail, &missing], &["status", "--watch", "0.5", "--json"]).start();
    let next = |wanted: &dyn Fn(&Value) -> bool| {
        let parse = |line: &str| serde_json::from_str::<Value>(line).expect("JSON");
        parse(&running.wait_for_stdout_line(|line| wanted(&parse(line)), SOON))
    };
    let of = |name: &str| {
        let name = name.to_string();
        move |it: &Value| it["queue"] == name.as_str()
    };

    let first = next(&of(&mail));
    assert_eq!(
        (&first["ready"], &first["retry"], &first["dead"]),
        (&0.into(), &1.into(), &0.into())
    );
    assert_eq!((&first["unacked"], &first["change"]), (&Value::Null, &Value::Null));
    assert!(first["time"].as_f64() > Some(1e9));
    assert_eq!(next(&of(&missing))["error"], format!("queue '{missing}' does not exist"));
    producer.publish(delayed()).expect("confirmed");
    assert_eq!(next(&|it| it["retry"] == 2)["change"], 0.0);
    shared_broker().client().declare(&missing);
    let found = next(&|it| it["queue"] == missing.as_str() && it["error"].is_null());
    assert_eq!(found["ready"], 0);

    running.signal("TERM");
    running.wait(SOON).assert_code(0);
}

#[test]
fn a_watch_redraws_its_rows_on_a_terminal() {
    // Short, so that no row is wider than the terminal.
    let [mail, pdf] = queues("w");
    let dir = tempfile::tempdir().expect("a folder");
    let (queuectl, url) = (env!("CARGO_BIN_EXE_queuectl"), shared_broker().url());
    let watch = format!("{queuectl} --url {url} --queue {mail} --queue {pdf} status --watch 500ms");
    let line = format!("timeout --foreground --preserve-status -s INT 15 {watch}");

    let (output, rows) = on_a_terminal(&line, dir.path(), SOON);

    output.assert_code(0);
    // Blanks instead of a line's end separate the lines of a page.
    let with = |text: &str| rows.iter().filter(|row| row.contains(text)).count();
    assert!(with("change/s  queue") > 1 && with(&mail) > 1 && with(&pdf) > 1, "{rows:?}");
    let up_two_rows = "\x1b[2A";
    assert!(output.stdout().contains(up_two_rows), "{:?}", output.stdout());
    assert!(!rows.iter().any(|row| row.contains("time")), "no times: {rows:?}");
}

#[test]
fn a_watch_that_cannot_begin_ends_as_status_does() {
    let watch = |url: &str| Command::queuectl(&["--url", url, "status", "--watch"]).run(SOON);
    watch("amqp://guest:guest@127.0.0.1:1").assert_code(69);
    let address = shared_broker().address();
    watch(&format!("amqp://guest:wrong@{address}")).assert_code(2);
    queuectl(&["a"], &["status", "--watch", "0"]).run(SOON).assert_code(2);
}
