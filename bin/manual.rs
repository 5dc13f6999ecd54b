//! Owns what a command's manual has beside its options, for `--help` and for the man page: a line
//! that ends with a colon begins a section, and an indented line has a term, two blanks or more,
//! and what it means; more of that is indented further.

#![allow(dead_code)] // Each command is a crate of its own and uses its part.

/// The sections of a command: its own, and those that all have.
pub(crate) fn sections(own: &str, environment: &str, last: &str) -> String {
    [own, DURATIONS, ENVIRONMENT, environment, last].concat().trim_end().to_string()
}

const DURATIONS: &str = "
Durations:
  DUR     a number of seconds, or numbers with units: 500ms, 30s, 5m, 1h, 7d,
          1h30m
  delays  before a task comes to its queue, or back to it, are rounded up to
          100 200 500ms, 1 2 3 5 10 15 20 30 45s, 1 2 3 5 10 15 20 30 45m,
          1 2 3 4 6 8 12 18h, 1 2 3 5 7 10 14 21 30 42d
";

const ENVIRONMENT: &str = "
Environment:
  AMQP_URL        the broker's URL, where there is no --url; an empty one is
                  none
  RUST_LOG        what is logged on standard error: off, error, warn, info (the
                  default), debug or trace. The error that ends the command is
                  always printed
  RUST_LOG_STYLE  whether the log has colours: auto (the default: on a
                  terminal), always or never
";
