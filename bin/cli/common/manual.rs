//! The sections that follow the options in `--help` and in the man page. A line that ends with a
//! colon begins a section. An indented line has a term, two blanks or more, and its meaning; the
//! lines that continue a meaning are indented further.

use clap::Command;
use clap::builder::StyledStr;

/// The sections of a command: its own, and those that all commands have.
pub(crate) fn sections(own: &str, environment: &str, last: &str) -> String {
    [own, SHARED, environment, last].concat().trim_end().to_string()
}

/// The definition of a command whose texts name the commands as subcommands of `rabbit-work`.
pub(crate) fn with_long_names(mut command: Command) -> Command {
    let long = |text: Option<&StyledStr>| text.map(|text| long_names(&text.to_string()));
    if let Some(about) = long(command.get_about()) {
        command = command.about(about);
    }
    if let Some(about) = long(command.get_long_about()) {
        command = command.long_about(about);
    }
    if let Some(sections) = long(command.get_after_long_help()) {
        command = command.after_long_help(sections);
    }
    command.mut_subcommands(with_long_names)
}

/// In examples and references, as `producer` and `worker` are also words of the text.
fn long_names(text: &str) -> String {
    let mut is_example = false;
    let mut long = String::new();
    for line in text.split_inclusive('\n') {
        is_example = line.starts_with("Example") || is_example && !line.trim().is_empty();
        let mut line = line.replace("queuectl(1)", "rabbit-work-queue(1)");
        for name in ["producer", "worker"] {
            line = line.replace(&format!("{name}(1)"), &format!("rabbit-work-{name}(1)"));
            for before in ["  ", "| "].iter().filter(|_| is_example) {
                let short = format!("{before}{name}");
                line = line.replace(&short, &format!("{before}rabbit-work {name}"));
            }
        }
        long += &line.replace("queuectl", "rabbit-work queue");
    }
    long
}

/// Ends with the section Environment, which a command may continue.
const SHARED: &str = "
Durations:
  DUR     a number of seconds, or numbers with units: 500ms, 30s, 5m, 1h, 7d,
          1h30m
  delays  of tasks, also before a retry, are rounded up to
          100 200 500ms, 1 2 3 5 10 15 20 30 45s, 1 2 3 5 10 15 20 30 45m,
          1 2 3 4 6 8 12 18h, 1 2 3 5 7 10 14 21 30 42d

Delivery limit:
  quorum   a quorum queue counts deliveries that ended in a crash. Before
           RabbitMQ 4.3 it also counts a task that a stop requeued, and every
           task that a crashed worker held. With such a broker, run workers
           with --prefetch 1
  classic  a classic queue does not count deliveries

Environment:
  RABBIT_WORK_<OPTION>  the value of an option: RABBIT_WORK_MAX_PRIORITY=9 is
                  --max-priority 9. A variable is ignored if it is empty, or if
                  the command line has its option or one that excludes it. For
                  an option without a value, write true or false; for one that
                  may be repeated, a value on each line
  AMQP_URL        the broker's URL if --url is missing; an empty value is
                  ignored. Default: amqp://guest:guest@localhost:5672
  AMQP_URL_FILE   a file with the broker's URLs, as --url-file; AMQP_URL is then
                  ignored. RABBIT_WORK_URL_FILE and RABBIT_WORK_URL come before
                  both
  RUST_LOG        what is logged on standard error: off, error, warn, info (the
                  default), debug or trace. The command's own errors are always
                  printed
  RUST_LOG_STYLE  whether the log has colours: auto (the default: on a
                  terminal), always or never
";
