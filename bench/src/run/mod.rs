//! Has all contenders do the same works in one run, and writes what was measured.

mod measure;
mod options;
mod plan;
pub mod results;
mod summary;
mod work;

use std::env;

use self::measure::Measurer;
use self::options::Options;
use self::results::Results;
use self::work::Work;
use rabbit_work_bench::Error;

/// Measures the works that `words` name.
pub fn run(words: &[&str]) -> Result<(), Error> {
    let options = Options::parse(words)?;
    let url = env::var("AMQP_URL").map_err(|_| "AMQP_URL is not set")?;
    let works = plan::works(&options)?;
    if works.is_empty() {
        return Err(format!("nothing is called {}", options.groups.join(", ")).into());
    }
    let mut measurer = Measurer::new(&options, &url)?;
    let mut results = Results::begin(&options)?;
    let mut failed = 0;
    for work in &works {
        results.forget(&work.name);
        if let Err(error) = measure_work(work, &options, &mut measurer, &mut results) {
            eprintln!("bench: {}: {error}", work.name);
            failed += 1;
        }
        summary::print(&work.name, &results);
        if let Some(csv) = &options.csv {
            results.write(csv)?;
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(format!("{failed} of {} works failed", works.len()).into()),
    }
}

/// In each round all contenders, in turn another one first. The first of several rounds is not counted.
fn measure_work(
    work: &Work,
    options: &Options,
    measurer: &mut Measurer<'_>,
    results: &mut Results,
) -> Result<(), Error> {
    // A single round is so long that it needs none.
    let warm_up = u32::from(!options.quick && work.most_rounds > 1);
    for round in 0..options.rounds.min(work.most_rounds) + warm_up {
        let mut contenders: Vec<_> = work.contenders.iter().collect();
        let first = round as usize % contenders.len();
        contenders.rotate_left(first);
        let mut measured = measurer.measure_all(work, &contenders)?;
        // Back in the order of the plan, in which the results are shown.
        measured.rotate_right(first);
        if round >= warm_up {
            for (contender, measured) in measured {
                results.add(work, contender, round - warm_up + 1, measured);
            }
        }
    }
    Ok(())
}
