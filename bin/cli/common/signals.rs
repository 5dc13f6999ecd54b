//! Turns signals into a stop that always ends: the first signal stops, the second aborts, the third
//! kills, and a command that has not ended in time is ended by force.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use nix::sys::signal::{SigSet, Signal};
use rabbit_work::{Shutdown, Trigger, shutdown};

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;

/// How long a command may take to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopLimits {
    /// From the first signal until running tasks are cancelled.
    pub(crate) grace: Duration,
    /// From then on, or from the second signal, until they have ended.
    pub(crate) cancel_timeout: Duration,
    /// The exit status after a first signal if that is not enough.
    pub(crate) late: Exit,
}

/// The time for the rest of an orderly end: requeueing, closing, reporting.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);
/// The time killed programs may take to disappear.
const EXIT_AFTER_KILL: Duration = Duration::from_millis(300);

/// A second signal this soon is an echo of the first: `timeout` signals its child and then its whole
/// group, which includes the child, and so do some supervisors.
const ECHO: Duration = Duration::from_millis(200);

static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Connects the signals to a shutdown.
pub(crate) fn stop_on_signals(limits: StopLimits) -> Result<(Trigger, Shutdown), CommandError> {
    unblock_signals()
        .and_then(|()| ignore_file_size_signal())
        .map_err(|error| CommandError::usage("signals", error))?;
    let (trigger, shutdown) = shutdown();
    let handed_out = trigger.clone();
    let mut first = None;
    let handle = move || {
        let since_first = first.get_or_insert_with(Instant::now).elapsed();
        if SIGNALS.load(Ordering::SeqCst) != 1 || since_first >= ECHO {
            on_signal(SIGNALS.fetch_add(1, Ordering::SeqCst), &trigger, limits);
        }
    };
    ctrlc::set_handler(handle).map_err(|error| match error {
        ctrlc::Error::System(error) => {
            CommandError::usage("signals", format!("the system gave no thread for them: {error}"))
        }
        error => CommandError::usage("signals", error),
    })?;
    Ok((handed_out, shutdown))
}

/// Must not wait: the next signal would have no effect meanwhile.
fn on_signal(signals_before: u32, trigger: &Trigger, limits: StopLimits) {
    let StopLimits { grace, cancel_timeout, late } = limits;
    match signals_before {
        0 => {
            trigger.stop();
            let limit = grace.saturating_add(cancel_timeout + CLOSE_TIMEOUT * 2);
            force_exit_after(limit, late, trigger.clone());
            log_stopping();
        }
        1 => {
            trigger.abort();
            force_exit_after(cancel_timeout + CLOSE_TIMEOUT, Exit::Interrupted, trigger.clone());
        }
        _ => {
            trigger.kill();
            force_exit_after(CLOSE_TIMEOUT, Exit::Interrupted, trigger.clone());
        }
    }
}

/// A parent may have blocked them: children inherit the mask.
pub(crate) fn unblock_signals() -> io::Result<()> {
    let ours = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    Ok(ours.thread_unblock()?)
}

/// A write beyond `ulimit -f` then fails like one to a full disk. Unhandled, SIGXFSZ would end the
/// command without an error.
fn ignore_file_size_signal() -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map(drop)
}

/// In a thread of its own, as standard error may be a pipe without a reader. An echo does not count
/// as the second signal, so this waits until one would.
fn log_stopping() {
    let log = || {
        thread::sleep(ECHO);
        warn!("stopping; a second signal exits now");
    };
    // The stop works without this line.
    let _ = thread::Builder::new().name("stopping".into()).spawn(log);
}

/// Whether a second signal came. An abort alone does not show it: the forced exit aborts as well.
pub(crate) fn is_interrupted() -> bool {
    SIGNALS.load(Ordering::SeqCst) > 1
}

type ExitHook = Box<dyn FnOnce() + Send>;

static EXIT_HOOK: Mutex<Option<ExitHook>> = Mutex::new(None);

/// Runs `hook` before a forced exit. It may take a second at most.
pub(crate) fn on_forced_exit(hook: impl FnOnce() + Send + 'static) {
    *EXIT_HOOK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
}

/// Ends the process if an orderly end takes longer than `limit`. Running programs are killed first.
#[allow(clippy::exit)]
fn force_exit_after(limit: Duration, exit: Exit, trigger: Trigger) {
    let force_exit = move || {
        thread::sleep(limit);
        trigger.kill();
        thread::sleep(EXIT_AFTER_KILL);
        // Locked until the exit: a second forced exit waits until the hook has run.
        let mut hook = EXIT_HOOK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hook) = hook.take() {
            hook();
        }
        std::process::exit(i32::from(exit.status()));
    };
    // Without a thread only the orderly end remains; logging that could block for ever.
    let _ = thread::Builder::new().name("forced-exit".into()).spawn(force_exit);
}
