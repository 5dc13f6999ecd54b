//! Signals: a producer exits in bounded time, and each task is queued or in the failed file.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::SOON;
use crate::support::command::{Command, Running};
use crate::support::scripted::ScriptedBroker;

/// A producer of two tasks, where it keeps what it could not send, and its broker.
struct Unheard {
    running: Running,
    failed: PathBuf,
    broker: ScriptedBroker,
}

impl Unheard {
    fn start(methods: usize, dir: &Path, arguments: &[&str]) -> Unheard {
        let broker = ScriptedBroker::silent_after(methods);
        let failed = dir.join(format!("{methods}{}", arguments.concat()));
        let running = Command::producer(&["--url", &broker.url(), "--lines", "--failed"])
            .arg(&failed)
            .args(arguments)
            .stdin("one\ntwo\n")
            .start();
        Unheard { running, failed, broker }
    }
}

/// From the start-ok to the publish of the second task, …
const STEPS: RangeInclusive<usize> = 0..=8;

/// … and of a delayed one, behind what is the same.
const STEPS_OF_A_DELAY: RangeInclusive<usize> = 7..=14;

/// One for each step at which a broker may fall silent, which has done so.
fn at_each_step(dir: &Path, timeout: &str) -> Vec<Unheard> {
    let at_once = STEPS.map(|step| Unheard::start(step, dir, &["--timeout", timeout]));
    let delayed = STEPS_OF_A_DELAY
        .map(|step| Unheard::start(step, dir, &["--timeout", timeout, "--delay", "5s"]));
    let started: Vec<Unheard> = at_once.chain(delayed).collect();
    for unheard in &started {
        unheard.broker.wait("silent", SOON);
    }
    started
}

fn assert_kept(unheard: Unheard, codes: &[i32]) {
    let output = unheard.running.wait(SOON);
    let name = unheard.failed.display();
    let ended = output.code.is_some_and(|code| codes.contains(&code));
    assert!(ended, "{name}: {output:?}");
    let kept = fs::read_to_string(&unheard.failed).expect("--failed");
    assert_eq!(kept, "one\ntwo\n", "{name}: {output:?}");
}

#[test]
fn a_signal_at_any_step_of_a_silent_broker_ends_it_within_its_timeout_and_5_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = at_each_step(dir.path(), "8s");

    let begun = Instant::now();
    started.iter().for_each(|unheard| unheard.running.signal("INT"));

    for unheard in started {
        assert_kept(unheard, &[1, 69]);
        assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_second_signal_at_any_step_of_a_silent_broker_ends_it_within_2_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = at_each_step(dir.path(), "60s");
    started.iter().for_each(|unheard| unheard.running.signal("INT"));

    let mut seconds = Vec::new();
    for Unheard { running, .. } in &started {
        // Where the first is enough, it has ended without a word.
        let stopping = running.next_stderr_line(|line| line.contains("stopping"), SOON);
        seconds.push(Instant::now());
        if stopping.is_some() {
            running.signal("INT");
        }
    }

    for (unheard, second) in started.into_iter().zip(seconds) {
        assert_kept(unheard, &[1, 130]);
        // It takes 1.8 s to leave a connection, and a machine with much to do takes some on top.
        assert!(second.elapsed() < Duration::from_secs(4), "{:?}", second.elapsed());
    }
}
