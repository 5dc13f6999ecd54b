//! What was measured, as lines of a CSV file.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::options::Options;
use super::work::{Contender, Work};
use rabbit_work_bench::Error;

const COLUMNS: &str = "work,contender,round,tasks,seconds,cpu_seconds,broker_cpu_seconds,peak_kib,p50_us,p99_us,p999_us";

/// One contender's measurement in one round.
#[derive(Clone, Debug)]
pub struct Measured {
    pub seconds: f64,
    /// Processor time, of the whole process and its children.
    pub cpu: f64,
    pub broker_cpu: f64,
    pub peak_kib: u64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct Line {
    pub work: String,
    pub contender: String,
    pub round: u32,
    pub tasks: u64,
    pub measured: Measured,
}

#[derive(Debug, Default)]
pub struct Results {
    /// What was measured on, and with what.
    pub machine: Vec<String>,
    pub lines: Vec<Line>,
}

impl Results {
    /// What the file has so far: a run of some works keeps the others.
    pub fn begin(options: &Options) -> Result<Results, Error> {
        let mut results = match &options.csv {
            Some(csv) if csv.is_file() => Results::read(csv)?,
            _ => Results::default(),
        };
        if !options.machine.is_empty() {
            results.machine = options.machine.clone();
        }
        Ok(results)
    }

    /// Removes what was measured of a work.
    pub fn forget(&mut self, work: &str) {
        self.lines.retain(|it| it.work != work);
    }

    pub fn add(&mut self, work: &Work, contender: &Contender, round: u32, measured: Measured) {
        let (work, tasks) = (work.name.clone(), contender.tasks);
        self.lines.push(Line { work, contender: contender.name.clone(), round, tasks, measured });
    }

    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut text: String = self.machine.iter().map(|line| format!("# {line}\n")).collect();
        text += &format!("{COLUMNS}\n");
        for Line { work, contender, round, tasks, measured } in &self.lines {
            let Measured { seconds, cpu, broker_cpu, peak_kib, .. } = measured;
            write!(
                text,
                "{work},{contender},{round},{tasks},{seconds:.6},{cpu:.3},{broker_cpu:.2},{peak_kib}"
            )?;
            for latency in [measured.p50_us, measured.p99_us, measured.p999_us] {
                write!(text, ",{}", latency.map_or(String::new(), |it| it.to_string()))?;
            }
            text.push('\n');
        }
        Ok(fs::write(path, text)?)
    }

    pub fn read(path: &Path) -> Result<Results, Error> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let machine = text.lines().filter_map(|line| line.strip_prefix("# "));
        let lines = text.lines().filter(|line| !line.starts_with('#') && *line != COLUMNS);
        let lines = lines.map(read_line).collect::<Result<_, _>>()?;
        Ok(Results { machine: machine.map(String::from).collect(), lines })
    }

    /// The contenders of a work, in the order of the file.
    pub fn contenders(&self, work: &str) -> Vec<&str> {
        let mut contenders = Vec::new();
        for line in self.lines.iter().filter(|it| it.work == work) {
            if !contenders.contains(&line.contender.as_str()) {
                contenders.push(line.contender.as_str());
            }
        }
        contenders
    }

    /// What a contender took, round by round.
    pub fn of<'a>(&'a self, work: &str, contender: &str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |it| it.work == work && it.contender == contender)
    }

    /// A value of each round, of those that there are.
    pub fn values(&self, work: &str, contender: &str, value: impl Fn(&Line) -> f64) -> Vec<f64> {
        let mut lines: Vec<_> = self.of(work, contender).collect();
        lines.sort_by_key(|it| it.round);
        lines.into_iter().map(value).collect()
    }

    /// How many times as fast one contender is as another: the median of the rounds' ratios.
    pub fn ratio(&self, (work, contender): (&str, &str), to: (&str, &str)) -> Option<Spread> {
        let rates = self.values(work, contender, Line::rate);
        let others = self.values(to.0, to.1, Line::rate);
        Spread::of(rates.iter().zip(&others).map(|(one, other)| one / other).collect())
    }
}

fn read_line(line: &str) -> Result<Line, Error> {
    let fields: Vec<&str> = line.split(',').collect();
    let [work, contender, round, tasks, seconds, cpu, broker_cpu, peak_kib, p50, p99, p999] =
        fields[..]
    else {
        return Err(format!("not a line of results: {line}").into());
    };
    let optional = |text: &str| if text.is_empty() { None } else { text.parse().ok() };
    let measured = Measured {
        seconds: seconds.parse()?,
        cpu: cpu.parse()?,
        broker_cpu: broker_cpu.parse()?,
        peak_kib: peak_kib.parse()?,
        p50_us: optional(p50),
        p99_us: optional(p99),
        p999_us: optional(p999),
    };
    let (work, contender) = (work.into(), contender.into());
    Ok(Line { work, contender, round: round.parse()?, tasks: tasks.parse()?, measured })
}

impl Line {
    /// Tasks a second.
    pub fn rate(&self) -> f64 {
        self.tasks as f64 / self.measured.seconds
    }

    /// Processor seconds for 100,000 tasks.
    pub fn cpu_of_100_000(&self) -> f64 {
        self.measured.cpu * 1e5 / self.tasks as f64
    }
}

/// A median, and between what the rounds were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Spread { least, median, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(vec![]), None);
        let spread = Spread::of(vec![9.0, 1.0, 2.0]);
        assert_eq!(spread, Some(Spread { least: 1.0, median: 2.0, most: 9.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 9.0]).map(|it| it.median), Some(3.0));
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let line = |contender: &str, round, seconds| {
            read_line(&format!("publish/16,{contender},{round},100,{seconds},1,1,1000,,,")).unwrap()
        };
        // The machine was twice as slow in the second round.
        let lines = vec![
            line("raw", 1, 1.0),
            line("ours", 1, 2.0),
            line("raw", 2, 2.0),
            line("ours", 2, 4.0),
        ];
        let results = Results { lines, ..Results::default() };
        let ratio = results.ratio(("publish/16", "ours"), ("publish/16", "raw"));
        assert_eq!(ratio, Some(Spread { least: 0.5, median: 0.5, most: 0.5 }));
        assert_eq!(results.ratio(("publish/16", "none"), ("publish/16", "raw")), None);
    }
}
