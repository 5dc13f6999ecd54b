//! [`Publish`]: what a program needs of a producer, so that its tests can do without a broker.

use crate::model::error::Error;
use crate::model::task::Task;
use crate::publish::Producer;
use crate::publish::receipt::Receipt;
use crate::publish::shared::SharedProducer;
use crate::publish::shared::pending::Pending;

/// Publishes tasks: a [`Producer`], a [`SharedProducer`], or in tests a [`Recorder`](crate::testing::Recorder).
///
/// ```
/// use rabbit_work::testing::Recorder;
/// use rabbit_work::{Error, Publish, Task};
///
/// fn order_photo(producer: &mut impl Publish, number: u32) -> Result<(), Error> {
///     producer.publish(Task::new(format!("resize photo {number}")))?;
///     Ok(())
/// }
///
/// let mut recorder = Recorder::new();
/// order_photo(&mut recorder, 17).unwrap();
/// assert_eq!(recorder.tasks()[0].body(), b"resize photo 17");
/// ```
pub trait Publish {
    /// Publishes one task and waits until the broker has confirmed it. Returns its id.
    ///
    /// # Errors
    /// Those of [`Producer::publish`].
    ///
    /// # Blocking
    /// As [`Producer::publish`].
    fn publish(&mut self, task: Task) -> Result<String, Error>;

    /// Publishes these tasks, many of them at a time, and waits until each has its receipt. The
    /// receipts are in any order.
    ///
    /// # Blocking
    /// As one [`Producer::send`] for each task, and then [`Producer::flush`].
    #[must_use = "a receipt may say that a task was not confirmed"]
    fn publish_all(&mut self, tasks: Vec<Task>) -> Vec<Receipt>;
}

impl Publish for Producer {
    fn publish(&mut self, task: Task) -> Result<String, Error> {
        Producer::publish(self, task)
    }

    /// With those of earlier calls of [`Producer::send`].
    fn publish_all(&mut self, tasks: Vec<Task>) -> Vec<Receipt> {
        let mut receipts = Vec::with_capacity(tasks.len());
        for task in tasks {
            receipts.extend(self.send(task));
        }
        receipts.extend(self.flush());
        receipts
    }
}

impl Publish for SharedProducer {
    fn publish(&mut self, task: Task) -> Result<String, Error> {
        SharedProducer::publish(self, task)
    }

    fn publish_all(&mut self, tasks: Vec<Task>) -> Vec<Receipt> {
        let pending: Vec<Pending> = tasks.into_iter().map(|task| self.submit(task)).collect();
        pending.into_iter().map(Pending::wait_for_outcome).collect()
    }
}
