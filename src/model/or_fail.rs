//! [`OrFail`]: turns an error of any kind into the failure that a handler chooses. Pure.

use std::error::Error;
use std::time::Duration;

use crate::model::handler::{Failure, reason_of};

/// Says what an error means for the task, where `?` alone would always retry it.
///
/// It works on each `Result` whose error is a [`std::error::Error`], a boxed one (`Box<dyn Error>`,
/// with or without `Send + Sync`), an `anyhow::Error`, or a text. The reason of the failure names the
/// error and its sources.
///
/// ```
/// use std::time::Duration;
/// use rabbit_work::{Delivery, Failure, OrFail};
///
/// fn resize(delivery: &Delivery) -> Result<(), Failure> {
///     // Another attempt would not read other bytes: a dead letter at once.
///     let path = std::str::from_utf8(delivery.body()).or_reject()?;
///     // The disk may be mounted again later.
///     let photo = std::fs::read(path).or_retry_after(Duration::from_secs(60))?;
///     // Works on an `Option` as well, with a text for the reason.
///     let first = photo.first().ok_or("the photo is empty").or_reject()?;
///     println!("begins with {first}");
///     Ok(())
/// }
/// ```
///
/// `Kind` says how the error becomes a text. The compiler finds it; never name it.
pub trait OrFail<T, Kind>: Sized {
    /// It will never work: an error is a [`Failure::Reject`].
    ///
    /// # Errors
    /// The failure, if this is an error.
    fn or_reject(self) -> Result<T, Failure>;

    /// It may work later: an error is a [`Failure::Retry`], after the policy's delay.
    ///
    /// # Errors
    /// The failure, if this is an error.
    fn or_retry(self) -> Result<T, Failure>;

    /// It may work after this delay: an error is a [`Failure::Retry`].
    ///
    /// # Errors
    /// The failure, if this is an error.
    fn or_retry_after(self, delay: Duration) -> Result<T, Failure>;

    /// Not now: an error is a [`Failure::Defer`], which counts as no attempt. The delay is the
    /// policy's with `None`.
    ///
    /// # Errors
    /// The failure, if this is an error.
    fn or_defer(self, delay: impl Into<Option<Duration>>) -> Result<T, Failure>;
}

impl<T, E: kinds::Reason<Kind>, Kind> OrFail<T, Kind> for Result<T, E> {
    fn or_reject(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::reject(error.reason()))
    }

    fn or_retry(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry(error.reason()))
    }

    fn or_retry_after(self, delay: Duration) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry_after(error.reason(), delay))
    }

    fn or_defer(self, delay: impl Into<Option<Duration>>) -> Result<T, Failure> {
        self.map_err(|error| Failure::defer(error.reason(), delay))
    }
}

/// How each kind of error becomes a text. Two kinds, because `Box<dyn Error + Send + Sync>` is neither
/// an error nor converts into a `Box<dyn Error>`. Each has a type of its own, or the two
/// implementations would overlap.
mod kinds {
    use std::marker::PhantomData;

    use super::{Error, reason_of};

    pub trait Reason<Kind> {
        fn reason(self) -> String;
    }

    /// What can be boxed.
    #[derive(Debug)]
    pub struct Plain<'e>(PhantomData<&'e ()>);

    /// What is boxed for use in several threads.
    #[derive(Debug)]
    pub struct Shared;

    impl<'e, E: Into<Box<dyn Error + 'e>>> Reason<Plain<'e>> for E {
        fn reason(self) -> String {
            reason_of(&*self.into())
        }
    }

    impl Reason<Shared> for Box<dyn Error + Send + Sync> {
        fn reason(self) -> String {
            reason_of(&*self)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    /// As `anyhow::Error`: no error itself, but it converts into boxed ones.
    struct Anyhow(io::Error);

    impl From<Anyhow> for Box<dyn Error> {
        fn from(it: Anyhow) -> Self {
            it.0.into()
        }
    }

    impl From<Anyhow> for Box<dyn Error + Send + Sync> {
        fn from(it: Anyhow) -> Self {
            it.0.into()
        }
    }

    fn down() -> io::Error {
        io::Error::other("down")
    }

    fn failure(result: Result<(), Failure>) -> Failure {
        result.expect_err("a failure")
    }

    #[test]
    fn an_error_of_any_kind_becomes_the_failure_that_was_asked_for() {
        let expected = Failure::reject("down");
        let boxed: Box<dyn Error> = down().into();
        let shared: Box<dyn Error + Send + Sync> = down().into();
        assert_eq!(failure(Err(down()).or_reject()), expected);
        assert_eq!(failure(Err(boxed).or_reject()), expected);
        assert_eq!(failure(Err(shared).or_reject()), expected);
        assert_eq!(failure(Err(Anyhow(down())).or_reject()), expected);
        assert_eq!(failure(Err("down").or_reject()), expected);
        assert_eq!(failure(Err("down".to_string()).or_reject()), expected);
    }

    #[test]
    fn an_error_that_borrows_is_as_good_as_another() {
        let lock = Mutex::new(7);
        assert_eq!(lock.lock().or_retry().map(|it| *it), Ok(7));
    }

    #[test]
    fn each_method_makes_its_own_failure_and_keeps_what_is_right() {
        let second = Duration::from_secs(1);
        let wrong = || Err::<(), _>("no");
        assert_eq!(failure(wrong().or_retry()), Failure::retry("no"));
        assert_eq!(failure(wrong().or_retry_after(second)), Failure::retry_after("no", second));
        assert_eq!(failure(wrong().or_defer(second)), Failure::defer("no", second));
        assert_eq!(failure(wrong().or_defer(None)), Failure::defer("no", None));
        assert_eq!(Ok::<_, io::Error>(7).or_reject(), Ok(7));
    }

    #[test]
    fn the_reason_names_the_sources_of_an_error() {
        let blocked = crate::Error::NoThread { source: down() };
        let expected = Failure::from(crate::Error::NoThread { source: down() });
        assert!(expected.reason().ends_with(": down"), "{expected}");
        assert_eq!(failure(Err(blocked).or_retry()), expected);
        let shared: Box<dyn Error + Send + Sync> = crate::Error::NoThread { source: down() }.into();
        assert_eq!(failure(Err(shared).or_retry()), expected);
    }
}
