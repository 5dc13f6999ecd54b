//! Catches panics of the program's code. They must not unwind through the client library's objects:
//! that can end the whole connection (amiquip 0.4.2 consumer.rs:110).

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `call`; turns a panic into a text.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = text_of(panic.as_ref());
        drop_quietly(panic);
        text
    })
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    match text {
        Some(text) => format!("panicked: {text}"),
        None => "panicked".to_string(),
    }
}

/// The payload of a panic may itself panic when it is dropped.
fn drop_quietly(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::resume_unwind;

    /// Panics when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new("again"));
        }
    }

    #[test]
    fn a_panic_becomes_a_text_and_goes_no_further() {
        assert_eq!(caught(|| 1), Ok(1));
        let panicked = |call: fn()| caught(call).expect_err("a panic");
        assert_eq!(panicked(|| resume_unwind(Box::new("text"))), "panicked: text");
        assert_eq!(panicked(|| resume_unwind(Box::new("owned".to_string()))), "panicked: owned");
        assert_eq!(panicked(|| resume_unwind(Box::new(7_u8))), "panicked");
        assert_eq!(panicked(|| resume_unwind(Box::new(Bomb))), "panicked");
    }
}
