//! Virtual hosts that allow few connections: whatever needs another one goes on without.

use std::time::Duration;

use crate::support::broker::breakable_broker;
use crate::support::command::Command;
use crate::support::terminal::on_a_terminal;
use crate::support::vhost::Vhost;

const SOON: Duration = Duration::from_secs(60);

fn publish(vhost: &Vhost<'_>, queue: &str, tasks: &str) {
    let to = ["--url", &vhost.url(), "--queue", queue, "--repeat", tasks, "task"];
    Command::producer(&to).run(SOON).assert_code(0);
}

#[test]
fn with_one_connection_allowed_failed_tasks_are_handed_over_and_a_drain_ends() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    publish(&vhost, "q", "3");
    vhost.allow_connections(1);
    let options = ["--max-attempts", "2", "--retry-delay", "100ms", "--drain", "--json"];
    let worker = Command::worker(&["--url", &vhost.url(), "--queue", "q"]).args(&options);
    let output = worker.args(&["--", "false"]).run(SOON);
    output.assert_code(1);
    let stdout = output.stdout();
    assert!(stdout.contains("\"dead\":3"), "{stdout}");
    assert!(output.stderr().contains("cannot open a second connection"), "{}", output.stderr());
}

#[test]
fn the_progress_of_a_drain_leaves_the_connection_to_its_worker() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    publish(&vhost, "q", "3");
    vhost.allow_connections(1);
    let (worker, url) = (env!("CARGO_BIN_EXE_worker"), &vhost.url());
    let dir = tempfile::tempdir().expect("a folder");
    let line = format!("{worker} --url {url} --queue q --drain -- sleep 1 >out");
    let (output, rows) = on_a_terminal(&line, dir.path(), SOON);
    output.assert_code(0);
    assert!(rows.iter().any(|row| row.starts_with("3 done, ")), "{rows:?}");
}

#[test]
fn a_producer_waits_for_outcomes_on_the_connection_that_published() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    publish(&vhost, "q", "1");
    vhost.allow_connections(2);
    let worker = Command::worker(&["--url", &vhost.url(), "--queue", "q", "--threads", "1"]);
    let working = worker.args(&["--", "echo", "worked"]).start();
    working.wait_for_stdout_line(|line| line == "worked", SOON);
    let to = ["--url", &vhost.url(), "--queue", "q", "--wait", "--repeat", "3", "task"];
    let output = Command::producer(&to).run(SOON);
    output.assert_code(0);
    working.signal("INT");
    working.wait(SOON).assert_code(0);
}

/// One of the two never has a connection while the other waits for it.
#[test]
fn a_drain_of_two_queues_ends_with_the_error_of_the_one_that_gets_no_connection() {
    let broker = breakable_broker();
    let vhost = Vhost::without_default(&broker);
    publish(&vhost, "a", "1");
    publish(&vhost, "b", "1");
    let to = ["--url", &vhost.url(), "--queue", "a", "--queue", "b"];
    let drain = || {
        vhost.allow_connections(0);
        let worker = Command::worker(&to).args(&["--drain", "--json", "--", "true"]).start();
        for _ in 0..4 {
            worker.wait_for_stderr_line(|line| line.contains("connection limit (0)"), SOON);
        }
        vhost.allow_connections(1);
        worker.wait(2 * SOON)
    };
    // The broker counts a connection a moment after it has let it in: two at once may both be let in.
    let mut outputs = (0..3).map(|_| drain());
    let output = outputs.find(|it| !it.stdout().contains("\"done\":2")).expect("one is refused");
    output.assert_code(69);
    let (stdout, stderr) = (output.stdout(), output.stderr());
    assert!(stdout.contains("\"done\":1"), "{stdout}");
    assert!(stderr.contains("raise the limit of connections"), "{stderr}");
}
