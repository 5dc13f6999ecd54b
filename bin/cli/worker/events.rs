//! [`EventLog`]: writes one JSON object for each event to the file of --events.

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
use rabbit_work::{Event, Shutdown};
use rustix::fs::{Access, access};
use serde_json::json;

use crate::cli::common::arguments::refuse_dash;
use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::refuse_file_of_a_stream;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) enum EventLog {
    /// Written at once, so that each event is there however the worker ends.
    File(Arc<Mutex<Lines>>),
    /// A pipe, a terminal or another device.
    Stream(Stream),
}

/// Where the lines go.
pub(crate) struct Lines {
    file: File,
    /// The last line may be incomplete.
    torn: bool,
    /// One log line reports that it cannot be written, not one for each event.
    reported: Once,
}

/// Written by a thread of its own, so that a reader that does not read delays no task for long.
#[derive(Clone)]
pub(crate) struct Stream {
    /// `None` ends the thread.
    lines: Sender<Option<String>>,
    /// Closed when everything is written.
    written: Receiver<Infallible>,
    shutdown: Shutdown,
    /// The reader takes no events.
    is_stalled: Arc<AtomicBool>,
    /// How many events there were, and how many of them were written.
    noted: Arc<AtomicU64>,
    written_count: Arc<AtomicU64>,
}

/// The most events that wait to be written.
const MAX_WAITING: usize = 1000;
/// How long a reader may pause. A reader slower than the tasks slows them down; for one that pauses
/// longer, events are left out.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last events may take at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

impl EventLog {
    pub(crate) fn open(path: &Path, shutdown: &Shutdown) -> Result<EventLog, CommandError> {
        refuse_dash("--events", path)?;
        refuse_file_of_a_stream("--events", path)?;
        let found = fs::metadata(path);
        let opened = if found.is_ok_and(|found| !found.is_file()) {
            Stream::open(path, shutdown).map(EventLog::Stream)
        } else {
            Lines::open(path).map(|lines| EventLog::File(Arc::new(Mutex::new(lines))))
        };
        let unusable = |error| format!("{}: {error}", path.display());
        opened.map_err(|error| CommandError::usage("--events", unusable(error)))
    }

    /// What appends events.
    pub(crate) fn observer(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let log = self.clone();
        move |event| log.note(event)
    }

    /// Writes an event of a task. The log has those of sessions.
    fn note(&self, event: &Event) {
        if event.kind.is_of_session() {
            return;
        }
        let line = as_line(event);
        match self {
            EventLog::File(lines) => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).write(&line);
            }
            EventLog::Stream(stream) => stream.note(line),
        }
    }

    /// Waits until all events are written, but not for long.
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
        // Readable, if possible, to check its end. A pipe must not have us as its reader.
        let is_other = fs::metadata(path).is_ok_and(|found| !found.is_file());
        let readable = (!is_other).then(|| options.clone().read(true).open(path).ok()).flatten();
        let file = readable.map_or_else(|| options.open(path), Ok)?;
        Ok(Lines { file, torn: true, reported: Once::new() })
    }

    /// One write for each line, so that lines of several workers on one file do not mix.
    fn write(&mut self, line: &str) {
        let before = if self.torn && self.ends_in_a_part() { "\n" } else { "" };
        let written = self.file.write_all(format!("{before}{line}").as_bytes());
        self.torn = written.is_err();
        if let Err(error) = written {
            self.reported.call_once(|| warn!("--events cannot be written: {error}"));
        }
    }

    /// Whether the last line has no end, as after a full disk.
    fn ends_in_a_part(&self) -> bool {
        let mut last = [b'\n'];
        let end = self.file.metadata().ok().and_then(|found| found.len().checked_sub(1));
        end.is_some_and(|end| self.file.read_exact_at(&mut last, end).is_ok() && last != [b'\n'])
    }
}

impl Stream {
    fn open(path: &Path, shutdown: &Shutdown) -> io::Result<Stream> {
        access(path, Access::WRITE_OK)?;
        let (lines, waiting) = bounded(MAX_WAITING);
        let (last, written) = bounded(0);
        let (path, written_count) = (path.to_path_buf(), Arc::<AtomicU64>::default());
        let count = Arc::clone(&written_count);
        let write = move || {
            let _last: Sender<Infallible> = last;
            // Opening a named pipe waits for a reader.
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
            is_stalled: Arc::default(),
            noted: Arc::default(),
            written_count,
        })
    }

    /// Waits for room, unless the reader is stalled.
    fn note(&self, line: String) {
        self.noted.fetch_add(1, Ordering::SeqCst);
        let is_stalled = self.is_stalled.load(Ordering::SeqCst);
        let timeout = if is_stalled { Duration::ZERO } else { STALL_TIMEOUT };
        let sent = select_biased! {
            send(self.lines, Some(line)) -> sent => sent.is_ok(),
            recv(self.shutdown.aborting()) -> _ => false,
            default(timeout) => false,
        };
        let was_stalled = self.is_stalled.swap(!sent, Ordering::SeqCst);
        if !sent && !was_stalled {
            warn!("nobody reads --events: tasks continue, and events are dropped");
        }
    }

    fn close(&self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let _ = self.lines.send_deadline(None, deadline);
        let _ = self.written.recv_deadline(deadline);
        let written = self.written_count.load(Ordering::SeqCst);
        let missing = self.noted.load(Ordering::SeqCst) - written;
        if missing > 0 {
            warn!("{missing} events are missing in --events, because nobody read it");
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
        "host": event.host,
        "bytes": event.bytes,
        "ms": event.elapsed.as_millis() as u64,
    });
    for (name, number) in [("exit", event.exit), ("signal", event.signal)] {
        if let Some(number) = number {
            line[name] = json!(number);
        }
    }
    if let Some(reason) = &event.reason {
        line["reason"] = json!(reason);
    }
    format!("{line}\n")
}
