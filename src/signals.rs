//! Turns signals into a stop in three stages.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::after;

use crate::model::error::Error;
use crate::util::panic::caught;
use crate::util::shutdown::{Shutdown, Trigger, shutdown};

/// A second signal this soon is an echo of the first: `timeout` signals its child and then its whole
/// group, which includes the child, and so do some supervisors.
const ECHO: Duration = Duration::from_millis(200);

/// How long the program may go on after the third signal, to end in order.
const TIME_TO_END: Duration = Duration::from_millis(1500);

/// The exit status after the third signal: a shell's for SIGINT.
const INTERRUPTED: i32 = 130;

/// Makes a [`shutdown`](crate::shutdown) that SIGINT (Ctrl-C), SIGTERM and SIGHUP ask for:
///
/// * the first signal is a [`stop`](Trigger::stop): running tasks are finished, within the
///   [grace](crate::Worker::grace);
/// * the second one is an [`abort`](Trigger::abort): running tasks are cancelled and requeued;
/// * the third one is a [`kill`](Trigger::kill), and **the process exits** with the status 130 if it has
///   not ended 1.5 s later. This is the only case in which this library ends a process.
///
/// A second signal within 0.2 s of the first does not count: some supervisors send each signal twice.
/// SIGHUP stops also a program that was started with `nohup`. The trigger may be dropped; it is for
/// programs that also stop for other reasons.
///
/// Call it once, before other threads start: threads inherit which signals are blocked. It replaces
/// handlers of these signals that were set before. The first process of a container gets signals only if it has
/// such handlers, so this is what lets one stop in order.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use rabbit_work::{Broker, Delivery, Queue, Worker, shutdown_on_signals};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let (_, shutdown) = shutdown_on_signals()?;
/// Worker::new(&broker, &Queue::new("photos")).run(|_: &Delivery| Ok(()), &shutdown)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidSetting`] if it was called before, or the crate `ctrlc` has a handler already;
/// [`Error::NoThread`].
pub fn shutdown_on_signals() -> Result<(Trigger, Shutdown), Error> {
    shutdown_on_signals_with(|signals, _| {
        if signals >= 3 {
            exit_soon();
        }
    })
}

/// The same for a program that decides itself how it ends: the third signal is only a
/// [`kill`](Trigger::kill). At each signal, calls `notify` with the number of signals so far and the
/// trigger, and then begins the stage. `notify` must not wait: the stage and later signals would wait
/// with it.
///
/// # Errors
/// As [`shutdown_on_signals`].
pub fn shutdown_on_signals_with(
    mut notify: impl FnMut(u32, &Trigger) + Send + 'static,
) -> Result<(Trigger, Shutdown), Error> {
    unblock_signals()?;
    let (trigger, shutdown) = shutdown();
    let handed_out = trigger.clone();
    let mut signals: u32 = 0;
    let mut first = None;
    let handle = move || {
        let since_first = first.get_or_insert_with(Instant::now).elapsed();
        if signals == 1 && since_first < ECHO {
            return;
        }
        signals = signals.saturating_add(1);
        // First, because the stage may end the program. A panic there must not disable the stages.
        let _ = caught(|| notify(signals, &trigger));
        match signals {
            1 => trigger.stop(),
            2 => trigger.abort(),
            _ => trigger.kill(),
        }
    };
    ctrlc::set_handler(handle).map_err(|error| match error {
        ctrlc::Error::System(source) => Error::NoThread { source },
        ctrlc::Error::MultipleHandlers => {
            Error::setting("signals", "they have a handler already; set only one in a program")
        }
        error => Error::setting("signals", error.to_string()),
    })?;
    Ok((handed_out, shutdown))
}

/// A parent may have blocked them: children inherit the mask.
fn unblock_signals() -> Result<(), Error> {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};

        let ours = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        ours.thread_unblock().map_err(|error| Error::setting("signals", error.to_string()))?;
    }
    Ok(())
}

/// Without a thread only the program's own end remains.
#[allow(clippy::exit)]
fn exit_soon() {
    let exit = || {
        let _ = after(TIME_TO_END).recv();
        process::exit(INTERRUPTED);
    };
    let _ = thread::Builder::new().name("rw-exit".into()).spawn(exit);
}
