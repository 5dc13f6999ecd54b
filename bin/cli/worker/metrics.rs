//! `--metrics-file`: counts and times of tasks in Prometheus's text format, for the textfile collector
//! of its node exporter (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use log::warn;
use prometheus::{
    Encoder, GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder,
    histogram_opts, opts,
};
use rabbit_work::{Event, EventKind, Health, Shutdown, Trigger, Worker, shutdown};

use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::refuse_file_of_a_stream;
use crate::cli::worker::options::Options;

const OPTION: &str = "--metrics-file";
const WRITE_EVERY: Duration = Duration::from_secs(15);
const SECONDS: [f64; 12] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// The metrics of a worker, and the thread that writes them. Dropping this writes them once more.
pub(crate) struct MetricsFile {
    metrics: Arc<Metrics>,
    stop: Trigger,
    thread: Option<JoinHandle<()>>,
}

struct Metrics {
    registry: Registry,
    ended: IntCounterVec,
    seconds: HistogramVec,
    running: IntGaugeVec,
    consuming: IntGaugeVec,
    last_done: GaugeVec,
    /// Of each queue.
    health: Vec<(String, Health)>,
}

impl MetricsFile {
    pub(crate) fn keep(
        path: &Path,
        options: &Options,
        workers: &[Worker],
    ) -> Result<MetricsFile, CommandError> {
        let unusable =
            |error: io::Error| CommandError::usage(OPTION, format!("{}: {error}", path.display()));
        refuse_file_of_a_stream(OPTION, path)?;
        let names = options.queues.named().iter().map(|it| it.name.clone());
        let health = names.zip(workers.iter().map(Worker::health)).collect();
        let metrics = Metrics::new(health).map_err(|error| unusable(io::Error::other(error)))?;
        metrics.write(path).map_err(unusable)?;
        let metrics = Arc::new(metrics);
        let (stop, stopped) = shutdown();
        let (shared, path) = (Arc::clone(&metrics), path.to_path_buf());
        let thread = thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(move || write_regularly(&shared, &path, &stopped));
        Ok(MetricsFile { metrics, stop, thread: Some(thread.map_err(unusable)?) })
    }

    /// What counts events.
    pub(crate) fn counter(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let metrics = Arc::clone(&self.metrics);
        move |event| metrics.note(event)
    }
}

impl Drop for MetricsFile {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().map(JoinHandle::join);
    }
}

fn write_regularly(metrics: &Metrics, path: &Path, stopped: &Shutdown) {
    let mut is_last = false;
    while !is_last {
        is_last = stopped.wait(WRITE_EVERY);
        if let Err(error) = metrics.write(path) {
            warn!("{OPTION} cannot be written: {error}");
        }
    }
}

impl Metrics {
    fn new(health: Vec<(String, Health)>) -> prometheus::Result<Metrics> {
        let ended = "Runs of tasks that have ended, by outcome.";
        let ended =
            IntCounterVec::new(opts!("rabbit_work_tasks_total", ended), &["queue", "outcome"])?;
        let seconds = "How long the runs of tasks took.";
        let seconds = histogram_opts!("rabbit_work_task_seconds", seconds, SECONDS.to_vec());
        let seconds = HistogramVec::new(seconds, &["queue"])?;
        let running = opts!("rabbit_work_running_threads", "Threads that run a task.");
        let running = IntGaugeVec::new(running, &["queue"])?;
        let consuming = opts!("rabbit_work_consuming_threads", "Threads that receive tasks.");
        let consuming = IntGaugeVec::new(consuming, &["queue"])?;
        let last_done = "When a task was done last, in seconds since 1970.";
        let last_done = opts!("rabbit_work_last_done_timestamp_seconds", last_done);
        let last_done = GaugeVec::new(last_done, &["queue"])?;
        let registry = Registry::new();
        registry.register(Box::new(ended.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(running.clone()))?;
        registry.register(Box::new(consuming.clone()))?;
        registry.register(Box::new(last_done.clone()))?;
        Ok(Metrics { registry, ended, seconds, running, consuming, last_done, health })
    }

    fn note(&self, event: &Event) {
        if event.kind == EventKind::Started || event.kind.is_of_session() {
            return;
        }
        let queue = event.queue.as_str();
        self.ended.with_label_values(&[queue, event.kind.name()]).inc();
        self.seconds.with_label_values(&[queue]).observe(event.elapsed.as_secs_f64());
        if event.kind == EventKind::Done {
            let since = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last_done.with_label_values(&[queue]).set(since.as_secs_f64());
        }
    }

    /// Replaces the file, so that nobody reads half of it.
    fn write(&self, path: &Path) -> io::Result<()> {
        for (queue, health) in &self.health {
            let set = |gauge: &IntGaugeVec, count: usize| {
                gauge.with_label_values(&[queue]).set(i64::try_from(count).unwrap_or(i64::MAX));
            };
            set(&self.running, health.running());
            set(&self.consuming, health.consuming());
        }
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.map_err(io::Error::other)?;
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(&text)?;
        // The collector is another user.
        fs::set_permissions(file.path(), Permissions::from_mode(0o644))?;
        file.persist(path).map(drop).map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;

    use super::*;

    /// Needs each escape that a label can have.
    const QUEUE: &str = "a \"quoted\" \\ name\nof two lines";

    fn metrics(health: &Health) -> Metrics {
        Metrics::new(vec![(QUEUE.into(), health.clone())]).expect("valid names")
    }

    fn ended(kind: EventKind, seconds: f64) -> Event {
        let elapsed = Duration::from_secs_f64(seconds);
        Event { elapsed, ..Event::of_session(kind, QUEUE, "host", None) }
    }

    /// A family of the text format: its type, and its samples.
    #[derive(Debug, Default)]
    struct Family {
        kind: String,
        samples: Vec<Sample>,
    }

    #[derive(Debug)]
    struct Sample {
        name: String,
        labels: BTreeMap<String, String>,
        value: f64,
    }

    /// Reads the text as Prometheus does, more strictly where `promtool check metrics` objects.
    fn families(text: &str) -> BTreeMap<String, Family> {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let (mut helped, mut current) = (String::new(), String::new());
        assert!(text.ends_with('\n'), "{text}");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split_once(' ').expect("a help text").0.into();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(name, helped, "no help before its type");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                let family = Family { kind: kind.into(), samples: Vec::new() };
                assert!(families.insert(name.into(), family).is_none(), "{name} comes twice");
                current = name.into();
            } else {
                let sample = sample(line);
                let family = families.get_mut(&current).expect("a type before its samples");
                let suffix = sample.name.strip_prefix(&current).expect("a sample of the family");
                let suffixes = ["_bucket", "_sum", "_count"];
                assert!(if family.kind == "histogram" {
                    suffixes.contains(&suffix)
                } else {
                    suffix.is_empty()
                });
                family.samples.push(sample);
            }
        }
        families
    }

