//! Brokers that send nonsense on the first connection and behave on the next: no crash, no hang,
//! and nothing counts as done or confirmed that is not. A seed draws the nonsense.

mod unasked;

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;

use self::unasked::unasked;
use crate::support::command::{Command, Output};
use crate::support::scripted::{Consumer, Damage, Event, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery, Publish};

const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Producer,
    Worker,
}

const PROGRAMS: [Program; 2] = [Program::Producer, Program::Worker];

impl Program {
    /// One task; without the broker's heartbeats it knows in 2 s that no answer will come.
    fn command(self, broker: &ScriptedBroker) -> Command {
        let url = format!("amqp://guest:guest@{}?heartbeat=1", broker.address());
        match self {
            Program::Producer => Command::producer(&["--url", &url, "--json", "task"]),
            Program::Worker => Command::worker(&["--url", &url, "--json"]).args(&[
                "--threads",
                "1",
                "--max-tasks",
                "1",
            ]),
        }
    }
}

#[derive(Clone)]
enum Nonsense {
    /// These bytes, named, when so many methods of the client were taken, ahead of the answer.
    Unasked(usize, &'static str, Vec<u8>),
    /// The answer to this method twice.
    Twice(usize),
    Damaged(Damage),
}

impl Nonsense {
    fn name(&self) -> String {
        match self {
            Nonsense::Unasked(at, name, _) => format!("{name}, after {at} methods"),
            Nonsense::Twice(at) => format!("the answer to method {at} twice"),
            Nonsense::Damaged(damage) => format!("{damage:?}"),
        }
    }

