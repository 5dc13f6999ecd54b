//! A command as the first process of a container, which no signal without a handler ends, and which must
//! reap processes that others leave behind; and the delivery of SIGCHLD.

use std::env;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};
use std::sync::Arc;

use log::warn;
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::common::error::CommandError;

/// The signals that the child gets. Other signals end a process without a handler, but not the first
/// process.
const FORWARDED: [(i32, Signal); 4] = [
    (SIGHUP, Signal::HUP),
    (SIGINT, Signal::INT),
    (SIGQUIT, Signal::QUIT),
    (SIGTERM, Signal::TERM),
];

/// In the first process, runs the same command in a child, and returns the child's exit status. A
/// process that waits for its own children one by one cannot reap all others: it would take the
/// status of some of its own.
pub(crate) fn status_as_first_process() -> Option<u8> {
    if process::id() != 1 {
        return None;
    }
    match Init::start() {
        Ok(init) => Some(init.wait_for_child()),
        Err(error) => {
            warn!(
                "cannot run as the first process of a container: {error}; zombies may stay, and \
                 signals may be ignored; start the container with --init"
            );
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
        // A parent may have blocked them: children inherit the mask.
        let ours = FORWARDED.iter().filter_map(|(number, _)| (*number).try_into().ok());
        SigSet::from_iter(ours).thread_unblock()?;
        // Before the child starts, so that no signal is lost.
        let signals = Signals::new(FORWARDED.map(|(signal, _)| signal).iter().chain([&SIGCHLD]))?;
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        let mut command = Command::new(env::current_exe()?);
        // In a group of its own: it would get a Ctrl-C twice.
        let child = command.arg0(name).args(arguments).process_group(0).spawn()?;
        Ok(Init { signals, child })
    }

    /// Reaps and forwards until the child ends. The system ends what is left.
    fn wait_for_child(mut self) -> u8 {
        let child = Pid::from_child(&self.child);
        for signal in &mut self.signals {
            if let Some((_, forwarded)) = FORWARDED.iter().find(|(number, _)| *number == signal) {
                // The child is not reaped yet, so the number is its own.
                let _ = kill_process(child, *forwarded);
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

/// The exit status as a shell reports it.
fn exit_status(status: WaitStatus) -> u8 {
    let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Ignored, as some supervisors start their children, SIGCHLD would cost us the exit status of every
/// command. Any handler helps. If it was not ignored, a handler would only wake our first thread for
/// each command, which costs a short one 7 %.
pub(crate) fn ensure_sigchld_is_delivered() -> Result<(), CommandError> {
    if is_ignored(SIGCHLD) == Some(false) {
        return Ok(());
    }
    let registered = signal_hook::flag::register(SIGCHLD, Arc::default());
    registered.map(drop).map_err(|error| CommandError::usage("signals", error))
}

/// Whether our parent had this signal ignored, as far as the system reports it (Linux).
fn is_ignored(signal: i32) -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let ignored = u64::from_str_radix(ignored.trim(), 16).ok()?;
    Some(ignored >> (signal - 1) & 1 == 1)
}
