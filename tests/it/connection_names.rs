//! What RabbitMQ shows of a connection, and where its address comes from.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::broker::{PrivateBroker, breakable_broker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;

const SOON: Duration = Duration::from_secs(60);

/// Waits until a connection has this name, and returns what RabbitMQ shows of it.
fn shown(broker: &PrivateBroker, name: &str) -> String {
    let what = format!("a connection with the name {name}");
    poll(&what, SOON, || {
        let listed = broker.ctl(&["list_connections", "client_properties"]);
        listed.lines().find(|line| line.contains(&format!("\"{name}"))).map(String::from)
    })
}

#[test]
fn rabbitmq_shows_what_each_connection_is_for() {
    let broker = breakable_broker();
    let queue = unique_queue("names");
    let to = ["--url", broker.url(), "--queue", &queue];
    let worker = Command::worker(&to).args(&["--retry-delay", "1h", "--", "false"]).start();
    let properties = shown(&broker, &format!("worker {queue}@"));
    let mut producer = Command::producer(&to).args(&["--lines"]).open_stdin().start();
    producer.write(b"fails\n");

    assert!(properties.contains(&format!("#{}\"", worker.id())), "{properties}");
    assert!(properties.contains("{\"product\",\"rabbit-work\"}"), "{properties}");
    let version = format!("{{\"version\",\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert!(properties.contains(&version), "{properties}");
    assert!(properties.contains("{\"platform\","), "{properties}");
    shown(&broker, &format!("producer {queue}@"));
    shown(&broker, &format!("republish {queue}@"));
    producer.end_input();
    producer.wait(SOON).assert_code(0);
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_name_that_is_given_is_shown_and_says_what_other_connections_are_for() {
    let broker = breakable_broker();
    let queue = unique_queue("named");
    let to = ["--url", broker.url(), "--queue", &queue, "--name", "mail één"];
    let worker = Command::worker(&to).args(&["--retry-delay", "1h", "--", "false"]).start();
    Command::producer(&to).arg("fails").run(SOON).assert_code(0);

    let escaped = "mail \\303\\251\\303\\251n";
    let names = |line: &str| line.contains("mail één") || line.contains(escaped);
    poll("both connections of the worker", SOON, || {
        let listed = broker.ctl(&["list_connections", "client_properties"]);
        let named: Vec<&str> = listed.lines().filter(|line| names(line)).collect();
        let is_republish = |line: &&str| line.contains("n republish\"");
        (named.len() == 2 && named.iter().filter(|it| is_republish(it)).count() == 1).then_some(())
    });
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_name_that_rabbitmq_would_not_take_is_refused_before_it_is_asked() {
    let name = "x".repeat(256);
    let options = ["--url", "amqp://127.0.0.1:1", "--name", &name];
    let commands = [
        Command::producer(&options).arg("x"),
        Command::worker(&options),
        Command::queuectl(&options).arg("status"),
    ];
    for command in commands {
        let refused = command.run(SOON);
        refused.assert_code(2);
        assert!(refused.stderr().contains("name: it has 256 bytes"), "{}", refused.stderr());
    }
}

#[test]
fn rabbitmq_takes_the_longest_name() {
    let broker = breakable_broker();
    let (queue, name) = (unique_queue("long"), "é".repeat(127));
    let to = ["--url", broker.url(), "--queue", &queue, "--name", &name];
    Command::producer(&to).arg("x").run(SOON).assert_code(0);
    Command::worker(&to).args(&["--drain", "--", "true"]).run(SOON).assert_code(0);
}

/// The tags of a queue's consumers, in their order.
fn tags(broker: &PrivateBroker, queue: &str, number: usize) -> Vec<String> {
    poll("the consumers", SOON, || {
        let listed = broker.ctl(&["list_consumers", "queue_name", "consumer_tag"]);
        let of_queue = listed.lines().filter_map(|line| line.strip_prefix(&format!("{queue}\t")));
        let mut tags: Vec<String> = of_queue.map(String::from).collect();
        tags.sort();
        (tags.len() == number).then_some(tags)
    })
}

#[test]
fn rabbitmq_shows_whose_thread_each_consumer_is() {
    let broker = breakable_broker();
    let queue = unique_queue("tags");
    let to = ["--url", broker.url(), "--queue", &queue];
    let run = |name: &[&str]| {
        let worker = Command::worker(&to).args(&["--threads", "2"]).args(name);
        worker.args(&["--", "sh", "-c", "cat; echo"]).start()
    };
    let named = run(&["--name", "mail"]);
    assert_eq!(tags(&broker, &queue, 2), ["mail.1", "mail.2"]);
    // A tag that the broker did not make leads its deliveries to their consumer.
    let mut producer = Command::producer(&to).args(&["--lines"]).open_stdin().start();
    for task in ["one", "two", "three"] {
        producer.write(format!("{task}\n").as_bytes());
        named.wait_for_stdout_line(|line| line == task, SOON);
    }
    producer.end_input();
    producer.wait(SOON).assert_code(0);
    named.signal("TERM");
    named.wait(SOON).assert_code(0);

    let unnamed = run(&[]);
    let (tags, number) = (tags(&broker, &queue, 2), unnamed.id());
    assert!(tags[0].starts_with(&format!("worker {queue}@")), "{tags:?}");
    assert!(tags[0].ends_with(&format!(" #{number}.1")), "{tags:?}");
    unnamed.signal("TERM");
    unnamed.wait(SOON).assert_code(0);
}

#[test]
fn the_address_comes_from_a_file_before_the_environment() {
    let queue = unique_queue("file");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("url");
    fs::write(&file, format!("\n{}\n", shared_broker().url())).expect("a file");
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&file, private).expect("its owner may");
    let path = file.to_str().expect("a path");
    let nowhere = ("AMQP_URL", "amqp://127.0.0.1:1");

    let by_option = Command::producer(&["--url-file", path, "--queue", &queue, "x"]);
    let by_variable = Command::producer(&["--queue", &queue, "x"]).env("AMQP_URL_FILE", path);
    let by_url = ["--url", shared_broker().url(), "--queue", &queue, "x"];
    let by_url = Command::producer(&by_url).env("AMQP_URL_FILE", "/does/not/exist");
    for command in [by_option, by_variable, by_url] {
        let output = command.env(nowhere.0, nowhere.1).run(SOON);
        output.assert_code(0);
        assert!(!output.stderr().contains("every user"), "{}", output.stderr());
    }
    assert_eq!(shared_broker().client().count(&queue), 3);
    shared_broker().client().delete(&queue);
}

#[test]
fn a_file_with_the_address_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("url");
    let path = file.to_str().expect("a path");
    let with_file = || Command::queuectl(&["--url-file", path, "check"]).run(SOON);

    let missing = with_file();
    missing.assert_code(2);
    assert!(missing.stderr().contains(path), "{}", missing.stderr());

    fs::write(&file, "\n").expect("a file");
    let empty = with_file();
    empty.assert_code(2);
    assert!(empty.stderr().contains("is empty"), "{}", empty.stderr());

    fs::write(&file, "http://u:s3cretword@host").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).expect("its owner may");
    let open = with_file();
    open.assert_code(2);
    assert!(open.stderr().contains("every user"), "{}", open.stderr());
    assert!(!open.stderr().contains("s3cretword"), "{}", open.stderr());

    let twice = ["--url", "amqp://host", "--url-file", path, "check"];
    Command::queuectl(&twice).run(SOON).assert_code(2);
}