    fn talk(&self, session: &mut Session) {
        match self {
            Nonsense::Unasked(0, _, bytes) => session.raw(bytes),
            Nonsense::Damaged(damage) => session.damage(*damage),
            _ => {}
        }
        let mut taken = 0;
        session.serve_but(|session, method| {
            taken += 1;
            match self {
                Nonsense::Unasked(at, _, bytes) if *at == taken => session.raw(bytes),
                Nonsense::Twice(at) if *at == taken => session.serve_method(method.clone()),
                _ => {}
            }
        });
    }
}

/// From the start-ok to the publish or the ack.
const METHODS: usize = 8;

/// So many of the cases, drawn by the seed that the environment gives.
fn drawn<T>(mut cases: Vec<T>, count: usize) -> Vec<T> {
    random().shuffle(&mut cases);
    cases.truncate(count);
    cases
}

fn random() -> Rng {
    Rng::with_seed(match std::env::var("RW_TEST_SEED") {
        Ok(text) => text.parse().expect("RW_TEST_SEED is a number"),
        Err(_) => 1,
    })
}

/// The client library's own thread dies where the nonsense that ends the connection comes to it
/// together with our first request (amiquip 0.4.2 io_loop/mod.rs:452). That is replaced, too.
const KNOWN_PANIC: &str = "ch0 slot cannot be readable after it is dropped";

/// Talks the nonsense to the program on its first connection, and judges how it ends.
fn recovers(program: Program, nonsense: &Nonsense) {
    let broker = ScriptedBroker::start({
        let nonsense = nonsense.clone();
        move |session, number| match number {
            0 => nonsense.talk(session),
            _ => session.serve(),
        }
    });

    let output = program.command(&broker).run(SOON);

    let case = format!("{program:?}, {}: {output:?}", nonsense.name());
    let stderr = output.stderr();
    let panicked = stderr.contains("panicked") && !stderr.contains(KNOWN_PANIC);
    assert!(!panicked && !stderr.contains("overflowed"), "{case}");
    // A task that was begun counts for --max-tasks, also when it could not be acked.
    let in_doubt = u64::from(stderr.contains(" 1 may run twice,"));
    // A broker that names no way to log in that we know will name none the next time.
    let lasting = stderr.contains("takes no login by");
    let code = if lasting { 2 } else { i32::from(in_doubt > 0) };
    assert_eq!((output.code, output.signal), (Some(code), None), "{case}");
    if lasting {
        return;
    }
    let settled = match program {
        Program::Producer => count_of(&output, "confirmed"),
        Program::Worker => in_doubt + count_of(&output, "done"),
    };
    assert_eq!(settled, 1, "{case}");
    // An ack that is on its way when the connection dies counts, and it is said that it may not.
    let warned = stderr.contains("the last acks may not have arrived");
    if count_of(&output, "done") + count_of(&output, "confirmed") > 0 && !warned {
        broker.wait_for(SOON, |event| *event == Event::Reported("settled".into()));
    }
}

fn count_of(output: &Output, count: &str) -> u64 {
    let stdout = output.stdout();
    let summary = stdout.lines().last().expect("a summary");
    let summary: Value = serde_json::from_str(summary).expect("a summary");
    summary[count].as_u64().unwrap_or(0)
}

/// As many at a time as a small machine can bear.
fn sweep(cases: Vec<(Program, Nonsense)>) {
    let cases = Mutex::new(cases.into_iter());
    thread::scope(|scope| {
        for _ in 0..SWEEPERS {
            scope.spawn(|| {
                loop {
                    let next = cases.lock().expect("not poisoned").next();
                    let Some((program, nonsense)) = next else { return };
                    recovers(program, &nonsense);
                }
            });
        }
    });
}

/// Each of them mostly waits for a backoff.
const SWEEPERS: usize = 32;

#[test]
fn what_nobody_asked_for_costs_a_session_and_no_more() {
    let mut cases = Vec::new();
    for program in PROGRAMS {
        for at in 0..=METHODS {
            let unasked = unasked().into_iter();
            cases.extend(unasked.map(|(name, it)| (program, Nonsense::Unasked(at, name, it))));
        }
    }
    let twice = |program| (1..=METHODS).map(move |at| (program, Nonsense::Twice(at)));

    let mut cases = drawn(cases, 180);
    cases.extend(PROGRAMS.into_iter().flat_map(twice));
    sweep(cases);
}

/// How many bytes a broker sends to a program that does its one task.
fn length(program: Program) -> usize {
    let broker = ScriptedBroker::start(|session, _| {
        session.serve();
        session.report(format!("sent {}", session.sent()));
    });
    program.command(&broker).run(SOON).assert_code(0);
    let length = |event: &Event| match event {
        Event::Reported(text) => text.strip_prefix("sent ")?.parse().ok(),
        _ => None,
    };
    length(&broker.wait_for(SOON, |event| length(event).is_some())).expect("a length")
}

/// Every so many bytes one is damaged, or it would take minutes.
const STEP: usize = 5;

#[test]
fn a_damaged_byte_costs_a_session_and_no_more() {
    let mut random = random();
    let mut cases = Vec::new();
    for program in PROGRAMS {
        for position in (random.usize(..STEP)..length(program)).step_by(STEP) {
            let damage = Damage { position, bits: 1 << random.u8(..8) };
            cases.push((program, Nonsense::Damaged(damage)));
        }
    }

    sweep(cases);
}

/// Held, they would fill the memory without a limit.
#[test]
fn more_deliveries_than_the_prefetch_allows_end_the_session() {
    let flood = |session: &mut Session, consumer: &Consumer| {
        let deliveries = (1..).map(|tag| Delivery::new(consumer.channel, &consumer.tag, tag));
        let body = [&b"..."[..], &[b'x'; 100_000]].concat();
        for delivery in deliveries.take(2000) {
            session.deliver(&delivery.body(body.clone()));
        }
    };
    for prefetch in ["1", "10"] {
        let broker = ScriptedBroker::start(move |session, number| {
            session.handshake();
            let consumer = session.accept_consumer();
            match number {
                0 => flood(session, &consumer),
                _ => session.deliver(&Delivery::new(consumer.channel, &consumer.tag, 1).body("x")),
            }
            let _ = session.answer_rpcs();
        });
        let arguments = ["--url", &broker.url(), "--threads", "1", "--prefetch", prefetch];

        let running = Command::worker(&arguments).start();
        let line = running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
        running.wait_for_stdout_line(|line| line == " [x] Received 'x'", SOON);

        let told = format!("sent more deliveries than the prefetch of {prefetch} allows");
        assert!(line.contains(&told), "{line}");
        // With a prefetch of 1, nobody looks before the first task has ended.
        let is_bounded = prefetch == "1" || running.peak_memory() < 100 << 20;
        assert!(is_bounded, "{}", running.peak_memory());
        running.signal("INT");
        running.signal("INT");
        let _ = running.wait(SOON);
    }
}

#[test]
fn the_first_word_on_a_task_counts_and_none_on_another() {
    let table: [(&str, Vec<Answer>); 5] = [
        ("unconfirmed", vec![ack_another]),
        ("unconfirmed", vec![nack_another]),
        ("confirmed", vec![ack, ack, nack]),
        ("returned", vec![give_back, ack]),
        ("returned", vec![give_back, give_back, ack]),
    ];

    let started = table.map(|(outcome, answers)| {
        let broker = ScriptedBroker::start(move |session, _| {
            // At its timeout it leaves wherever it is.
            session.serve_but(|session, method| {
                if let Call::Publish(publish) = &method.call {
                    answers.iter().for_each(|answer| answer(session, publish));
                }
            });
        });
        let arguments = ["--url", &broker.url(), "--timeout", "4s", "--json", "task"];
        (outcome, Command::producer(&arguments).start(), broker)
    });

    for (outcome, running, _broker) in started {
        let output = running.wait(SOON);
        assert_eq!(count_of(&output, outcome), 1, "{output:?}");
        let objected = output.stderr().contains("the broker confirmed what was not published");
        assert_eq!(objected, outcome == "unconfirmed", "{output:?}");
    }
}

type Answer = fn(&mut Session, &Publish);

fn ack(session: &mut Session, publish: &Publish) {
    session.ack(publish.channel, 1);
}

fn nack(session: &mut Session, publish: &Publish) {
    session.nack(publish.channel, 1);
}

/// Of those before the first there is none, of those behind it none yet.
fn ack_another(session: &mut Session, publish: &Publish) {
    session.ack(publish.channel, 0);
    session.ack(publish.channel, 7);
}

fn nack_another(session: &mut Session, publish: &Publish) {
    session.nack(publish.channel, 0);
    session.nack(publish.channel, 7);
}

fn give_back(session: &mut Session, publish: &Publish) {
    session.return_message(publish, 312, "NO_ROUTE");
}
