//! `worker --joblog`: what GNU parallel writes of the same jobs, and what its readers take.

use std::fs;
use std::path::Path;

use super::{Bench, SOON};
use crate::support::command::{Command, Output};

const JOB: &str = "#!/bin/bash
case $1 in
    3) exit 3 ;;
    5) exit 65 ;;
    7) kill -9 $$ ;;
    8) kill -TERM $$ ;;
    9) exec sleep 600 ;;
    *) echo \"out $1\" ;;
esac
";

/// What GNU parallel 20221122 logs of the ten jobs, without the two times:
/// `seq 10 | parallel --jobs 1 --timeout 5 --joblog FILE ./job {}`.
const TEN_JOBS: &str = "\
Seq\tHost\tSend\tReceive\tExitval\tSignal\tCommand
1\t:\t0\t6\t0\t0\t./job 1
2\t:\t0\t6\t0\t0\t./job 2
3\t:\t0\t0\t3\t0\t./job 3
4\t:\t0\t6\t0\t0\t./job 4
5\t:\t0\t0\t65\t0\t./job 5
6\t:\t0\t6\t0\t0\t./job 6
7\t:\t0\t0\t0\t9\t./job 7
8\t:\t0\t0\t0\t15\t./job 8
9\t:\t0\t0\t-1\t15\t./job 9
10\t:\t0\t7\t0\t0\t./job 10
";

fn make_job(bench: &Bench) {
    fs::write(bench.path("job"), JOB).expect("written");
    Command::program("chmod", &["+x", &bench.path("job").to_string_lossy()]).run(SOON).success();
}

/// The log without its times, in the order of the numbers.
fn without_times(log: &str) -> String {
    let mut lines: Vec<Vec<&str>> = log.lines().map(|line| line.split('\t').collect()).collect();
    lines.sort_by_key(|line| line[0].parse().unwrap_or(0));
    let mut text = String::new();
    for line in lines {
        assert_eq!(line.len(), 9, "{log}");
        text += &[&line[..2], &line[4..]].concat().join("\t");
        text += "\n";
    }
    text
}

fn parallel(folder: &Path, arguments: &[&str], input: &str) -> Option<Output> {
    let found = Command::program("sh", &["-c", "command -v parallel"]).run(SOON).code;
    let command = Command::program("parallel", arguments).env("HOME", folder).current_dir(folder);
    (found == Some(0)).then(|| command.stdin(input).run(SOON))
}

#[test]
fn ten_jobs_are_logged_as_gnu_parallel_logs_them_and_its_readers_go_on_from_there() {
    let bench = Bench::new("tenjobs");
    make_job(&bench);
    (1..=10).for_each(|n| bench.publish(&format!("id-{n}"), n.to_string().as_bytes()));
    let options =
        "--threads 1 --drain --max-attempts 1 --task-timeout 5 --joblog log --results out";
    let options: Vec<&str> = options.split(' ').collect();

    let ours = bench.worker(&options, &["./job", "{}"]).start();
    let input: String = (1..=10).map(|n| format!("{n}\n")).collect();
    let own = ["--will-cite", "--jobs", "1", "--timeout", "5", "--joblog", "theirs", "./job", "{}"];
    let theirs = parallel(bench.dir.path(), &own, &input);
    ours.wait(SOON).assert_code(1);

    let log = bench.read("log");
    assert_eq!(without_times(&log), TEN_JOBS);
    let times: Vec<&str> = log.lines().nth(9).expect("the ninth").split('\t').collect();
    let time = |field: usize| times[field].trim().parse::<f64>().expect("seconds");
    assert!(time(2) > 1e9 && (5.0..60.0).contains(&time(3)), "{times:?}");

    let Some(theirs) = theirs else {
        eprintln!("no GNU parallel here: compared with what it logged elsewhere");
        return;
    };
    assert_eq!(without_times(&bench.read("theirs")), TEN_JOBS, "{}", theirs.stderr());
    let resume =
        ["--will-cite", "--keep-order", "--resume-failed", "--joblog", "log", "echo", "again"];
    let again = parallel(bench.dir.path(), &resume, &input).expect("it is there").success();
    assert_eq!(again, "again 3\nagain 5\nagain 7\nagain 8\nagain 9\n");
    let retry = ["--will-cite", "--retry-failed", "--joblog", "log", "--dry-run"];
    let retried = parallel(bench.dir.path(), &retry, "").expect("it is there");
    retried.assert_code(0);
}

