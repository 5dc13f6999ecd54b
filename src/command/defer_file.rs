//! The file in which a command says how long its task is to wait (`TASK_DEFER_FILE`).

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf, absolute};
use std::sync::OnceLock;
use std::time::Duration;

use log::warn;
use rustix::fs::{Access, access};
use uuid::Uuid;

use crate::model::handler::{Delivery, Failure};
use crate::util::text::printable;

/// Names these files. Only their names are made here: a command that writes none leaves nothing, even
/// if we are killed.
#[derive(Debug, Default)]
pub(super) struct DeferFiles {
    warned: OnceLock<()>,
}

/// The file of one run of a command, which the command may write. Dropping this removes it.
pub(super) struct DeferFile<'f> {
    files: &'f DeferFiles,
    /// `None` if there is no folder for it.
    path: Option<PathBuf>,
}

/// No delay is written in more bytes.
const LONGEST_TEXT: u64 = 100;

impl DeferFiles {
    /// The name of a new file.
    pub(super) fn file(&self) -> DeferFile<'_> {
        let folder = absolute(env::temp_dir()).ok();
        let folder = folder.filter(|it| access(it, Access::WRITE_OK | Access::EXEC_OK).is_ok());
        if folder.is_none() {
            let folder = env::temp_dir();
            let folder = folder.display();
            self.warn_once(&format!(
                "cannot write to {folder}, so commands have no TASK_DEFER_FILE; set TMPDIR"
            ));
        }
        // Random, and new for each run: others may write to the folder, and must not guess the name.
        let path = folder.map(|it| it.join(format!("worker-defer-{}", Uuid::now_v7())));
        DeferFile { files: self, path }
    }

    /// One log line, however many tasks it is about.
    fn warn_once(&self, text: &str) {
        if self.warned.set(()).is_ok() {
            warn!("{text}");
        }
    }
}

impl DeferFile<'_> {
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// A deferral gets the delay that the command wrote, if it wrote one. Other failures stay as
    /// they are.
    pub(super) fn with_delay(&self, failure: Failure, delivery: &Delivery) -> Failure {
        match failure {
            Failure::Defer { reason, after: None } => {
                Failure::Defer { reason, after: self.delay(delivery) }
            }
            other => other,
        }
    }

    fn delay(&self, delivery: &Delivery) -> Option<Duration> {
        let text = self.path().and_then(read)?;
        if text.trim().is_empty() {
            return None;
        }
        let delay = parse_delay(text.trim());
        if delay.is_none() {
            let (task, text) = (delivery.task().name(), printable(text.trim()));
            self.files.warn_once(&format!(
                "task {task}: its command wrote '{text}' to TASK_DEFER_FILE, which is not a delay \
                 (write 120 or 2m); the task waits for the default delay"
            ));
        }
        delay
    }
}

impl Drop for DeferFile<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// The beginning of the file; `None` if there is none. To open a named pipe could block.
fn read(path: &Path) -> Option<String> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut text = Vec::new();
    File::open(path).ok()?.take(LONGEST_TEXT).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// A number of seconds, or numbers with units, as the options of the commands are written.
fn parse_delay(text: &str) -> Option<Duration> {
    match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        // humantime reads M as months.
        Err(_) if text.contains('M') => None,
        Err(_) => humantime::parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::handler::test_delivery;
    use crate::model::task::Task;

    fn seconds(text: &str) -> Option<u64> {
        parse_delay(text).map(|delay| delay.as_secs())
    }

    #[test]
    fn a_delay_is_a_number_of_seconds_or_has_units() {
        assert_eq!(["120", "2m", "1h30m", "0"].map(seconds), [120, 120, 5400, 0].map(Some));
        assert_eq!(parse_delay("0.5"), Some(Duration::from_millis(500)));
        for nonsense in ["", "soon", "-1", "NaN", "inf", "1e99", "2M", "2 parsecs"] {
            assert_eq!(seconds(nonsense), None, "{nonsense}");
        }
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }

    #[test]
    fn only_a_deferral_without_a_delay_gets_that_of_the_file() {
        let files = DeferFiles::default();
        let delivery = test_delivery(Task::new(""));
        let deferred = || Failure::defer("busy", None);
        let file = files.file();
        let path = file.path().expect("a folder").to_path_buf();
        assert_eq!(file.with_delay(deferred(), &delivery), deferred(), "nothing is written");
        for (written, delay) in [("2m\n", Some(120)), (" \n", None), ("soon", None)] {
            fs::write(&path, written).expect("written");
            let delay = delay.map(Duration::from_secs);
            let expected = Failure::defer("busy", delay);
            assert_eq!(file.with_delay(deferred(), &delivery), expected, "{written:?}");
        }
        fs::write(&path, "7").expect("written");
        assert_eq!(file.with_delay(Failure::retry("no"), &delivery), Failure::retry("no"));
        drop(file);
        assert!(!path.exists(), "it is removed");
        assert_ne!(files.file().path(), Some(path.as_path()), "each run has its own");
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let files = DeferFiles::default();
        let delivery = test_delivery(Task::new(""));
        let file = files.file();
        let path = file.path().expect("a folder");
        fs::create_dir(path).expect("made");
        let deferred = || Failure::defer("busy", None);
        assert_eq!(file.with_delay(deferred(), &delivery), deferred());
        fs::remove_dir(path).expect("removed");
    }
}
