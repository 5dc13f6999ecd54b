//! Owns the line that tells what is waited for, when that takes long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{after, select_biased};
use log::warn;

use crate::util::shutdown::{Signal, closer};

/// How long a wait goes without a word.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a wait was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Yes,
    No,
}

/// Runs `call`; when it takes long, says once that `doing` does, unless `unwanted` has closed.
pub(crate) fn telling<T>(unwanted: &Signal, doing: &str, call: impl FnOnce() -> T) -> (T, Told) {
    telling_after(PATIENCE, unwanted, doing, call)
}

/// The same for a call that takes long after this time.
pub(crate) fn telling_after<T>(
    patience: Duration,
    unwanted: &Signal,
    doing: &str,
    call: impl FnOnce() -> T,
) -> (T, Told) {
    let (returned, has_returned) = closer();
    let told = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        let teller = thread::Builder::new().name("rw-patience".into()).spawn_scoped(scope, || {
            select_biased! {
                recv(has_returned) -> _ => {}
                recv(unwanted) -> _ => {}
                recv(after(patience)) -> _ => {
                    warn!("{doing} takes longer than {patience:?}");
                    told.store(true, Ordering::Relaxed);
                }
            }
        });
        // Without that thread nothing is lost but its line.
        drop(teller);
        // Also when the call panics: the scope waits for the thread.
        let _returned = returned;
        call()
    });
    let told = if told.into_inner() { Told::Yes } else { Told::No };
    (result, told)
}
