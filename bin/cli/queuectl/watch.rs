//! Runs `queuectl status --watch`: counts queues again and again.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rabbit_work::{Broker, Error, Inspector, Queue, Status};
use serde_json::{Value, json};

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::signals::{StopLimits, stop_on_signals};
use crate::cli::common::stdio::print_line;
use crate::cli::queuectl::letter::printable;
use crate::cli::queuectl::output::exit_as_printed;
use crate::cli::queuectl::status::Format;

/// How often to ask for each possible delay queue, which is some eighty questions.
const COUNT_ALL_EVERY: Duration = Duration::from_secs(60);

/// Prints a line for each queue every so often, until a signal.
pub(crate) fn run(
    broker: &Broker,
    queues: &[Queue],
    format: Format,
    every: Duration,
) -> Result<Exit, CommandError> {
    let (_trigger, shutdown) = stop_on_signals(StopLimits {
        grace: Duration::ZERO,
        cancel_timeout: Duration::ZERO,
        late: Exit::Success,
    })?;
    let mut queues: Vec<Watched> = queues.iter().map(|it| Watched::new(broker, it)).collect();
    let mut rows = queues.iter_mut().map(Watched::first_row).collect::<Result<Vec<Row>, _>>()?;
    let mut page = Page::new(format);
    loop {
        if let Err(error) = page.show(&rows) {
            return Ok(exit_as_printed(Err(error)));
        }
        if shutdown.wait(every) {
            return Ok(Exit::Success);
        }
        rows = queues.iter_mut().map(Watched::row).collect();
    }
}

/// A queue, and what is known of it.
struct Watched {
    name: String,
    inspector: Inspector,
    all_counted_at: Option<Instant>,
    /// The ready tasks when they were counted last.
    before: Option<(Instant, u64)>,
}

/// A queue at one moment.
struct Row {
    queue: String,
    counts: Result<Counts, Error>,
}

struct Counts {
    status: Status,
    /// How many ready tasks came more than went in a second, since the row before.
    change: Option<f64>,
}

impl Watched {
    fn new(broker: &Broker, queue: &Queue) -> Watched {
        let (name, inspector) = (queue.name().to_string(), Inspector::new(broker, queue));
        Watched { name, inspector, all_counted_at: None, before: None }
    }

    /// Only a queue that does not exist is waited for from the start. Later, every error may pass.
    fn first_row(&mut self) -> Result<Row, Error> {
        match self.row() {
            Row { counts: Err(error), .. } if !matches!(error, Error::QueueMissing { .. }) => {
                Err(error)
            }
            row => Ok(row),
        }
    }

    fn row(&mut self) -> Row {
        let counts = self.count().map(|status| {
            let (now, ready) = (Instant::now(), status.ready);
            let before = self.before.replace((now, ready));
            let per_second = |(then, before): (Instant, u64)| {
                (ready as f64 - before as f64) / (now - then).as_secs_f64().max(f64::EPSILON)
            };
            Counts { status, change: before.map(per_second) }
        });
        Row { queue: self.name.clone(), counts }
    }

    fn count(&mut self) -> Result<Status, Error> {
        if self.all_counted_at.is_some_and(|at| at.elapsed() < COUNT_ALL_EVERY) {
            return self.inspector.recount();
        }
        let status = self.inspector.status()?;
        self.all_counted_at = Some(Instant::now());
        Ok(status)
    }
}

/// Where rows go.
enum Page {
    /// Redrawn in its place.
    Terminal(ProgressBar),
    /// One line after the other, with the time.
    Lines {
        has_heading: bool,
    },
    Json,
}

impl Page {
    fn new(format: Format) -> Page {
        if format == Format::Json {
            return Page::Json;
        }
        if !io::stdout().is_terminal() {
            return Page::Lines { has_heading: false };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        let style = ProgressStyle::with_template("{msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Page::Terminal(bar)
    }

    fn show(&mut self, rows: &[Row]) -> io::Result<()> {
        match self {
            Page::Terminal(bar) => {
                let table = [heading()].into_iter().chain(rows.iter().map(as_text));
                bar.set_message(table.collect::<Vec<_>>().join("\n"));
                Ok(())
            }
            Page::Lines { has_heading } => {
                let time = format_rfc3339_seconds(SystemTime::now());
                if !*has_heading {
                    print_line(format_args!("{:<20}  {}", "time", heading()))?;
                }
                *has_heading = true;
                rows.iter().try_for_each(|row| print_line(format_args!("{time}  {}", as_text(row))))
            }
            Page::Json => rows.iter().try_for_each(|row| print_line(as_json(row))),
        }
    }
}

impl Drop for Page {
    /// Leaves the last rows on the terminal.
    fn drop(&mut self) {
        if let Page::Terminal(bar) = self {
            bar.abandon();
        }
    }
}

fn heading() -> String {
    let columns = ["ready", "retry", "dead", "consumers", "change/s"];
    format!("{}  {}", columns.map(|it| format!("{it:>9}")).join(" "), "queue")
}

fn as_text(row: &Row) -> String {
    let queue = printable(&row.queue, 256);
    let Counts { status, change } = match &row.counts {
        Ok(counts) => counts,
        Err(error) => return format!("{:>49}  {queue}: {}", "-", error.chain()),
    };
    let change = change.map_or_else(|| "-".into(), |change| format!("{change:+.1}"));
    let counts = [status.ready, status.delayed_tasks(), status.dead, status.consumers];
    format!("{} {change:>9}  {queue}", counts.map(|it| format!("{it:>9}")).join(" "))
}

fn as_json(row: &Row) -> Value {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut object = json!({ "time": time.as_millis() as f64 / 1000.0, "queue": row.queue });
    match &row.counts {
        Ok(Counts { status, change }) => {
            object["ready"] = json!(status.ready);
            object["unacked"] = Value::Null;
            object["retry"] = json!(status.delayed_tasks());
            object["dead"] = json!(status.dead);
            object["consumers"] = json!(status.consumers);
            object["change"] = json!(change);
        }
        Err(error) => object["error"] = json!(error.chain()),
    }
    object
}
