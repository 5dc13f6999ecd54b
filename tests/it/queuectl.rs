//! `queuectl` besides dead letters: status, check, purge, and where options may stand.

use std::time::Duration;

use rabbit_work::{Broker, Inspector, Producer, Queue, QueueType, RetryPolicy, Task};
use serde_json::Value;

use crate::dead_letters::{broker, json, let_die, queuectl};
use crate::support::broker::{PrivateBroker, breakable_broker, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::vhost::Vhost;
use crate::support::wire::{Arguments, Call, Field, Frame, Method, content};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn where_a_command_of_queuectl_has_its_options_does_not_matter() {
    let queue = unique_queue("options");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    for look in [&["dead", "list"][..], &["dead", "replay", "--id", "-1"], &["status"]] {
        let before = Command::queuectl(&[&to[..], look].concat()).run(SOON);
        let after = Command::queuectl(&[look, &to[..]].concat()).run(SOON);
        assert_eq!(before.code, after.code, "{look:?}: {before:?} {after:?}");
        assert_ne!(before.code, Some(2), "{before:?}");
    }
}

#[test]
fn each_command_for_a_queue_that_does_not_exist_ends_with_1() {
    let queue = unique_queue("none");
    let looks = [
        "status",
        "check",
        "purge --yes",
        "purge --retry --yes",
        "delete",
        "delete --yes",
        "dead list",
        "dead list --json",
        "dead show 1",
        "dead replay",
        "dead replay --dry-run",
        "dead purge --yes",
        "dead purge --id 1 --yes",
    ];
    for look in looks {
        let output = queuectl(&queue, &look.split(' ').collect::<Vec<_>>());
        output.assert_code(1);
        let told = output.stderr() + &output.stdout();
        let wanted = format!("queue '{queue}' does not exist; check --queue, or start a worker");
        assert!(told.contains(&wanted), "{look}: {told}");
    }
    assert!(!shared_broker().client().has(&queue), "none was made");
}

#[test]
fn nothing_is_thrown_away_without_yes() {
    let queue = unique_queue("purge");
    let_die(&queue, &["1", "2"]);
    let mut client = shared_broker().client();
    client.publish_ids(&queue, ["3"]);
    queuectl(&queue, &["purge"]).assert_code(2);
    queuectl(&queue, &["dead", "purge"]).assert_code(2);
    assert_eq!(client.count(&queue), 1);
    assert_eq!(queuectl(&queue, &["dead", "purge", "--yes"]).success(), "2 thrown away\n");
    assert_eq!(client.count(&queue), 1);
    assert_eq!(queuectl(&queue, &["purge", "--yes"]).success(), "1 thrown away\n");
}

#[test]
fn status_counts_what_is_ready_waits_and_is_dead() {
    let queue = unique_queue("status");
    let_die(&queue, &["1", "2"]);
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    producer.publish(Task::new("")).expect("confirmed");
    for _ in 0..3 {
        producer.publish(Task::new("").with_delay(Duration::from_secs(60))).expect("confirmed");
    }
    let status = json(&queuectl(&queue, &["status", "--json"]));
    assert_eq!(
        (&status["ready"], &status["retry"], &status["dead"], &status["consumers"]),
        (&1.into(), &3.into(), &2.into(), &0.into())
    );
    assert_eq!(status["unacked"], Value::Null);
    producer
        .publish(Task::new("").with_delay(Duration::from_secs(42 * 86_400)))
        .expect("confirmed");
    let text = queuectl(&queue, &["status"]).success();
    assert!(text.contains("3 after 1m\n") && text.contains("1 after 42d\n"), "{text}");
}

#[test]
fn check_names_the_real_cause_with_its_own_status() {
    let broker = PrivateBroker::start();
    let queue = unique_queue("check");
    broker.client().declare(&queue);
    broker.ctl(&["add_user", "weak", "s3cret"]);
    broker.ctl(&["set_permissions", "weak", "^$", "^$", "^$"]);
    let url = |login: &str, vhost: &str| format!("amqp://{login}@{}/{vhost}", broker.address());
    let good = url("guest:guest", "");
    let cases: [(&str, String, &str, &[&str], i32); 6] = [
        ("connect", "amqp://guest:guest@127.0.0.1:1".into(), &queue, &[], 69),
        ("login", url("guest:s3cret", ""), &queue, &[], 2),
        ("vhost", url("guest:guest", "nowhere"), &queue, &[], 2),
        ("queue", good.clone(), "no-such", &[], 1),
        ("queue", good.clone(), &queue, &["--queue-type", "quorum"], 2),
        ("queue", url("weak:s3cret", ""), &queue, &[], 2),
    ];
    for (step, url, queue, flags, code) in cases {
        let output = check(&url, queue, flags);
        output.assert_code(code);
        let text = output.stdout();
        let failed: Vec<&str> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
        assert_eq!(failed.len(), 1, "{text}");
        assert!(failed[0].starts_with(&format!("FAIL  {step}")), "{text}");
        assert!(!text.contains("s3cret") && !output.stderr().contains("s3cret"));
    }
    let well = check(&good, &queue, &[]);
    well.assert_code(0);
    assert_eq!(well.stdout().lines().filter(|line| line.starts_with("ok")).count(), 8);

    check_of_a_login_that_only_publishes(&broker, &queue);

    broker.alarm();
    let blocked = check(&good, &queue, &[]);
    blocked.assert_code(1);
    let text = blocked.stdout();
    assert!(text.contains("FAIL  publish  the broker blocks publishers"), "{text}");
}

fn check(url: &str, queue: &str, flags: &[&str]) -> Output {
    Command::queuectl(&[&["--url", url, "--queue", queue], flags, &["check"]].concat()).run(SOON)
}

/// Publishing is allowed, consuming is not, and no task is taken to find that out.
fn check_of_a_login_that_only_publishes(broker: &PrivateBroker, queue: &str) {
    broker.ctl(&["add_user", "sender", "s3cret"]);
    broker.ctl(&["set_permissions", "sender", ".*", ".*", "^$"]);
    let [good, sender] = ["guest:guest", "sender:s3cret"]
        .map(|login| format!("amqp://{login}@{}/", broker.address()));
    for kind in ["classic", "quorum"] {
        let name = format!("{queue}.{kind}");
        let flags = ["--queue-type", kind];
        let to = ["--url", &good, "--queue", &name];
        Command::producer(&[&to[..], &flags, &["1"]].concat()).run(SOON).assert_code(0);
        let well = check(&good, &name, &flags);
        well.assert_code(0);
        assert!(well.stdout().contains("ok    consume  allowed"), "{}", well.stdout());
        let unread = check(&sender, &name, &flags);
        unread.assert_code(2);
        assert!(unread.stdout().contains("ok    publish  allowed"), "{}", unread.stdout());
        let last = unread.stdout().lines().last().map(str::to_owned).unwrap_or_default();
        assert!(last.starts_with("FAIL  consume") && last.contains("ACCESS_REFUSED"), "{last}");
        let task = &broker.client().get_all(&name)[0];
        assert!(!task.redelivered, "a check takes no task");
    }
}

/// A user of the shape that is often set up for one queue.
#[test]
fn check_finds_that_failed_tasks_have_nowhere_to_go_and_makes_no_queue() {
    let broker = breakable_broker();
    let mut client = broker.client();
    let queue = unique_queue("narrow");
    let dead = format!("{queue}.dead");
    client.declare(&queue);
    broker.ctl(&["add_user", "narrow", "s3cret"]);
    broker.ctl(&["set_permissions", "narrow", &format!("^{queue}$"), ".*", ".*"]);
    let check = |login: &str| {
        let url = format!("amqp://{login}@{}", broker.address());
        Command::queuectl(&["--url", &url, "--queue", &queue, "check"]).run(SOON)
    };

    let without_dead = check("narrow:s3cret");
    let free = check("guest:guest");
    let made = ["dead", "retry.5000"].map(|it| client.has(&format!("{queue}.{it}")));
    client.declare(&dead);
    let with_dead = check("narrow:s3cret");
    broker.ctl(&["delete_user", "narrow"]);

    free.assert_code(0);
    assert_eq!(made, [false; 2]);
    let cases = [(without_dead, "dead", dead), (with_dead, "retry", format!("{queue}.retry.5000"))];
    for (output, step, refused) in cases {
        output.assert_code(2);
        let stdout = output.stdout();
        let last = stdout.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("FAIL  {step}")), "{stdout}");
        assert!(last.contains(&format!("use of queue '{refused}': ACCESS_REFUSED")), "{stdout}");
    }
}