#[test]
fn a_log_counts_input_that_is_not_an_argument_and_quotes_what_a_shell_would_read() {
    let bench = Bench::new("quoted");
    bench.publish("a", b"it's $HOME");
    bench.publish("b", b"two\nlines");
    let options = ["--threads", "1", "--drain", "--joblog", "log"];
    bench.worker(&options, &["true"]).run(SOON).assert_code(0);
    bench.publish("a", b"it's $HOME");
    bench.publish("b", b"two\nlines");

    bench.worker(&options, &["true", "{}"]).run(SOON).assert_code(0);

    let expected = "Seq\tHost\tSend\tReceive\tExitval\tSignal\tCommand\n\
                    1\t:\t10\t0\t0\t0\ttrue\n2\t:\t9\t0\t0\t0\ttrue\n\
                    3\t:\t0\t0\t0\t0\ttrue 'it'\"'\"'s $HOME'\n4\t:\t0\t0\t0\t0\ttrue 'two\0lines'\n";
    assert_eq!(without_times(&bench.read("log")), expected);
}

#[test]
fn workers_that_share_a_log_number_its_lines_on() {
    let bench = Bench::new("sharedlog");
    (0..200).for_each(|n| bench.publish(&format!("id-{n}"), b"x"));
    let options = ["--threads", "4", "--drain", "--joblog", "log"];
    let workers = [0, 1].map(|_| bench.worker(&options, &["true"]).start());
    workers.into_iter().for_each(|worker| worker.wait(SOON).assert_code(0));

    let log = bench.read("log");
    assert_eq!(log.matches("Seq\t").count(), 1, "{log}");
    let numbers: Vec<&str> = log.lines().skip(1).filter_map(|it| it.split('\t').next()).collect();
    let expected: Vec<String> = (1..=200).map(|n| n.to_string()).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_log_that_cannot_be_written_leaves_the_task_in_the_queue() {
    let bench = Bench::new("fulllog");
    let body = vec![b'x'; 600];
    (0..3).for_each(|n| bench.publish(&format!("id-{n}"), &body));
    // Blocks of 1 KiB: the heading and the first line have room.
    let options = ["--threads", "1", "--drain", "--json", "--joblog", "log"];

    let output = bench.worker_with_file_limit(1, &options, &["true", "{}"]).run(SOON);

    output.assert_code(1);
    let stderr = output.stderr();
    assert!(stderr.contains("worker: --joblog cannot be written: File too large"), "{stderr}");
    let summary: serde_json::Value = serde_json::from_str(&output.stdout()).expect("a summary");
    assert_eq!((&summary["done"], &summary["dead"]), (&1.into(), &0.into()));
    assert_eq!(bench.left(), 2);
    let log = bench.read("log");
    assert_eq!((log.lines().count(), log.ends_with('\n')), (2, true), "{log}");
}

#[test]
fn what_is_no_log_is_not_written_to() {
    let bench = Bench::new("nolog");
    fs::write(bench.path("other"), "something else\n").expect("written");
    bench.publish("a", b"x");
    for (options, expected) in [
        (&["--joblog", "other"][..], "its first line is not the heading of a job log"),
        (&["--joblog", "."], "it is not a regular file"),
        (&["--joblog", "-"], "it cannot be standard output; name a file"),
        (&["--joblog", "no/such/folder"], "No such file or directory"),
        (&["--joblog", "same", "--events", "./same"], "--events names the same file"),
    ] {
        let output = bench.worker(&[options, &["--drain"]].concat(), &["true"]).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(expected), "{}", output.stderr());
    }
    assert_eq!((bench.left(), bench.read("other").as_str()), (1, "something else\n"));
}
