//! Owns the events file of a worker: one JSON object for each line.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use rabbit_work::{Error, Event};
use serde_json::json;

/// Written by a thread of its own: whoever reads the file may not do so, and holds up no task.
/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct EventLog {
    /// `None` is the last.
    lines: Sender<Option<String>>,
    /// Closed when everything is written.
    written: Receiver<Infallible>,
    missing: Arc<AtomicU64>,
}

/// How many events wait to be written.
const WAITING: usize = 1000;
/// How long a reader may do nothing. One that is slower than the tasks slows them down; one that
/// stands still has its events left out.
const STANDSTILL: Duration = Duration::from_secs(2);
/// What is left may take so long at the end.
const LAST: Duration = Duration::from_secs(1);

impl EventLog {
    /// # Blocking
    /// While a named pipe has no reader.
    pub(crate) fn open(path: &Path) -> Result<EventLog, Error> {
        let unfit =
            |error: io::Error| Error::setting("--events", format!("{}: {error}", path.display()));
        if is_fifo(path) {
            info!("--events waits for a reader of {}", path.display());
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(unfit)?;
        let (lines, waiting) = bounded(WAITING);
        let (last, written) = bounded(0);
        let write = move || {
            let _last: Sender<Infallible> = last;
            write_all(file, &waiting);
        };
        thread::Builder::new().name("events".into()).spawn(write).map_err(unfit)?;
        Ok(EventLog { lines, written, missing: Arc::default() })
    }

    /// Waits for room, until there was none for long.
    pub(crate) fn note(&self, event: &Event) {
        let is_whole = self.missing.load(Ordering::SeqCst) == 0;
        let patience = if is_whole { STANDSTILL } else { Duration::ZERO };
        if self.lines.send_timeout(Some(as_line(event)), patience).is_err()
            && self.missing.fetch_add(1, Ordering::SeqCst) == 0
        {
            warn!("--events is not read: tasks go on, and events are left out");
        }
    }

    /// Waits until what happened is written, but not for long.
    pub(crate) fn close(&self) {
        let deadline = Instant::now() + LAST;
        let is_full = self.lines.send_deadline(None, deadline).is_err();
        let in_time = self.written.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected);
        // One is in the hands of the thread, and the mark of the end is no event.
        let unwritten = if in_time { 0 } else { self.lines.len() as u64 + u64::from(is_full) };
        let missing = self.missing.load(Ordering::SeqCst) + unwritten;
        if missing > 0 {
            warn!("{missing} events are not in --events, because it was not read");
        }
    }
}

fn is_fifo(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

fn write_all(mut file: File, lines: &Receiver<Option<String>>) {
    // There would be one for each event.
    let told = Once::new();
    for line in lines.iter().map_while(|line| line) {
        // One write for each line, so that lines of several workers on one file do not mix.
        if let Err(error) = file.write_all(line.as_bytes()) {
            told.call_once(|| warn!("--events cannot be written: {error}"));
        }
    }
}

fn as_line(event: &Event) -> String {
    let since = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = json!({
        "time": since.as_millis() as f64 / 1000.0,
        "event": event.kind.name(),
        "task": event.task,
        "attempt": event.attempt,
        "thread": event.thread,
        "queue": event.queue,
        "ms": event.elapsed.as_millis() as u64,
    });
    if let Some(reason) = &event.reason {
        line["reason"] = json!(reason);
    }
    format!("{line}\n")
}
