//! What the three commands share: options, logging, signals, standard streams, exit statuses.

pub(crate) mod arguments;
pub(crate) mod base64;
pub(crate) mod error;
pub(crate) mod exit;
pub(crate) mod first_process;
pub(crate) mod logging;
pub(crate) mod manual;
pub(crate) mod options;
pub(crate) mod progress;
pub(crate) mod signals;
pub(crate) mod stdio;
pub(crate) mod text;
pub(crate) mod url_file;
pub(crate) mod variables;
