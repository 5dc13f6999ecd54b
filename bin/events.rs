//! Owns the events file of a worker: one JSON object for each line.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use log::warn;
use rabbit_work::{Error, Event, Shutdown};
use rustix::fs::{Access, access};
use serde_json::json;

use super::cli;
use super::streams::refuse_where_a_stream_goes;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) enum EventLog {
    /// Has each event before anything else happens, whatever ends the worker then.
    File(Arc<Mutex<Lines>>),
    /// A pipe, a terminal or another device.
    Stream(Stream),
}

/// Where the lines go.
pub(crate) struct Lines {
    file: File,
    /// A line was written, or found, of which only a part may be there.
    torn: bool,
    /// One line says that it is full; there would be one for each event.
    told: Once,
}

/// Written by a thread of its own: whoever is at the other end may not read, and holds up no task
/// for long.
#[derive(Clone)]
pub(crate) struct Stream {
    /// `None` is the last.
    lines: Sender<Option<String>>,
    /// Closed when everything is written.
    written: Receiver<Infallible>,
    shutdown: Shutdown,
    stands_still: Arc<AtomicBool>,
    /// How many events there were, and how many of them were written.
    noted: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
}

/// How many events wait to be written.
const WAITING: usize = 1000;
/// How long a reader may do nothing. One that is slower than the tasks slows them down; one that
/// stands still has events left out.
const STANDSTILL: Duration = Duration::from_secs(2);
/// What is left may take so long at the end.
const LAST: Duration = Duration::from_millis(500);

impl EventLog {
    pub(crate) fn open(path: &Path, shutdown: &Shutdown) -> Result<EventLog, Error> {
        cli::refuse_dash("--events", path)?;
        refuse_where_a_stream_goes("--events", path)?;
        let found = fs::metadata(path);
        let opened = if found.is_ok_and(|found| !found.is_file()) {
            Stream::open(path, shutdown).map(EventLog::Stream)
        } else {
            Lines::open(path).map(|lines| EventLog::File(Arc::new(Mutex::new(lines))))
        };
        opened.map_err(|error| Error::setting("--events", format!("{}: {error}", path.display())))
    }

    pub(crate) fn note(&self, event: &Event) {
        let line = as_line(event);
        match self {
            EventLog::File(lines) => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).write(&line);
            }
            EventLog::Stream(stream) => stream.note(line),
        }
    }

    /// Waits until what happened is written, but not for long.
    pub(crate) fn close(&self) {
        if let EventLog::Stream(stream) = self {
            stream.close();
        }
    }
}

impl Lines {
    fn open(path: &Path) -> io::Result<Lines> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        // Where it may be read, its end is looked at. A pipe would have a reader in us.
        let is_other = fs::metadata(path).is_ok_and(|found| !found.is_file());
        let readable = (!is_other).then(|| options.clone().read(true).open(path).ok()).flatten();
        let file = readable.map_or_else(|| options.open(path), Ok)?;
        Ok(Lines { file, torn: true, told: Once::new() })
    }

    /// One write for each line, so that lines of several workers on one file do not mix.
    fn write(&mut self, line: &str) {
        let before = if self.torn && self.ends_in_a_part() { "\n" } else { "" };
        let written = self.file.write_all(format!("{before}{line}").as_bytes());
        self.torn = written.is_err();
        if let Err(error) = written {
            self.told.call_once(|| warn!("--events cannot be written: {error}"));
        }
    }

    /// Whether its last line has no end, as when the disk was full before that.
    fn ends_in_a_part(&self) -> bool {
        let mut last = [b'\n'];
        let end = self.file.metadata().ok().and_then(|found| found.len().checked_sub(1));
        end.is_some_and(|end| self.file.read_exact_at(&mut last, end).is_ok() && last != [b'\n'])
    }
}

impl Stream {
    fn open(path: &Path, shutdown: &Shutdown) -> io::Result<Stream> {
        access(path, Access::WRITE_OK)?;
        let (lines, waiting) = bounded(WAITING);
        let (last, written) = bounded(0);
        let (path, done) = (path.to_path_buf(), Arc::<AtomicU64>::default());
        let count = Arc::clone(&done);
        let write = move || {
            let _last: Sender<Infallible> = last;
            // A named pipe opens when it has a reader.
            match Lines::open(&path) {
                Ok(mut lines) => {
                    for line in waiting.iter().map_while(|line: Option<String>| line) {
                        lines.write(&line);
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Err(error) => warn!("--events: {}: {error}", path.display()),
            }
        };
        thread::Builder::new().name("events".into()).spawn(write)?;
        Ok(Stream {
            lines,
            written,
            shutdown: shutdown.clone(),
            stands_still: Arc::default(),
            noted: Arc::default(),
            done,
        })
    }

    /// Waits for room, unless there was none for long.
    fn note(&self, line: String) {
        self.noted.fetch_add(1, Ordering::SeqCst);
        let stands_still = self.stands_still.load(Ordering::SeqCst);
        let patience = if stands_still { Duration::ZERO } else { STANDSTILL };
        let sent = select_biased! {
            send(self.lines, Some(line)) -> sent => sent.is_ok(),
            recv(self.shutdown.aborting()) -> _ => false,
            default(patience) => false,
        };
        let stood_still = self.stands_still.swap(!sent, Ordering::SeqCst);
        if !sent && !stood_still {
            warn!("--events is not read: tasks go on, and events are left out");
        }
    }

    fn close(&self) {
        let deadline = Instant::now() + LAST;
        let _ = self.lines.send_deadline(None, deadline);
        let _ = self.written.recv_deadline(deadline);
        let done = self.done.load(Ordering::SeqCst);
        let missing = self.noted.load(Ordering::SeqCst) - done;
        if missing > 0 {
            warn!("{missing} events are not in --events, because it was not read");
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
