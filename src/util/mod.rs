//! What any synchronous program needs: signals that only close, deadlines, panics, text for a terminal.

pub(crate) mod backoff;
pub(crate) mod deadline;
pub(crate) mod host;
pub(crate) mod log_filter;
pub(crate) mod panic;
pub(crate) mod shutdown;
#[cfg(all(unix, feature = "command"))]
pub(crate) mod stream;
pub(crate) mod text;
