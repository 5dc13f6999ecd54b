//! What a contender is to do: `contend CONTENDER WORK KEY=VALUE...`.

use std::time::Duration;

use crate::Error;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Publish tasks, each confirmed.
    Publish,
    /// Work off tasks that are in the queue already.
    Consume,
    /// Publish tasks at a rate and work them off at the same time.
    Pass,
    /// Work off what is in the queue with two workers, of which one takes 20 times as long.
    Share,
    /// Publish tasks, with or without a batch, and then work them off.
    Outcomes,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub work: Work,
    pub queue: String,
    /// How many tasks.
    pub count: u64,
    /// The bytes of a body.
    pub size: usize,
    /// How many publishes may wait for their confirm.
    pub window: u64,
    pub prefetch: u16,
    pub threads: usize,
    /// How many tasks are acked at a time. Only the raw client takes more than one.
    pub multiple: u64,
    /// Whether a batch waits for the outcome of each task.
    pub batch: bool,
    /// Tasks a second; 0: as fast as the window allows.
    pub rate: u64,
    /// How long each task takes.
    pub task: Duration,
    /// The command of each task; empty: none.
    pub command: Vec<String>,
}

impl Job {
    pub fn parse(work: &str, settings: &[&str]) -> Result<Job, Error> {
        let work = match work {
            "publish" => Work::Publish,
            "consume" => Work::Consume,
            "pass" => Work::Pass,
            "share" => Work::Share,
            "outcomes" => Work::Outcomes,
            _ => return Err(format!("no work is called '{work}'").into()),
        };
        let mut job = Job {
            work,
            queue: "bench".into(),
            count: 1000,
            size: 16,
            window: 1000,
            prefetch: 1,
            threads: 1,
            multiple: 1,
            batch: false,
            rate: 0,
            task: Duration::ZERO,
            command: Vec::new(),
        };
        for setting in settings {
            job.set(setting)?;
        }
        Ok(job)
    }

    fn set(&mut self, setting: &str) -> Result<(), Error> {
        let (key, value) = setting.split_once('=').ok_or(format!("no value in '{setting}'"))?;
        match key {
            "queue" => self.queue = value.into(),
            "count" => self.count = value.parse()?,
            "size" => self.size = value.parse()?,
            "window" => self.window = value.parse()?,
            "prefetch" => self.prefetch = value.parse()?,
            "threads" => self.threads = value.parse()?,
            "multiple" => self.multiple = value.parse()?,
            "batch" => self.batch = value.parse()?,
            "rate" => self.rate = value.parse()?,
            "task_us" => self.task = Duration::from_micros(value.parse()?),
            "command" => self.command = value.split(' ').map(String::from).collect(),
            _ => return Err(format!("no setting is called '{key}'").into()),
        }
        Ok(())
    }
}
