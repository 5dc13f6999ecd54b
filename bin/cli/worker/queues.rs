//! The queues of a worker: their names, and the threads of each.

use std::collections::HashSet;

use clap::Args;
use rabbit_work::Queue;

use crate::cli::common::error::CommandError;
use crate::cli::common::options::{DeclarationArgs, QUEUE, TUTORIAL_QUEUE};

#[derive(Args, Debug)]
pub(crate) struct QueuesArgs {
    /// The queue's name, or NAME=N for N threads; may be repeated; see Queues
    #[arg(
        long = "queue",
        help_heading = QUEUE,
        value_name = "NAME",
        default_value = TUTORIAL_QUEUE,
        value_parser = NamedQueue::parse
    )]
    named: Vec<NamedQueue>,

    #[command(flatten)]
    declaration: DeclarationArgs,
}

/// One value of --queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedQueue {
    pub(crate) name: String,
    /// `None`: as many as --threads says.
    pub(crate) threads: Option<usize>,
}

impl QueuesArgs {
    pub(crate) fn named(&self) -> &[NamedQueue] {
        &self.named
    }

    pub(crate) fn are_several(&self) -> bool {
        self.named.len() > 1
    }

    /// The queue, declared as the options say.
    pub(crate) fn queue(&self, named: &NamedQueue) -> Queue {
        self.declaration.queue(&named.name)
    }

    /// The name of a queue that is not the tutorial's.
    pub(crate) fn beyond_tutorial(&self) -> Option<&str> {
        self.named.iter().map(|it| it.name.as_str()).find(|name| *name != TUTORIAL_QUEUE)
    }

    pub(crate) fn refuse_repetition(&self) -> Result<(), CommandError> {
        let mut seen = HashSet::new();
        match self.named.iter().find(|it| !seen.insert(&it.name)) {
            Some(NamedQueue { name, .. }) => {
                let reason = format!("'{name}' is given twice; for more threads write {name}=N");
                Err(CommandError::usage("--queue", reason))
            }
            None => Ok(()),
        }
    }
}

impl NamedQueue {
    /// Only digits after the last `=` are a number of threads. A queue whose name ends like that is
    /// written with a number of its own: `shard=2=4`.
    fn parse(text: &str) -> Result<NamedQueue, String> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        match text.rsplit_once('=') {
            Some((name, number)) if is_number(number) => {
                let threads = number.parse().ok().filter(|threads| *threads > 0);
                let threads = threads.ok_or("write 1 thread or more after =")?;
                Ok(NamedQueue { name: name.into(), threads: Some(threads) })
            }
            _ => Ok(NamedQueue { name: text.into(), threads: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_after_the_last_equals_sign_is_one_of_threads() {
        let named = |name: &str, threads| Ok(NamedQueue { name: name.into(), threads });
        let cases = [
            ("mail", named("mail", None)),
            ("mail=2", named("mail", Some(2))),
            ("shard=2=4", named("shard=2", Some(4))),
            ("a=b", named("a=b", None)),
            ("a=", named("a=", None)),
            ("a=-1", named("a=-1", None)),
            ("a= 1", named("a= 1", None)),
        ];
        for (text, expected) in cases {
            assert_eq!(NamedQueue::parse(text), expected, "{text}");
        }
        assert!(NamedQueue::parse("mail=0").is_err());
        assert!(NamedQueue::parse("mail=99999999999999999999999").is_err());
    }
}
