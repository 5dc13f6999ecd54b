//! [`CommandError`]: why a command ends early, and the exit status for it.

use std::fmt;

use log::error;
use rabbit_work::Error;

use crate::cli::common::exit::Exit;
use crate::cli::common::variables::{named, tip};

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// An option, an argument or a standard stream cannot be used.
    Usage { what: &'static str, reason: String },
    /// An error of the library.
    Library(Error),
}

impl CommandError {
    pub(crate) fn usage(what: &'static str, reason: impl fmt::Display) -> CommandError {
        CommandError::Usage { what, reason: reason.to_string() }
    }

    /// Logs this, and returns the exit status for it.
    pub(crate) fn log(&self) -> Exit {
        error!("{self}");
        match self {
            CommandError::Usage { .. } => Exit::Usage,
            CommandError::Library(error) => Exit::of(error),
        }
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        CommandError::Library(error)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Usage { what, reason } => write!(f, "{}: {reason}", named(what)),
            CommandError::Library(error) => {
                f.write_str(&error.chain())?;
                let is_of_an_option =
                    matches!(error, Error::InvalidUrl { .. } | Error::InvalidSetting { .. });
                tip().filter(|_| is_of_an_option).map_or(Ok(()), |tip| write!(f, " ({tip})"))
            }
        }
    }
}
