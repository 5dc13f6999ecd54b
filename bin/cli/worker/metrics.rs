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
