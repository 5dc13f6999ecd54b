//! Producers and workers that continue while a cluster is broken. Some tasks fail once, some
//! always.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amiquip::AmqpValue;
use crossbeam_channel::tick;
use rabbit_work::{Broker, Outcome, Producer, Queue, QueueType, Receipt, Task};

use super::progress::{Gaps, Progress};
use crate::child::{AtTheEnd, LEDGER_SCRIPT, LedgerWorker};
use crate::support::broker::poll;
use crate::support::client::{Client, Message, unique_queue};
use crate::support::cluster::{Cluster, NODES};
use crate::support::command::{Command, Running};
use crate::support::ledger::{Ids, Ledger, Records, Verdict};

/// What the commands have without being told.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that a cluster may do nothing while two of its nodes are well.
pub(super) const NO_PROGRESS: Duration = Duration::from_secs(25);
const BATCH: usize = 20;
/// How often a producer begins a batch at the most.
const PACE: Duration = Duration::from_millis(500);
const PRODUCERS: usize = 2;
const THREADS: usize = 2;
const PREFETCH: u16 = 10;
/// All that waits is done by then: after a node has ended, RabbitMQ 3.10.8 may take minutes to move
/// delayed tasks back (docs/failures.md).
const END: Duration = Duration::from_secs(300);

/// One queue with its producers and workers.
pub(super) struct Load<'a> {
    cluster: &'a Cluster,
    kind: QueueType,
    url: String,
    queue: String,
    dir: tempfile::TempDir,
    progress: Progress,
    over: Arc<AtomicBool>,
    producers: Vec<JoinHandle<()>>,
    workers: Vec<Running>,
}

/// What became of it all.
pub(super) struct Report {
    verdict: Verdict,
    letters: Ids,
    gaps: Gaps,
}

impl<'a> Load<'a> {
    /// A queue that this node leads; its producers and its first worker try the addresses in this
    /// order, the other workers in any.
    pub(super) fn start(
        cluster: &'a Cluster,
        kind: QueueType,
        leader: usize,
        order: &[usize],
    ) -> Load<'a> {
        let dir = tempfile::tempdir().expect("a directory");
        let queue = unique_queue("cluster");
        let ledger = Ledger::open(&dir.path().join("ledger"));
        // A queue is where its first client is.
        publish(&mut producer(&cluster.url(&[leader]), &queue, kind), &ledger, "first", 1);
        let mut load = Load {
            cluster,
            kind,
            url: cluster.url(order),
            queue,
            progress: Progress::of(ledger.path()),
            dir,
            over: Arc::new(AtomicBool::new(false)),
            producers: Vec::new(),
            workers: Vec::new(),
        };
        cluster.wait_for_leader(&load.queue, leader);
        load.workers = (0..WORKERS).map(|number| load.start_worker(number)).collect();
        load.producers = (0..PRODUCERS).map(|number| load.start_producer(number)).collect();
        load.goes_on();
        load.retries_go_on();
        load
    }

    pub(super) fn queue(&self) -> &str {
        &self.queue
    }

    /// Waits until further tasks are confirmed and done.
    pub(super) fn goes_on(&self) {
        self.wait_for_more("confirmed, done", |records| {
            let done = records.finished.keys().filter(|id| id.ends_with("done")).count();
            [records.confirmed.len(), done]
        });
    }

    /// Waits until further tasks are done that have failed before. RabbitMQ 3.10.8 may offer them
    /// again only when all nodes are back (docs/failures.md).
    pub(super) fn retries_go_on(&self) {
        self.wait_for_more("done after a failure", |records| {
            [records.finished.keys().filter(|id| id.ends_with("once")).count()]
        });
    }

    fn wait_for_more<const N: usize>(&self, what: &str, counts: impl Fn(&Records) -> [usize; N]) {
        let counts = || counts(&Ledger::open(&self.ledger()).records());
        let before = counts();
        let deadline = Instant::now() + END;
        loop {
            let now = counts();
            if now.iter().zip(before).all(|(now, before)| *now > before) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {before:?}, and after {END:?} {now:?}");
            thread::sleep(PACE);
        }
    }

    pub(super) fn kill_worker(&mut self, number: usize) {
        self.workers[number].kill();
        self.workers[number] = self.start_worker(number);
    }

    /// Waits for the end of all that was published.
    pub(super) fn finish(mut self) -> Report {
        let gaps = self.progress.stop();
        self.over.store(true, Ordering::SeqCst);
        for producer in self.producers.drain(..) {
            producer.join().expect("each task is confirmed within its timeout");
        }
        let client = self.cluster.client(NODES[0]);
        let (queue, dead) = (&self.queue, format!("{}.dead", self.queue));
        let ledger = Ledger::open(&self.dir.path().join("ledger"));
        let mut letters = Ids::new();
        poll("every task is done, or a dead letter", END, || {
            let records = ledger.records();
            let (doomed, others) = split(&records.attempted);
            let done = others.iter().all(|id| records.finished.contains_key(id));
            // A dead letter whose confirm was lost is there twice, so their number says nothing.
            letters.extend(dead_letters(&client, &dead));
            (done && doomed.is_subset(&letters)).then_some(())
        });
        for worker in self.workers.drain(..) {
            worker.signal("TERM");
            worker.wait(END).assert_code(0);
        }
        let left = ids(&client.get_all(queue));
        letters.extend(dead_letters(&client, &dead));
        client.delete(queue);
        client.delete(&dead);
        let remaining: Vec<String> = left.union(&letters).cloned().collect();
        Report { verdict: ledger.verdict(&remaining), letters, gaps }
    }

    fn ledger(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn start_producer(&self, number: usize) -> JoinHandle<()> {
        let mut producer = producer(&self.url, &self.queue, self.kind);
        let ledger = Ledger::open(&self.ledger());
        let over = Arc::clone(&self.over);
        thread::spawn(move || {
            let pace = tick(PACE);
            for batch in 0.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                publish(&mut producer, &ledger, &format!("{number}.{batch}"), BATCH);
                let _ = pace.recv();
            }
        })
    }

    fn start_worker(&self, number: usize) -> Running {
        match number {
            0 => self.start_worker_command(),
            _ => self.start_library_worker(),
        }
    }

    fn start_library_worker(&self) -> Running {
        let worker = LedgerWorker {
            url: &self.url,
            queue: &self.queue,
            ledger: &self.ledger(),
            threads: THREADS,
            prefetch: PREFETCH,
            task: Duration::from_millis(1),
            at_the_end: AtTheEnd::Return,
        };
        match self.kind {
            QueueType::Quorum => worker.command().env("IT_QUORUM", "1").start(),
            _ => worker.command().start(),
        }
    }

    /// With a command for each task.
    fn start_worker_command(&self) -> Running {
        let kind = if self.kind == QueueType::Quorum { "quorum" } else { "classic" };
        let to = ["--url", &self.url, "--url-order", "given", "--queue", &self.queue];
        let kind = ["--queue-type", kind];
        let fail = ["--max-attempts", "3", "--retry-delay", "100ms", "--max-retry-delay", "100ms"];
        let run = ["--threads", "2", "--", "sh", "-c", LEDGER_SCRIPT];
        Command::worker(&[&to[..], &kind, &fail, &run].concat()).arg(self.ledger()).start()
    }
}

