//! Owns what the first process of a container has to do beside its work: reap what commands leave
//! behind, which comes to it when it ends.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};

use log::warn;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::cli;

/// What is passed on. Others would end a process without a handler, and do nothing to the first
/// one.
const PASSED_ON: [(i32, Signal); 4] = [
    (SIGHUP, Signal::HUP),
    (SIGINT, Signal::INT),
    (SIGQUIT, Signal::QUIT),
    (SIGTERM, Signal::TERM),
];

/// Where this is the first process, has the same command do the work in a child, and returns the
/// status that the child ends with. A process that waits for its own children, each for itself,
/// cannot reap all others: it would take the status of some of its own.
pub(crate) fn status_as_first_process() -> Option<u8> {
    if process::id() != 1 {
        return None;
    }
    match Init::start() {
        Ok(init) => Some(init.attend()),
        Err(error) => {
            warn!("what commands leave behind will not be reaped: {error}");
            None
        }
    }
}

struct Init {
    signals: Signals,
    child: Child,
}

impl Init {
    fn start() -> io::Result<Init> {
        cli::unblock_signals()?;
        // First: what comes meanwhile is not lost.
        let signals = Signals::new(PASSED_ON.map(|(signal, _)| signal).iter().chain([&SIGCHLD]))?;
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        let mut command = Command::new(env::current_exe()?);
        // Out of the terminal's group: a Ctrl-C would come to it twice.
        let child = command.arg0(name).args(arguments).process_group(0).spawn()?;
        Ok(Init { signals, child })
    }

    /// Reaps and passes on until the child ends. What is left then, the system ends.
    fn attend(mut self) -> u8 {
        let child = Pid::from_child(&self.child);
        for signal in &mut self.signals {
            if let Some((_, passed_on)) = PASSED_ON.iter().find(|(number, _)| *number == signal) {
                // It is not reaped yet, so the number is its own.
                let _ = kill_process(child, *passed_on);
            }
            while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
                if ended == child {
                    return exit_status(status);
                }
            }
        }
        u8::MAX
    }
}

/// As a shell says it.
fn exit_status(status: WaitStatus) -> u8 {
    let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
