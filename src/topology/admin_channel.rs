//! A channel for queries and declarations, which the broker may answer by closing it.

use crate::amqp::channel::{Channel, Count};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;

/// What opens channels: a connection, or something that has one.
pub(crate) trait Channels {
    fn open(&self) -> Result<Channel, CloseReason>;
}

impl Channels for Connection {
    fn open(&self) -> Result<Channel, CloseReason> {
        self.open_channel()
    }
}

/// A channel that is opened for the first question, and opened again after a refusal has closed it.
#[derive(Default)]
pub(crate) struct AdminChannel(Option<Channel>);

impl From<Channel> for AdminChannel {
    fn from(channel: Channel) -> AdminChannel {
        AdminChannel(Some(channel))
    }
}

impl AdminChannel {
    /// Asks something of the broker.
    pub(crate) fn ask<T>(
        &mut self,
        channels: &dyn Channels,
        ask: impl FnOnce(&Channel) -> Result<T, CloseReason>,
    ) -> Result<T, CloseReason> {
        let channel = self.take(channels)?;
        // After an error the channel is dropped: the broker has closed it, or the connection is lost.
        let answer = ask(&channel)?;
        self.0 = Some(channel);
        Ok(answer)
    }

    /// Asks something about a queue; `None` if the queue does not exist.
    pub(crate) fn find<T>(
        &mut self,
        channels: &dyn Channels,
        ask: impl FnOnce(&Channel) -> Result<T, CloseReason>,
    ) -> Result<Option<T>, CloseReason> {
        match self.ask(channels, ask) {
            Ok(answer) => Ok(Some(answer)),
            Err(cause) if cause.is_not_there() => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// What a queue holds; `None` if it does not exist.
    pub(crate) fn count(
        &mut self,
        channels: &dyn Channels,
        name: &str,
    ) -> Result<Option<Count>, CloseReason> {
        self.find(channels, |channel| channel.count(name))
    }

    /// Opens the channel, unless it is open.
    pub(crate) fn open(&mut self, channels: &dyn Channels) -> Result<(), CloseReason> {
        self.ask(channels, |_| Ok(()))
    }

    /// Has the next question asked on another channel.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }

    /// The channel itself, for other uses.
    pub(crate) fn into_channel(mut self, channels: &dyn Channels) -> Result<Channel, CloseReason> {
        self.take(channels)
    }

    fn take(&mut self, channels: &dyn Channels) -> Result<Channel, CloseReason> {
        self.0.take().map_or_else(|| channels.open(), Ok)
    }
}
