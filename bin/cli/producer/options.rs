//! The command line of `producer`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser};
use rabbit_work::Task;
use uuid::Uuid;

use crate::cli::common::arguments::parse_duration;
use crate::cli::common::manual::sections;
use crate::cli::common::options::{BrokerArgs, QueueArgs};
use crate::cli::producer::trace::with_trace;
use crate::cli::producer::wait::args::{OF_A_WAIT, WaitArgs};

/// Put tasks on a RabbitMQ queue, each persistent, mandatory and confirmed by the broker.
#[derive(Debug, Parser)]
#[command(name = "producer", version, after_long_help = sections(MANUAL, "", LAST))]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,

    #[command(flatten)]
    pub(crate) queue: QueueArgs,

    /// One task for each line of FILE, or of standard input without FILE
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "-",
        conflicts_with_all = ["message", "repeat", "body_file"]
    )]
    pub(crate) lines: Option<PathBuf>,

    /// Like --lines, but a NUL ends each task instead of a newline
    #[arg(long, conflicts_with_all = ["message", "repeat", "body_file"])]
    pub(crate) null: bool,

    /// One task with the whole of FILE as its body; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "message")]
    pub(crate) body_file: Option<PathBuf>,

    /// Publish the message this many times
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) repeat: u64,

    #[command(flatten)]
    pub(crate) task: TaskArgs,

    /// How many publishes may wait for their confirm at a time
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) window: u32,

    /// How long to try to reach the broker and to get a task confirmed
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,

    /// Write the tasks that were not confirmed to FILE, to publish them again; overwrites FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) failed: Option<PathBuf>,

    /// Print a JSON summary on standard output at exit; see Files for its keys
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// The words of one task's body, joined by one space; by default Hello World! for task_queue
    #[arg(value_name = "MESSAGE")]
    pub(crate) message: Vec<OsString>,
}

/// The properties of every task.
#[derive(Args, Debug)]
pub(crate) struct TaskArgs {
    /// The id of the task (message_id), for one task only [default: a new UUID, version 7]
    #[arg(long, value_name = "ID", value_parser = not_empty(), conflicts_with = "id_from_body")]
    pub(crate) id: Option<String>,

    /// Give each task an id made from its body, so that the same body always has the same id; see Ids
    #[arg(long)]
    id_from_body: bool,

    /// Publish tasks as not persistent: a broker restart loses them
    #[arg(long)]
    transient: bool,

    /// Put each task on the queue after this delay; rounded up, see Durations
    #[arg(long, value_name = "DUR", value_parser = parse_duration, conflicts_with = "expiration")]
    delay: Option<Duration>,

    /// The broker drops a task that waits longer than this; in a quorum queue it becomes a dead
    /// letter
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    expiration: Option<Duration>,

    /// The tasks' priority, in a queue declared with priorities
    #[arg(long, value_name = "N")]
    pub(crate) priority: Option<u8>,

    /// A header of each task; may be repeated
    #[arg(long, value_name = "K=V", value_parser = parse_header)]
    header: Vec<(String, String)>,

    /// The media type of each task's body
    #[arg(long, value_name = "T")]
    content_type: Option<String>,

    /// How each task's body is encoded, such as gzip; producer does not encode it
    #[arg(long, value_name = "E", value_parser = not_empty())]
    content_encoding: Option<String>,

    /// The kind of each task (AMQP's type), which commands see in TASK_TYPE
    #[arg(long = "type", value_name = "T", value_parser = not_empty())]
    kind: Option<String>,

    /// The AMQP correlation id of each task, which links an answer to it
    #[arg(long, value_name = "ID", value_parser = not_empty(), conflicts_with = "wait", conflicts_with_all = OF_A_WAIT)]
    correlation_id: Option<String>,

    /// The queue that an answer should go to
    #[arg(long, value_name = "QUEUE", value_parser = not_empty(), conflicts_with = "wait", conflicts_with_all = OF_A_WAIT)]
    reply_to: Option<String>,
}

impl TaskArgs {
    pub(crate) fn is_transient(&self) -> bool {
        self.transient
    }

    pub(crate) fn expires(&self) -> bool {
        self.expiration.is_some()
    }

