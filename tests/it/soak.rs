//! The soak: producers and workers under random faults, and the verdict. Some tasks fail once, some
//! always. `scripts/soak.sh` runs it. The same seed gives the same sequence of faults.

use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amiquip::AmqpValue;
use crossbeam_channel::tick;
use fastrand::Rng;
use rabbit_work::{Broker, Outcome, Producer, Queue, Task};

use crate::child::{AtTheEnd, LedgerWorker};
use crate::support::broker::PrivateBroker;
use crate::support::client::{Message, unique_queue};
use crate::support::command::Running;
use crate::support::ledger::{Ids, Ledger, Verdict};
use crate::support::proxy::{Proxy, Toxic};

const PRODUCERS: usize = 2;
const WORKERS: usize = 3;
const THREADS: usize = 2;
const PREFETCH: u16 = 10;
const BATCH: usize = 50;
/// How often a producer begins a batch at the most, so that what waits at the end is worked soon.
const PACE: Duration = Duration::from_millis(300);
/// Longer than any fault and the backoff after it.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longer than a quorum queue takes to tell what it holds, and than a task is between two queues.
const QUIET: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillWorker,
    ResetWorkers,
    ResetProducers,
    BlackholeWorkers,
    BlackholeProducers,
    Alarm,
    FreezeBroker,
    RestartBroker,
    KillBroker,
    DeleteEmptyQueue,
}

/// As likely as they stand here; those that take long are rare.
const FAULTS: [Fault; 14] = [
    Fault::KillWorker,
    Fault::KillWorker,
    Fault::KillWorker,
    Fault::ResetWorkers,
    Fault::ResetWorkers,
    Fault::ResetProducers,
    Fault::ResetProducers,
    Fault::BlackholeWorkers,
    Fault::BlackholeProducers,
    Fault::Alarm,
    Fault::FreezeBroker,
    Fault::RestartBroker,
    Fault::KillBroker,
    Fault::DeleteEmptyQueue,
];

#[test]
#[ignore = "scripts/soak.sh runs it, for as long as its variables say"]
fn soak() {
    let minutes: f64 = variable("SOAK_MINUTES", 1.0);
    let seed: u64 = variable("SOAK_SEED", 1);
    let mut soak = Soak::start(seed);

    let end = soak.begun + Duration::from_secs_f64(minutes * 60.0);
    let mut faults = 0;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(soak.random.u64(500..3000)));
        let fault = FAULTS[soak.random.usize(..FAULTS.len())];
        soak.strike(fault);
        faults += 1;
    }

    let (verdict, letters) = soak.finish();
    let bound = faults * (WORKERS * THREADS * usize::from(PREFETCH) + PRODUCERS * BATCH);
    let dead = letters.len();
    println!("seed={seed} minutes={minutes} faults={faults} {verdict} dead={dead}");
    assert!(verdict.is_valid(), "something was lost, or came from nowhere");
    assert_eq!(verdict.confirmed, verdict.attempted, "nothing is left in doubt");
    assert!(verdict.duplicated.len() <= bound, "{} duplicated", verdict.duplicated.len());
    let (doomed, others): (Ids, Ids) =
        verdict.attempted.iter().cloned().partition(|id| id.ends_with("dead"));
    assert_eq!(&verdict.finished ^ &others, Ids::new(), "done is all but what always fails");
    assert_eq!(&letters ^ &doomed, Ids::new(), "dead letters are all that, and nothing else");
}

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

struct Soak {
    begun: Instant,
    random: Rng,
    broker: PrivateBroker,
    queue: String,
    to_workers: Proxy,
    to_producers: Proxy,
    /// Held by a producer during a batch: whoever holds it knows that nothing is in flight.
    turn: Arc<Mutex<()>>,
    done: Arc<AtomicBool>,
    producers: Vec<JoinHandle<()>>,
    workers: Vec<Running>,
    dir: tempfile::TempDir,
}

impl Soak {
    fn start(seed: u64) -> Soak {
        let broker = PrivateBroker::start();
        let queue = unique_queue("soak");
        broker.client().declare(&queue);
        let mut soak = Soak {
            begun: Instant::now(),
            random: Rng::with_seed(seed),
            to_workers: Proxy::start(broker.address()),
            to_producers: Proxy::start(broker.address()),
            broker,
            queue,
            turn: Arc::new(Mutex::new(())),
            done: Arc::new(AtomicBool::new(false)),
            producers: Vec::new(),
            workers: Vec::new(),
            dir: tempfile::tempdir().expect("a directory"),
        };
        soak.producers = (0..PRODUCERS).map(|number| soak.start_producer(number)).collect();
        soak.workers = (0..WORKERS).map(|number| soak.start_worker(number)).collect();
        soak
    }