#[test]
fn check_finds_a_delay_queue_that_is_somebody_else_s() {
    let queue = unique_queue("differing");
    let client = shared_broker().client();
    client.declare(&queue);
    client.declare(&format!("{queue}.retry.20000"));

    let checked = queuectl(&queue, &["check"]);

    checked.assert_code(2);
    let stdout = checked.stdout();
    let last = stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("FAIL  retry"), "{stdout}");
    assert!(last.contains(&format!("'{queue}.retry.20000'")), "{stdout}");
}

#[test]
fn check_is_content_with_delay_queues_of_our_own() {
    let queue = unique_queue("own-delays");
    let url = shared_broker().url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new(&queue));
    for delay in (1..=4).map(|failures| RetryPolicy::new().delay_after(failures)) {
        producer.publish(Task::new("").with_delay(delay)).expect("confirmed");
    }

    queuectl(&queue, &["check"]).assert_code(0);
}

#[test]
fn status_serves_a_login_that_may_only_read() {
    let broker = breakable_broker();
    let queue = unique_queue("looked-at");
    let url = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new(&queue));
    let delay = RetryPolicy::new().delay_after(4);
    producer.publish(Task::new("").with_delay(delay)).expect("confirmed");
    broker.ctl(&["add_user", "looker", "s3cret"]);
    broker.ctl(&["set_permissions", "looker", "^$", "^$", ".*"]);
    let url = format!("amqp://looker:s3cret@{}", broker.address());

    let seen = Command::queuectl(&["--url", &url, "--queue", &queue, "status", "--json"]).run(SOON);
    broker.ctl(&["delete_user", "looker"]);

    let status = json(&seen);
    assert_eq!((&status["ready"], &status["retry"]), (&0.into(), &1.into()));
}

