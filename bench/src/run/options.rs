//! The options of `bench run`, which are those of `scripts/bench.sh`.

use std::path::PathBuf;

use rabbit_work_bench::Error;

#[derive(Clone, Debug)]
pub struct Options {
    /// A fraction of the tasks, and one round.
    pub quick: bool,
    /// How many rounds are counted, after one that is not.
    pub rounds: u32,
    /// Where the programs of rabbit-work are.
    pub programs: PathBuf,
    /// The folder of `bench/`, for the scripts of contenders.
    pub here: PathBuf,
    /// A folder for files that contenders read.
    pub scratch: PathBuf,
    /// A Python that has pika, if there is one.
    pub python: Option<PathBuf>,
    /// Where the results go.
    pub csv: Option<PathBuf>,
    /// What the results say of the machine.
    pub machine: Vec<String>,
    /// The broker's process, whose processor time is noted.
    pub broker: Option<u32>,
    /// Only contenders named so; none named: all.
    pub contenders: Vec<String>,
    /// Only works whose names begin so; none named: all.
    pub groups: Vec<String>,
}

impl Options {
    pub fn parse(words: &[&str]) -> Result<Options, Error> {
        let mut options = Options {
            quick: false,
            rounds: 5,
            programs: "target/release".into(),
            here: "bench".into(),
            scratch: std::env::temp_dir(),
            python: None,
            csv: None,
            machine: Vec::new(),
            broker: None,
            contenders: Vec::new(),
            groups: Vec::new(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match *word {
                "--quick" => (options.quick, options.rounds) = (true, 1),
                "--rounds" => options.rounds = value()?.parse()?,
                "--programs" => options.programs = value()?.into(),
                "--here" => options.here = value()?.into(),
                "--scratch" => options.scratch = value()?.into(),
                "--python" => options.python = Some(value()?.into()),
                "--csv" => options.csv = Some(value()?.into()),
                "--machine" => options.machine.push(value()?.to_string()),
                "--broker" => options.broker = Some(value()?.parse()?),
                "--contenders" => {
                    options.contenders = value()?.split(',').map(String::from).collect()
                }
                option if option.starts_with('-') => {
                    return Err(format!("no option '{option}'").into());
                }
                group => options.groups.push(group.into()),
            }
        }
        Ok(options)
    }

    /// How many tasks of this number a run has.
    pub fn tasks(&self, count: u64) -> u64 {
        if self.quick { (count / 50).clamp(20, 2000) } else { count }
    }

    pub fn includes_work(&self, name: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|it| name.starts_with(it))
    }

    pub fn includes_contender(&self, name: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|it| it == name)
    }
}
