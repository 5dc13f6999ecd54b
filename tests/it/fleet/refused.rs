//! A queue that the broker refuses while the others are worked.

use std::time::Duration;

use super::{SOON, summary};
use crate::support::broker::{Lent, breakable_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;

/// A login that may use three queues.
struct Login {
    broker: Lent,
    user: String,
    queues: [String; 3],
}

impl Login {
    fn new() -> Login {
        let broker = breakable_broker();
        let user = unique_queue("user");
        let queues = [(); 3].map(|()| unique_queue("permission"));
        let client = broker.client();
        queues.iter().for_each(|name| client.declare(name));
        broker.ctl(&["add_user", &user, "s3cret"]);
        broker.ctl(&["set_permissions", &user, ".*", ".*", ".*"]);
        Login { broker, user, queues }
    }

    /// From now on, the login may not read the last queue.
    fn lose_permission(&self) {
        let others = format!("^({}|{})", self.queues[0], self.queues[1]);
        self.broker.ctl(&["set_permissions", &self.user, ".*", ".*", &others]);
    }

    fn worker(&self, arguments: &[&str]) -> Command {
        let url = format!("amqp://{}:s3cret@{}/", self.user, self.broker.address());
        let named = self.queues.iter().flat_map(|name| ["--queue", name]);
        let worker = named.fold(Command::worker(&["--url", &url]), Command::arg);
        worker.args(&["--threads", "1", "--json"]).args(arguments)
    }

    fn publish(&self) {
        let mut client = self.broker.client();
        self.queues.iter().for_each(|name| client.publish_id(name, "task"));
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.broker.ctl(&["delete_user", &self.user]);
    }
}

#[test]
fn a_queue_that_is_refused_from_the_start_ends_no_other_and_is_in_the_exit_status() {
    let login = Login::new();
    login.lose_permission();
    login.publish();

    let output = login.worker(&["--drain", "--", "true"]).run(SOON);

    output.assert_code(2);
    let summary = summary(&output);
    let [first, second, refused] = login.queues.each_ref().map(|name| &summary["by_queue"][name]);
    assert_eq!((&first["done"], &second["done"]), (&1.into(), &1.into()), "{summary}");
    assert_eq!((&first["ended"], &refused["ended"]), (&"drained".into(), &"error".into()));
    let error = refused["error"].as_str().expect("an error");
    assert!(error.contains("ACCESS_REFUSED") && !error.contains("s3cret"), "{error}");
    assert_eq!(summary["ended"], "error");
    assert_eq!(login.broker.client().count(&login.queues[2]), 1);
}

#[test]
fn a_queue_that_is_refused_later_ends_no_other_and_is_in_the_exit_status() {
    let login = Login::new();
    let running = login.worker(&["--", "sh", "-c", "echo $TASK_QUEUE"]).start();
    for _ in &login.queues {
        running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    }
    login.lose_permission();
    login.broker.ctl(&["close_all_connections", "a test"]);
    running.wait_for_stderr_line(|line| line.contains("ACCESS_REFUSED"), SOON);
    login.publish();
    for _ in 0..2 {
        running.wait_for_stdout_line(|line| login.queues[..2].iter().any(|it| it == line), SOON);
    }

    running.signal("TERM");
    let output = running.wait(SOON);

    output.assert_code(2);
    let summary = summary(&output);
    assert_eq!((&summary["done"], &summary["ended"]), (&2.into(), &"error".into()));
    assert_eq!(summary["by_queue"][&login.queues[0]]["ended"], "signal");
    assert_eq!(summary["by_queue"][&login.queues[2]]["ended"], "error");
}

#[test]
fn a_queue_that_is_refused_later_holds_up_no_drain_of_the_others() {
    let login = Login::new();
    // The others run a task that is longer than all of this, so that nothing is drained before.
    let mut client = login.broker.client();
    login.queues[..2].iter().for_each(|name| client.publish_id(name, "task"));
    let wait = "echo begun; until [ -e go ]; do sleep 0.1; done";
    let dir = tempfile::tempdir().expect("a folder");
    let running = login.worker(&["--drain", "--", "sh", "-c", wait]);
    let running = running.current_dir(dir.path()).start();
    for _ in 0..3 {
        running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    }
    for _ in 0..2 {
        running.wait_for_stdout_line(|line| line == "begun", SOON);
    }
    login.lose_permission();
    login.broker.ctl(&["close_all_connections", "a test"]);
    running.wait_for_stderr_line(|line| line.contains("ACCESS_REFUSED"), SOON);
    std::fs::write(dir.path().join("go"), "").expect("written");

    let output = running.wait(Duration::from_secs(120));

    output.assert_code(2);
    let summary = summary(&output);
    assert_eq!(summary["by_queue"][&login.queues[0]]["ended"], "drained", "{summary}");
    assert_eq!(summary["by_queue"][&login.queues[1]]["ended"], "drained");
    assert_eq!(summary["by_queue"][&login.queues[2]]["ended"], "error");
}
