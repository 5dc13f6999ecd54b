//! What the contenders of the benchmarks share.

pub mod job;
pub mod meter;
pub mod window;

/// What anything here may fail with: a benchmark ends at the first error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Prints a contender's result. Returns the exit status of its process.
#[must_use]
pub fn exit_status(result: Result<(), Error>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
