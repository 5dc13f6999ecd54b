//! The tables of docs/performance.md.

use super::chart::number;
use super::targets;
use crate::run::results::{Line, Results, Spread};

/// The table of this name; `None` if nothing of it was measured.
pub fn table(name: &str, results: &Results) -> Option<String> {
    match name {
        "machine" => machine(results),
        "targets" => targets::table(results),
        "costs" => costs(results),
        "latency" => latency(results),
        group => rates(group, results),
    }
}

fn machine(results: &Results) -> Option<String> {
    let lines: Vec<String> = results.machine.iter().map(|line| format!("* {line}\n")).collect();
    (!lines.is_empty()).then(|| lines.concat())
}

/// The works of a group, without the group's name, in the order of the file.
pub fn works_of<'a>(group: &str, results: &'a Results) -> Vec<&'a str> {
    let mut works = Vec::new();
    for line in &results.lines {
        if line.work.split_once('/').is_some_and(|(of, _)| of == group)
            && !works.contains(&line.work.as_str())
        {
            works.push(line.work.as_str());
        }
    }
    works
}

/// For each contender and work of a group: tasks a second, and of those of the first contender.
fn rates(group: &str, results: &Results) -> Option<String> {
    let works = works_of(group, results);
    let mut contenders: Vec<&str> = Vec::new();
    for contender in works.iter().flat_map(|work| results.contenders(work)) {
        if !contenders.contains(&contender) {
            contenders.push(contender);
        }
    }
    let first = *contenders.first()?;
    let head = works.iter().map(|work| heading(work)).collect();
    let cell = |contender: &str, work: &str| {
        let rate = results.values(work, contender, Line::rate);
        let rate = Spread::of(rate).map(|it| number(it.median));
        let ratio = results.ratio((work, contender), (work, first)).filter(|_| contender != first);
        match (rate, ratio) {
            (Some(rate), Some(ratio)) => format!("**{:.2}** · {rate}", ratio.median),
            (Some(rate), None) => rate,
            _ => String::new(),
        }
    };
    let rows = contenders.iter().map(|contender| {
        let cells = works.iter().map(|work| cell(contender, work)).collect();
        (contender.to_string(), cells)
    });
    Some(markdown("tasks/s", head, rows.collect()))
}

/// `consume/prefetch-1-threads-4` as people read it.
fn heading(work: &str) -> String {
    let (_, name) = work.split_once('/').unwrap_or(("", work));
    name.replace('-', " ")
}

/// Processor time and memory, of the works that most programs do.
fn costs(results: &Results) -> Option<String> {
    let works = [
        "publish/16-bytes",
        "consume/prefetch-1-threads-1",
        "consume/prefetch-100-threads-1",
        "growth/threads-64",
    ];
    let contenders = results.contenders(works[0]);
    if contenders.is_empty() {
        return None;
    }
    let head = works.iter().map(|work| work.replace(['-', '/'], " ")).collect();
    let median = |work: &str, contender: &str, value: fn(&Line) -> f64| {
        Spread::of(results.values(work, contender, value)).map(|it| it.median)
    };
    let rows = contenders.iter().map(|contender| {
        let cell = |work: &&str| {
            let cpu = median(work, contender, Line::cpu_of_100_000)?;
            let peak = median(work, contender, |it| it.measured.peak_kib as f64 / 1024.0)?;
            Some(format!("{cpu:.2} s · {peak:.1} MiB"))
        };
        (contender.to_string(), works.iter().map(|work| cell(work).unwrap_or_default()).collect())
    });
    Some(markdown("processor time for 100,000 tasks · peak memory", head, rows.collect()))
}

fn latency(results: &Results) -> Option<String> {
    let works = works_of("latency", results);
    let contenders = results.contenders(works.first()?);
    let head = works.iter().map(|work| heading(work)).collect();
    let rows = contenders.iter().map(|contender| {
        let cell = |work: &&str| {
            let of = |value: fn(&Line) -> Option<f64>| {
                let values = results.of(work, contender).filter_map(value).collect();
                Spread::of(values).map_or(String::new(), |it| number(it.median / 1000.0))
            };
            let (p50, p99) = (of(|it| it.measured.p50_us), of(|it| it.measured.p99_us));
            format!("{p50} · {p99} · {}", of(|it| it.measured.p999_us))
        };
        (contender.to_string(), works.iter().map(cell).collect())
    });
    Some(markdown("p50 · p99 · p99.9 in ms", head, rows.collect()))
}

pub fn markdown(corner: &str, head: Vec<String>, rows: Vec<(String, Vec<String>)>) -> String {
    let mut table = format!("| {corner} | {} |\n", head.join(" | "));
    table += &format!("|---{}|\n", "|---:".repeat(head.len()));
    for (name, cells) in rows {
        table += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    table
}
