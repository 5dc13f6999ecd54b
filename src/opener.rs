//! Opens further channels on a session's connection, for whichever of its threads needs one.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cause::Cause;
use crate::channel::Channel;
use crate::connection::Connection;

/// The one holder of a session's connection. Clones hold the same.
#[derive(Clone)]
pub(crate) struct Opener(Arc<Mutex<Option<Connection>>>);

impl Opener {
    pub(crate) fn new(connection: Connection) -> Opener {
        Opener(Arc::new(Mutex::new(Some(connection))))
    }

    /// Opens a channel. Waits for the broker, at most the call limit; and for others that do the
    /// same.
    pub(crate) fn open_channel(&self) -> Result<Channel, Cause> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = || Cause::Lost("the session has ended".into());
        held.as_mut().ok_or_else(ended)?.open_channel()
    }

    /// Takes the connection out, to be ended: no further channel is opened on it. `None` the
    /// second time.
    pub(crate) fn end(&self) -> Option<Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
