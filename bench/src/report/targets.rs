//! The ratios to other clients that rabbit-work is to reach, and whether it does.

use self::Limit::{AtLeast, AtMost};
use super::tables::markdown;
use crate::run::results::{Line, Results, Spread};

/// A ratio of tasks a second, or of another value, between two contenders' works.
#[derive(Clone)]
struct Target {
    work: &'static str,
    ours: &'static str,
    to: (&'static str, &'static str),
    /// What is compared.
    value: fn(&Line) -> f64,
    limit: Limit,
}

#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

const P1: &str = "consume/prefetch-1-threads-1";
const P10: &str = "consume/prefetch-10-threads-1";
const P100: &str = "consume/prefetch-100-threads-1";
const PUBLISH_16: &str = "publish/16-bytes";
const PUBLISH_1024: &str = "publish/1024-bytes";
const ONE_BY_ONE: &str = "publish/one-by-one";
const LINES_16: &str = "lines/60000-of-16-bytes";
const LINES_1024: &str = "lines/60000-of-1024-bytes";
const COLD: &str = "cold/hello";
const BARE: &str = "amiquip-nodelay";
const OURS: &str = "rabbit-work";

fn targets() -> Vec<Target> {
    let cold = Target {
        work: COLD,
        ours: "producer",
        to: (COLD, "amqp-publish"),
        value: |it| it.measured.seconds / it.tasks as f64,
        limit: AtMost(1.3),
    };
    [rates(), processor_time(), vec![cold]].concat()
}

fn rates() -> Vec<Target> {
    let rate =
        |work, ours, to, limit| Target { work, ours, to: (work, to), value: Line::rate, limit };
    let mut targets = vec![
        rate(P1, OURS, BARE, AtLeast(0.95)),
        rate(P1, OURS, "lapin", AtLeast(1.0)),
        rate(P10, OURS, "raw", AtLeast(1.2)),
        rate(P100, OURS, "raw", AtLeast(1.5)),
        rate(P100, OURS, "raw-multiple-50", AtLeast(0.80)),
        rate(PUBLISH_16, OURS, BARE, AtLeast(0.97)),
        rate(PUBLISH_1024, OURS, BARE, AtLeast(0.97)),
        rate(LINES_16, "producer", OURS, AtLeast(0.97)),
        rate(LINES_1024, "producer", OURS, AtLeast(0.97)),
        rate(ONE_BY_ONE, OURS, BARE, AtLeast(0.95)),
    ];
    for (to, limit) in [("one-by-one", 10.0), ("window", 0.9)] {
        targets.push(rate("publish/shared-32-threads", OURS, to, AtLeast(limit)));
    }
    for work in ["command/true-threads-1", "command/true-threads-2", "command/true-threads-4"] {
        targets.push(rate(work, "worker", "xargs", AtLeast(0.95)));
        targets.push(rate(work, "worker", "xargs-in-C", AtLeast(0.95)));
    }
    targets
}

fn processor_time() -> Vec<Target> {
    let value = Line::cpu_of_100_000;
    let compare = |work, to, limit| Target { work, ours: OURS, to: (work, to), value, limit };
    let both = |work| [compare(work, BARE, AtMost(1.1)), compare(work, "lapin", AtMost(0.3))];
    [PUBLISH_16, P1, P100].into_iter().flat_map(both).collect()
}

/// What was measured beside each target; `None` if nothing was.
pub fn table(results: &Results) -> Option<String> {
    let mut rows: Vec<(String, Vec<String>)> = targets()
        .iter()
        .filter_map(|target| {
            let spread = target.measured(results)?;
            let name = format!("{}: {} of {}", target.work, target.ours, target.to.1);
            Some((target.describe(name), target.limit.cells(spread)))
        })
        .collect();
    rows.extend(growth(results));
    let head = ["held to", "measured", "from - to", "reached"].map(String::from);
    (!rows.is_empty()).then(|| markdown("work", head.into(), rows))
}

impl Target {
    fn measured(&self, results: &Results) -> Option<Spread> {
        let ours = results.values(self.work, self.ours, self.value);
        let others = results.values(self.to.0, self.to.1, self.value);
        Spread::of(ours.iter().zip(&others).map(|(one, other)| one / other).collect())
    }

    fn describe(&self, name: String) -> String {
        match self.limit {
            Limit::AtMost(_) if self.work != COLD => format!("{name}, processor time"),
            Limit::AtMost(_) => format!("{name}, time"),
            Limit::AtLeast(_) => name,
        }
    }
}

impl Limit {
    fn cells(self, measured: Spread) -> Vec<String> {
        let (held_to, reached) = match self {
            Limit::AtLeast(limit) => (format!("≥ {limit}"), measured.median >= limit),
            Limit::AtMost(limit) => (format!("≤ {limit}"), measured.median <= limit),
        };
        let from_to = format!("{:.2} - {:.2}", measured.least, measured.most);
        let reached = if reached { "yes" } else { "**no**" };
        vec![held_to, format!("{:.2}", measured.median), from_to, reached.into()]
    }
}

/// How much slower each line gets from 10⁴ to 10⁶ of them: no more than for the raw client.
fn growth(results: &Results) -> Option<(String, Vec<String>)> {
    let (few, many) = ("lines/10000-of-16-bytes", "lines/1000000-of-16-bytes");
    let slower = |contender| results.ratio((many, contender), (few, contender));
    let (ours, raw) = (slower("producer")?, slower("raw")?.median);
    let mut cells = Limit::AtLeast(raw).cells(ours);
    cells[0] = format!("≥ {raw:.2} (raw)");
    Some(("lines: rate with 10⁶ of that with 10⁴".into(), cells))
}
