//! Real brokers: the one that tests share, and private ones to kill, stop and starve.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Client;
use super::command::{Command, Output};

/// A running node with a folder of its own. Dropping it stops the node and removes the folder.
#[derive(Debug)]
pub(crate) struct PrivateBroker {
    dir: PathBuf,
    place: Place,
    guard: Guard,
}

/// The broker of all tests that need no faults.
#[derive(Debug)]
pub(crate) struct SharedBroker {
    place: Place,
    _private: Option<PrivateBroker>,
}

/// A node that is on loan. Dropping this returns it.
#[derive(Debug)]
pub(crate) struct Lent {
    /// `None` only while it is being returned.
    broker: Option<PrivateBroker>,
    shelf: Sender<Returned>,
}

/// A node as a test has left it.
#[derive(Debug)]
enum Returned {
    Whole(PrivateBroker),
    Broken(PrivateBroker),
}

/// Where a broker is to be reached.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    url: String,
}

/// What a queue holds, and who takes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueCounts {
    pub(crate) ready: u64,
    pub(crate) unacked: u64,
    pub(crate) consumers: u64,
}

/// The broker that `RW_TEST_URL` names, or else one for this process. Fails the test
/// when there is none to be had.
pub(crate) fn shared_broker() -> &'static SharedBroker {
    static SHARED: OnceLock<Result<SharedBroker, String>> = OnceLock::new();
    match SHARED.get_or_init(SharedBroker::find) {
        Ok(broker) => broker,
        Err(why) => panic!("no broker to test against: {why}\n{HOW_TO_GET_ONE}"),
    }
}

/// A node that a test may break. One takes long to start, so tests share a few of them, one test at
/// a time; what a failed test has left is mended before it is lent again.
pub(crate) fn breakable_broker() -> Lent {
    static SHELF: OnceLock<(Sender<Returned>, Receiver<Returned>)> = OnceLock::new();
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let (shelf, lent) = SHELF.get_or_init(unbounded);
    let broker = match lent.try_recv() {
        Ok(returned) => returned.mended(),
        Err(_) if STARTED.fetch_add(1, Ordering::Relaxed) < BREAKABLE => PrivateBroker::start(),
        Err(_) => lent.recv_timeout(LENT_WITHIN).expect("a test returns its broker").mended(),
    };
    Lent { broker: Some(broker), shelf: shelf.clone() }
}

/// Asks again and again until there is an answer, for what can tell of itself in no other way.
pub(crate) fn poll<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(POLL_PAUSE);
    }
}

impl Place {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let url = url::Url::parse(&self.url).expect("the broker's URL is one");
        let host = url.host_str().expect("the broker's URL has a host");
        let addresses = (host, url.port().unwrap_or(5672)).to_socket_addrs();
        addresses.expect("an address").next().expect("an address")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url)
    }
}

impl Deref for PrivateBroker {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Deref for Lent {
    type Target = PrivateBroker;

    fn deref(&self) -> &PrivateBroker {
        self.broker.as_ref().expect("it is not returned yet")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(broker) = self.broker.take() else { return };
        let returned =
            if thread::panicking() { Returned::Broken(broker) } else { Returned::Whole(broker) };
        let _ = self.shelf.send(returned);
    }
}

impl Returned {
    fn mended(self) -> PrivateBroker {
        match self {
            Returned::Whole(broker) => broker,
            Returned::Broken(broker) => {
                broker.resume();
                broker.restart();
                broker
            }
        }
    }
}

impl Deref for SharedBroker {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl PrivateBroker {
    pub(crate) fn start() -> PrivateBroker {
        PrivateBroker::start_with("")
    }

    /// Starts a node with further lines of `rabbitmq.conf`.
    pub(crate) fn start_with(settings: &str) -> PrivateBroker {
        let started = PrivateBroker::try_start(settings);
        started.unwrap_or_else(|why| panic!("no private broker: {why}\n{HOW_TO_GET_ONE}"))
    }

    /// Runs `rabbitmqctl` against it; gives what that printed.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let arguments = [&["ctl", "-q"], arguments].concat();
        self.script(&arguments).success()
    }

    /// Starts a plugin of RabbitMQ. Those of a container are out of reach.
    pub(crate) fn enable_plugin(&self, name: &str) {
        let enabled = self.dir.join("node/plugins");
        assert!(enabled.is_file(), "{name} needs an installed RabbitMQ, not one in Docker");
        fs::write(&enabled, format!("[{name}].\n")).expect("the list of plugins is written");
        let ensure = format!("rabbit_plugins:ensure(\"{}\").", enabled.display());
        // A node takes connections a little before it takes plugins.
        poll("the plugin runs", ANSWER_LIMIT, || {
            self.ctl(&["eval", &ensure]).starts_with("{ok").then_some(())
        });
    }

