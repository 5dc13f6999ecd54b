//! Signals that ask a program of the library's to stop.

use std::time::Duration;

use crate::child::program_with_signals;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_first_signal_stops_the_second_aborts_and_the_third_ends_the_process() {
    for signals in [["INT", "INT", "INT"], ["TERM", "HUP", "TERM"]] {
        let running = program_with_signals().start();
        running.wait_for_stdout_line(|line| line.contains("set only one in a program"), SOON);
        for (signal, stage) in signals.into_iter().zip(["stopping,", "aborting,", "killing,"]) {
            running.signal(signal);
            running.wait_for_stdout_line(|line| line.contains(stage), SOON);
        }
        running.wait(SOON).assert_code(130);
    }
}

#[test]
fn an_echo_of_the_first_signal_does_not_count() {
    let running = program_with_signals().start();
    running.wait_for_stdout_line(|line| line.contains("set only one in a program"), SOON);
    running.signal("TERM");
    running.signal("INT");
    running.wait_for_stdout_line(|line| line.contains("stopping, aborting: false"), SOON);
    running.signal("TERM");
    running.wait_for_stdout_line(|line| line.contains("aborting, aborting: true"), SOON);
    running.kill();
    running.wait(SOON);
}
