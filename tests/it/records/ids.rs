//! The ids and other properties that a producer gives its tasks, and that commands see.

use super::{Bench, SOON};
use crate::support::command::Command;

fn producer(bench: &Bench, arguments: &[&str]) -> Command {
    let address = ["--url", bench.broker.url(), "--queue", &bench.queue];
    Command::producer(&[&address, arguments].concat())
}

/// The ids of the tasks that are ready, taken out of the queue.
fn ids(bench: &Bench) -> Vec<String> {
    let messages = bench.broker.client().get_all(&bench.queue);
    messages.into_iter().map(|it| it.message_id.expect("an id")).collect()
}

#[test]
fn ids_sort_in_the_order_of_the_input() {
    let bench = Bench::new("sorted");
    let lines: String = (0..1000).map(|n| format!("{n}\n")).collect();
    producer(&bench, &["--lines"]).stdin(lines).run(SOON).success();
    let ids = ids(&bench);
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!((ids.len(), &ids), (1000, &sorted));
    assert_eq!(ids[0].as_bytes()[14], b'7', "a UUID of version 7: {}", ids[0]);
}

#[test]
fn the_same_body_has_the_same_id_if_that_is_asked_for() {
    let bench = Bench::new("frombody");
    producer(&bench, &["--lines", "--id-from-body"]).stdin("a\nb\na\n").run(SOON).success();
    let ids = ids(&bench);
    // uuidgen --sha1 --namespace @oid --name a
    assert_eq!(ids[0], "d720e32d-4765-5177-b65b-42dd7f6e6445");
    assert!(ids[0] == ids[2] && ids[0] != ids[1], "{ids:?}");
}

#[test]
fn an_id_is_for_one_task() {
    let bench = Bench::new("oneid");
    producer(&bench, &["--id", "mine", "x"]).run(SOON).success();
    assert_eq!(ids(&bench), ["mine"]);
    for (options, expected) in [
        (&["--lines"][..], "--id: several tasks would have the same id"),
        (&["--null"], "--id: several tasks would have the same id"),
        (&["--repeat", "2", "x"], "--id: several tasks would have the same id"),
        (&["--id-from-body", "x"], "cannot be used with"),
    ] {
        let output = producer(&bench, &[&["--id", "mine"], options].concat()).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(expected), "{}", output.stderr());
    }
    for option in ["--id", "--type", "--correlation-id", "--reply-to", "--content-encoding"] {
        producer(&bench, &[option, "", "x"]).run(SOON).assert_code(2);
        producer(&bench, &[option, &"x".repeat(256), "x"]).run(SOON).assert_code(2);
    }
    assert_eq!(ids(&bench), [""; 0]);
}

#[test]
fn a_command_sees_the_properties_that_the_producer_has_set() {
    let bench = Bench::new("properties");
    let options = "--id i --type resize --content-encoding gzip --correlation-id c --reply-to r x";
    producer(&bench, &options.split(' ').collect::<Vec<_>>()).run(SOON).success();
    let script = "echo $TASK_ID $TASK_TYPE $TASK_CONTENT_ENCODING $TASK_CORRELATION_ID \
                  $TASK_REPLY_TO";
    let output = bench.worker(&["--drain"], &["sh", "-c", script]).run(SOON);
    assert_eq!(output.success(), "i resize gzip c r\n");
}
