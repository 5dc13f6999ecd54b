//! Sees to it that a stop that signals asked for always ends: a command that has not ended in time is
//! ended by force.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::warn;
use rabbit_work::{Shutdown, Trigger, shutdown_on_signals_with};

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

/// A signal this soon after the first does not count as the second one.
const ECHO: Duration = Duration::from_millis(200);

static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Connects the signals to a shutdown.
pub(crate) fn stop_on_signals(limits: StopLimits) -> Result<(Trigger, Shutdown), CommandError> {
    ignore_file_size_signal().map_err(|error| CommandError::usage("signals", error))?;
    let connected = shutdown_on_signals_with(move |signals, trigger| {
        SIGNALS.store(signals, Ordering::SeqCst);
        on_signal(signals, trigger, limits);
    });
    Ok(connected?)
}

/// Sees to it that the process ends in time. It must not wait: the next signal would have no effect
/// meanwhile.
fn on_signal(signals: u32, trigger: &Trigger, limits: StopLimits) {
    let StopLimits { grace, cancel_timeout, late } = limits;
    match signals {
        1 => {
            let limit = grace.saturating_add(cancel_timeout + CLOSE_TIMEOUT * 2);
            force_exit_after(limit, late, trigger.clone());
            log_stopping();
        }
        2 => force_exit_after(cancel_timeout + CLOSE_TIMEOUT, Exit::Interrupted, trigger.clone()),
        _ => force_exit_after(CLOSE_TIMEOUT, Exit::Interrupted, trigger.clone()),
    }
}

/// A write beyond `ulimit -f` then fails like one to a full disk. Unhandled, SIGXFSZ would end the
/// command without an error.
fn ignore_file_size_signal() -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map(drop)
}

/// In a thread of its own, as standard error may be a pipe without a reader. It waits until a second
/// signal would count.
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
