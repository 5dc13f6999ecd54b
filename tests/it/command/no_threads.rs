//! A worker for which the system starts no threads.

use rabbit_work::{Delivery, Failure, Queue, Worker};

use super::{Bench, SOON};
use crate::support::broker::poll;
use crate::support::command::Command;
use crate::support::working::Working;

/// Who has no processes beside the worker's, where we are root and may be another.
const NOBODY: [&str; 3] = ["--reuid=65533", "--regid=65533", "--clear-groups"];

#[test]
fn want_of_threads_is_reported_as_that_and_not_as_the_broker_s() {
    let worker = env!("CARGO_BIN_EXE_worker");
    if Command::program("setpriv", &[&NOBODY[..], &[worker, "--version"]].concat()).run(SOON).code
        != Some(0)
    {
        eprintln!("skipped: only root may run a worker as somebody who has no processes yet");
        return;
    }
    let bench = Bench::new("nothreads");
    for limit in 1..=9 {
        let limit = format!("--nproc={limit}");
        let to = ["--url", bench.broker.url(), "--queue", &bench.queue];
        let options = ["--threads", "1", "--no-reconnect", "--max-tasks", "1", "--", "true"];
        let limited = [&NOBODY[..], &["prlimit", &limit, worker], &to, &options].concat();
        let running = Command::program("setpriv", &limited).start();
        let told =
            |line: &str| line.contains("the system cannot start") || line.contains("consuming");
        let line = running.wait_for_stderr_line(told, SOON);
        if line.contains("consuming") {
            return;
        }
        let stderr = running.wait(SOON).stderr();
        assert!(!stderr.contains("no broker reached"), "{limit}: {stderr}");
    }
    panic!("with all those threads it does not work");
}

#[test]
fn a_worker_that_cannot_try_its_tasks_is_not_sound() {
    let bench = Bench::new("unsound");
    let broker = bench.broker.url().parse().expect("a URL");
    let worker = Worker::new(&broker, &Queue::new(&bench.queue)).threads(1);
    let health = worker.health();
    let handler = |delivery: &Delivery| match delivery.redelivered() {
        false => Err(Failure::requeue("nothing can be started")),
        true => Ok(()),
    };
    let working = Working::start(&worker, handler);
    poll("it consumes", SOON, || health.is_healthy(None).then_some(()));

    bench.publish(&[b"x"]);

    poll("its task cannot be tried", SOON, || (!health.is_healthy(None)).then_some(()));
    poll("its task could be tried", SOON, || health.is_healthy(None).then_some(()));
    working.stop(SOON);
}
