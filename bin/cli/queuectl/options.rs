//! The command line of `queuectl`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use rabbit_work::{DeadLetterFilter, Queue};

use crate::cli::common::arguments::parse_duration;
use crate::cli::common::error::CommandError;
use crate::cli::common::manual::sections;
use crate::cli::common::options::{BrokerArgs, DeclarationArgs, QUEUE, TUTORIAL_QUEUE};

/// Inspect a RabbitMQ queue, check a set-up, show and replay dead letters.
#[derive(Debug, Parser)]
#[command(name = "queuectl", version, after_long_help = sections(MANUAL, "", LAST))]
pub(crate) struct Options {
    /// The queue's name; `status` takes several, all on one side of `status`
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "NAME",
        default_value = TUTORIAL_QUEUE
    )]
    queue: Vec<String>,

    #[command(flatten)]
    declaration: DeclarationArgs,

    #[command(flatten)]
    pub(crate) broker: BrokerArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Options {
    pub(crate) fn queues(&self) -> Vec<Queue> {
        self.queue.iter().map(|name| self.declaration.queue(name)).collect()
    }

    /// The queue of a subcommand that takes one.
    pub(crate) fn one_queue(&self) -> Result<Queue, CommandError> {
        match &self.queue[..] {
            [name] => Ok(self.declaration.queue(name)),
            _ => Err(CommandError::usage("--queue", "only status takes several queues; give one")),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the number of ready, delayed and dead tasks, and of consumers
    ///
    /// retry counts all tasks in delay queues: failed ones that wait for a retry, deferred ones, and those
    /// published with a delay.
    ///
    /// AMQP does not report unacked tasks (null in JSON), nor how many tasks come and go. change/s is by
    /// how many tasks a second ready grows (+) or shrinks (-).
    #[command(after_long_help = STATUS)]
    Status {
        /// Print one JSON object for each queue, each on a line
        #[arg(long)]
        json: bool,

        /// Count every DUR (default 2s) until Ctrl-C. Tasks in a new delay queue appear within a minute
        #[arg(
            long,
            value_name = "DUR",
            num_args = 0..=1,
            default_missing_value = "2s",
            value_parser = parse_interval
        )]
        watch: Option<Duration>,
    },
    /// Check connection, login, virtual host, queue, permissions, and the queues for failed tasks
    ///
    /// Prints one line for each check, and stops at the first that fails. Takes no task. A login
    /// that may only publish ends with FAIL consume.
    ///
    /// Exit status: 0 all is well; 1 the queue does not exist, or the broker blocks publishers; 2
    /// TLS, login, virtual host, permissions, or a queue with other arguments; 69 no broker was
    /// reached, or the connection was lost before the answer.
    Check,
    /// Show, replay or purge dead letters
    #[command(subcommand)]
    Dead(Dead),
    /// Remove every ready task, or with --retry every task in a delay queue
    #[command(after_long_help = PURGE)]
    Purge {
        /// Remove the tasks in delay queues instead: those that wait for a retry, deferred ones, and
        /// those published with a delay
        #[arg(long)]
        retry: bool,

        /// Confirm the purge
        #[arg(long)]
        yes: bool,
    },
    /// Delete the queue, its delay queues and its dead letters, with all tasks in them
    ///
    /// Without --yes, shows what would be deleted. First stop the workers: they would create the queue
    /// again. Queues of outcomes of `producer --wait` stay for a week.
    #[command(after_long_help = DELETE)]
    Delete {
        /// Confirm the deletion
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// Show dead letters, the oldest first; they stay in their queue
    ///
    /// Takes each letter and requeues it, which may change their order in a quorum queue. Refused if
    /// the broker would drop letters for that: for a quorum queue declared by hand with a delivery
    /// limit (RabbitMQ 4.0 to 4.2: also without). While JSON is printed, no other client sees the letters.
    #[command(after_long_help = DEAD_LIST)]
    List {
        #[command(flatten)]
        filter: FilterArgs,

        /// Print a JSON array; a body that is not UTF-8 becomes body_base64
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with all its headers
    ///
    /// Takes letters and requeues them, as `dead list` does.
    #[command(after_long_help = DEAD_SHOW)]
    Show {
        /// The task's id; if several letters have it, the first is shown
        #[arg(value_name = "ID", allow_hyphen_values = true)]
        id: String,

        /// Print the body only, byte for byte
        #[arg(long)]
        raw: bool,
    },
    /// Put tasks back on their queue, with their attempts at zero
    ///
    /// Acks each letter only after its task is confirmed. To choose by id, reason or age, and for a
    /// dry run, takes each letter and requeues the others, as `dead list` does.
    #[command(after_long_help = DEAD_REPLAY)]
    Replay {
        #[command(flatten)]
        filter: FilterArgs,

        /// Show the letters that would be replayed, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove dead letters for good
    ///
    /// To choose by id, reason or age, takes each letter and requeues the others, as `dead list` does.
    #[command(after_long_help = DEAD_PURGE)]
    Purge {
        #[command(flatten)]
        filter: FilterArgs,

        /// Confirm the purge
        #[arg(long)]
        yes: bool,
    },
}

/// Selects dead letters. A letter must meet every option.
#[derive(Args, Debug)]
pub(crate) struct FilterArgs {
    /// Only letters whose reason contains this text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    reason: Option<String>,

    /// Only letters that died at least this long ago, such as 90s, 12h or 7d
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    older: Option<Duration>,

    /// Only letters that died at most this long ago
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    since: Option<Duration>,

    /// Only tasks with this correlation id
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    correlation_id: Option<String>,

    /// Only tasks with the ids in this file, one a line; - is standard input
    #[arg(long, value_name = "FILE")]
    ids_from: Option<PathBuf>,

    /// Only the task with this id; may be repeated; ids that no letter has are reported
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    id: Vec<String>,

    /// At most this many letters, the first ones in their queue
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl FilterArgs {
    pub(crate) fn filter(&self) -> Result<DeadLetterFilter, CommandError> {
        let mut filter = self.id.iter().fold(DeadLetterFilter::all(), DeadLetterFilter::id);
        if let Some(file) = &self.ids_from {
            filter = filter.ids(read_ids(file)?);
        }
        if let Some(text) = &self.reason {
            filter = filter.reason(text);
        }
        if let Some(age) = self.older {
            filter = filter.older(age);
        }
        if let Some(age) = self.since {
            let start = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
            filter = filter.since(start);
        }
        if let Some(id) = &self.correlation_id {
            filter = filter.correlation_id(id);
        }
        if let Some(limit) = self.limit {
            filter = filter.limit(limit);
        }
        Ok(filter)
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval.is_zero() {
        return Err("0 leaves no time to count; write 1s or more".into());
    }
    Ok(interval)
}

fn read_ids(file: &Path) -> Result<Vec<String>, CommandError> {
    let text = if file == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(file)
    };
    let unreadable =
        |error| CommandError::usage("--ids-from", format!("{}: {error}", file.display()));
    let text = text.map_err(unreadable)?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

const MANUAL: &str = "\
Exit status:
  0   done, or all is well
  1   the queue or the dead letter does not exist, the broker blocks
      publishers, or a replayed task was not confirmed; or standard output
      could not be written
  2   usage or configuration
  69  no broker was reached, or the connection was lost before the answer
";

const LAST: &str = "
Files:
  --ids-from           has the id of a task in each line. Ids that no letter has
                       are reported, unless --limit ended the search
  --ca, --cert, --key  are read at the start

Examples:
  queuectl check
  queuectl --queue mail status --json
  queuectl status --watch --queue mail --queue pdf
  queuectl --queue mail dead list
  queuectl --queue mail dead replay --dry-run

See also:
  producer(1), worker(1)
";

/// The end of a subcommand's help: its exit statuses and an example.
macro_rules! ending {
    ($done:literal, $failed:literal, $example:literal) => {
        concat!(
            "Exit status:\n  0 ",
            $done,
            "; 1 ",
            $failed,
            "; 2 usage or configuration\n  69 no broker was reached, or the connection was lost \
             before the answer\n\nExample:\n  queuectl ",
            $example
        )
    };
}

const STATUS: &str = ending!(
    "shown, or --watch ended by a signal",
    "a queue does not exist",
    "status --watch 5s --queue mail --queue pdf"
);
const PURGE: &str = ending!("removed", "the queue does not exist", "--queue mail purge --yes");
const DELETE: &str = ending!("deleted", "the queue does not exist", "--queue mail delete --yes");
const DEAD_LIST: &str = ending!(
    "listed",
    "the queue or a letter does not exist",
    "--queue mail dead list --reason 'status 3'"
);
const DEAD_SHOW: &str = ending!(
    "shown",
    "the queue or the letter does not exist",
    "--queue mail dead show ID --raw >body"
);
const DEAD_REPLAY: &str = ending!(
    "replayed",
    "the queue or a letter does not exist, or a task was not confirmed",
    "--queue mail dead replay --limit 10"
);
const DEAD_PURGE: &str = ending!(
    "removed",
    "the queue or a letter does not exist",
    "--queue mail dead purge --older 30d --yes"
);
