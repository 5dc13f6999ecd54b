//! The records that a worker keeps of the runs of a command, and what tasks are known by.

mod ids;
mod joblog;
mod results;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use amiquip::AmqpProperties;

use crate::support::broker::{SharedBroker, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;

const SOON: Duration = Duration::from_secs(60);

/// A queue and a folder of its own, gone when the test is over.
struct Bench {
    broker: &'static SharedBroker,
    queue: String,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(test: &str) -> Bench {
        let (broker, queue) = (shared_broker(), unique_queue(test));
        broker.client().declare(&queue);
        Bench { broker, queue, dir: tempfile::tempdir().expect("a folder") }
    }

    fn publish(&self, id: &str, body: &[u8]) {
        let properties = AmqpProperties::default().with_message_id(id.into());
        self.broker.client().publish(&self.queue, body, properties);
    }

    fn worker(&self, options: &[&str], command: &[&str]) -> Command {
        Command::worker(&self.arguments(options, command)).current_dir(self.dir.path())
    }

    /// The same for files that have no room for more than so many blocks.
    fn worker_with_file_limit(&self, blocks: u32, options: &[&str], command: &[&str]) -> Command {
        let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let shell = ["-c", &script, env!("CARGO_BIN_EXE_worker")];
        let arguments = [&shell[..], &self.arguments(options, command)].concat();
        Command::program("bash", &arguments).current_dir(self.dir.path())
    }

    fn arguments<'a>(&'a self, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let address = ["--url", self.broker.url(), "--queue", &self.queue];
        [&address, options, &["--"], command].concat()
    }

    /// What is ready in the queue, taken out of it.
    fn left(&self) -> usize {
        self.broker.client().get_all(&self.queue).len()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for name in ["", ".dead"] {
                self.broker.client().delete(&format!("{}{name}", self.queue));
            }
        }
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> =
        entries.map(|it| name(it).into_string().expect("a name")).collect();
    names.sort();
    names
}