#[test]
fn a_drain_of_a_login_that_may_not_read_delay_queues_is_left_with_their_counts() {
    let broker = breakable_broker();
    let queue = unique_queue("unread");
    let url = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new(&queue));
    producer.publish(Task::new("").with_delay(Duration::from_secs(2))).expect("confirmed");
    broker.ctl(&["add_user", "drainer", "s3cret"]);
    broker.ctl(&["set_permissions", "drainer", ".*", ".*", &format!("^{queue}$")]);
    let url = format!("amqp://drainer:s3cret@{}", broker.address());
    let worker = Command::worker(&["--url", &url, "--queue", &queue, "--drain", "--json"]);

    let drained = worker.args(&["--", "true"]).run(SOON);
    broker.ctl(&["delete_user", "drainer"]);

    drained.assert_code(0);
    assert_eq!(json(&drained)["done"], 1);
}

#[test]
fn the_longest_name_serves_everywhere_and_a_longer_one_is_reported() {
    let longest = format!("{:x<238}", unique_queue("long"));
    let longer = format!("{longest}x");
    let client = shared_broker().client();
    client.declare(&longest);
    client.declare(&longer);

    queuectl(&longest, &["status"]).assert_code(0);
    queuectl(&longest, &["check"]).assert_code(0);
    queuectl(&longest, &["dead", "list"]).assert_code(0);
    queuectl(&longest, &["dead", "replay"]).assert_code(0);

    let commands: [&[&str]; 4] =
        [&["status"], &["dead", "list"], &["dead", "replay"], &["dead", "purge", "--yes"]];
    for command in commands {
        let refused = queuectl(&longer, command);
        refused.assert_code(2);
        let stderr = refused.stderr();
        assert!(stderr.contains("may have 238 bytes at most"), "{stderr}");
    }
    let checked = queuectl(&longer, &["check"]);
    checked.assert_code(2);
    let stdout = checked.stdout();
    let last = stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("FAIL  dead") && last.contains("238 bytes at most"), "{stdout}");
}

#[test]
fn status_and_check_name_the_type_of_a_quorum_queue() {
    let queue = unique_queue("typed");
    let classic = unique_queue("untyped");
    let quorum = ["--queue-type", "quorum"];
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    Command::producer(&[&to[..], &quorum, &["1"]].concat()).run(SOON).assert_code(0);
    shared_broker().client().declare_classic(&classic);

    let right = queuectl(&queue, &[&quorum[..], &["check"]].concat());
    let status = queuectl(&queue, &["status", "--json"]);
    let known = queuectl(&queue, &[&quorum[..], &["status"]].concat());
    let plain = queuectl(&classic, &["status"]);

    right.assert_code(0);
    assert!(right.stdout().contains("a quorum queue"), "{}", right.stdout());
    assert_eq!(json(&status)["type"], "quorum");
    assert!(
        known.success().contains("type       quorum\n") && known.stderr.is_empty(),
        "{known:?}"
    );
    assert!(
        plain.success().contains("type       classic\n") && plain.stderr.is_empty(),
        "{plain:?}"
    );
}

/// As a worker, which declares it the same way there.
#[test]
fn check_takes_a_quorum_queue_that_was_made_by_the_default_of_its_virtual_host() {
    let broker = breakable_broker();
    let vhost = Vhost::with_default(&broker, "quorum");
    let url = vhost.url();
    let to = ["--url", &url, "--queue", "q"];
    let produced = Command::producer(&to).arg("x").run(SOON);

    let checked = Command::queuectl(&to).arg("check").run(SOON);

    produced.assert_code(0);
    assert!(checked.success().contains("a quorum queue"), "{checked:?}");
}

#[test]
fn check_warns_of_tasks_that_wait_with_no_consumer() {
    let queue = unique_queue("unworked");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let idle = queuectl(&queue, &["check"]).success();
    client.publish_ids(&queue, ["1", "2"]);
    let waiting = queuectl(&queue, &["check"]).success();

    assert!(!idle.contains("warn"), "{idle}");
    let last = waiting.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("warn  workers") && last.contains("2 ready, and no consumer"),
        "{waiting}"
    );
    assert!(client.get_all(&queue).iter().all(|it| !it.redelivered));
}

