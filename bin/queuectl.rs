//! `queuectl`: looks at a RabbitMQ queue, checks a set-up, shows and replays dead letters.

mod cli;
mod letter;
mod manual;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use cli::{BrokerArgs, Exit, QueueArgs, in_one_unit, print_line, write_out};
use log::error;
use rabbit_work::{Broker, DeadLetterFilter, DeadLetters, Error, Inspector, Queue, ReplaySummary};
use serde_json::{Value, json};

/// Look at a RabbitMQ queue, check a set-up, show and replay dead letters.
#[derive(Debug, Parser)]
#[command(name = "queuectl", version, after_long_help = manual::sections(MANUAL, "", LAST))]
pub(crate) struct Options {
    #[command(flatten)]
    queue: QueueArgs,

    #[command(flatten)]
    broker: BrokerArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how many tasks are ready, wait for a retry, or are dead, and how many consumers
    /// there are
    ///
    /// What is unacked is known to the broker's management only, and shown as null.
    #[command(after_long_help = STATUS)]
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
    /// no broker was reached, or the connection was lost before the answer.
    Check,
    /// Show, replay or throw away dead letters
    #[command(subcommand)]
    Dead(Dead),
    /// Throw away every task that is ready; what waits for a retry stays
    #[command(after_long_help = PURGE)]
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
    /// Each letter is taken and given back, which may change their order in a quorum queue. A
    /// quorum queue that would drop it for that, made by hand with a delivery limit (RabbitMQ 4.0
    /// to 4.2: also without), is refused. While JSON is printed, nobody else sees the letters.
    #[command(after_long_help = DEAD_LIST)]
    List {
        #[command(flatten)]
        select: SelectArgs,

        /// Print a JSON array; a body that is not UTF-8 as body_base64
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with all its headers; takes letters and gives them back, as `dead
    /// list` does
    #[command(after_long_help = DEAD_SHOW)]
    Show {
        /// The task's id; of several with this id the first is shown
        #[arg(value_name = "ID", allow_hyphen_values = true)]
        id: String,

        /// Print the body only, byte for byte
        #[arg(long)]
        raw: bool,
    },
    /// Put tasks back on their queue, each confirmed before its letter is acked; their attempts
    /// start again
    ///
    /// To choose by --id, --reason or --older takes each letter and gives the others back, as `dead
    /// list` does.
    #[command(after_long_help = DEAD_REPLAY)]
    Replay {
        #[command(flatten)]
        select: SelectArgs,

        /// Show what would be replayed, and change nothing; takes each letter and gives it back,
        /// as `dead list` does
        #[arg(long)]
        dry_run: bool,
    },
    /// Throw dead letters away, all or some
    ///
    /// To choose by --id, --reason or --older takes each letter and gives the others back, as `dead
    /// list` does.
    #[command(after_long_help = DEAD_PURGE)]
    Purge {
        #[command(flatten)]
        select: SelectArgs,

        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

const MANUAL: &str = "\
Exit status:
  0   done, or all is well
  1   something is not as asked: no such queue or letter, blocked publishers, a
      replay that was not confirmed; or standard output could not be written
  2   usage or configuration
  69  no broker was reached, or the connection was lost before the answer
";

const LAST: &str = "
Files:
  --ids-from           has the id of a task in each line
  --ca, --cert, --key  are read at the start

Examples:
  queuectl check
  queuectl --queue mail status --json
  queuectl --queue mail dead list
  queuectl --queue mail dead replay --dry-run

See also:
  producer(1), worker(1)
";
/// The end of a subcommand's help: what its exit statuses mean, and an example.
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

const STATUS: &str = ending!("shown", "no such queue", "--queue mail status --json");
const PURGE: &str = ending!("thrown away", "no such queue", "--queue mail purge --yes");
const DEAD_LIST: &str =
    ending!("listed", "no such queue or letter", "--queue mail dead list --reason 'status 3'");
const DEAD_SHOW: &str =
    ending!("shown", "no such queue or letter", "--queue mail dead show ID --raw >body");
const DEAD_REPLAY: &str = ending!(
    "replayed",
    "no such queue or letter, or one was not confirmed",
    "--queue mail dead replay --limit 10"
);
const DEAD_PURGE: &str =
    ending!("thrown away", "no such queue or letter", "--queue mail dead purge --older 30d --yes");

/// Which letters. What is said in different options must all be true of a letter.
#[derive(Args, Debug)]
struct SelectArgs {
    /// Only letters whose reason contains this text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    reason: Option<String>,

    /// Only letters that died at least so long ago, as 90s, 12h or 7d
    #[arg(long, value_name = "DUR", value_parser = cli::parse_duration)]
    older: Option<Duration>,

    /// Only tasks with the ids in this file, one a line; - is standard input
    #[arg(long, value_name = "FILE")]
    ids_from: Option<PathBuf>,

    /// Only the task with this id; repeat it for several. Those that no letter has are named, if
    /// no --limit ended the search
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    id: Vec<String>,

    /// This many at most, the first ones in their queue
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// How a letter is shown.
#[derive(Clone, Copy)]
enum Form {
    Raw,
    Record,
}

impl SelectArgs {
    fn selection(&self) -> Result<DeadLetterFilter, Error> {
        let mut selection = self.id.iter().fold(DeadLetterFilter::all(), DeadLetterFilter::id);
        if let Some(file) = &self.ids_from {
            selection = selection.ids(read_ids(file)?);
        }
        if let Some(text) = &self.reason {
            selection = selection.reason(text);
        }
        if let Some(age) = self.older {
            selection = selection.older(age);
        }
        if let Some(limit) = self.limit {
            selection = selection.limit(limit);
        }
        Ok(selection)
    }
}

fn read_ids(file: &Path) -> Result<Vec<String>, Error> {
    let text = if file == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(file)
    };
    let unreadable = |error| Error::setting("--ids-from", format!("{}: {error}", file.display()));
    let text = text.map_err(unreadable)?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

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
    let letters = DeadLetters::new(&broker, &queue);
    match &options.command {
        Command::Status { json } => status(&broker, &queue, *json),
        Command::Check => Ok(check(&broker, &queue)),
        Command::Purge { yes } => {
            require_yes(*yes, &format!("what is in '{}'", queue.name()))?;
            let purged = Inspector::new(&broker, &queue).purge()?;
            Ok(told_purged(purged, &[]))
        }
        Command::Dead(Dead::List { select, json }) => list(&letters, &select.selection()?, *json),
        Command::Dead(Dead::Show { id, raw }) => {
            show(&letters, id, if *raw { Form::Raw } else { Form::Record })
        }
        Command::Dead(Dead::Replay { select, dry_run: true }) => {
            told_would_be_replayed(&letters, &select.selection()?)
        }
        Command::Dead(Dead::Replay { select, dry_run: false }) => {
            Ok(told_replayed(&letters.replay(&select.selection()?)?))
        }
        Command::Dead(Dead::Purge { select, yes }) => {
            let selection = select.selection()?;
            require_yes(*yes, &format!("dead letters of '{}'", queue.name()))?;
            let purge = letters.purge(&selection)?;
            Ok(told_purged(purge.purged, &purge.missing))
        }
    }
}

fn status(broker: &Broker, queue: &Queue, as_json: bool) -> Result<Exit, Error> {
    let mut inspector = Inspector::new(broker, queue);
    let status = inspector.status()?;
    let kind = inspector.queue_type()?;
    if as_json {
        let queues: Vec<Value> = status
            .delayed
            .iter()
            .map(|it| json!({ "delay": it.delay.as_secs_f64(), "tasks": it.tasks }))
            .collect();
        return Ok(print([json!({
            "queue": queue.name(),
            "type": kind,
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
        format!("type       {}", kind.unwrap_or("not told")),
        format!("ready      {}", status.ready),
        format!("consumers  {}", status.consumers),
        format!("retry      {}", status.delayed_tasks()),
    ];
    for it in status.delayed.iter().filter(|it| it.tasks > 0) {
        lines.push(format!("           {} after {}", it.tasks, in_one_unit(it.delay)));
    }
    lines.push(format!("dead       {}", status.dead));
    Ok(print(lines))
}

fn check(broker: &Broker, queue: &Queue) -> Exit {
    let mut exit = Exit::Success;
    let mut lines = Vec::new();
    for check in Inspector::new(broker, queue).check() {
        match &check.result {
            Ok(found) => {
                let sign = if check.warns { "warn" } else { "ok" };
                lines.push(format!("{sign:<4}  {:<8} {found}", check.name));
            }
            Err(error) => {
                lines.push(format!("FAIL  {:<8} {}", check.name, error.chain()));
                exit = exit_for(error);
            }
        }
    }
    print(lines).then(|| exit)
}

fn exit_for(error: &Error) -> Exit {
    match error {
        Error::Blocked { .. } | Error::QueueMissing { .. } => Exit::Failed,
        error => Exit::from(error),
    }
}

/// Lists the letters. Of a letter nothing is kept but its row, and the rows are printed when all
/// letters are back: whoever reads them may take a long time. JSON has whole bodies, and is printed
/// letter by letter.
fn list(letters: &DeadLetters, selection: &DeadLetterFilter, as_json: bool) -> Result<Exit, Error> {
    if as_json {
        return list_as_json(letters, selection);
    }
    let (rows, missing) = rows(letters, selection)?;
    let printed = print([letter::heading()].into_iter().chain(rows));
    Ok(printed.then(|| told_missing(&missing)))
}

fn rows(
    letters: &DeadLetters,
    selection: &DeadLetterFilter,
) -> Result<(Vec<String>, Vec<String>), Error> {
    let mut rows = Vec::new();
    let missing = letters.for_each(selection, |letter| {
        rows.push(letter::row(&letter));
        ControlFlow::Continue(())
    })?;
    Ok((rows, missing))
}

fn list_as_json(letters: &DeadLetters, selection: &DeadLetterFilter) -> Result<Exit, Error> {
    let (mut before, mut printed) = ("[", Ok(()));
    let missing = letters.for_each(selection, |letter| {
        printed = write_out(format!("{before}{}", letter::as_object(&letter)).as_bytes());
        before = ",\n";
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let end = if before == "[" { "[]\n" } else { "]\n" };
    let printed = printed.and_then(|()| write_out(end.as_bytes()));
    Ok(told_printed(printed).then(|| told_missing(&missing)))
}

fn show(letters: &DeadLetters, id: &str, form: Form) -> Result<Exit, Error> {
    let mut printed = Exit::Success;
    let missing = letters.for_each(&DeadLetterFilter::all().id(id).limit(1), |letter| {
        printed = match form {
            Form::Raw => told_printed(write_out(letter.task().body())),
            Form::Record => print(letter::record(&letter)),
        };
        ControlFlow::Break(())
    })?;
    Ok(printed.then(|| told_missing(&missing)))
}

fn told_would_be_replayed(
    letters: &DeadLetters,
    selection: &DeadLetterFilter,
) -> Result<Exit, Error> {
    let (rows, missing) = rows(letters, selection)?;
    let count = format!("{} would be replayed", rows.len());
    let printed = print([letter::heading()].into_iter().chain(rows).chain([count]));
    Ok(printed.then(|| told_missing(&missing)))
}

fn told_replayed(replay: &ReplaySummary) -> Exit {
    let printed = print([format!("{} replayed", replay.replayed)]);
    if let Some(reason) = &replay.stopped {
        error!("a task was not confirmed, and its letter stays; so do those after it: {reason}");
        return Exit::Failed;
    }
    printed.then(|| told_missing(&replay.missing))
}

/// None is what was asked for, unless one was asked for by its id.
fn told_missing(ids: &[String]) -> Exit {
    if ids.is_empty() {
        return Exit::Success;
    }
    let ids: Vec<String> = ids.iter().map(|id| letter::printable(id, 256)).collect();
    error!("no such dead letter: {}", ids.join(", "));
    Exit::Failed
}

fn require_yes(yes: bool, what: &str) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    Err(Error::setting("purge", format!("it would throw away {what}; add --yes to do it")))
}

fn told_purged(purged: u64, missing: &[String]) -> Exit {
    print([format!("{purged} thrown away")]).then(|| told_missing(missing))
}

/// Prints lines, up to the first that cannot be printed.
fn print(lines: impl IntoIterator<Item = impl std::fmt::Display>) -> Exit {
    told_printed(lines.into_iter().try_for_each(print_line))
}

/// Whoever stops reading wanted no more.
fn told_printed(printed: io::Result<()>) -> Exit {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            error!("standard output cannot be written: {error}");
            Exit::Failed
        }
        _ => Exit::Success,
    }
}
