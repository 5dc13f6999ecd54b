//! Runs the jobs of a consumer on the consumer's own thread, as long as nothing else needs that
//! thread meanwhile. Its supervisor goes on without a consumer that calls the handler when its
//! session or its channel ends. The next consumer of the number waits for the runner. The late result
//! is reported and never acked.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::amqp::ended_channels::EndedChannels;
use crate::amqp::transport::PeerState;
use crate::worker::event::Event;
use crate::worker::job::{Finished, Job, JobFeed};
use crate::worker::pool::Runner;

/// The runner of a consumer, and the feed whose jobs it runs one by one.
pub(crate) struct OwnThread {
    runner: Runner,
    feed: JobFeed,
    call: Arc<HandlerCall>,
    peer_state: Arc<PeerState>,
}

/// Whether a consumer calls the handler on its own thread at present. The supervisor of its session
/// knows it, too.
#[derive(Debug, Default)]
pub(crate) struct HandlerCall(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    /// For a task of this channel, with the event of the task in case it is requeued meanwhile.
    Running(u16, Option<Box<Event>>),
    /// The session ends.
    Forbidden,
    /// The session goes on without this consumer, or has ended without it.
    LeftBehind,
}

/// Where a consumer is whose session ends.
#[derive(Debug)]
pub(crate) enum Whereabouts {
    /// In its loop: it reports its end by itself.
    Loop,
    /// In the handler, with the event of the task: its session goes on without it.
    Handler(Option<Box<Event>>),
}

/// The session goes on without this consumer, or has ended. Its delivery counts as settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftBehind;

impl OwnThread {
    pub(super) fn new(
        runner: Runner,
        feed: JobFeed,
        call: &Arc<HandlerCall>,
        connection: &Connection,
    ) -> OwnThread {
        let peer_state = connection.peer_state();
        OwnThread { runner, feed, call: Arc::clone(call), peer_state }
    }

    /// Hands the runner to a thread of its own, which runs the jobs from now on.
    pub(super) fn hand_over(self) -> io::Result<()> {
        self.runner.start_thread(self.feed)
    }

    /// Takes the next job, of this channel, if one may be started now. Each is followed by
    /// [`run`](OwnThread::run).
    pub(super) fn next_job(
        &self,
        channel: u16,
        event: Option<Event>,
    ) -> Result<Option<Job>, LeftBehind> {
        self.call.begin_with(channel, event, || {
            // Within the call: whoever notes the end later finds the call.
            let has_ended = self.peer_state.ended_channels.reason(channel).is_some();
            if has_ended { None } else { self.runner.next_job(&self.feed) }
        })
    }

    /// Calls the handler.
    pub(super) fn run(&self, job: Job) -> (Finished, Result<(), LeftBehind>) {
        let finished = self.runner.run_job(job);
        let returned = self.call.end();
        self.runner.note_end();
        (finished, returned)
    }

    /// Notes that the last job is settled.
    pub(super) fn forget_job(&self) {
        self.runner.forget_job();
    }
}

impl HandlerCall {
    /// `false` if the handler must not be called any more.
    fn begin(&self, channel: u16, event: Option<Event>) -> bool {
        let mut state = self.lock();
        let may_begin = matches!(*state, State::None);
        if may_begin {
            *state = State::Running(channel, event.map(Box::new));
        }
        may_begin
    }

    /// Begins with the job that `take` finds, if any and if the handler may be called.
    fn begin_with<J>(
        &self,
        channel: u16,
        event: Option<Event>,
        take: impl FnOnce() -> Option<J>,
    ) -> Result<Option<J>, LeftBehind> {
        if !self.begin(channel, event) {
            return Ok(None);
        }
        match take() {
            Some(job) => Ok(Some(job)),
            None => self.end().map(|()| None),
        }
    }

    fn end(&self) -> Result<(), LeftBehind> {
        let mut state = self.lock();
        if !matches!(*state, State::Running(..)) {
            return Err(LeftBehind);
        }
        *state = State::None;
        Ok(())
    }

    /// Ends the session for this consumer: it calls the handler no more.
    pub(crate) fn forbid(&self) -> Whereabouts {
        let mut state = self.lock();
        match mem::replace(&mut *state, State::Forbidden) {
            State::Running(_, event) => {
                *state = State::LeftBehind;
                Whereabouts::Handler(event)
            }
            State::None | State::Forbidden | State::LeftBehind => Whereabouts::Loop,
        }
    }

    /// The same if the handler runs for a task of a channel that has ended. Returns why it has.
    pub(crate) fn forbid_on_end(&self, ended: &EndedChannels) -> Option<CloseReason> {
        let mut state = self.lock();
        let State::Running(channel, _) = *state else { return None };
        let reason = ended.reason(channel)?;
        *state = State::LeftBehind;
        Some(reason)
    }

    /// Whether the supervisor waits for this consumer's end.
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(*self.lock(), State::LeftBehind)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::guard::ChannelChange;

    #[test]
    fn a_call_that_ends_before_its_session_is_in_time() {
        let call = HandlerCall::default();
        assert!(call.begin(1, None));
        assert_eq!(call.end(), Ok(()));
        assert!(matches!(call.forbid(), Whereabouts::Loop));
        assert!(!call.begin(1, None), "no call begins after the session");
    }

    #[test]
    fn only_the_end_of_its_own_channel_ends_a_call() {
        let (call, ended) = (HandlerCall::default(), EndedChannels::default());
        ended.note(1, ChannelChange::Cancelled);
        assert_eq!(call.forbid_on_end(&ended), None, "no handler runs");
        assert!(call.begin(2, None));
        assert_eq!(call.forbid_on_end(&ended), None, "another channel");
        ended.note(2, ChannelChange::Cancelled);
        assert_eq!(call.forbid_on_end(&ended), Some(CloseReason::ConsumerCancelled));
        assert_eq!(call.forbid_on_end(&ended), None, "once");
        assert_eq!(call.end(), Err(LeftBehind));
    }

    #[test]
    fn a_consumer_that_is_left_behind_before_it_has_a_job_learns_it() {
        let (call, ended) = (HandlerCall::default(), EndedChannels::default());
        let no_job = |happens: &dyn Fn()| {
            call.begin_with(1, None, || {
                happens();
                None::<()>
            })
        };
        assert_eq!(no_job(&|| {}), Ok(None));
        let end = || {
            ended.note(1, ChannelChange::Cancelled);
            assert_eq!(call.forbid_on_end(&ended), Some(CloseReason::ConsumerCancelled));
        };
        assert_eq!(no_job(&end), Err(LeftBehind));
        assert_eq!(no_job(&|| panic!("no call begins after that")), Ok(None));
    }

    #[test]
    fn a_session_goes_on_once_without_a_consumer_that_calls_the_handler() {
        let call = HandlerCall::default();
        assert!(call.begin(1, None) && call.is_awaited());
        assert!(matches!(call.forbid(), Whereabouts::Handler(None)));
        assert!(!call.is_awaited());
        assert_eq!(call.end(), Err(LeftBehind));
        assert!(!call.begin(1, None));
    }
}
