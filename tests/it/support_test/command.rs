//! The command runner: output, input, signals, limits.

use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use crate::support::command::Command;

const SOON: Duration = Duration::from_secs(30);

fn shell(script: &str) -> Command {
    Command::program("sh", &["-c", script])
}

#[test]
fn both_streams_and_the_code_are_collected() {
    let output = shell("cat; echo err >&2; exit 7").stdin("in\0put").run(SOON);
    assert_eq!((output.code, output.signal), (Some(7), None));
    assert_eq!(output.stdout, b"in\0put");
    assert_eq!(output.stderr(), "err\n");
}

#[test]
fn lines_are_waited_for_in_order() {
    let mut command = shell("echo one; read word; echo two; echo $word >&2").open_stdin().start();
    command.wait_for_stdout_line(|line| line == "one", SOON);
    command.write(b"word\n");
    command.wait_for_stdout_line(|line| line == "two", SOON);
    command.wait_for_stderr_line(|line| line == "word", SOON);
    assert_eq!(command.wait(SOON).success(), "one\ntwo\n");
}

#[test]
fn a_signal_arrives_by_its_name() {
    let command = shell("trap 'echo got; exit 3' INT; echo up; while :; do sleep 0.01; done");
    let command = command.start();
    command.wait_for_stdout_line(|line| line == "up", SOON);
    command.signal("INT");
    let output = command.wait(SOON);
    assert_eq!((output.code, output.stdout().as_str()), (Some(3), "up\ngot\n"));
}

#[test]
fn a_killed_command_reports_its_signal() {
    let command = shell("echo up; exec sleep 100").start();
    command.wait_for_stdout_line(|line| line == "up", SOON);
    command.kill();
    assert_eq!(command.wait(SOON).signal, Some(9));
}

#[test]
fn a_line_that_cannot_come_any_more_fails_at_once() {
    let begun = Instant::now();
    let command = shell("echo other").start();
    let wait = || command.wait_for_stdout_line(|line| line == "wanted", SOON);
    assert!(panic::catch_unwind(AssertUnwindSafe(wait)).is_err());
    assert!(begun.elapsed() < SOON);
}

#[test]
fn an_overdue_command_is_killed_and_fails_the_test() {
    let command = shell("echo $$; exec sleep 100").start();
    let pid = command.wait_for_stdout_line(|_| true, SOON);
    let wait = || command.wait(Duration::from_millis(50));
    assert!(panic::catch_unwind(AssertUnwindSafe(wait)).is_err());
    assert_ne!(shell(&format!("kill -0 {pid}")).run(SOON).code, Some(0));
}

#[test]
fn a_daemon_that_holds_the_output_delays_nothing_for_long() {
    let begun = Instant::now();
    let output = shell("sleep 3 & echo done").run(SOON);
    assert_eq!(output.success(), "done\n");
    assert!(begun.elapsed() < Duration::from_millis(2500));
}
