//! Tests of the test helpers: a fault that is not what it says proves nothing.

mod broker_test;
mod command_test;
mod proxy_test;
mod scripted_test;
