//! [`HealthFile`]: a file that a thread touches while the worker is healthy.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use log::warn;
use rabbit_work::{Shutdown, Trigger, Worker, shutdown};

use crate::cli::common::error::CommandError;
use crate::cli::common::signals::on_forced_exit;
use crate::cli::common::stdio::refuse_file_of_a_stream;
use crate::cli::worker::health::WorkersHealth;
use crate::cli::worker::options::Options;

/// The file that a thread keeps fresh. Dropping this removes the file.
#[derive(Clone)]
pub(crate) struct HealthFile {
    /// Stops the thread, which then removes the file.
    stop: Trigger,
    /// Closed when the file is removed.
    removed: Receiver<Infallible>,
}

/// Well below the 10 s after which the file is stale.
const TOUCH_EVERY: Duration = Duration::from_secs(2);
/// More bytes than a process id and a newline have.
const LARGEST_FILE: u64 = 16;
/// How long removing the file may take: its disk may not respond.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);

impl HealthFile {
    pub(crate) fn keep(
        path: &Path,
        options: &Options,
        workers: &[Worker],
    ) -> Result<HealthFile, CommandError> {
        let unusable = |error: io::Error| {
            CommandError::usage("--health-file", format!("{}: {error}", path.display()))
        };
        refuse_file_of_a_stream("--health-file", path)?;
        // The worker is not healthy yet, but a file that cannot be written is an error now.
        refuse_foreign_file(path).and_then(|()| touch(path)).map_err(unusable)?;
        fs::remove_file(path).map_err(unusable)?;
        let (stop, stopped) = shutdown();
        let (last, removed) = bounded(0);
        let health = WorkersHealth::of(options, workers);
        let path = path.to_path_buf();
        let keep = move || {
            let _last = last;
            keep_fresh(&path, &health, &stopped);
        };
        thread::Builder::new().name("health".into()).spawn(keep).map_err(unusable)?;
        let file = HealthFile { stop, removed };
        let at_exit = file.clone();
        on_forced_exit(move || drop(at_exit));
        Ok(file)
    }
}

/// Touches the file until `stopped`, and then removes it.
fn keep_fresh(path: &Path, health: &WorkersHealth, stopped: &Shutdown) {
    while !stopped.wait(TOUCH_EVERY) {
        if !health.is_healthy() {
            continue;
        }
        if let Err(error) = touch(path) {
            warn!("--health-file cannot be written: {error}");
        }
    }
    let _ = fs::remove_file(path);
}

impl Drop for HealthFile {
    fn drop(&mut self) {
        self.stop.stop();
        let _ = self.removed.recv_timeout(REMOVE_TIMEOUT);
    }
}

/// Refuses a device, a link, or a file with other content: it is not ours to overwrite and remove.
fn refuse_foreign_file(path: &Path) -> io::Result<()> {
    // Any other fault shows when the file is written.
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.is_file() {
        return Err(io::Error::other("it exists and is not a regular file; take another path"));
    }
    let mut start = Vec::new();
    File::open(path)?.take(LARGEST_FILE).read_to_end(&mut start)?;
    let is_ours = start.iter().all(|it| it.is_ascii_digit() || *it == b'\n');
    if is_ours && found.len() < LARGEST_FILE {
        return Ok(());
    }
    Err(io::Error::other("it exists and holds more than a process id; take another path"))
}

fn touch(path: &Path) -> io::Result<()> {
    fs::write(path, format!("{}\n", std::process::id()))
}