    pub(crate) fn task(&self, body: Vec<u8>) -> Task {
        let mut task = self.with_id(Task::new(body));
        if self.transient {
            task = task.transient();
        }
        if let Some(delay) = self.delay {
            task = task.with_delay(delay);
        }
        if let Some(expiration) = self.expiration {
            task = task.with_expiration(expiration);
        }
        if let Some(priority) = self.priority {
            task = task.with_priority(priority);
        }
        for (name, value) in &self.header {
            task = task.with_header(name, value);
        }
        with_trace(self.with_properties(task))
    }

    fn with_id(&self, task: Task) -> Task {
        match &self.id {
            Some(id) => task.with_id(id),
            None if self.id_from_body => {
                let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, task.body());
                task.with_id(id.to_string())
            }
            None => task,
        }
    }

    fn with_properties(&self, mut task: Task) -> Task {
        type Setter = fn(Task, &str) -> Task;
        let properties: [(&Option<String>, Setter); 5] = [
            (&self.content_type, |task, value| task.with_content_type(value)),
            (&self.content_encoding, |task, value| task.with_content_encoding(value)),
            (&self.kind, |task, value| task.with_type(value)),
            (&self.correlation_id, |task, value| task.with_correlation_id(value)),
            (&self.reply_to, |task, value| task.with_reply_to(value)),
        ];
        for (value, set) in properties {
            if let Some(value) = value {
                task = set(task, value);
            }
        }
        task
    }
}

/// An empty text is most likely that of an unset variable.
fn not_empty() -> NonEmptyStringValueParser {
    NonEmptyStringValueParser::new()
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, _)) if name.starts_with("x-rabbit-work-") => {
            Err("workers use the names that begin with x-rabbit-work-; take another".into())
        }
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

const MANUAL: &str = "\
Exit status:
  0    every task is confirmed and routed; with --wait, also done
  1    one of: a task is not confirmed; the input was not read to its end;
       standard output could not be written; the system could not start a
       thread; with --wait, a task is a dead letter, or --outcomes could not be
       written
  2    usage or configuration: a bad URL, a refused login, a queue declared
       with other arguments; no MESSAGE for another queue than task_queue
  4    with --wait: a signal or --wait-timeout ended it before every task had
       ended; the log says how to go on
  69   no broker was reached within --timeout
  130  a second signal ended it

Signals:
  first   reads no further task, and waits for the confirms of published tasks,
          for --timeout at most. The log, and read in --json, say how many tasks
          were read: continue with the next line; with --outcomes, run the
          same command again
  second  exits now
";

const LAST: &str = "
Files:
  --lines   a line of more than 128 MiB, which no broker takes, is reported and
            counted as not confirmed; the lines after it are published. The
            same holds for a task of --null
  --failed  has the tasks that were not confirmed, byte for byte: one for each
            line; with --null, a NUL after each; with --body-file, the body
            alone. If the broker is not reached, or a task runs out of time, it
            also gets the rest of the input. Publish it under another name: the
            next --failed overwrites it
  --json    one object, unless the options are invalid: published confirmed
            nacked returned unconfirmed seconds; and read (the number of tasks
            read), if the input was not read to its end

Ids:
  --id            not with --lines, --null or --repeat: all tasks would have it
  --id-from-body  the UUID of version 5 in the namespace OID, as of
                  uuidgen --sha1 --namespace @oid --name BODY

Waiting:
  --wait      each task carries reply_to (QUEUE.batch.ID) and correlation_id
              (ID/NUMBER). Its worker reports there that it is done or dead, and
              acks it after that. Retries report nothing. A task that runs
              twice counts once. Tasks that the broker drops itself, and those
              of a worker with --auto-ack, report nothing
  --outcomes  one object for each line, on disk before the broker forgets it:
              type n task outcome (done or dead) attempts host started seconds,
              and if there is one, exit signal reason, and output (or
              output_base64, and output_bytes if it was cut). Other types of
              lines say what is published. The same command with the same
              FILE and input continues the wait, also after kill -9, and prints
              all of --output again
  --json      has done, dead and left as well

Expiration:
  --expiration  not with --delay: the broker would shorten the delay to the
                expiration, and drop the expiration afterwards

Examples:
  producer First message.
  find photos -name '*.jpg' -print0 | producer --queue photos --null
  producer --queue mail --lines list --failed not-sent --timeout 5m
  producer --queue convert --lines list --wait --outcomes list.done
  producer --queue reports --delay 10m --header kind=weekly '2026 week 1'

See also:
  worker(1), queuectl(1)
";
