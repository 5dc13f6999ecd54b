//! Tasks without an id that outlive the broker's `consumer_timeout`.

use std::time::Duration;

use amiquip::AmqpProperties;

use crate::support::broker::breakable_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;

const SOON: Duration = Duration::from_secs(60);

/// Only its body tells it from others.
#[test]
fn a_task_without_an_id_that_is_late_ends_as_a_dead_letter() {
    let broker = breakable_broker();
    let queue = unique_queue("late");
    let to = ["--url", broker.url(), "--queue", &queue, "--queue-type", "quorum"];
    Command::producer(&to).arg("other").run(SOON).assert_code(0);
    let mut client = broker.client();
    client.publish(&queue, b"late", AmqpProperties::default().with_delivery_mode(2));
    broker.shorten_consumer_timeout();
    let dir = tempfile::tempdir().expect("a directory");
    let go_on = dir.path().join("go-on").to_string_lossy().into_owned();
    let script = r#"[ "$(cat)" = late ] || exit 0; until [ -e "$0" ]; do sleep 0.1; done"#;
    let options = ["--threads", "2", "--max-attempts", "1", "--", "sh", "-c", script, &go_on];

    let running = Command::worker(&to).args(&options).start();
    running.wait_for_stderr_line(|line| line.contains("goes to the dead letters"), SOON * 3);
    broker.restore_consumer_timeout();
    let dead = format!("{queue}.dead");
    client.wait_for_count(&dead, 1, SOON);
    let letters = client.get_all(&dead);
    std::fs::write(&go_on, "").expect("the task is told");
    running.signal("INT");
    running.wait(SOON).assert_code(0);

    let reason = format!("{:?}", letters[0].headers["x-rabbit-work-reason"]);
    assert!(reason.contains("consumer_timeout"), "{reason}");
    assert_eq!(letters[0].message_id, None);
    client.delete(&queue);
    client.delete(&dead);
}
