//! [`Source`]: where the bodies of the tasks come from.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use log::warn;

use crate::cli::common::arguments::has_two_dashes;
use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::{has_input, identity, metadata};
use crate::cli::producer::options::Options;

/// Where the bodies of the tasks come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The words of the command line as one body, so many times.
    Words(Vec<u8>, u64),
    /// A whole file, so many times.
    Whole(PathBuf, u64),
    /// The pieces of a file, each ended by this byte.
    Pieces(PathBuf, u8),
}

impl Source {
    /// The source that the options name, or the tutorial's message.
    pub(crate) fn of(options: &Options) -> Result<Source, CommandError> {
        let end = if options.null { 0 } else { b'\n' };
        match (&options.lines, &options.body_file) {
            (Some(path), _) => Ok(Source::Pieces(path.clone(), end)),
            (None, _) if options.null => Ok(Source::Pieces("-".into(), end)),
            (None, Some(path)) => Ok(Source::Whole(path.clone(), options.repeat)),
            (None, None) if options.message.is_empty() => {
                refuse_to_guess(options)?;
                Ok(Source::Words(b"Hello World!".to_vec(), options.repeat))
            }
            (None, None) => Ok(Source::Words(join(&options.message), options.repeat)),
        }
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Source::Words(..) => None,
            Source::Whole(path, _) | Source::Pieces(path, _) => Some(path),
        }
    }

    /// What the input is counted in; `None` if it cannot be continued in the middle.
    pub(crate) fn unit(&self) -> Option<&'static str> {
        match self {
            Source::Words(..) | Source::Whole(..) => None,
            Source::Pieces(_, b'\n') => Some("line"),
            Source::Pieces(..) => Some("task"),
        }
    }

    /// Refuses tasks that would become other tasks when --failed is published again.
    pub(crate) fn validate_for_failed_file(&self) -> Result<(), CommandError> {
        let reason = match self {
            Source::Words(body, _) if body.contains(&b'\n') => {
                "the file has one task for each line, and this message has several lines; give it \
                 with --body-file, or on standard input with --null"
            }
            Source::Whole(_, 2..) => {
                "the file has one body with --body-file, and --repeat makes several"
            }
            Source::Words(..) | Source::Whole(..) | Source::Pieces(..) => return Ok(()),
        };
        Err(CommandError::usage("--failed", reason))
    }

    /// Refuses several tasks with one id: nothing would distinguish them.
    pub(crate) fn validate_for_id(&self) -> Result<(), CommandError> {
        let (Source::Words(_, 1) | Source::Whole(_, 1)) = self else {
            let reason = "several tasks would have the same id; leave --id out, so that each gets \
                          its own, or use --id-from-body";
            return Err(CommandError::usage("--id", reason));
        };
        Ok(())
    }

    /// What ends each task in the file of --failed.
    pub(crate) fn end(&self) -> &'static [u8] {
        match self {
            Source::Pieces(_, 0) => b"\0",
            Source::Whole(..) => b"",
            Source::Words(..) | Source::Pieces(..) => b"\n",
        }
    }
}

/// Refuses a missing message, unless it is the tutorial's. For another queue, the user meant words or
/// an input.
fn refuse_to_guess(options: &Options) -> Result<(), CommandError> {
    if has_two_dashes() {
        return Err(CommandError::usage("MESSAGE", "there is none after --; add one"));
    }
    if !options.queue.is_tutorial_queue() {
        return Err(CommandError::usage("MESSAGE", UNREAD));
    }
    refuse_unread_input()
}

/// Refuses a file, or a pipe that brings something: it was meant to be read. A pipe that brings
/// nothing may come from how the command was started.
fn refuse_unread_input() -> Result<(), CommandError> {
    let stdin = io::stdin();
    let Ok(kind) = metadata(&stdin).map(|it| it.file_type()) else { return Ok(()) };
    let is_pipe = kind.is_fifo() || kind.is_socket();
    if kind.is_file() || is_pipe && has_input(&stdin) {
        return Err(CommandError::usage("MESSAGE", UNREAD));
    }
    if is_pipe {
        warn!("MESSAGE: {UNREAD}");
    }
    Ok(())
}

const UNREAD: &str = "there is none, and standard input is not read without --lines or --null; \
                      add one of these";

/// Bytes, as a body is.
fn join(words: &[OsString]) -> Vec<u8> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_encoded_bytes()).collect();
    words.join(&b' ')
}

/// The size of the input if it is a regular file.
pub(crate) fn length(path: &Path) -> Option<u64> {
    input_metadata(path).filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Whether the input is this very file, by whatever name, or redirected from it.
pub(crate) fn is_same_file(input: &Path, output: &Path) -> bool {
    let input = input_metadata(input).and_then(identity);
    input.is_some() && input == fs::metadata(output).ok().and_then(identity)
}

fn input_metadata(path: &Path) -> Option<fs::Metadata> {
    if path == Path::new("-") { metadata(&io::stdin()).ok() } else { fs::metadata(path).ok() }
}
