//! The soak: producers and workers under a random sequence of faults, and the verdict on it all.
//! `scripts/soak.sh` runs it; the same seed gives the same sequence.

use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rabbit_work::{Broker, Outcome, Producer, Queue, Task};

use crate::child::{AtTheEnd, LedgerWorker};
use crate::support::broker::PrivateBroker;
use crate::support::client::unique_queue;
use crate::support::command::Running;
use crate::support::ledger::Ledger;
use crate::support::proxy::{Proxy, Toxic};

const PRODUCERS: usize = 2;
const WORKERS: usize = 3;
const THREADS: usize = 2;
const PREFETCH: u16 = 10;
const BATCH: usize = 50;
/// Longer than any fault and the backoff after it.
const PATIENCE: Duration = Duration::from_secs(180);

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
#[ignore = "scripts/soak.sh runs it, for as long as it is told"]
fn soak() {
    let minutes: f64 = told("SOAK_MINUTES", 1.0);
    let seed: u64 = told("SOAK_SEED", 1);
    let mut soak = Soak::start(seed);

    let end = soak.begun + Duration::from_secs_f64(minutes * 60.0);
    let mut faults = 0;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(soak.random.u64(500..3000)));
        let fault = FAULTS[soak.random.usize(..FAULTS.len())];
        soak.strike(fault);
        faults += 1;
    }

    let verdict = soak.finish();
    let bound = faults * (WORKERS * THREADS * usize::from(PREFETCH) + PRODUCERS * BATCH);
    println!("seed={seed} minutes={minutes} faults={faults} {verdict}");
    assert!(verdict.is_valid(), "something was lost, or came from nowhere");
    assert_eq!(verdict.confirmed, verdict.attempted, "nothing is left in doubt");
    assert!(verdict.duplicated.len() <= bound, "{} duplicated", verdict.duplicated.len());
}

fn told<T: std::str::FromStr>(name: &str, default: T) -> T {
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
        soak.workers = (0..WORKERS).map(|_| soak.start_worker()).collect();
        soak
    }

    fn ledger(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn start_worker(&self) -> Running {
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
        worker.command().start()
    }

    fn start_producer(&self, number: usize) -> JoinHandle<()> {
        let broker: Broker = self.to_producers.url().parse().expect("the proxy's URL is one");
        let broker = broker.heartbeat(Duration::from_secs(2));
        let ledger = Ledger::open(&self.ledger());
        let (queue, turn, done) =
            (Queue::new(&self.queue), Arc::clone(&self.turn), Arc::clone(&self.done));
        thread::spawn(move || {
            let mut producer = Producer::new(&broker, &queue).timeout(PATIENCE);
            for batch in 0.. {
                if done.load(Ordering::SeqCst) {
                    return;
                }
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
                self.workers[chosen] = self.start_worker();
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
        self.wait_until_empty();
        let client = self.broker.client();
        client.delete(&self.queue);
        client.declare(&self.queue);
    }

    fn wait_until_empty(&self) {
        let empty = |it: &crate::support::broker::QueueCounts| it.ready == 0 && it.unacked == 0;
        self.broker.wait_for_queue(&self.queue, empty, PATIENCE);
    }

    fn finish(mut self) -> crate::support::ledger::Verdict {
        self.done.store(true, Ordering::SeqCst);
        for producer in self.producers.drain(..) {
            producer.join().expect("no producer panics");
        }
        self.wait_until_empty();
        for worker in self.workers.drain(..) {
            worker.signal("TERM");
            worker.wait(PATIENCE).assert_code(0);
        }
        let left = self.broker.client().get_all(&self.queue);
        let left: Vec<String> = left.into_iter().filter_map(|it| it.message_id).collect();
        Ledger::open(&self.ledger()).verdict(&left)
    }
}

fn publish(producer: &mut Producer, ledger: &Ledger, batch: &str) {
    let mut receipts = Vec::new();
    for number in 0..BATCH {
        let id = format!("{batch}.{number}");
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
