//! JSON bodies: a task from a value, and a value from a delivery. Pure.

use serde::{Deserialize, Serialize};

use crate::model::error::Error;
use crate::model::handler::{Delivery, Failure};
use crate::model::task::Task;

#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
impl Task {
    /// A persistent task whose body is this value as JSON, with the content type `application/json`.
    ///
    /// ```
    /// # fn main() -> Result<(), rabbit_work::Error> {
    /// use rabbit_work::Task;
    ///
    /// let task = Task::json(&["a.jpg", "b.jpg"])?.with_type("resize");
    /// assert_eq!(task.body(), br#"["a.jpg","b.jpg"]"#);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a value that JSON cannot write, such as a map whose keys are
    /// no texts.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Task, Error> {
        let body = serde_json::to_vec(value)
            .map_err(|error| Error::setting("body", format!("JSON cannot write it: {error}")))?;
        Ok(Task::new(body).with_content_type("application/json"))
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
impl Delivery {
    /// The body, read as JSON, whatever its content type says.
    ///
    /// ```
    /// use rabbit_work::{Delivery, Failure};
    ///
    /// fn resize(delivery: &Delivery) -> Result<(), Failure> {
    ///     let paths: Vec<String> = delivery.json()?; // other bytes become a dead letter
    ///     println!("{} photos", paths.len());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// A [`Failure::Reject`] for a body that is not such JSON: another attempt would read the same.
    /// The reason says what is wrong, in which line and column. It may quote a value of the body, and
    /// as each reason it is logged.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(self.body())
            .map_err(|error| Failure::reject(format!("the body is not the JSON expected: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::handler::test_delivery;

    type Sizes = BTreeMap<String, u32>;

    fn read<T: for<'a> Deserialize<'a>>(body: &str) -> Result<T, Failure> {
        test_delivery(Task::new(body)).json()
    }

    #[test]
    fn a_value_comes_back_as_it_was_sent() {
        let sizes = Sizes::from([("a.jpg".into(), 7)]);
        let task = Task::json(&sizes).expect("JSON");
        assert_eq!(task.content_type(), Some("application/json"));
        assert_eq!(test_delivery(task).json(), Ok(sizes));
    }

    #[test]
    fn a_text_is_read_without_a_copy() {
        let delivery = test_delivery(Task::new(r#""a.jpg""#));
        assert_eq!(delivery.json::<&str>(), Ok("a.jpg"));
    }

    #[test]
    fn another_body_is_rejected_with_its_line_and_column() {
        let reason = "the body is not the JSON expected: invalid type: boolean `true`, expected u32 \
                      at line 2 column 15";
        assert_eq!(read::<Sizes>("{\n  \"a.jpg\": true }"), Err(Failure::reject(reason)));
        let empty = read::<Sizes>("").expect_err("no JSON");
        assert!(matches!(empty, Failure::Reject { .. }), "{empty:?}");
        assert!(empty.reason().ends_with("at line 1 column 0"), "{empty}");
    }

    #[test]
    fn what_json_cannot_write_is_an_error() {
        let error = Task::json(&BTreeMap::from([([1], 1)])).expect_err("no text as a key");
        assert_eq!(error.to_string(), "body: JSON cannot write it: key must be a string");
    }
}
