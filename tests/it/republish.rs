//! Kills, cuts and stops while tasks or dead letters are republished: by ledger, none is lost.

use std::net::SocketAddr;
use std::slice::from_ref;
use std::time::{Duration, Instant};

use amiquip::AmqpValue;
use rabbit_work::{
    Broker, DeadLetterFilter, DeadLetters, Outcome, Producer, Queue, QueueType, Task,
};
use tempfile::TempDir;

use crate::child::{AtTheEnd, LedgerWorker};
use crate::support::broker::{breakable_broker, poll, shared_broker};
use crate::support::client::{Client, unique_queue};
use crate::support::command::Command;
use crate::support::ledger::Ledger;
use crate::support::proxy::{Direction, Proxy, Toxic};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
/// After a crash, RabbitMQ may move delayed tasks back minutes late (docs/failures.md).
const DRAIN: Duration = Duration::from_secs(300);

/// A queue of tasks that fail, and their ledger.
struct Failing {
    url: String,
    queue: String,
    kind: QueueType,
    ledger: Ledger,
    _dir: TempDir,
}

impl Failing {
    /// Every tenth task fails always, the others at their first two attempts of three.
    fn publish(url: &str, kind: QueueType, count: usize) -> Failing {
        let queue = unique_queue("handed-over");
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::open(&dir.path().join("ledger"));
        let broker: Broker = url.parse().expect("a URL");
        let mut producer = Producer::new(&broker, &Queue::new(&queue).queue_type(kind));
        let mut receipts = Vec::new();
        for number in 0..count {
            let kind = if number % 10 == 0 { "dead" } else { "done" };
            let id = format!("{number}-{kind}");
            ledger.attempted(&id);
            receipts.extend(producer.send(Task::new(id.clone()).with_id(id)));
        }
        receipts.extend(producer.flush());
        for receipt in receipts {
            assert_eq!(receipt.outcome, Outcome::Confirmed);
            ledger.confirmed(receipt.task.id().expect("an id"));
        }
        Failing { url: url.into(), queue, kind, ledger, _dir: dir }
    }

    /// A worker that reaches the broker in this way.
    fn worker(&self, url: &str) -> Command {
        let worker = LedgerWorker {
            url,
            queue: &self.queue,
            ledger: self.ledger.path(),
            threads: 4,
            prefetch: 20,
            task: Duration::from_millis(2),
            at_the_end: AtTheEnd::Return,
        };
        let command = worker.command().env("IT_ATTEMPTS", "3");
        match self.kind {
            QueueType::Quorum => command.env("IT_QUORUM", "1"),
            _ => command,
        }
    }

    fn started(&self) -> usize {
        self.ledger.records().started.values().sum()
    }

    /// Drains what is left, and judges: nothing lost, and each task where it belongs.
    fn judge(&self) {
        let drained = self.worker(&self.url).env("IT_DRAIN", "1").run(DRAIN);
        drained.assert_code(0);
        let letters = Client::connect(&self.url).get_all(&dead(&self.queue));
        let ids: Vec<String> = letters.iter().filter_map(|it| it.message_id.clone()).collect();
        for letter in &letters {
            let attempts = &letter.headers["x-rabbit-work-attempts"];
            assert_eq!(*attempts, AmqpValue::LongLongInt(3), "{:?}", letter.message_id);
        }
        assert!(ids.iter().all(|id| id.ends_with("dead")), "{ids:?}");
        let verdict = self.ledger.verdict(&ids);
        assert!(verdict.is_valid(), "{verdict}");
        assert!(verdict.finished.iter().all(|id| id.ends_with("done")), "{verdict}");
    }
}

/// Waits until so many more tasks were started, on whichever queue.
fn wait_for_more(failing: &[Failing], more: usize) {
    let started = || failing.iter().map(Failing::started).sum::<usize>();
    let wanted = started() + more;
    poll("a worker goes on", LONG, || (started() >= wanted).then_some(()));
}

fn dead(queue: &str) -> String {
    format!("{queue}.dead")
}

