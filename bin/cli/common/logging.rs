//! Logs to standard error, as RUST_LOG says. The errors of a command are always printed.

use std::env;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anstream::AutoStream;
use clap::ValueEnum;
use env_logger::fmt::Formatter;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rabbit_work::{OutputStream, log_filter};

use crate::cli::common::stdio::write_all;

/// How a record of the log is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Logs as RUST_LOG says, default `info`. An error that a command logs explains its exit status: it is
/// written whatever RUST_LOG says. As text, it is a plain line that begins with the command's name.
pub(crate) fn init_logging(command: &str, format: LogFormat) {
    let (mut log, mut errors) = (env_logger::Builder::new(), env_logger::Builder::new());
    log.filter_level(LevelFilter::Info).parse_default_env();
    // env_logger gives a pipe colours only if RUST_LOG_STYLE says so.
    if !matches!(env::var("RUST_LOG_STYLE").as_deref(), Ok("always" | "never")) {
        log.write_style(AutoStream::choice(&io::stderr()).into());
    }
    errors.filter_level(LevelFilter::Error);
    match format {
        LogFormat::Text => {
            let name = command.to_string();
            log.format(write_text);
            errors.format(move |out, record| writeln!(out, "{name}: {}", record.args()));
        }
        LogFormat::Json => {
            log.format(write_json);
            errors.format(write_json);
        }
    }
    let build =
        |mut it: env_logger::Builder| it.target(env_logger::Target::Pipe(Box::new(Stderr))).build();
    let logger = Logger { log: build(log), errors_of_command: build(errors) };
    log::set_max_level(logger.log.filter().max(LevelFilter::Error));
    // No other logger was set.
    let _ = log::set_boxed_logger(Box::new(log_filter(logger)));
}

fn write_text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let style = out.default_level_style(record.level());
    let time = out.timestamp_millis();
    writeln!(out, "{time} {style}{:<5}{style:#} {}", record.level(), record.args())
}

/// One object on a line, with the record's own fields after the common ones.
fn write_json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let mut fields = Fields(serde_json::Map::new());
    fields.add("time", out.timestamp_millis().to_string());
    fields.add("level", record.level().as_str().to_lowercase());
    fields.add("message", record.args().to_string());
    record.key_values().visit(&mut fields).map_err(io::Error::other)?;
    writeln!(out, "{}", serde_json::Value::Object(fields.0))
}

struct Fields(serde_json::Map<String, serde_json::Value>);

impl Fields {
    fn add(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.0.insert(name.into(), value.into());
    }
}

impl<'a> VisitSource<'a> for Fields {
    fn visit_pair(&mut self, key: Key<'a>, value: Value<'a>) -> Result<(), Error> {
        match value.to_u64() {
            Some(number) => self.add(key.as_str(), number),
            None => self.add(key.as_str(), value.to_string()),
        }
        Ok(())
    }
}

/// A command that shares our standard error can make it non-blocking: this waits for room then, or
/// a line would be cut.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_all(OutputStream::Stderr, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Suspend = dyn Fn(&mut dyn FnMut()) + Send + Sync;

static SUSPEND_PROGRESS: Mutex<Option<Arc<Suspend>>> = Mutex::new(None);

/// Has each record written inside `suspend`, which clears a progress bar meanwhile. The last bar
/// counts.
pub(crate) fn suspend_progress_while_logging(
    suspend: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static,
) {
    *SUSPEND_PROGRESS.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(suspend));
}

/// Runs `write`, with the progress line cleared meanwhile. It must not log.
pub(crate) fn with_progress_suspended(write: &mut dyn FnMut()) {
    // Not locked while it writes: that may block.
    let suspend = SUSPEND_PROGRESS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match suspend {
        Some(suspend) => suspend(write),
        None => write(),
    }
}

struct Logger {
    log: env_logger::Logger,
    errors_of_command: env_logger::Logger,
}

impl Logger {
    fn of(&self, metadata: &Metadata<'_>) -> &env_logger::Logger {
        let is_error_of_command =
            metadata.level() == Level::Error && metadata.target().starts_with(COMMANDS);
        if is_error_of_command { &self.errors_of_command } else { &self.log }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.of(metadata).enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let logger = self.of(record.metadata());
        if logger.matches(record) {
            with_progress_suspended(&mut || logger.log(record));
        }
    }

    fn flush(&self) {
        self.log.flush();
        self.errors_of_command.flush();
    }
}

/// The targets of what the commands log; the library's other targets are not below it.
const COMMANDS: &str = "rabbit_work::cli::";
