//! The permissions that docs/failures.md calls enough for a login.

use super::SOON;
use crate::support::broker::breakable_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;

const DOCUMENT: &str = include_str!("../../../docs/failures.md");

/// A queue's own names, the default exchange, and either of them.
const NAMES: &str = r"^Q(\.|$)";
const EXCHANGE: &str = r"^amq\.default$";
const EITHER: &str = r"^(Q(\.|$)|amq\.default$)";

#[test]
fn the_documented_rights_are_enough_to_send_fail_replay_and_check() {
    for pattern in [NAMES, EXCHANGE, EITHER] {
        assert!(DOCUMENT.contains(&format!("`{pattern}`")), "{pattern}");
    }
    let broker = breakable_broker();
    for (name, [configure, write, read]) in
        [("either", [EITHER; 3]), ("least", [NAMES, EXCHANGE, NAMES])]
    {
        let queue = unique_queue(name);
        let own = |pattern: &str| pattern.replace('Q', &queue.replace('.', "\\."));
        let rights = [configure, write, read].map(own);
        broker.ctl(&["add_user", name, "s3cret"]);
        broker.ctl(&["set_permissions", name, &rights[0], &rights[1], &rights[2]]);
        let url = format!("amqp://{name}:s3cret@{}", broker.address());
        let to = ["--url", &url, "--queue", &queue];
        let sent = Command::producer(&to).arg("x").run(SOON);
        let delayed = Command::producer(&to).args(&["--delay", "1s", "y"]).run(SOON);
        let options = ["--drain", "--max-attempts", "2", "--retry-delay", "1s", "--", "false"];
        let worked = Command::worker(&to).args(&options).run(SOON * 3);
        let replayed = Command::queuectl(&to).args(&["dead", "replay"]).run(SOON);
        let checked = Command::queuectl(&to).arg("check").run(SOON);
        broker.ctl(&["delete_user", name]);
        broker.client().delete(&queue);
        broker.client().delete(&format!("{queue}.dead"));

        sent.assert_code(0);
        delayed.assert_code(0);
        worked.assert_code(1);
        assert_eq!(replayed.success(), "2 replayed\n");
        checked.assert_code(0);
    }
}