    /// Kills the node, and waits until it is dead.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
        poll("the killed broker is dead", ANSWER_LIMIT, || {
            (self.script(&["pid"]).code != Some(0)).then_some(())
        });
    }

    /// Stops the process in its tracks: its sockets stay open, and nobody answers.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Starts it again, with the same data and on the same port, whatever has become of it.
    pub(crate) fn restart(&self) {
        self.script(&["stop", "--keep"]).assert_code(0);
        let url = start(&self.dir).unwrap_or_else(|why| panic!("no broker again: {why}"));
        assert_eq!(url, self.url(), "a restarted broker keeps its port");
    }

    /// Stops RabbitMQ inside the node, in good order.
    pub(crate) fn stop_app(&self) {
        self.ctl(&["stop_app"]);
    }

    pub(crate) fn start_app(&self) {
        self.ctl(&["start_app"]);
    }

    /// Raises the memory alarm, which blocks connections that publish.
    pub(crate) fn alarm(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.0001"]);
        self.wait_for_alarm();
    }

    pub(crate) fn clear_alarm(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    }

    /// Raises the alarm for the disk's free space, which blocks connections that publish.
    pub(crate) fn disk_alarm(&self) {
        self.ctl(&["set_disk_free_limit", "1000GB"]);
        self.wait_for_alarm();
    }

    fn wait_for_alarm(&self) {
        poll("an alarm is in force", ANSWER_LIMIT, || {
            let alarms = self.ctl(&["eval", "rabbit_alarm:get_alarms()."]);
            alarms.contains("resource_limit").then_some(())
        });
    }

    pub(crate) fn clear_disk_alarm(&self) {
        self.ctl(&["set_disk_free_limit", "50MB"]);
    }

    /// From the next channel on, waits 10 s at the most for an ack, and looks once a second.
    pub(crate) fn shorten_consumer_timeout(&self) {
        self.set_consumer_timeout(10_000, 1_000);
    }

    pub(crate) fn restore_consumer_timeout(&self) {
        self.set_consumer_timeout(1_800_000, 60_000);
    }

    /// In milliseconds. How often it looks is no setting of `rabbitmq.conf`, and a channel asks
    /// for both when it is opened: a running node need not be started again.
    fn set_consumer_timeout(&self, timeout: u32, looks: u32) {
        let timeout = format!("application:set_env(rabbit, consumer_timeout, {timeout})");
        let looks = format!("application:set_env(rabbit, channel_tick_interval, {looks})");
        self.ctl(&["eval", &format!("{timeout}, {looks}.")]);
    }

    pub(crate) fn queue_counts(&self, queue: &str) -> QueueCounts {
        let row = self.find_queue(queue);
        let counts = row.as_ref().and_then(read_counts);
        counts.unwrap_or_else(|| panic!("queue {queue} is at {row:?}"))
    }

    /// Waits until the queue is there and its counts are as wanted.
    pub(crate) fn wait_for_queue(
        &self,
        queue: &str,
        wanted: impl Fn(&QueueCounts) -> bool,
        within: Duration,
    ) -> QueueCounts {
        let deadline = Instant::now() + within;
        loop {
            let row = self.find_queue(queue);
            // A queue whose process the broker could not start is there and has no counts.
            if let Some(counts) = row.as_ref().and_then(read_counts).filter(&wanted) {
                return counts;
            }
            assert!(
                Instant::now() < deadline,
                "after {within:?}, queue {queue} is at {row:?}, and the broker's log ends with\n{}",
                self.end_of_log()
            );
            thread::sleep(POLL_PAUSE);
        }
    }

    fn try_start(settings: &str) -> Result<PrivateBroker, String> {
        if !Path::new(SCRIPT).is_file() {
            return Err(format!("{SCRIPT} is not there"));
        }
        let dir = tempfile::Builder::new().prefix("rabbit-work-").tempdir();
        let dir = dir.map_err(|error| error.to_string())?.keep();
        let guard = Guard::over(&dir);
        let written = fs::write(dir.join("extra.conf"), settings);
        written.map_err(|error| error.to_string())?;
        let url = start(&dir)?;
        Ok(PrivateBroker { dir, place: Place { url }, guard })
    }