#[test]
fn killed_in_the_middle_of_hand_overs_a_worker_loses_nothing() {
    let failing = Failing::publish(shared_broker().url(), QueueType::Classic, 400);
    for round in 0..6 {
        let running = failing.worker(&failing.url).start();
        wait_for_more(from_ref(&failing), 20 + 17 * round);
        running.kill();
        running.wait(SOON);
    }
    failing.judge();
}

#[test]
fn cut_connections_in_the_middle_of_hand_overs_lose_nothing() {
    for kind in [QueueType::Classic, QueueType::Quorum] {
        let failing = Failing::publish(shared_broker().url(), kind, 400);
        let proxy = Proxy::start(shared_broker().address());
        let running = failing.worker(&proxy.url()).start();
        for round in 0..5 {
            wait_for_more(from_ref(&failing), 15 + 23 * round);
            proxy.cut();
        }
        running.signal("INT");
        running.wait(SOON).assert_code(0);
        failing.judge();
    }
}

/// Closed in order, the connection of the hand-overs would be waited for after the consumers.
#[test]
fn a_second_signal_in_a_blackhole_ends_a_worker_within_2_s_also_after_a_hand_over() {
    let failing = Failing::publish(shared_broker().url(), QueueType::Classic, 1);
    let proxy = Proxy::start(shared_broker().address());
    let arguments = ["--url", &proxy.url(), "--queue", &failing.queue, "--threads", "2"];
    let command =
        Command::worker(&arguments).args(&["--max-attempts", "1", "--events", "/dev/stdout"]);
    let running = command.args(&["--", "false"]).start();
    running.wait_for_stdout_line(|line| line.contains("\"dead\""), SOON);

    proxy.set_both(Toxic::Timeout);
    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    let begun = Instant::now();
    running.signal("INT");
    let output = running.wait(SOON);

    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    output.assert_code(130);
}

#[test]
fn a_broker_killed_in_the_middle_of_hand_overs_loses_nothing() {
    let broker = breakable_broker();
    let quorum = Failing::publish(broker.url(), QueueType::Quorum, 800);
    let classic = Failing::publish(broker.url(), QueueType::Classic, 300);
    let on_quorum = quorum.worker(broker.url()).start();
    // A quorum queue that is new when its broker is killed may never have a leader again. Without
    // the dead letters nothing ends; around the delay queues, which are new here, there is a way.
    let (mut client, letters) = (broker.client(), dead(&quorum.queue));
    poll("the queue of dead letters is no new one", LONG, || {
        (client.has(&letters) && client.count(&letters) > 0).then_some(())
    });
    let running = [on_quorum, classic.worker(broker.url()).start()];
    let both = [quorum, classic];
    for _ in 0..3 {
        wait_for_more(&both, 100);
        broker.kill();
        broker.restart();
    }
    wait_for_more(&both, 1);
    for (failing, running) in both.iter().zip(running) {
        running.signal("INT");
        running.wait(SOON).assert_code(0);
        failing.judge();
    }
}

#[test]
fn a_replay_killed_at_any_moment_loses_nothing() {
    let queue = unique_queue("replayed");
    let count = 300;
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.declare(&dead(&queue));
    let ids: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    client.publish_ids(&dead(&queue), ids.iter().map(String::as_str));
    let to = ["--url", shared_broker().url(), "--queue", &queue, "dead", "replay"];
    for round in 0..8 {
        let running = Command::queuectl(&to).start();
        let wanted = client.count(&queue) + 10 * round;
        poll("some are replayed", SOON, || {
            (client.count(&queue) >= wanted.min(count)).then_some(())
        });
        running.kill();
        running.wait(SOON);
    }
    poll("a last replay goes through", SOON, || {
        Command::queuectl(&to).run(SOON).assert_code(0);
        (client.count(&dead(&queue)) == 0).then_some(())
    });
    let mut found: Vec<String> =
        client.get_all(&queue).into_iter().filter_map(|it| it.message_id).collect();
    let twice = found.len() as u32 - count;
    found.sort();
    found.dedup();
    assert_eq!(found.len() as u32, count);
    assert!(twice <= 8, "{twice} in both places after 8 kills");
    let broker = shared_broker().url().parse().expect("a URL");
    let letters = DeadLetters::new(&broker, &Queue::new(&queue));
    let left = letters.for_each(&DeadLetterFilter::all(), |letter| panic!("{letter:?} is left"));
    assert_eq!(left.expect("a look"), Vec::<String>::new());
}

