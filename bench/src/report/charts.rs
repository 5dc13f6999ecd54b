//! The charts of docs/performance.md.

use super::chart::{Labels, Scale, Series, Style, bars, lines};
use super::tables::works_of;
use crate::run::results::{Line, Results, Spread};

/// Each chart with its name. Charts of what was not measured are left out.
pub fn charts(results: &Results) -> Vec<(&'static str, String)> {
    let charts = [
        ("throughput", throughput(results)),
        ("cpu", cpu(results)),
        ("latency", latency(results)),
        ("command", command(results)),
        ("prefetch", prefetch(results)),
        ("fairness", fairness(results)),
        ("backlog", growth(results, "backlog", "tasks in the queue at the start", Scale::FromZero)),
        (
            "threads",
            growth(results, "threads", "threads; each task waits 10 ms", Scale::Logarithmic),
        ),
        ("processes", growth(results, "processes", "processes of one thread", Scale::FromZero)),
    ];
    charts.into_iter().filter_map(|(name, chart)| Some((name, chart?))).collect()
}

fn labels(title: &str, x: &str, y: &str) -> Labels {
    Labels { title: title.into(), x: x.into(), y: y.into() }
}

/// The libraries that the bar charts show.
const SHOWN: [&str; 6] =
    ["raw", "raw-multiple-50", "amiquip-nodelay", "rabbit-work", "lapin", "amqprs"];

/// Bars for contenders over works, from a value of each round.
fn over_works(
    results: &Results,
    contenders: &[&str],
    works: &[&str],
    values: impl Fn(&str, &str) -> Vec<f64>,
) -> Option<Vec<Series>> {
    let series = contenders.iter().map(|contender| {
        let point = |(place, work): (usize, &&str)| {
            Some((place as f64, Spread::of(values(work, contender))?))
        };
        let points: Vec<_> = works.iter().enumerate().filter_map(point).collect();
        Series { name: contender.to_string(), points, style: Style::Measured }
    });
    let series: Vec<Series> = series.filter(|it| !it.points.is_empty()).collect();
    let measured = |work: &&str| results.lines.iter().any(|it| it.work == *work);
    (!series.is_empty() && works.iter().all(measured)).then_some(series)
}

fn throughput(results: &Results) -> Option<String> {
    let works = [
        ("publish/16-bytes", "publish\n16 bytes"),
        ("publish/1024-bytes", "publish\n1 KiB"),
        ("consume/prefetch-1-threads-1", "consume\nprefetch 1"),
        ("consume/prefetch-10-threads-1", "consume\nprefetch 10"),
        ("consume/prefetch-100-threads-1", "consume\nprefetch 100"),
        ("consume/prefetch-1000-threads-1", "consume\nprefetch 1000"),
    ];
    let rates = |work: &str, contender: &str| {
        let rates = results.values(work, contender, Line::rate);
        rates.into_iter().map(|rate| rate / 1000.0).collect()
    };
    let series = over_works(results, &SHOWN, &works.map(|it| it.0), rates)?;
    let labels = labels(
        "Tasks a second, one thread (raw: what the broker can take)",
        "each publish is confirmed, with a window of 1000; each delivery is acked",
        "1,000 tasks a second",
    );
    Some(bars(&labels, Scale::FromZero, &works.map(|it| it.1.into()), &series))
}

fn cpu(results: &Results) -> Option<String> {
    let works = [
        ("publish/16-bytes", "publish\n16 bytes"),
        ("consume/prefetch-1-threads-1", "consume\nprefetch 1"),
        ("consume/prefetch-100-threads-1", "consume\nprefetch 100"),
    ];
    let cpu = |work: &str, contender: &str| results.values(work, contender, Line::cpu_of_100_000);
    let shown: Vec<&str> = SHOWN.into_iter().filter(|it| *it != "raw-multiple-50").collect();
    let series = over_works(results, &shown, &works.map(|it| it.0), cpu)?;
    let labels = labels(
        "Processor time of the client for 100,000 tasks",
        "whole process, with its connection",
        "processor seconds (less is better)",
    );
    Some(bars(&labels, Scale::FromZero, &works.map(|it| it.1.into()), &series))
}

/// A percentile of a round's latencies, if they were measured.
type Percentile = fn(&Line) -> Option<f64>;

