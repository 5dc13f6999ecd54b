//! Compiles the commands as a crate of their own, so that they use only the public names of the library:
//! within the library, in which they are compiled for the programs, private names would do as well.

#[allow(dead_code, unreachable_pub)]
#[path = "../../bin/cli/mod.rs"]
mod cli;
