//! Runs `queuectl status` and `queuectl check`.

use std::time::Duration;

use rabbit_work::{CheckResult, DelayQueue, Inspector};
use serde_json::{Value, json};

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::queuectl::output::{exit_of, print};

pub(crate) fn print_json(inspector: &mut Inspector, queue: &str) -> Result<Exit, CommandError> {
    let status = inspector.status()?;
    let queues: Vec<Value> = status.delayed.iter().map(delay_queue_as_json).collect();
    Ok(print([json!({
        "queue": queue,
        "type": inspector.queue_type()?,
        "ready": status.ready,
        "unacked": null,
        "consumers": status.consumers,
        "retry": status.delayed_tasks(),
        "dead": status.dead,
        "retry_queues": queues,
    })]))
}

fn delay_queue_as_json(queue: &DelayQueue) -> Value {
    json!({ "delay": queue.delay.as_secs_f64(), "tasks": queue.tasks })
}

pub(crate) fn print_text(inspector: &mut Inspector, queue: &str) -> Result<Exit, CommandError> {
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
    Ok(print(lines))
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
        Err(error) => ("FAIL", error.chain()),
    };
    format!("{sign:<4}  {:<8} {found}", check.name)
}
