//! The longest time in a ledger without a confirm, and without a finished task.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Looks at a ledger again and again.
pub(super) struct Progress {
    over: Arc<AtomicBool>,
    looking: JoinHandle<Gaps>,
}

/// The longest times without the one and without the other.
#[derive(Debug)]
pub(super) struct Gaps {
    pub(super) confirms: Duration,
    pub(super) done: Duration,
}

const PAUSE: Duration = Duration::from_millis(50);

impl Progress {
    pub(super) fn of(ledger: &Path) -> Progress {
        let mut lines = BufReader::new(File::open(ledger).expect("the ledger is there"));
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let looking = thread::spawn(move || {
            let (mut confirms, mut done) = (Gap::new(), Gap::new());
            while !is_over.load(Ordering::SeqCst) {
                thread::sleep(PAUSE);
                let kinds = new_kinds(&mut lines);
                confirms.take(kinds.contains(&b'C'));
                done.take(kinds.contains(&b'F'));
            }
            Gaps { confirms: confirms.longest, done: done.longest }
        });
        Progress { over, looking }
    }

    pub(super) fn stop(self) -> Gaps {
        self.over.store(true, Ordering::SeqCst);
        self.looking.join().expect("nothing can fail there")
    }
}

struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn new() -> Gap {
        Gap { last: Instant::now(), longest: Duration::ZERO }
    }

    fn take(&mut self, is_there_more: bool) {
        self.longest = self.longest.max(self.last.elapsed());
        if is_there_more {
            self.last = Instant::now();
        }
    }
}

/// The first byte of each line that came since the last time. One that is not whole yet is one
/// write in the middle, and counts.
fn new_kinds(lines: &mut BufReader<impl Read>) -> Vec<u8> {
    let mut kinds = Vec::new();
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).expect("the ledger can be read") > 0 {
        kinds.push(line[0]);
        line.clear();
    }
    kinds
}
