//! What a worker reports to systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::{Bench, SOON};
use crate::support::command::{Command, Running};
use crate::support::proxy::{Proxy, Toxic};

/// A service manager.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(bench: &Bench) -> Manager {
        Manager { socket: UnixDatagram::bind(bench.path("notify")).expect("a socket") }
    }

    /// Starts a worker, and expects a sign of its health in each `watchdog`.
    fn start(&self, bench: &Bench, worker: Command, watchdog: Duration) -> Running {
        let worker = worker.env("NOTIFY_SOCKET", bench.path("notify"));
        worker.env("WATCHDOG_USEC", watchdog.as_micros().to_string()).start()
    }

    fn report_within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).expect("a limit");
        let mut text = [0; 100];
        let length = self.socket.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).trim().to_owned())
    }

    fn next(&self) -> String {
        self.report_within(SOON).expect("a report in time")
    }

    fn has_any(&self) -> bool {
        self.socket.set_nonblocking(true).expect("a socket");
        let received = self.socket.recv(&mut [0; 100]);
        self.socket.set_nonblocking(false).expect("a socket");
        received.is_ok()
    }
}

#[test]
fn a_service_manager_learns_when_the_worker_is_ready_healthy_and_stopping() {
    let bench = Bench::new("notify");
    let manager = Manager::new(&bench);
    let worker = bench.worker(&["--threads", "2", "--task-timeout", "1h"], &["true"]);

    let worker = manager.start(&bench, worker, Duration::from_millis(200));

    assert_eq!(manager.next(), "READY=1");
    assert_eq!([manager.next(), manager.next()], ["WATCHDOG=1", "WATCHDOG=1"]);
    worker.signal("TERM");
    let mut last = manager.next();
    while last == "WATCHDOG=1" {
        last = manager.next();
    }
    assert_eq!(last, "STOPPING=1");
    worker.wait(SOON).assert_code(0);
}

/// A worker that connects again at the moment of one judgement has others before its time is over.
#[test]
fn the_health_is_reported_long_before_the_time_of_the_watchdog_is_over() {
    let bench = Bench::new("early");
    let manager = Manager::new(&bench);
    let worker = manager.start(&bench, bench.worker(&[], &["true"]), 10 * SOON);

    assert_eq!([manager.next(), manager.next()], ["READY=1", "WATCHDOG=1"]);

    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_worker_without_its_broker_is_not_reported_healthy() {
    const WATCHDOG: Duration = Duration::from_millis(500);
    let bench = Bench::new("cut");
    let manager = Manager::new(&bench);
    let proxy = Proxy::start(bench.broker.address());
    let worker = Command::worker(&["--url", &proxy.url(), "--queue", &bench.queue, "--", "true"]);
    let worker = manager.start(&bench, worker, WATCHDOG);
    assert_eq!([manager.next(), manager.next()], ["READY=1", "WATCHDOG=1"]);

    proxy.set_both(Toxic::Down);
    for _ in 0..2 {
        worker.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
    }
    while manager.has_any() {}
    assert_eq!(manager.report_within(2 * WATCHDOG), None);

    proxy.set_both(Toxic::Pass);
    assert_eq!(manager.report_within(3 * SOON).as_deref(), Some("WATCHDOG=1"));
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_worker_that_cannot_consume_is_not_ready() {
    let bench = Bench::new("not-ready");
    let manager = Manager::new(&bench);
    let missing = ["--no-declare", "--queue", "it.does.not.exist", "--", "true"];
    let worker = Command::worker(&["--url", bench.broker.url()]).args(&missing);

    worker.env("NOTIFY_SOCKET", bench.path("notify")).run(SOON).assert_code(2);

    assert!(!manager.has_any(), "it was never ready");
}
