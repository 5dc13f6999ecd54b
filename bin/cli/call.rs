//! [`Call`]: a command as the user called it, by a name of its own or as a subcommand of `rabbit-work`.

use std::env;
use std::ffi::OsString;
use std::iter;

use clap::Command;

use crate::cli::common::manual::with_long_names;

/// The program of all commands.
pub(crate) const PROGRAM: &str = "rabbit-work";

pub(crate) struct Call {
    name: String,
    arguments: Vec<OsString>,
    is_of_subcommand: bool,
}

impl Call {
    /// `worker …`.
    pub(crate) fn of_command(name: &str) -> Call {
        let arguments = env::args_os().skip(1).collect();
        Call { name: name.into(), arguments, is_of_subcommand: false }
    }

    /// `rabbit-work worker …`.
    pub(crate) fn of_subcommand(name: &str) -> Call {
        let arguments = env::args_os().skip(2).collect();
        Call { name: format!("{PROGRAM} {name}"), arguments, is_of_subcommand: true }
    }

    /// What precedes the arguments, as usage lines and errors show it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The definition of the command's options, under the name that the user knows.
    pub(crate) fn define(&self, command: Command) -> Command {
        let command = if self.is_of_subcommand { with_long_names(command) } else { command };
        command.bin_name(&self.name).display_name(self.name.replace(' ', "-"))
    }

    /// The words to parse: the name and the arguments.
    pub(crate) fn words(&self) -> impl Iterator<Item = OsString> {
        iter::once(OsString::from(&self.name)).chain(self.arguments.iter().cloned())
    }
}
