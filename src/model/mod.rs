//! The data types and rules of the library, without I/O: broker, queue, task, failure, retry.

pub(crate) mod address_order;
pub(crate) mod batch;
pub(crate) mod broker;
pub(crate) mod broker_builder;
pub(crate) mod connection_name;
pub(crate) mod delays;
pub(crate) mod error;
pub(crate) mod failure_record;
pub(crate) mod follow_up;
pub(crate) mod handler;
#[cfg(feature = "json")]
mod json;
pub(crate) mod or_fail;
pub(crate) mod outcome;
pub(crate) mod program_end;
#[cfg(test)]
mod property;
pub(crate) mod queue;
pub(crate) mod retry;
pub(crate) mod router;
pub(crate) mod task;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod tls_cause;
#[cfg(feature = "tls")]
pub(crate) mod tls_parameters;
pub(crate) mod url;
pub(crate) mod url_parts;
