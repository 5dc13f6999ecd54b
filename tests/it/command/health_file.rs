//! The file of `--health-file`: touched while all is well, and stale when it is not.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::{Bench, SOON, UNREAD, lives, worker_after};
use crate::support::broker::poll;
use crate::support::command::Command;
use crate::support::proxy::{Proxy, Toxic};

#[test]
fn the_health_file_is_there_while_all_is_well() {
    let bench = Bench::new("health");
    let file = bench.path("health");
    let options = ["--threads", "2", "--health-file", "health", "--task-timeout", "1h"];
    let worker = bench.worker(&options, &["true"]).start();
    poll("the health file", SOON, || file.exists().then_some(()));
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
    assert!(!file.exists(), "removed at exit");
    let options = ["--health-file", "no/such/folder/health"];
    bench.worker(&options, &["true"]).run(SOON).assert_code(2);
}

#[test]
fn a_health_file_that_is_no_file_is_left_alone() {
    let bench = Bench::new("device");
    bench.publish(&[b"x"]);
    symlink("/dev/null", bench.path("link")).expect("a link");
    Command::program("mkfifo", &["fifo"]).current_dir(bench.dir.path()).run(SOON).success();
    for name in ["link", "fifo", "."] {
        let output = bench.worker(&["--drain", "--health-file", name], &["true"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("not a regular file"), "{}", output.stderr());
    }
    assert!(bench.path("link").is_symlink() && bench.path("fifo").exists());
    let left = bench.left();
    assert!(left.len() == 1 && !left[0].redelivered, "nobody had it: {left:?}");
}

#[test]
fn a_health_file_of_somebody_else_s_is_left_alone() {
    let bench = Bench::new("precious");
    fs::write(bench.path("job"), "#!/bin/sh\n").expect("a file");
    let options = ["--drain", "--health-file", "job"];
    let output = bench.worker(&options, &["true"]).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("more than a process id"), "{}", output.stderr());
    assert!(bench.path("job").exists());

    let absolute = bench.path("both").display().to_string();
    for events in ["both", "./both", &absolute] {
        let options = ["--drain", "--health-file", "both", "--events", events];
        let output = bench.worker(&options, &["true"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains("--events names the same file"), "{}", output.stderr());
    }

    let options = ["--drain", "--health-file", "printed"];
    let printing = worker_after(&bench, "exec >printed", &options, &["true"]);
    let output = printing.current_dir(bench.dir.path()).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("standard output or"), "{}", output.stderr());

    fs::write(bench.path("stale"), "4711\n").expect("what a killed worker leaves");
    let options = ["--drain", "--health-file", "stale"];
    bench.worker(&options, &["true"]).run(SOON).assert_code(0);
}

/// How often the health file is touched, and how old it is when it counts as stale.
const TOUCHED_EVERY: Duration = Duration::from_secs(2);
const STALE: Duration = Duration::from_secs(10);

/// For a worker that connects again, after a pause that has grown.
const LATER: Duration = Duration::from_secs(60);

#[test]
fn the_health_file_is_not_kept_fresh_while_the_connection_is_lost() {
    let bench = Bench::new("unhealthy");
    let proxy = Proxy::start(bench.broker.address());
    let file = bench.path("health");
    let options = ["--url", &proxy.url(), "--queue", &bench.queue, "--health-file", "health"];
    let worker = Command::worker(&options).args(&["--", "true"]).current_dir(bench.dir.path());
    let worker = worker.start();
    let wait_for_failed_try = || {
        worker.wait_for_stderr_line(|line| line.contains("next try in"), LATER);
    };
    // At its start the worker tries whether it can write the file, and removes it.
    worker.wait_for_stderr_line(|line| line.contains("consuming from"), LATER);
    poll("the health file", LATER, || file.exists().then_some(()));

    proxy.set_both(Toxic::Down);
    wait_for_failed_try();
    wait_for_failed_try();
    fs::remove_file(&file).expect("it was there");
    let removed = Instant::now();
    while removed.elapsed() < 2 * TOUCHED_EVERY {
        wait_for_failed_try();
    }
    assert!(!file.exists(), "no thread consumed");

    proxy.set_both(Toxic::Pass);
    poll("the health file again", LATER, || file.exists().then_some(()));
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
}

#[test]
fn the_health_file_goes_stale_while_a_task_is_stuck_past_its_time_limit() {
    let bench = Bench::new("stuck");
    let file = bench.path("health");
    let options = "--threads 1 --health-file health --task-timeout 1s --max-attempts 1 \
                   --metrics-file worker.prom";
    let worker = bench.unread_worker(&format!("{options} -- sh -c \"$SCRIPT\""));
    let worker = worker.env("SCRIPT", UNREAD).env("RUST_LOG", "off").start();
    let age = || fs::metadata(&file).and_then(|it| it.modified()).ok()?.elapsed().ok();
    poll("the health file", SOON, age);

    bench.publish(&[b"x"]);
    worker.wait_for_stdout_line(|line| line == "up", SOON);
    poll("it is stale", LATER, || age().filter(|age| *age > STALE));
    // Here, because this takes longer than the 15 s between two of its writes.
    poll("metrics of a busy thread", LATER, || {
        let text = bench.read("worker.prom");
        let shows = |name: &str| {
            let line = format!("rabbit_work_{name}_threads{{queue=\"{}\"}} 1", bench.queue);
            text.lines().any(|it| it == line)
        };
        (shows("running") && shows("consuming")).then_some(())
    });

    let reader = Command::program("cat", &["full"]).current_dir(bench.dir.path()).start();
    poll("it is fresh", SOON, || age().filter(|age| *age < STALE));
    assert!(!lives(&bench.read("pid")), "its time was over");
    worker.signal("TERM");
    worker.wait(SOON).assert_code(0);
    drop(reader);
}
