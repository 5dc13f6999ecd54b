//! What a worker reports to systemd.

use std::os::unix::net::UnixDatagram;

use super::{Bench, SOON};
use crate::support::command::Command;

#[test]
fn a_service_manager_learns_when_the_worker_is_ready_healthy_and_stopping() {
    let bench = Bench::new("notify");
    let socket = UnixDatagram::bind(bench.path("notify")).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a limit");
    let next = || {
        let mut text = [0; 100];
        let length = socket.recv(&mut text).expect("a report in time");
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    let worker = bench.worker(&["--threads", "2", "--task-timeout", "1h"], &["true"]);
    let worker = worker.env("NOTIFY_SOCKET", bench.path("notify")).env("WATCHDOG_USEC", "200000");

    let worker = worker.start();

    assert_eq!(next(), "READY=1");
    assert_eq!([next(), next()], ["WATCHDOG=1", "WATCHDOG=1"]);
    worker.signal("TERM");
    let mut last = next();
    while last == "WATCHDOG=1" {
        last = next();
    }
    assert_eq!(last, "STOPPING=1");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn a_worker_that_cannot_consume_is_not_ready() {
    let bench = Bench::new("not-ready");
    let socket = UnixDatagram::bind(bench.path("notify")).expect("a socket");
    let missing = ["--no-declare", "--queue", "it.does.not.exist", "--", "true"];
    let worker = Command::worker(&["--url", bench.broker.url()]).args(&missing);

    worker.env("NOTIFY_SOCKET", bench.path("notify")).run(SOON).assert_code(2);

    socket.set_nonblocking(true).expect("a socket");
    assert!(socket.recv(&mut [0; 100]).is_err(), "it was never ready");
}