/// A broker with one dead letter, or as many as are asked for, that does what `odd` says.
fn broker_with_letters(
    odd: impl Fn(&mut Session, &Method) -> bool + Send + Sync + 'static,
) -> ScriptedBroker {
    ScriptedBroker::start(move |session, _| {
        session.handshake();
        while let Some(came) = session.next_method() {
            if odd(session, &came) {
                return;
            }
            if matches!(came.call, Call::Get { .. }) {
                let got = Arguments::default().u64(1).u8(0).short("").short("q.dead").u32(0);
                let got = Frame::method(came.channel, 60, 71, got);
                session.raw(&content(&got, &[0, 0], b"x", 0));
            } else {
                session.serve_method(came);
            }
        }
    })
}

/// Whether the session ends at this.
type End = fn(&Call) -> bool;

fn end_at(wanted: End) -> ScriptedBroker {
    broker_with_letters(move |session, came| {
        if wanted(&came.call) {
            session.hang_up();
            return true;
        }
        false
    })
}

#[test]
fn what_is_asked_for_and_not_answered_may_still_happen() {
    let is_purge = |call: &Call| matches!(call, Call::QueuePurge { .. });
    let is_end = |call: &Call| matches!(call, Call::ChannelClose { .. } | Call::Nack { .. });
    let cases: [(&str, End); 4] = [
        ("purge --yes", is_purge),
        ("dead purge --yes", is_purge),
        ("dead purge --yes --limit 1", is_end),
        ("dead replay --limit 1", is_end),
    ];
    for (deed, wanted) in cases {
        let broker = end_at(wanted);
        let url = broker.url();
        let deed: Vec<&str> = deed.split(' ').collect();
        let output =
            Command::queuectl(&[&["--url", &url, "--queue", "q"], &deed[..]].concat()).run(SOON);

        output.assert_code(69);
        assert!(output.stderr().contains("it may still happen"), "{deed:?}: {}", output.stderr());
    }
}

#[test]
fn what_was_never_asked_for_will_not_happen() {
    let broker = end_at(|call| matches!(call, Call::ChannelOpen));
    let url = broker.url();
    let output = Command::queuectl(&["--url", &url, "--queue", "q", "purge", "--yes"]).run(SOON);

    output.assert_code(69);
    assert!(!output.stderr().contains("may still happen"), "{}", output.stderr());
}

/// Without a majority of its nodes a quorum queue is counted and declared as ever, and does
/// nothing (RabbitMQ 3.10.8, two nodes of three killed).
#[test]
fn check_finds_a_quorum_queue_that_does_nothing() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        while let Some(came) = session.next_method() {
            match &came.call {
                Call::Consume { .. } | Call::Get { .. } => {}
                Call::QueueDeclare { arguments, .. }
                    if arguments.iter().any(|(_, it)| *it == Field::text("classic")) =>
                {
                    let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' \
                                in vhost '/': received 'classic' but current is 'quorum'";
                    session.close_channel(came.channel, 406, text);
                }
                _ => drop(session.answer(&came)),
            }
        }
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let url = url.call_timeout(Duration::from_secs(1));
    let checks = Inspector::new(&url, &Queue::new("q").queue_type(QueueType::Quorum)).check();

    let last = checks.last().expect("a check");
    let error = last.result.as_ref().expect_err("it fails");
    assert_eq!(last.name, "queue");
    assert!(error.is_transient() && error.chain().contains("leader"), "{}", error.chain());
}

#[test]
fn the_options_of_a_subcommand_stand_together_and_first() {
    let filter = ["--reason", "--older", "--since", "--correlation-id", "--ids-from", "--id"];
    for (command, own) in [
        (&["dead", "list"][..], [&filter[..], &["--limit", "--json"]].concat()),
        (&["dead", "replay"], [&filter[..], &["--limit", "--dry-run"]].concat()),
        (&["status"], vec!["--json", "--watch"]),
        (&["purge"], vec!["--retry", "--yes"]),
        (&["delete"], vec!["--yes"]),
    ] {
        let help = Command::queuectl(&[command, &["--help"]].concat()).run(SOON).success();
        let options = help.lines().filter_map(|line| line.trim_start().split(['<', ' ']).next());
        let options: Vec<&str> = options.filter(|it| it.starts_with("--")).collect();
        assert_eq!(options[..own.len()], own, "{help}");
        assert!(help.contains("\nExit status:\n") && help.contains("\nExample:\n"), "{help}");
        let place = |name: &str| options.iter().position(|it| *it == name).expect("an option");
        assert!(place("--queue") < place("--no-declare") && place("--no-declare") < place("--url"));
    }
}