    /// Waits until the queues of these names have held nothing for so long. A quorum queue tells
    /// what it holds as it was up to 5 s ago.
    pub(crate) fn wait_until_quiet(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        quiet: Duration,
        within: Duration,
    ) {
        let deadline = Instant::now() + within;
        let mut quiet_since = None;
        loop {
            let holding = self
                .list_queues(&["name", MESSAGES])
                .into_iter()
                .filter(|row| row["name"].as_str().is_some_and(&is_wanted) && row[MESSAGES] != 0);
            let holding: Vec<Value> = holding.collect();
            let now = Instant::now();
            if !holding.is_empty() {
                quiet_since = None;
            } else if now - *quiet_since.get_or_insert(now) > quiet {
                return;
            }
            assert!(now < deadline, "not quiet for {quiet:?} within {within:?}: {holding:?}");
            thread::sleep(POLL_PAUSE);
        }
    }

    fn find_queue(&self, queue: &str) -> Option<Value> {
        let queues = self.list_queues(&["name", "state", READY, UNACKED, CONSUMERS]);
        queues.into_iter().find(|row| row["name"] == queue)
    }

    fn list_queues(&self, columns: &[&str]) -> Vec<Value> {
        let text = self.ctl(&[&["list_queues", "--formatter", "json"], columns].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("list_queues printed no JSON list ({error}): {text}"))
    }

    fn end_of_log(&self) -> String {
        let log = fs::read_dir(self.dir.join("node/log")).expect("a folder of logs");
        let text = log.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let text: String = text.collect();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        let text = self.script(&["pid"]).success();
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.unwrap_or_else(|| panic!("no process id: {text:?}"));
        kill_process(pid, signal).expect("the broker's process can be signalled");
    }

    fn script(&self, arguments: &[&str]) -> Output {
        script(&self.dir, arguments)
    }
}

impl SharedBroker {
    fn find() -> Result<SharedBroker, String> {
        if let Ok(url) = std::env::var("RW_TEST_URL") {
            return Ok(SharedBroker { place: Place { url }, _private: None });
        }
        let private = PrivateBroker::try_start("")?;
        Ok(SharedBroker { place: private.place.clone(), _private: Some(private) })
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker.sh");
const HOW_TO_GET_ONE: &str = "Install rabbitmq-server 3.10 or later, or run Docker, so that \
    scripts/broker.sh can start one; or name a broker for tests in RW_TEST_URL, as \
    scripts/test.sh does.";
const LOG_LINES: usize = 100;
const MESSAGES: &str = "messages";
const READY: &str = "messages_ready";
const UNACKED: &str = "messages_unacknowledged";
const CONSUMERS: &str = "consumers";
/// How many nodes are lent. Each takes memory, and about as much as a processor while it starts. More
/// tests run at a time: one that finds no node waits until another has returned its own.
const BREAKABLE: usize = 3;
const LENT_WITHIN: Duration = Duration::from_secs(400);
/// After a crash, RabbitMQ tries again to move a delayed task after this time, and by default after 3
/// minutes (docs/failures.md).
const MOVE_AGAIN_SOON: &str = "-rabbit dead_letter_worker_publisher_confirm_timeout 10000";
/// A node takes 6 s to start on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// A process that waits for ours to let go of it, by a drop or by any death, and then clears
/// the node and its folder away. Values in statics are never dropped, and a killed test drops
/// nothing at all.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn over(dir: &Path) -> Guard {
        let clear = r#"cat >/dev/null; "$0" --dir "$1" stop; rm -rf "$1""#;
        let guard = std::process::Command::new("sh")
            .args(["-c", clear, SCRIPT])
            .arg(dir)
            .env_remove("AMQP_URL")
            // It outlives an interrupted run, to clean up.
            .env_remove("RW_TEST_RUN")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Guard(guard.expect("sh can be started"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Bounded by the script, which kills a node that does not stop.
        let _ = self.0.wait();
    }
}

fn read_counts(row: &Value) -> Option<QueueCounts> {
    Some(QueueCounts {
        ready: row[READY].as_u64()?,
        unacked: row[UNACKED].as_u64()?,
        consumers: row[CONSUMERS].as_u64()?,
    })
}

fn start(dir: &Path) -> Result<String, String> {
    let output = command(dir, &["start"]).run(START_LIMIT);
    match output.code {
        Some(0) => Ok(output.stdout().trim().to_owned()),
        _ => Err(output.stderr().trim().to_owned()),
    }
}

fn script(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).run(ANSWER_LIMIT)
}

/// What is not ended with an interrupted run: it has its own way to clean up.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let dir = dir.to_string_lossy();
    let arguments = [&["--dir", &*dir], arguments].concat();
    Command::program(SCRIPT, &arguments).env("RW_TEST_RUN", "").env("RW_ERL_ARGS", MOVE_AGAIN_SOON)
}