    fn sample(line: &str) -> Sample {
        let (name, rest) = line.split_once('{').expect("labels");
        let (mut labels, mut rest) = (BTreeMap::new(), rest);
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"").expect("a label");
            let (value, after) = unquoted(quoted);
            labels.insert(label.into(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        let value = rest.strip_prefix("} ").expect("a value").parse().expect("a number");
        Sample { name: name.into(), labels, value }
    }

    /// What stands before the closing quote, and what follows it.
    fn unquoted(text: &str) -> (String, &str) {
        let (mut value, mut letters) = (String::new(), text.chars());
        loop {
            match letters.next().expect("a closing quote") {
                '"' => return (value, letters.as_str()),
                '\\' => value.push(match letters.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '"')) => escaped,
                    other => panic!("no escape: {other:?}"),
                }),
                letter => value.push(letter),
            }
        }
    }

    #[test]
    fn the_text_has_the_format_of_prometheus_and_says_what_the_threads_do() {
        let (health, folder) = (Health::default(), tempfile::tempdir().expect("a folder"));
        let (metrics, path) = (metrics(&health), folder.path().join("worker.prom"));
        health.expect(3);
        (1..=3).for_each(|thread| health.consumes(thread));
        health.works(2);
        let ends =
            [(EventKind::Done, 0.0078125), (EventKind::Done, 40.0), (EventKind::Dead, 7200.0)];
        ends.into_iter().for_each(|(kind, seconds)| metrics.note(&ended(kind, seconds)));

        metrics.write(&path).expect("written");

        let families = families(&fs::read_to_string(path).expect("text"));
        let kinds: Vec<_> = families.values().map(|it| it.kind.as_str()).collect();
        assert_eq!(kinds, ["gauge", "gauge", "gauge", "histogram", "counter"], "{families:?}");
        let value = |family: &str, name: &str, label: Option<(&str, &str)>| {
            let is_it = |it: &&Sample| {
                let has = |(label, value): (&str, &str)| {
                    it.labels.get(label).is_some_and(|it| it == value)
                };
                it.name == name && has(("queue", QUEUE)) && label.is_none_or(has)
            };
            let found: Vec<_> = families[family].samples.iter().filter(is_it).collect();
            assert_eq!(found.len(), 1, "{name} {label:?} in {families:?}");
            found[0].value
        };
        let plain = |name: &str, label| value(name, name, label);
        assert_eq!(plain("rabbit_work_running_threads", None), 1.0);
        assert_eq!(plain("rabbit_work_consuming_threads", None), 3.0);
        assert_eq!(plain("rabbit_work_tasks_total", Some(("outcome", "done"))), 2.0);
        assert_eq!(plain("rabbit_work_tasks_total", Some(("outcome", "dead"))), 1.0);
        let seconds = "rabbit_work_task_seconds";
        let buckets: Vec<f64> = SECONDS
            .iter()
            .map(f64::to_string)
            .chain(["+Inf".into()])
            .map(|le| value(seconds, "rabbit_work_task_seconds_bucket", Some(("le", &le))))
            .collect();
        assert_eq!(buckets, [0., 1., 1., 1., 1., 1., 1., 1., 1., 2., 2., 2., 3.]);
        assert_eq!(value(seconds, "rabbit_work_task_seconds_count", None), 3.0);
        assert_eq!(value(seconds, "rabbit_work_task_seconds_sum", None), 7240.0078125);
    }

    #[test]
    fn each_write_replaces_the_file_and_whoever_reads_the_old_one_has_all_of_it() {
        let (health, folder) = (Health::default(), tempfile::tempdir().expect("a folder"));
        let (metrics, path) = (metrics(&health), folder.path().join("worker.prom"));
        metrics.write(&path).expect("written");
        let first = fs::read_to_string(&path).expect("text");
        let open = File::open(&path).expect("the first");

        metrics.note(&ended(EventKind::Done, 1.0));
        metrics.write(&path).expect("written again");

        assert_eq!(io::read_to_string(open).expect("text"), first);
        assert_ne!(fs::read_to_string(&path).expect("text"), first);
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 1, "no other file");
    }
}
