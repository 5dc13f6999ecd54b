//! [`Exit`]: the exit statuses of the commands.

use std::process::ExitCode;

use rabbit_work::Error;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Success,
    /// A task did not end as asked, or the system lacked something.
    Failed,
    /// Usage or configuration.
    Usage,
    /// The grace period ended with tasks still running.
    GraceExceeded,
    /// A signal ended a batch early.
    Unfinished,
    /// No broker was reached: EX_UNAVAILABLE of sysexits.
    Unreachable,
    /// A second signal ended the command.
    Interrupted,
}

impl Exit {
    /// The status for an error that ended a command.
    pub(crate) fn of(error: &Error) -> Exit {
        match error {
            // Neither the broker's nor the user's fault.
            Error::NoThread { .. } => Exit::Failed,
            error if error.is_transient() => Exit::Unreachable,
            _ => Exit::Usage,
        }
    }

    /// This status, or after a success the next one.
    pub(crate) fn then(self, next: impl FnOnce() -> Exit) -> Exit {
        if self == Exit::Success { next() } else { self }
    }

    /// The worse of two statuses: of a command whose parts ended differently.
    pub(crate) fn or_worse(self, other: Exit) -> Exit {
        let rank = |exit| match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Unfinished => 2,
            Exit::Unreachable => 3,
            Exit::GraceExceeded => 4,
            Exit::Usage => 5,
            Exit::Interrupted => 6,
        };
        if rank(other) > rank(self) { other } else { self }
    }

    pub(crate) fn status(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::GraceExceeded => 3,
            Exit::Unfinished => 4,
            Exit::Unreachable => 69,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_several_queues_is_in_the_order_2_3_1_0() {
        let worst_first = [Exit::Usage, Exit::GraceExceeded, Exit::Failed, Exit::Success];
        assert_eq!(worst_first.map(Exit::status), [2, 3, 1, 0]);
        for (place, worse) in worst_first.into_iter().enumerate() {
            for other in worst_first.into_iter().skip(place) {
                assert_eq!(worse.or_worse(other), worse, "{worse:?}, then {other:?}");
                assert_eq!(other.or_worse(worse), worse, "{other:?}, then {worse:?}");
            }
        }
    }
}
