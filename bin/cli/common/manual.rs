//! The sections that follow the options in `--help` and in the man page. A line that ends with a
//! colon begins a section. An indented line has a term, two blanks or more, and its meaning; the
//! lines that continue a meaning are indented further.

/// The sections of a command: its own, and those that all commands have.
pub(crate) fn sections(own: &str, environment: &str, last: &str) -> String {
    [own, SHARED, environment, last].concat().trim_end().to_string()
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
           task that a crashed worker held: use --prefetch 1 there
  classic  a classic queue does not count deliveries

Environment:
  RABBIT_WORK_<OPTION>  the value of an option: RABBIT_WORK_MAX_PRIORITY=9 is
                  --max-priority 9. The command line counts first: a variable is
                  ignored if its option is there, or one that excludes it; so is
                  an empty one. An option without a value takes true or false;
                  one that may be repeated, a value on each line. --yes has none
  AMQP_URL        the broker's URL if --url is missing; an empty value is
                  ignored. Default: amqp://guest:guest@localhost:5672
  AMQP_URL_FILE   a file with the broker's URLs, as --url-file; AMQP_URL is then
                  ignored. RABBIT_WORK_URL_FILE and RABBIT_WORK_URL come before
                  both
  RUST_LOG        what is logged on standard error: off, error, warn, info (the
                  default), debug or trace. The error that ends the command is
                  always printed
  RUST_LOG_STYLE  whether the log has colours: auto (the default: on a
                  terminal), always or never
";
