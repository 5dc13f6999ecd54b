//! Tells systemd, or another service manager with its protocol, how the worker is
//! (<https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>).

use std::env;
use std::io;
use std::thread;
use std::time::Duration;

use log::warn;
use rabbit_work::{Health, Shutdown, Worker};
use sd_notify::{NotifyState, notify, watchdog_enabled};

use crate::cli::common::error::CommandError;
use crate::cli::worker::health_file::task_limit;
use crate::cli::worker::options::Options;

const SOCKET: &str = "NOTIFY_SOCKET";
/// How often the health is judged before the worker is ready.
const UNTIL_READY: Duration = Duration::from_millis(100);

/// Starts a thread that reports, if there is a service manager: ready when all threads consume,
/// stopping at the stop, and between them each half of the watchdog's time, while the worker is
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
    let (limit, shutdown) = (task_limit(options), shutdown.clone());
    let health: Vec<Health> = workers.iter().map(Worker::health).collect();
    let report = move || {
        let is_healthy = || health.iter().all(|it| it.is_healthy(limit));
        report(is_healthy, &shutdown).unwrap_or_else(|error| {
            warn!("{SOCKET} cannot be written: {error}; the service manager gets no further report; check NotifyAccess of the unit");
        });
    };
    thread::Builder::new().name("notify".into()).spawn(report).map(drop).map_err(no_thread)
}

fn report(is_healthy: impl Fn() -> bool, shutdown: &Shutdown) -> io::Result<()> {
    let mut stopped = false;
    while !stopped && !is_healthy() {
        stopped = shutdown.wait(UNTIL_READY);
    }
    if !stopped {
        notify(&[NotifyState::Ready])?;
        report_health(is_healthy, shutdown)?;
    }
    notify(&[NotifyState::Stopping])
}

fn report_health(is_healthy: impl Fn() -> bool, shutdown: &Shutdown) -> io::Result<()> {
    let every = watchdog_enabled().map_or(Duration::MAX, |limit| limit / 2);
    while !shutdown.wait(every) {
        if is_healthy() {
            notify(&[NotifyState::Watchdog])?;
        }
    }
    Ok(())
}