fn latency(results: &Results) -> Option<String> {
    let works = works_of("latency", results);
    let percentiles: [(&str, Percentile); 3] = [
        ("p50", |it| it.measured.p50_us),
        ("p99", |it| it.measured.p99_us),
        ("p99.9", |it| it.measured.p999_us),
    ];
    let mut groups = Vec::new();
    for work in &works {
        let (_, name) = work.split_once('/')?;
        groups.extend(percentiles.map(|(of, _)| format!("{of}\n{}", name.replace('-', " "))));
    }
    let series = results.contenders(works.first()?).into_iter().map(|contender| {
        let all = works.iter().flat_map(|work| percentiles.map(|(_, value)| (work, value)));
        let point = |(place, (work, value)): (usize, (&&str, Percentile))| {
            let values = results.of(work, contender).filter_map(value).map(|it| it / 1000.0);
            Some((place as f64, Spread::of(values.collect())?))
        };
        let points = all.enumerate().filter_map(point).collect();
        Series { name: contender.to_string(), points, style: Style::Measured }
    });
    let labels = labels(
        "From when a task was due to be published until its handler has it",
        "percentile, and rate of publishing",
        "milliseconds (less is better)",
    );
    Some(bars(&labels, Scale::Logarithmic, &groups, &series.collect::<Vec<_>>()))
}

fn command(results: &Results) -> Option<String> {
    let works = [
        ("command/true-threads-1", "1 at a time"),
        ("command/true-threads-2", "2 at a time"),
        ("command/true-threads-4", "4 at a time"),
    ];
    let contenders = ["xargs", "xargs-in-C", "amiquip-nodelay", "worker"];
    let rates = |work: &str, contender: &str| results.values(work, contender, Line::rate);
    let series = over_works(results, &contenders, &works.map(|it| it.0), rates)?;
    let labels = labels(
        "The command `true` for each task",
        "commands that run at a time",
        "commands a second",
    );
    Some(bars(&labels, Scale::FromZero, &works.map(|it| it.1.into()), &series))
}

/// Measured and computed: a thread has `prefetch` tasks every round trip and task time.
fn prefetch(results: &Results) -> Option<String> {
    const TASK_MS: f64 = 5.0;
    let mut all = Vec::new();
    for delay in [1, 10, 50] {
        let prefix = format!("prefetch/delay-{delay}ms-prefetch-");
        let works = works_of("prefetch", results);
        let of_delay = works.iter().filter_map(|work| Some((work, work.strip_prefix(&prefix)?)));
        let points: Vec<(f64, Spread)> = of_delay
            .filter_map(|(work, prefetch)| {
                let rates = results.values(work, "rabbit-work", Line::rate);
                Some((prefetch.parse().ok()?, Spread::of(rates)?))
            })
            .collect();
        let computed = |prefetch: f64| {
            let rate = (prefetch / (f64::from(2 * delay) + TASK_MS)).min(1.0 / TASK_MS) * 1000.0;
            Spread { least: rate, median: rate, most: rate }
        };
        let formula = points.iter().map(|it| (it.0, computed(it.0))).collect();
        let name = format!("{} ms there and back", 2 * delay);
        all.push(Series { name: name.clone(), points, style: Style::Measured });
        all.push(Series { name: "formula".into(), points: formula, style: Style::Computed });
    }
    let labels = labels(
        "One thread, tasks of 5 ms, a broker that is some way off",
        "prefetch",
        "tasks a second",
    );
    all.iter().any(|it| !it.points.is_empty()).then(|| lines(&labels, Scale::FromZero, &all))
}

fn fairness(results: &Results) -> Option<String> {
    let works = works_of("fairness", results);
    let point = |work: &&str| {
        let seconds = results.values(work, "rabbit-work", |it| it.measured.seconds);
        let prefetch = work.strip_prefix("fairness/prefetch-")?.parse().ok()?;
        Some((prefetch, Spread::of(seconds)?))
    };
    let points: Vec<_> = works.iter().filter_map(point).collect();
    let labels = labels(
        "200 tasks for a worker of 1 ms a task and one of 20 ms a task",
        "prefetch of both",
        "seconds until all are done",
    );
    let name = "rabbit-work".to_string();
    (!points.is_empty()).then(|| {
        lines(&labels, Scale::FromZero, &[Series { name, points, style: Style::Measured }])
    })
}

fn growth(results: &Results, what: &str, x: &str, y: Scale) -> Option<String> {
    let prefix = format!("growth/{what}-");
    let works: Vec<&str> = works_of("growth", results);
    let works: Vec<&str> = works.into_iter().filter(|it| it.starts_with(&prefix)).collect();
    let series = results.contenders(works.first()?).into_iter().map(|contender| {
        let point = |work: &&str| {
            let rates = results.values(work, contender, Line::rate);
            Some((work.strip_prefix(&prefix)?.parse().ok()?, Spread::of(rates)?))
        };
        let points = works.iter().filter_map(point).collect();
        Series { name: contender.to_string(), points, style: Style::Measured }
    });
    let title = format!("Tasks a second by {what}");
    Some(lines(&labels(&title, x, "tasks a second"), y, &series.collect::<Vec<_>>()))
}
