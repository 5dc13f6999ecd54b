//! [`log_filter`]: leaves out the log records of the client library.

use log::{Log, Metadata, Record};

/// Wraps a logger so that it never gets the records of the client library (amiquip) and of what is
/// below it (mio): at level debug they show the login with its password, and at level warn the bodies
/// of tasks. Their thread also sends the heartbeats, and must not wait for a slow logger.
///
/// ```no_run
/// # struct Logger;
/// # impl log::Log for Logger {
/// #     fn enabled(&self, _: &log::Metadata<'_>) -> bool { true }
/// #     fn log(&self, _: &log::Record<'_>) {}
/// #     fn flush(&self) {}
/// # }
/// # fn main() -> Result<(), log::SetLoggerError> {
/// # let logger = Logger;
/// // such as env_logger::Builder::from_default_env().build()
/// log::set_boxed_logger(Box::new(rabbit_work::log_filter(logger)))?;
/// log::set_max_level(log::LevelFilter::Debug);
/// # Ok(())
/// # }
/// ```
pub fn log_filter(logger: impl Log) -> impl Log {
    Filtered(logger)
}

struct Filtered<L>(L);

impl<L: Log> Log for Filtered<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !is_of_client_library(metadata.target()) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !is_of_client_library(record.target()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// amiquip 0.4.2 io_loop/handshake_state.rs:35 logs the login, and io_loop/connection_state.rs:88
/// bodies.
fn is_of_client_library(target: &str) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    ["amiquip", "mio", "mio_extras"].contains(&library)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use log::Level;

    use super::*;

    #[derive(Clone, Default)]
    struct Targets(Arc<Mutex<Vec<String>>>);

    impl Log for Targets {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().expect("no panic").push(record.target().to_owned());
        }

        fn flush(&self) {}
    }

    #[test]
    fn records_of_the_client_library_are_left_out_and_no_others() {
        let logged = Targets::default();
        let filter = log_filter(logged.clone());
        let targets = ["amiquip::io_loop", "amiquip", "mio::poll", "mio_extras::timer"];
        let others = ["rabbit_work::publish", "miocene", "mine"];
        for target in targets.into_iter().chain(others) {
            let record = Record::builder().level(Level::Error).target(target).build();
            assert_eq!(filter.enabled(record.metadata()), others.contains(&target), "{target}");
            filter.log(&record);
        }
        assert_eq!(*logged.0.lock().expect("no panic"), others);
    }
}
