//! Runs `queuectl status` and `queuectl check`.

use std::time::Duration;

use rabbit_work::{Broker, CheckResult, DelayQueue, Inspector, Queue};
use serde_json::{Value, json};

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::queuectl::output::{advice, exit_of, print};

/// How to print counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    pub(crate) fn of(json: bool) -> Format {
        if json { Format::Json } else { Format::Text }
    }
}

/// Prints the counts of each queue, up to the first that cannot be counted.
pub(crate) fn print_all(
    broker: &Broker,
    queues: &[Queue],
    format: Format,
) -> Result<Exit, CommandError> {
    let mut exit = Exit::Success;
    for (number, queue) in queues.iter().enumerate() {
        let mut inspector = Inspector::new(broker, queue);
        let lines = match format {
            Format::Json => vec![as_json(&mut inspector, queue.name())?.to_string()],
            Format::Text => as_text(&mut inspector, queue.name())?,
        };
        let gap = (number > 0 && format == Format::Text).then(String::new);
        exit = exit.then(|| print(gap.into_iter().chain(lines)));
    }
    Ok(exit)
}

fn as_json(inspector: &mut Inspector, queue: &str) -> Result<Value, CommandError> {
    let status = inspector.status()?;
    let queues: Vec<Value> = status.delayed.iter().map(delay_queue_as_json).collect();
    Ok(json!({
        "queue": queue,
        "type": inspector.queue_type()?,
        "ready": status.ready,
        "unacked": null,
        "consumers": status.consumers,
        "retry": status.delayed_tasks(),
        "dead": status.dead,
        "retry_queues": queues,
    }))
}

fn delay_queue_as_json(queue: &DelayQueue) -> Value {
    json!({ "delay": queue.delay.as_secs_f64(), "tasks": queue.tasks })
}

fn as_text(inspector: &mut Inspector, queue: &str) -> Result<Vec<String>, CommandError> {
    let status = inspector.status()?;
    let mut lines = vec![
        format!("queue      {queue}"),
        format!("type       {}", inspector.queue_type()?.unwrap_or("not reported")),
        format!("ready      {}", status.ready),
        format!("consumers  {}", status.consumers),
        format!("retry      {}", status.delayed_tasks()),
    ];
    for it in status.delayed.iter().filter(|it| it.tasks > 0) {
        lines.push(format!("           {} after {}", it.tasks, in_one_unit(it.delay)));
    }
    lines.push(format!("dead       {}", status.dead));
    Ok(lines)
}

/// A delay as the help names it.
fn in_one_unit(delay: Duration) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let millis = delay.as_millis();
    let fitting = units.into_iter().find(|(_, unit)| millis >= *unit && millis % unit == 0);
    fitting.map_or_else(|| "0s".into(), |(name, unit)| format!("{}{name}", millis / unit))
}

/// Prints one line for each check. The exit status is that of the check that failed.
pub(crate) fn check(inspector: &mut Inspector) -> Exit {
    let checks = inspector.check();
    let failure = checks.iter().find_map(|check| check.result.as_ref().err());
    print(checks.iter().map(check_as_text)).then(|| failure.map_or(Exit::Success, exit_of))
}

fn check_as_text(check: &CheckResult) -> String {
    let (sign, found) = match &check.result {
        Ok(found) if check.warns => ("warn", found.clone()),
        Ok(found) => ("ok", found.clone()),
        Err(error) => ("FAIL", error.chain() + advice(error)),
    };
    format!("{sign:<4}  {:<8} {found}", check.name)
}
