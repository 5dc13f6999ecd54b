//! The file of `--metrics-file`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Bench, SOON};

#[test]
fn the_metrics_count_each_run_of_a_task_and_what_the_threads_do() {
    let bench = Bench::new("metrics");
    bench.publish(&[b"true", b"true", b"false"]);
    let options = ["--drain", "--max-attempts", "1", "--metrics-file", "worker.prom"];

    bench.worker(&options, &["sh", "-c", "{}"]).run(SOON).assert_code(1);

    let text = bench.read("worker.prom");
    let queue = format!("queue=\"{}\"", bench.queue);
    for line in [
        format!("rabbit_work_tasks_total{{outcome=\"dead\",{queue}}} 1"),
        format!("rabbit_work_tasks_total{{outcome=\"done\",{queue}}} 2"),
        format!("rabbit_work_task_seconds_count{{{queue}}} 3"),
        format!("rabbit_work_running_threads{{{queue}}} 0"),
        format!("rabbit_work_consuming_threads{{{queue}}} 0"),
        "# TYPE rabbit_work_task_seconds histogram".into(),
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is missing in:\n{text}");
    }
    let last = format!("rabbit_work_last_done_timestamp_seconds{{{queue}}} 1");
    assert!(text.lines().any(|line| line.starts_with(&last)), "{text}");
    let mode = fs::metadata(bench.path("worker.prom")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "a collector is another user");
    let files = fs::read_dir(bench.dir.path()).expect("a folder").count();
    assert_eq!(files, 1, "no temporary file is left");
}

#[test]
fn a_metrics_file_that_cannot_be_written_is_an_error_before_a_task_is_taken() {
    let bench = Bench::new("no-metrics");
    bench.publish(&[b"x"]);
    let options = ["--drain", "--metrics-file", "no/such/folder/worker.prom"];

    let output = bench.worker(&options, &["true"]).run(SOON);

    output.assert_code(2);
    assert!(output.stderr().contains("--metrics-file"), "{}", output.stderr());
    assert_eq!(bench.left().len(), 1);
}
