//! Tests of the test tools: a fault that does not happen proves nothing.

mod broker;
mod command;
mod proxy;
mod scripted;