    fn ledger(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    /// The first has a command for each task, the others a handler.
    fn start_worker(&self, number: usize) -> Running {
        let url = format!("{}?heartbeat=2", self.to_workers.url());
        let worker = LedgerWorker {
            url: &url,
            queue: &self.queue,
            ledger: &self.ledger(),
            threads: THREADS,
            prefetch: PREFETCH,
            task: Duration::from_millis(1),
            at_the_end: AtTheEnd::Return,
        };
        match number {
            0 => worker.with_command_per_task().start(),
            _ => worker.command().start(),
        }
    }

    fn start_producer(&self, number: usize) -> JoinHandle<()> {
        let broker: Broker = self.to_producers.url().parse().expect("the proxy's URL is one");
        let broker = broker.heartbeat(Duration::from_secs(2));
        let ledger = Ledger::open(&self.ledger());
        let (queue, turn, done) =
            (Queue::new(&self.queue), Arc::clone(&self.turn), Arc::clone(&self.done));
        thread::spawn(move || {
            let mut producer = Producer::new(&broker, &queue).timeout(PATIENCE);
            let pace = tick(PACE);
            for batch in 0.. {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                let _ = pace.recv();
                let _turn = turn.lock().expect("the other producer does not panic");
                publish(&mut producer, &ledger, &format!("{number}.{batch}"));
            }
        })
    }

    fn strike(&mut self, fault: Fault) {
        let pause = Duration::from_millis(self.random.u64(1000..6000));
        let chosen = self.random.usize(..WORKERS);
        println!("{:7.1} s {fault:?}", self.begun.elapsed().as_secs_f64());
        match fault {
            Fault::KillWorker => {
                self.workers[chosen].kill();
                self.workers[chosen] = self.start_worker(chosen);
            }
            Fault::ResetWorkers => reset(&self.to_workers),
            Fault::ResetProducers => reset(&self.to_producers),
            Fault::BlackholeWorkers => blackhole(&self.to_workers, pause),
            Fault::BlackholeProducers => blackhole(&self.to_producers, pause),
            Fault::Alarm => {
                self.broker.alarm();
                thread::sleep(pause);
                self.broker.clear_alarm();
            }
            Fault::FreezeBroker => {
                self.broker.stop();
                thread::sleep(pause);
                self.broker.resume();
            }
            Fault::RestartBroker => {
                self.broker.stop_app();
                self.broker.start_app();
            }
            Fault::KillBroker => {
                self.broker.kill();
                self.broker.restart();
            }
            Fault::DeleteEmptyQueue => self.delete_when_empty(),
        }
    }

    /// The workers have to notice, and declare it again; so has the next to publish.
    fn delete_when_empty(&self) {
        let _turn = self.turn.lock().expect("no producer panics");
        self.wait_until_quiet();
        let client = self.broker.client();
        client.delete(&self.queue);
        client.declare(&self.queue);
    }

    /// Waits until nothing is on its way, neither in the queue nor in its delay queues.
    fn wait_until_quiet(&self) {
        let delays = format!("{}.retry.", self.queue);
        let is_on_the_way = |name: &str| name == self.queue || name.starts_with(&delays);
        self.broker.wait_until_quiet(is_on_the_way, QUIET, PATIENCE);
    }

    /// Gives the verdict, and which tasks are dead letters.
    fn finish(mut self) -> (Verdict, Ids) {
        self.done.store(true, Ordering::SeqCst);
        for producer in self.producers.drain(..) {
            producer.join().expect("no producer panics");
        }
        self.wait_until_quiet();
        for worker in self.workers.drain(..) {
            worker.signal("TERM");
            worker.wait(PATIENCE).assert_code(0);
        }
        let left = ids(&self.take_all(&self.queue));
        let letters = self.take_all(&format!("{}.dead", self.queue));
        for letter in &letters {
            let attempts = &letter.headers["x-rabbit-work-attempts"];
            assert_eq!(*attempts, AmqpValue::LongLongInt(3), "{:?}", letter.message_id);
        }
        let letters = ids(&letters);
        let left: Vec<String> = left.union(&letters).cloned().collect();
        (Ledger::open(&self.ledger()).verdict(&left), letters)
    }

    fn take_all(&self, queue: &str) -> Vec<Message> {
        self.broker.client().get_all(queue)
    }
}

fn ids(messages: &[Message]) -> Ids {
    messages.iter().filter_map(|message| message.message_id.clone()).collect()
}

/// Of a batch, the last task fails always, and every seventh at its first attempt. So says its id.
fn kind(number: usize) -> &'static str {
    match number {
        _ if number == BATCH - 1 => "dead",
        _ if number % 7 == 0 => "once",
        _ => "done",
    }
}

fn publish(producer: &mut Producer, ledger: &Ledger, batch: &str) {
    let mut receipts = Vec::new();
    for number in 0..BATCH {
        let id = format!("{batch}.{number}.{}", kind(number));
        ledger.attempted(&id);
        receipts.extend(producer.send(Task::new("soak").with_id(id)));
    }
    receipts.extend(producer.flush());
    for receipt in receipts {
        assert_eq!(receipt.outcome, Outcome::Confirmed, "{receipt:?}");
        ledger.confirmed(receipt.task.id().expect("it has an id"));
    }
}

fn reset(proxy: &Proxy) {
    proxy.set_both(Toxic::ResetPeer);
    proxy.set_both(Toxic::Pass);
}

/// Its connections are cut at the end, as a firewall does that has forgotten them.
fn blackhole(proxy: &Proxy, pause: Duration) {
    proxy.set_both(Toxic::Timeout);
    thread::sleep(pause);
    proxy.set_both(Toxic::Pass);
    proxy.cut();
}
