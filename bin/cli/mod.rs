//! The commands. The library compiles them once, as a hidden module, for all programs in `bin/`. They use
//! its public names, and `util`.

mod call;
pub(crate) mod common;
pub(crate) mod producer;
pub(crate) mod queuectl;
pub(crate) mod worker;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::call::{Call, PROGRAM};
use crate::cli::common::arguments::exit_with;
use crate::cli::common::exit::Exit;
use crate::cli::common::manual::with_long_names;

/// A command, which is a program of its own and a subcommand of `rabbit-work`.
struct Command {
    name: &'static str,
    subcommand: &'static str,
    main: fn(&Call) -> ExitCode,
    definition: fn() -> clap::Command,
}

const COMMANDS: [Command; 3] = [
    Command {
        name: "producer",
        subcommand: "producer",
        main: producer::main,
        definition: producer::options::Options::command,
    },
    Command {
        name: "worker",
        subcommand: "worker",
        main: worker::main,
        definition: worker::options::Options::command,
    },
    Command {
        name: "queuectl",
        subcommand: "queue",
        main: queuectl::main,
        definition: queuectl::options::Options::command,
    },
];

/// Runs `producer`, `worker` or `queuectl`, whatever the program's file is called.
pub fn run(name: &str) -> ExitCode {
    let command = COMMANDS.iter().find(|command| command.name == name);
    command.map_or(Exit::Usage.into(), |command| (command.main)(&Call::of_command(name)))
}

/// Runs the command by whose name the program was called, or else the subcommand.
pub fn run_as_called() -> ExitCode {
    let mut words = env::args_os();
    let program = words.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default();
    if let Some(command) = COMMANDS.iter().find(|command| program == command.name) {
        return (command.main)(&Call::of_command(command.name));
    }
    let subcommand = words.next().unwrap_or_default();
    match COMMANDS.iter().find(|command| subcommand == command.subcommand) {
        Some(command) => (command.main)(&Call::of_subcommand(command.subcommand)),
        None => match definition().try_get_matches() {
            Err(error) => exit_with(&error),
            Ok(_) => Exit::Usage.into(),
        },
    }
}

/// The definitions of all programs, for their man pages and completions.
pub fn definitions() -> impl Iterator<Item = clap::Command> {
    COMMANDS.iter().map(|command| (command.definition)()).chain([definition()])
}

/// The definition of `rabbit-work`.
fn definition() -> clap::Command {
    let subcommands = COMMANDS
        .iter()
        .map(|command| with_long_names((command.definition)()).name(command.subcommand));
    clap::Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Work queues on RabbitMQ: put tasks on a queue, run a command for each, see what failed")
        .after_long_help(MANUAL.trim_end())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(subcommands)
}

const MANUAL: &str = "\
Names:
  producer  the same as rabbit-work producer
  worker    the same as rabbit-work worker
  queuectl  the same as rabbit-work queue

Examples:
  rabbit-work producer First message.
  rabbit-work worker --queue mail --threads 4 -- ./send
  rabbit-work queue --queue mail dead list

See also:
  rabbit-work-producer(1), rabbit-work-worker(1), rabbit-work-queue(1)
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_is_consistent() {
        definitions().for_each(clap::Command::debug_assert);
    }

    #[test]
    fn an_option_is_explained_in_two_lines() {
        for mut program in definitions().map(on_80_columns) {
            program.build();
            check_help(&mut program);
        }
    }

    /// On a terminal of 80 columns, and without the sections after the options.
    fn on_80_columns(command: clap::Command) -> clap::Command {
        command.term_width(80).after_long_help("").mut_subcommands(on_80_columns)
    }

    fn check_help(command: &mut clap::Command) {
        check_options(&command.render_help().to_string());
        check_options(&command.render_long_help().to_string());
        command.get_subcommands_mut().for_each(check_help);
    }

    /// Counts the lines of each option's text, which begins on the line of its name or on the next.
    fn check_options(help: &str) {
        let (mut option, mut lines) = ("", 0);
        for line in help.lines() {
            let text = line.trim_start();
            match line.len() - text.len() {
                _ if text.is_empty() => lines = 0,
                2..10 => (option, lines) = (text, usize::from(text.contains("  "))),
                10.. => lines += 1,
                _ => {}
            }
            assert!(lines <= 2, "{option}: more than two lines in\n{help}");
        }
    }

    #[test]
    fn a_subcommand_speaks_of_the_program_that_has_it() {
        let help = |name: &str| {
            let mut program = definition();
            let command = program.find_subcommand_mut(name).expect("a subcommand");
            command.render_long_help().to_string()
        };
        for name in ["producer", "worker", "queue"] {
            let help = help(name);
            assert!(!help.contains("queuectl"), "{help}");
            let (_, examples) = help.split_once("Examples:\n").expect("examples");
            let (examples, see_also) = examples.split_once("See also:\n").expect("a reference");
            for example in examples.lines().filter(|line| !line.is_empty()) {
                assert!(example.contains(&format!("rabbit-work {name}")), "{example}");
            }
            assert_eq!(see_also.matches("rabbit-work-").count(), 2, "{see_also}");
        }
        assert!(help("worker").contains("which rabbit-work queue shows and replays"));
    }
}
