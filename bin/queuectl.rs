//! `queuectl`: looks at a RabbitMQ queue, checks a set-up, shows and replays dead letters.

mod cli;
mod manual;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use cli::{BrokerArgs, Exit, QueueArgs, print_line};
use log::error;
use rabbit_work::{Broker, Error, Inspector, Letter, Letters, Queue, Record, Replay, Selection};
use serde_json::{Value, json};

/// Look at a RabbitMQ queue, check a set-up, show and replay dead letters.
#[derive(Debug, Parser)]
#[command(name = "queuectl", version, after_long_help = manual::sections(MANUAL, "", LAST))]
pub(crate) struct Options {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    queue: QueueArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how many tasks are ready, wait for a retry, or are dead, and how many consumers
    /// there are
    ///
    /// What is unacked is known to the broker's management only, and shown as null.
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check connection, login, virtual host, queue, publishing, consuming and the places for
    /// failed tasks, one line each
    ///
    /// Takes no task, and stops at the first that is wrong; a login that may only publish ends
    /// with FAIL consume.
    ///
    /// Exit status: 0 all is well; 1 there is no such queue, or the broker blocks publishers at
    /// present; 2 TLS, login, virtual host, permissions, or a queue with other arguments; 69
    /// broker unreachable.
    Check,
    /// Show, replay or throw away dead letters
    #[command(subcommand)]
    Dead(Dead),
    /// Throw away every task that is ready; what waits for a retry stays
    Purge {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Dead {
    /// Show dead letters, the oldest first; they stay where they are
    ///
    /// Each letter is taken and given back. A quorum queue that would drop it for that, made by
    /// hand with a delivery limit (RabbitMQ 4.0 to 4.2: also without), is refused.
    List {
        /// Show this many at most
        #[arg(long, value_name = "N")]
        limit: Option<u64>,

        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Put tasks back on their queue, each confirmed before its letter is acked; their attempts
    /// start again
    Replay {
        /// Replay this many at most, the oldest first
        #[arg(long, value_name = "N")]
        limit: Option<u64>,

        /// Replay the task with this id; looks at those before it, as `dead list`
        #[arg(long, value_name = "ID", allow_hyphen_values = true)]
        id: Option<String>,

        /// Show what would be replayed, and change nothing; looks, as `dead list`
        #[arg(long)]
        dry_run: bool,
    },
    /// Throw all dead letters away
    Purge {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

const MANUAL: &str = "\
Exit status:
  0   done, or all is well
  1   something is not as asked: no such queue or letter, blocked publishers, a
      replay that was not confirmed
  2   usage or configuration
  69  no broker was reached
";

const LAST: &str = "
Files:
  --ca, --cert, --key  are read at the start; there are no others

Examples:
  queuectl check
  queuectl --queue mail status --json
  queuectl --queue mail dead list
  queuectl --queue mail dead replay --dry-run

See also:
  producer(1), worker(1)
";

fn main() -> ExitCode {
    let options: Options = cli::parse();
    cli::init_logging();
    let ended = run(&options).unwrap_or_else(|error| {
        error!("{}", error.chain());
        exit_for(&error)
    });
    ended.into()
}

fn run(options: &Options) -> Result<Exit, Error> {
    let broker = options.broker.broker()?;
    let queue = options.queue.queue();
    let letters = Letters::new(&broker, &queue);
    match &options.command {
        Command::Status { json } => status(&broker, &queue, *json),
        Command::Check => Ok(check(&broker, &queue)),
        Command::Purge { yes } => {
            require_yes(*yes, queue.name())?;
            told_purged(Inspector::new(&broker, &queue).purge()?)
        }
        Command::Dead(Dead::List { limit, json }) => {
            let letters = letters.list(&selection(*limit, None))?;
            Ok(show_letters(&letters, *json))
        }
        Command::Dead(Dead::Replay { limit, id, dry_run: true }) => {
            let letters = letters.list(&selection(*limit, id.as_deref()))?;
            doubt(letters.len() as u64, &broker, &queue)?;
            Ok(told_of_a_replay(&letters, id.as_deref()))
        }
        Command::Dead(Dead::Replay { limit, id, dry_run: false }) => {
            let replay = letters.replay(&selection(*limit, id.as_deref()))?;
            doubt(replay.replayed, &broker, &queue)?;
            Ok(told_replayed(&replay, id.as_deref()))
        }
        Command::Dead(Dead::Purge { yes }) => {
            require_yes(*yes, &format!("{}.dead", queue.name()))?;
            let purged = letters.purge()?;
            doubt(purged, &broker, &queue)?;
            told_purged(purged)
        }
    }
}

/// There may be no dead letters because there is no such queue.
fn doubt(letters: u64, broker: &Broker, queue: &Queue) -> Result<(), Error> {
    if letters == 0 { Inspector::new(broker, queue).status().map(drop) } else { Ok(()) }
}

fn status(broker: &Broker, queue: &Queue, as_json: bool) -> Result<Exit, Error> {
    let status = Inspector::new(broker, queue).status()?;
    if as_json {
        let queues: Vec<Value> = status
            .delayed
            .iter()
            .map(|it| json!({ "delay": it.delay.as_secs_f64(), "tasks": it.tasks }))
            .collect();
        return Ok(print([json!({
            "queue": queue.name(),
            "ready": status.ready,
            "unacked": null,
            "consumers": status.consumers,
            "retry": status.delayed_tasks(),
            "dead": status.dead,
            "retry_queues": queues,
        })]));
    }
    let mut lines = vec![
        format!("queue      {}", queue.name()),
        format!("ready      {}", status.ready),
        format!("consumers  {}", status.consumers),
        format!("retry      {}", status.delayed_tasks()),
    ];
    for it in status.delayed.iter().filter(|it| it.tasks > 0) {
        lines.push(format!(
            "           {} after {}",
            it.tasks,
            humantime::format_duration(it.delay)
        ));
    }
    lines.push(format!("dead       {}", status.dead));
    Ok(print(lines))
}

fn check(broker: &Broker, queue: &Queue) -> Exit {
    let mut exit = Exit::Success;
    let mut lines = Vec::new();
    for check in Inspector::new(broker, queue).check() {
        match &check.result {
            Ok(found) => lines.push(format!("ok    {:<8} {found}", check.name)),
            Err(error) => {
                lines.push(format!("FAIL  {:<8} {}", check.name, error.chain()));
                exit = exit_for(error);
            }
        }
    }
    match print(lines) {
        Exit::Success => exit,
        unwritable => unwritable,
    }
}

fn exit_for(error: &Error) -> Exit {
    match error {
        Error::Blocked { .. } => Exit::Failed,
        Error::QueueRefused { text, .. } if text.contains("no such queue") => Exit::Failed,
        error => Exit::from(error),
    }
}

fn told_of_a_replay(letters: &[Letter], id: Option<&str>) -> Exit {
    match show_letters(letters, false) {
        Exit::Success => told_selected(letters.len() as u64, "would be replayed", id),
        unwritable => unwritable,
    }
}

fn told_replayed(replay: &Replay, id: Option<&str>) -> Exit {
    let told = told_selected(replay.replayed, "replayed", id);
    if let Some(reason) = &replay.stopped {
        error!("a task was not confirmed, and its letter stays; so do those behind it: {reason}");
        return Exit::Failed;
    }
    told
}

/// None is what was asked for, unless one was asked for by its id.
fn told_selected(count: u64, what: &str, id: Option<&str>) -> Exit {
    match print([format!("{count} {what}")]) {
        Exit::Success if count == 0 && id.is_some() => {
            error!("no dead letter has this id");
            Exit::Failed
        }
        exit => exit,
    }
}

fn show_letters(letters: &[Letter], as_json: bool) -> Exit {
    if as_json {
        let array: Vec<Value> = letters.iter().map(as_object).collect();
        return print([Value::from(array)]);
    }
    let heading =
        format!("{:<36}  {:<20}  {:>8}  {:<40}  {}", "ID", "DIED", "ATTEMPTS", "BODY", "REASON");
    let rows = letters.iter().map(|letter| {
        let record = letter.record();
        let body = String::from_utf8_lossy(letter.task().body());
        format!(
            "{:<36}  {:<20}  {:>8}  {:<40}  {}",
            printable(letter.task().id().unwrap_or("-"), 255),
            time(record.last_failure).unwrap_or_else(|| "-".into()),
            record.attempts,
            printable(&body, 40),
            both_ends(&record.reason, 200),
        )
    });
    print([heading].into_iter().chain(rows))
}

fn as_object(letter: &Letter) -> Value {
    let task = letter.task();
    let mut object = record_as_object(&letter.record());
    object["id"] = json!(task.id());
    object["enqueued_at"] = json!(time(task.enqueued_at()));
    object["body"] = json!(String::from_utf8_lossy(task.body()));
    object["bytes"] = json!(task.body().len());
    object["history"] = letter.history().iter().map(record_as_object).collect();
    object
}

fn record_as_object(record: &Record) -> Value {
    json!({
        "queue": record.queue,
        "attempts": record.attempts,
        "first_failure": time(record.first_failure),
        "last_failure": time(record.last_failure),
        "reason": record.reason,
        "host": record.host,
        "version": record.version,
    })
}

fn selection(limit: Option<u64>, id: Option<&str>) -> Selection {
    let mut selection = Selection::all();
    if let Some(limit) = limit {
        selection = selection.limit(limit);
    }
    if let Some(id) = id {
        selection = selection.id(id);
    }
    selection
}

fn require_yes(yes: bool, queue: &str) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    Err(Error::setting(
        "purge",
        format!("it would throw away what is in '{queue}'; add --yes to do it"),
    ))
}

fn told_purged(purged: u64) -> Result<Exit, Error> {
    Ok(print([format!("{purged} thrown away")]))
}

/// On one line, without anything a terminal would act on, at most `width` characters.
fn printable(text: &str, width: usize) -> String {
    shortened(text, width.saturating_sub(1), 0)
}

/// The same, but what is left out is in the middle: a reason begins with what happened, and ends
/// with the last lines of what a command said of it.
fn both_ends(text: &str, width: usize) -> String {
    let begin = width / 4;
    shortened(text.trim_end(), begin, width.saturating_sub(begin + 1))
}

fn shortened(text: &str, begin: usize, end: usize) -> String {
    let plain: Vec<char> =
        text.chars().map(|it| if acts_on_a_terminal(it) { ' ' } else { it }).collect();
    match plain.len().checked_sub(end) {
        Some(tail) if tail > begin + 1 => {
            plain[..begin].iter().chain(&['…']).chain(&plain[tail..]).collect()
        }
        _ => plain.into_iter().collect(),
    }
}

/// Whether it moves the cursor, begins a line, or changes how what is beside it is shown.
fn acts_on_a_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

fn time(time: Option<SystemTime>) -> Option<String> {
    // The calendar of humantime ends with the year 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = time.filter(|it| it.duration_since(UNIX_EPOCH).is_ok_and(|since| since <= LAST))?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

/// Prints lines; whoever stops reading them wanted no more.
fn print(lines: impl IntoIterator<Item = impl std::fmt::Display>) -> Exit {
    for line in lines {
        match print_line(line) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Success,
            Err(error) => {
                error!("standard output cannot be written: {error}");
                return Exit::Failed;
            }
        }
    }
    Exit::Success
}
