//! Reports to systemd, or another service manager with its protocol, how the worker is
//! (<https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>).

use std::env;
use std::io;
use std::thread;
use std::time::Duration;

use log::warn;
use rabbit_work::{Shutdown, Worker};
use sd_notify::{NotifyState, notify, watchdog_enabled};

use crate::cli::common::error::CommandError;
use crate::cli::worker::health::WorkersHealth;
use crate::cli::worker::options::Options;

const SOCKET: &str = "NOTIFY_SOCKET";
/// How often the health is judged before the worker is ready.
const UNTIL_READY: Duration = Duration::from_millis(100);
/// How often it is judged after that, at least: as for `--health-file`.
const JUDGE_EVERY: Duration = Duration::from_secs(2);
/// How often it is judged in the watchdog's time, at least: a worker that connects again at the moment
/// of one judgement passes the next.
const JUDGEMENTS: u32 = 10;

/// Starts a thread that reports, if there is a service manager: ready when all threads consume,
/// stopping at the stop, and between them, for its watchdog, at each judgement that the worker is
/// healthy.
pub(crate) fn report_to_service_manager(
    options: &Options,
    workers: &[Worker],
    shutdown: &Shutdown,
) -> Result<(), CommandError> {
    if env::var_os(SOCKET).is_none() {
        return Ok(());
    }
    let no_thread = |error: io::Error| CommandError::usage(SOCKET, error);
    let (health, shutdown) = (WorkersHealth::of(options, workers), shutdown.clone());
    let report = move || {
        report(&health, &shutdown).unwrap_or_else(|error| {
            warn!(
                "{SOCKET} cannot be written: {error}; the service manager gets no further report; \
                 check NotifyAccess of the unit"
            );
        });
    };
    thread::Builder::new().name("notify".into()).spawn(report).map(drop).map_err(no_thread)
}

fn report(health: &WorkersHealth, shutdown: &Shutdown) -> io::Result<()> {
    let mut stopped = false;
    while !stopped && !health.is_healthy() {
        stopped = shutdown.wait(UNTIL_READY);
    }
    if !stopped {
        notify(&[NotifyState::Ready])?;
        report_health(health, shutdown)?;
    }
    notify(&[NotifyState::Stopping])
}

fn report_health(health: &WorkersHealth, shutdown: &Shutdown) -> io::Result<()> {
    let every = watchdog_enabled().map_or(Duration::MAX, |it| JUDGE_EVERY.min(it / JUDGEMENTS));
    while !shutdown.wait(every) {
        if health.is_healthy() {
            notify(&[NotifyState::Watchdog])?;
        }
    }
    Ok(())
}
