//! Prints what the contenders of a work took.

use super::results::{Line, Results, Spread};

/// The median of each contender, its spread, and its ratio to the first contender and to rabbit-work.
pub fn print(work: &str, results: &Results) {
    let contenders = results.contenders(work);
    let Some(first) = contenders.first() else { return };
    let ours = contenders.iter().find(|it| OURS.contains(it)).unwrap_or(first);
    println!("\n{work}");
    println!(
        "  {:<18} {:>10} {:>21} {:>9} {:>11} {:>10} {:>9} {:>9} {:>8}",
        "",
        "tasks/s",
        "from - to",
        "of first",
        "of ours",
        "CPU s/1e5",
        "peak MB",
        "p50 ms",
        "p99 ms"
    );
    for contender in &contenders {
        print_row(work, contender, [first, ours], results);
    }
}

fn print_row(work: &str, contender: &str, others: [&str; 2], results: &Results) {
    let rate = Spread::of(results.values(work, contender, Line::rate));
    let Some(Spread { least, median, most }) = rate else { return };
    let [of_first, of_ours] = others.map(|to| {
        let ratio = results.ratio((work, contender), (work, to));
        ratio.map_or(String::new(), |it| format!("{:.2}", it.median))
    });
    let value = |of: fn(&Line) -> f64| {
        Spread::of(results.values(work, contender, of)).map_or(0.0, |it| it.median)
    };
    let latency = |of: fn(&Line) -> Option<f64>| {
        let values = results.of(work, contender).filter_map(of).collect();
        Spread::of(values).map_or(String::new(), |it| format!("{:.2}", it.median / 1000.0))
    };
    println!(
        "  {contender:<18} {median:>10.0} {:>21} {of_first:>9} {of_ours:>11} {:>10.2} {:>9.1} {:>9} {:>8}",
        format!("{least:.0} - {most:.0}"),
        value(Line::cpu_of_100_000),
        value(|it| it.measured.peak_kib as f64) / 1024.0,
        latency(|it| it.measured.p50_us),
        latency(|it| it.measured.p99_us),
    );
}

/// What rabbit-work is called in the works.
const OURS: [&str; 3] = ["rabbit-work", "worker", "producer"];
