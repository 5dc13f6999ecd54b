//! Runs contenders, each once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use super::options::Options;
use super::results::Measured;
use super::work::{Clock, Contender, Fill, Work};
use crate::contend::raw;
use crate::contend::wire::Wire;
use crate::proxy;
use rabbit_work_bench::Error;

pub struct Measurer<'a> {
    options: &'a Options,
    url: &'a str,
    /// This program, which runs each contender.
    program: PathBuf,
    /// How many queues there were so far, for their names.
    queues: u64,
    /// The URLs of brokers that are so many milliseconds away.
    proxies: BTreeMap<u64, String>,
    /// Half of the tasks a second that the raw client can pass on.
    rate: Option<u64>,
}

impl Measurer<'_> {
    pub fn new<'a>(options: &'a Options, url: &'a str) -> Result<Measurer<'a>, Error> {
        let program = env::current_exe()?;
        let (proxies, rate) = (BTreeMap::new(), None);
        Ok(Measurer { options, url, program, queues: 0, proxies, rate })
    }

    /// What each contender took for this work.
    pub fn measure_all<'a>(
        &mut self,
        work: &Work,
        contenders: &[&'a Contender],
    ) -> Result<Vec<(&'a Contender, Measured)>, Error> {
        let url = self.url_of(work)?;
        let mut measured = Vec::new();
        // All queues before anything is measured: a broker is not done with writing when it has
        // confirmed. But not more than it keeps in memory.
        let many = |it: &Contender| matches!(it.fill, Fill::Tasks { count: 500_000.., .. });
        let at_a_time = if contenders.iter().any(|it| many(it)) { 1 } else { contenders.len() };
        for contenders in contenders.chunks(at_a_time) {
            let queues = self.fill(contenders)?;
            for (contender, queue) in contenders.iter().zip(&queues) {
                measured.push((*contender, self.measure(contender, queue, &url)?));
            }
            self.delete(&queues)?;
        }
        Ok(measured)
    }

    fn url_of(&mut self, work: &Work) -> Result<String, Error> {
        let delay = work.delay_ms;
        if delay == 0 {
            return Ok(self.url.into());
        }
        if !self.proxies.contains_key(&delay) {
            self.proxies.insert(delay, proxy::start(self.url, Duration::from_millis(delay))?);
        }
        Ok(self.proxies[&delay].clone())
    }

    /// Makes a queue for each contender.
    fn fill(&mut self, contenders: &[&Contender]) -> Result<Vec<String>, Error> {
        let mut queues = Vec::new();
        for contender in contenders {
            self.queues += 1;
            let queue = format!("bench.{}", self.queues);
            match contender.fill {
                Fill::Nothing => Wire::open(self.url)?.declare(&queue)?,
                Fill::Tasks { count, size } => raw::fill(self.url, &queue, count, size)?,
            }
            queues.push(queue);
        }
        Ok(queues)
    }

    fn delete(&self, queues: &[String]) -> Result<(), Error> {
        let mut wire = Wire::open(self.url)?;
        queues.iter().try_for_each(|queue| wire.delete(queue))?;
        Ok(wire.close()?)
    }

    fn measure(
        &mut self,
        contender: &Contender,
        queue: &str,
        url: &str,
    ) -> Result<Measured, Error> {
        let rate = match contender.command.iter().any(|word| word.contains("{rate}")) {
            true => self.half_of_the_limit()?.to_string(),
            false => String::new(),
        };
        let fill_in = |word: &String| {
            word.replace("{queue}", queue).replace("{url}", url).replace("{rate}", &rate)
        };
        let command: Vec<String> = contender.command.iter().map(fill_in).collect();
        let before = self.broker_seconds();
        let values = self.timed(contender.clock, &command, url)?;
        let value = |key| values.get(key).copied();
        let own = match contender.clock {
            Clock::OfTheContender => value("seconds"),
            Clock::WholeProcess | Clock::WholeProcesses(_) => None,
        };
        Ok(Measured {
            seconds: own.or(value("wall")).unwrap_or_default(),
            cpu: value("cpu").unwrap_or_default(),
            broker_cpu: self.broker_seconds() - before,
            peak_kib: value("peak").unwrap_or_default() as u64,
            p50_us: value("p50_us"),
            p99_us: value("p99_us"),
            p999_us: value("p999_us"),
        })
    }

    /// The values that the contender and the clock have printed.
    fn timed(
        &self,
        clock: Clock,
        command: &[String],
        url: &str,
    ) -> Result<BTreeMap<String, f64>, Error> {
        let times = if let Clock::WholeProcesses(times) = clock { times } else { 1 };
        let mut timed = Command::new(&self.program);
        timed.args(["timed", &times.to_string()]).args(command).env("AMQP_URL", url);
        let output = timed.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("this failed: {}: {text}", command.join(" ")).into());
        }
        let values = text.split_whitespace().filter_map(|word| word.split_once('='));
        Ok(values.filter_map(|(key, value)| Some((key.into(), value.parse().ok()?))).collect())
    }

    /// Found once: what the raw client passes on, publishing and consuming at the same time.
    fn half_of_the_limit(&mut self) -> Result<u64, Error> {
        if self.options.quick {
            return Ok(500);
        }
        if self.rate.is_none() {
            let count = 40_000;
            let queue = "bench.limit".to_string();
            Wire::open(self.url)?.declare(&queue)?;
            let program = self.program.display();
            let command =
                format!("{program} contend raw pass queue={queue} count={count} prefetch=100");
            let command = super::work::words(&command);
            let values = self.timed(Clock::OfTheContender, &command, self.url)?;
            self.delete(&[queue])?;
            let seconds = values.get("seconds").ok_or("the raw client says no time")?;
            let rate = (f64::from(count) / seconds / 2.0) as u64;
            println!("\nhalf of the limit: {rate} tasks a second");
            self.rate = Some(rate);
        }
        Ok(self.rate.unwrap_or_default())
    }

    /// The processor time of the broker so far; 0 if that cannot be known.
    fn broker_seconds(&self) -> f64 {
        const TICKS_A_SECOND: f64 = 100.0;
        let read = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        let stat = self.options.broker.and_then(read);
        let after_name = stat.as_deref().and_then(|it| it.rsplit_once(") ")).map(|(_, rest)| rest);
        let fields = after_name.unwrap_or_default().split(' ').skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_A_SECOND
    }
}