#[test]
fn connections_cut_in_the_middle_of_a_replay_lose_no_letter() {
    let broker = shared_broker();
    let cut: &dyn Fn(&Proxy) = &Proxy::cut;
    let twice = replay_under(broker.url(), broker.address(), &[cut; 4]);
    assert!(twice <= 4, "{twice} in both places after 4 cuts");
}

#[test]
fn a_broker_stopped_or_killed_in_the_middle_of_a_replay_loses_no_letter() {
    let broker = breakable_broker();
    // A stop in good order writes down what was acked and forgets what is not persistent; a kill
    // may forget any ack, and leave any letter in both places.
    let stop = |_: &Proxy| {
        broker.stop_app();
        broker.start_app();
    };
    let kill = |_: &Proxy| {
        broker.kill();
        broker.restart();
    };
    replay_under(broker.url(), broker.address(), &[&stop, &kill]);
}

/// Replays, each time with one of these faults in the middle; and then without, to the end. Says
/// of how many tasks there are several, which are at most two more of each for a fault.
fn replay_under(url: &str, broker: SocketAddr, faults: &[&dyn Fn(&Proxy)]) -> usize {
    let queue = unique_queue("replay");
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open(&dir.path().join("ledger"));
    letters(&ledger, &mut Client::connect(url), &queue, 1000);
    let proxy = Proxy::start(broker);
    // So slow that there is a middle.
    proxy.set(Direction::ToClient, Toxic::Latency(Duration::from_millis(3)));
    let through = proxy.url();
    let replay = ["--url", &through, "--queue", &queue, "dead", "replay"];

    for fault in faults {
        let running = Command::queuectl(&replay).start();
        let client = Client::connect(url);
        let before = client.count(&queue);
        poll("some are replayed", SOON, || (client.count(&queue) >= before + 30).then_some(()));
        drop(client);
        fault(&proxy);
        let output = running.wait(LONG);
        assert!(matches!(output.code, Some(1 | 69)), "{output:?}");
        let client = Client::connect(url);
        poll("letters are left", SOON, || (client.count(&dead(&queue)) > 0).then_some(()));
    }
    let client = Client::connect(url);
    poll("a last replay goes through", LONG, || {
        let to = ["--url", url, "--queue", &queue, "dead", "replay"];
        Command::queuectl(&to).run(LONG).assert_code(0);
        (client.count(&dead(&queue)) == 0).then_some(())
    });

    let found = client.get_all(&queue).into_iter().filter_map(|it| it.message_id);
    let found: Vec<String> = found.collect();
    client.delete(&queue);
    let verdict = ledger.verdict(&found);
    assert!(verdict.is_valid(), "{verdict}");
    let copies = |id: &String| found.iter().filter(|it| *it == id).count();
    // The publish whose confirm was lost, its repetition, and the letter that is still there.
    let most = 1 + 2 * faults.len();
    let beyond: Vec<_> = verdict.confirmed.iter().filter(|id| copies(id) > most).collect();
    assert!(beyond.is_empty(), "more than {most} of {beyond:?}");
    verdict.confirmed.iter().filter(|id| copies(id) > 1).count()
}

fn letters(ledger: &Ledger, client: &mut Client, queue: &str, count: usize) {
    let ids: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    ids.iter().for_each(|id| ledger.attempted(id));
    client.declare(queue);
    client.declare(&dead(queue));
    client.publish_ids(&dead(queue), ids.iter().map(String::as_str));
    ids.iter().for_each(|id| ledger.confirmed(id));
}
