//! A work, and the contenders that do it.

use std::path::Path;

/// The same for each contender. Its name is GROUP/WORK.
#[derive(Clone, Debug)]
pub struct Work {
    pub name: String,
    pub contenders: Vec<Contender>,
    /// The most rounds that count, where one takes long.
    pub most_rounds: u32,
    /// How much later each byte arrives, in each direction.
    pub delay_ms: u64,
}

/// A program that does the work.
#[derive(Clone, Debug)]
pub struct Contender {
    pub name: String,
    /// How many tasks it has to do.
    pub tasks: u64,
    /// `{queue}` is the name of a queue of its own, `{url}` the broker's URL, and `{rate}` half of
    /// the tasks a second that the raw client can pass on.
    pub command: Vec<String>,
    pub fill: Fill,
    pub clock: Clock,
}

/// What is in the queue before a contender begins.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Nothing,
    /// Tasks as rabbit-work publishes them, with bodies of this many bytes.
    Tasks {
        count: u64,
        size: usize,
    },
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// What the contender says: from its first task to its last.
    OfTheContender,
    WholeProcess,
    /// The command this many times, one after the other.
    WholeProcesses(u64),
}

impl Work {
    pub fn new(name: impl Into<String>) -> Work {
        Work { name: name.into(), contenders: Vec::new(), most_rounds: u32::MAX, delay_ms: 0 }
    }

    /// A contender that measures its time itself.
    pub fn add(&mut self, name: &str, tasks: u64, fill: Fill, command: Vec<String>) {
        let clock = Clock::OfTheContender;
        self.contenders.push(Contender { name: name.into(), tasks, command, fill, clock });
    }

    /// A contender whose whole process is measured.
    pub fn add_whole(&mut self, name: &str, tasks: u64, fill: Fill, command: Vec<String>) {
        let clock = Clock::WholeProcess;
        self.contenders.push(Contender { name: name.into(), tasks, command, fill, clock });
    }
}

/// The words of a command.
pub fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(String::from).collect()
}

/// A command for a shell.
pub fn shell(script: String) -> Vec<String> {
    vec!["sh".into(), "-c".into(), script]
}

/// Whether a program of this name is installed.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}