/// The first is a command.
pub(super) const WORKERS: usize = 3;

impl Report {
    /// Nothing is lost, each task has ended where it belongs, and the cluster has never stood
    /// still.
    pub(super) fn assert_survived(&self) {
        let Report { verdict, letters, gaps } = self;
        println!("{verdict} dead={} longest without progress: {gaps:?}", letters.len());
        assert!(verdict.is_valid(), "something was lost, or came from nowhere");
        assert_eq!(verdict.confirmed, verdict.attempted, "nothing is left in doubt");
        let (doomed, others) = split(&verdict.attempted);
        assert_eq!(&verdict.finished ^ &others, Ids::new(), "done is all but what always fails");
        assert_eq!(letters ^ &doomed, Ids::new(), "dead letters are all that, and nothing else");
        assert!(gaps.confirms < NO_PROGRESS && gaps.done < NO_PROGRESS, "{gaps:?}");
    }
}

fn producer(url: &str, queue: &str, kind: QueueType) -> Producer {
    let broker: Broker = url.parse().expect("the URLs of a cluster");
    Producer::new(&broker.in_order(), &Queue::new(queue).queue_type(kind)).timeout(PUBLISH_TIMEOUT)
}

/// Of a batch, the last task fails always, and every seventh at its first attempt. So says its id.
fn publish(producer: &mut Producer, ledger: &Ledger, batch: &str, count: usize) {
    let mut receipts = Vec::new();
    for number in 0..count {
        let kind = match number {
            _ if number == BATCH - 1 => "dead",
            _ if number % 7 == 0 => "once",
            _ => "done",
        };
        let id = format!("{batch}.{number}.{kind}");
        ledger.attempted(&id);
        receipts.extend(producer.send(Task::new("cluster").with_id(id)));
    }
    receipts.extend(producer.flush());
    for Receipt { task, outcome, .. } in receipts {
        assert_eq!(outcome, Outcome::Confirmed, "{task:?}");
        ledger.confirmed(task.id().expect("it has an id"));
    }
}

/// What always fails, and all else.
fn split(ids: &Ids) -> (Ids, Ids) {
    ids.iter().cloned().partition(|id| id.ends_with("dead"))
}

fn dead_letters(client: &Client, dead: &str) -> Ids {
    let letters = client.get_all(dead);
    for letter in &letters {
        let attempts = &letter.headers["x-rabbit-work-attempts"];
        assert_eq!(*attempts, AmqpValue::LongLongInt(3), "{:?}", letter.message_id);
    }
    ids(&letters)
}

fn ids(messages: &[Message]) -> Ids {
    messages.iter().filter_map(|message| message.message_id.clone()).collect()
}
