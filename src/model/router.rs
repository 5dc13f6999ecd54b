//! [`Router`]: a handler that chooses another one by the type of the task. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[cfg(feature = "json")]
use serde::de::DeserializeOwned;

use crate::model::handler::{Delivery, Failure, Handler};

/// A handler for tasks of several types ([`Task::with_type`](crate::Task::with_type)): each type has a
/// handler of its own.
///
/// * A task of an unknown type is retried, so that it reaches a worker that knows its type while a new
///   version is rolled out. Give the [`RetryPolicy`](crate::RetryPolicy) delays that outlast that.
/// * A task without a type is rejected, unless [`untyped`](Router::untyped) has a handler for it.
#[cfg_attr(
    feature = "json",
    doc = r##"
```
use rabbit_work::testing::{self, Verdict};
use rabbit_work::{Delivery, RetryPolicy, Router, Task};

let router = Router::new()
    .on("resize", |_: &Delivery, (path, width): (String, u32)| {
        println!("{path} becomes {width} wide");
        Ok(())
    })
    .on("delete", |_: &Delivery, path: String| {
        println!("{path} is deleted");
        Ok(())
    });
let task = Task::json(&("a.jpg", 640)).unwrap().with_type("resize");
assert_eq!(testing::verdict(&router, task, &RetryPolicy::new()), Verdict::Done);
```
"##
)]
#[derive(Default)]
pub struct Router {
    routes: BTreeMap<String, Box<dyn Handler>>,
    untyped: Option<Box<dyn Handler>>,
}

impl Router {
    /// A router that knows no type.
    #[must_use]
    pub fn new() -> Router {
        Router::default()
    }

    /// Has this function run the tasks of this type, with their bodies read as JSON. A task whose body
    /// is not such JSON is rejected ([`Delivery::json`]). It replaces an earlier handler of the type.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    #[must_use]
    pub fn on<T, F>(self, type_name: impl Into<String>, handler: F) -> Router
    where
        T: DeserializeOwned + 'static,
        F: Fn(&Delivery, T) -> Result<(), Failure> + Send + Sync + 'static,
    {
        self.route(type_name, move |delivery: &Delivery| handler(delivery, delivery.json()?))
    }

    /// Has this handler run the tasks of this type. It replaces an earlier handler of the type.
    #[must_use]
    pub fn route(
        mut self,
        type_name: impl Into<String>,
        handler: impl Handler + 'static,
    ) -> Router {
        self.routes.insert(type_name.into(), Box::new(handler));
        self
    }

    /// Has this handler run the tasks without a type. Default: they are rejected.
    #[must_use]
    pub fn untyped(mut self, handler: impl Handler + 'static) -> Router {
        self.untyped = Some(Box::new(handler));
        self
    }

    fn handler_of(&self, type_name: Option<&str>) -> Result<&dyn Handler, Failure> {
        let Some(name) = type_name else {
            let handler = self.untyped.as_deref();
            return handler.ok_or_else(|| Failure::reject("the task has no type"));
        };
        self.routes.get(name).map(AsRef::as_ref).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Failure {
        let known: Vec<_> = self.routes.keys().map(String::as_str).collect();
        let known = known.join(", ");
        Failure::retry(format!("this worker does not know the task type '{name}', only: {known}"))
    }
}

impl Handler for Router {
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        self.handler_of(delivery.task().type_name())?.handle(delivery)
    }

    /// The longest of its handlers.
    fn cancel_timeout(&self) -> Duration {
        let handlers = self.routes.values().chain(&self.untyped);
        handlers.map(|it| it.cancel_timeout()).max().unwrap_or_default()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("types", &self.routes.keys())
            .field("untyped", &self.untyped.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::handler::test_delivery;
    use crate::model::task::Task;

    /// Fails with its name.
    struct Named(&'static str, u64);

    impl Handler for Named {
        fn handle(&self, _: &Delivery) -> Result<(), Failure> {
            Err(Failure::reject(self.0))
        }

        fn cancel_timeout(&self) -> Duration {
            Duration::from_secs(self.1)
        }
    }

    fn reason(router: &Router, task: Task) -> Failure {
        router.handle(&test_delivery(task)).expect_err("each fails")
    }

    #[test]
    fn each_type_has_its_handler_and_the_last_one_counts() {
        let router = Router::new().route("a", Named("old", 9)).route("b", Named("b", 2));
        let router = router.route("a", Named("new", 1));
        assert_eq!(reason(&router, Task::new("").with_type("a")), Failure::reject("new"));
        assert_eq!(reason(&router, Task::new("").with_type("b")), Failure::reject("b"));
        assert_eq!(router.cancel_timeout(), Duration::from_secs(2));
        assert_eq!(router.untyped(Named("", 3)).cancel_timeout(), Duration::from_secs(3));
        assert_eq!(Router::new().cancel_timeout(), Duration::ZERO);
    }

    #[test]
    fn an_unknown_type_is_retried_and_none_is_rejected() {
        let router = Router::new().route("a", Named("a", 0)).route("b", Named("b", 0));
        let unknown = "this worker does not know the task type 'c', only: a, b";
        assert_eq!(reason(&router, Task::new("").with_type("c")), Failure::retry(unknown));
        assert_eq!(reason(&router, Task::new("")), Failure::reject("the task has no type"));
        let router = router.untyped(Named("untyped", 0));
        assert_eq!(reason(&router, Task::new("")), Failure::reject("untyped"));
    }

    #[cfg(feature = "json")]
    #[test]
    fn a_typed_handler_gets_its_value_or_the_task_is_rejected() {
        let router =
            Router::new().on("sum", |_: &Delivery, (one, two): (u8, u8)| match one + two {
                7 => Ok(()),
                other => Err(Failure::retry(other.to_string())),
            });
        let sum = |body: &str| router.handle(&test_delivery(Task::new(body).with_type("sum")));
        assert_eq!(sum("[3, 4]"), Ok(()));
        assert_eq!(sum("[3, 5]"), Err(Failure::retry("8")));
        assert!(matches!(sum("[3]"), Err(Failure::Reject { .. })));
    }
}
