//! The sessions of one run, one after the other, with a growing pause after each that was lost.

use std::time::{Duration, Instant};

use log::{error, warn};

use crate::amqp::connect;
use crate::amqp::reply_text::is_connection_limit;
use crate::model::error::Error;
use crate::util::backoff::Backoff;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Shutdown, is_closed};
use crate::worker::pool::WaitLimit;
use crate::worker::run_context::Settings;
use crate::worker::session::{Session, SessionEnd, SessionReport};
use crate::worker::summary::StopReason;
use crate::worker::task_budget::TaskBudget;

/// Whether a worker connects again after a lost session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reconnect {
    Always,
    Never,
}

/// A session shorter than this does not count as one that worked: the next pause grows on.
const WORKED_AFTER: Duration = Duration::from_secs(10);

/// After this many sessions in a row that consumed and then received bytes that cannot be parsed, it
/// is not the network that damaged them. A session that worked and settled tasks begins a new row.
/// One that only lasted does not: a thread that is busy with a task of an earlier session does not
/// receive the message, so sessions may last while nothing is ever done. The tasks before the message
/// are done at some time, and nothing after it is delivered.
const POISONED_AFTER: u32 = 3;

/// How long a drain waits for a connection that only the drains of other queues can free, which
/// wait for it.
const STUCK_AFTER: Duration = Duration::from_secs(30);

const NO_CONNECTION_LEFT: &str = "cannot be drained: the other queues are empty, and their workers hold \
    the only connections that the broker allows; raise the limit of connections, or drain one queue \
    after the other";

/// Runs sessions until the worker ends.
pub(crate) fn run_sessions(session: &Session<'_>, reconnect: Reconnect) -> Result<RunEnd, Error> {
    let settings = &session.run.settings;
    let mut history = History::new(settings.longest_pause);
    loop {
        let error = match run_session(session, &mut history) {
            Ok(Some(end)) => return Ok(end),
            Ok(None) => continue,
            Err(error) => error,
        };
        if is_closed(&session.run.exhausted) {
            warn!("{}", error.chain());
            return Ok(RunEnd::new(EndedBy::Limit, None, settings));
        }
        if reconnect == Reconnect::Never || is_final(&error, session, &history) {
            return Err(error);
        }
        if history.is_stuck(&error, session) {
            error!("'{}' {NO_CONNECTION_LEFT}", settings.queue.name());
            return Err(error);
        }
        if history.is_poisoned() {
            return Err(Error::Poisoned { queue: settings.queue.name().to_string() });
        }
        let pause = history.backoff.next_pause();
        error!("{}; next try in {:.1} s", error.chain(), pause.as_secs_f64());
        if session.shutdown.wait(pause) {
            let refused = Some(error).filter(|error| !error.is_transient());
            return Ok(RunEnd { refused, ..RunEnd::stopped_now(settings) });
        }
    }
}

/// Whether an error ends the run. A refusal may pass if the broker allowed the same before, unless
/// the drains of all other queues have ended.
fn is_final(error: &Error, session: &Session<'_>, history: &History) -> bool {
    !error.is_transient() && (!history.ever_consumed || session.run.drain.refuse())
}

/// Whether the broker allows no further connection.
fn is_over_limit(error: &Error) -> bool {
    let Error::Unreachable { attempts } = error else { return false };
    attempts.iter().any(|it| is_connection_limit(it))
}

/// Runs one session. `None`: another is to follow.
fn run_session(session: &Session<'_>, history: &mut History) -> Result<Option<RunEnd>, Error> {
    let Session { run, shutdown, .. } = *session;
    let Some(connection) = connect::open(&run.broker, shutdown.stopping())? else {
        return Ok(Some(RunEnd::stopped_now(&run.settings)));
    };
    let queue = run.settings.queue.name();
    run.journal.connected(queue);
    let began = Instant::now();
    let settled_before = run.journal.settled();
    let report = session.run(connection, history.broker_holds_until);
    history.note(&report, began.elapsed(), run.journal.settled() - settled_before);
    let ended_by = match report.end {
        SessionEnd::Stopped => EndedBy::Stop,
        SessionEnd::Exhausted => EndedBy::Limit,
        SessionEnd::Drained => EndedBy::Drain,
        SessionEnd::Again => return Ok(None),
        SessionEnd::Lost(error) => {
            run.journal.disconnected(queue, &error);
            return Err(error);
        }
    };
    Ok(Some(RunEnd::new(ended_by, report.deadline, &run.settings)))
}

/// How the last session ended, and how long running tasks may go on.
pub(crate) struct RunEnd {
    pub(crate) wait_limit: WaitLimit,
    /// Why the broker refused the last session, if the worker was stopped before the next.
    pub(crate) refused: Option<Error>,
    by: EndedBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndedBy {
    Stop,
    Limit,
    Drain,
}

impl RunEnd {
    /// There is a deadline if a stop was asked for. Without one, tasks of earlier sessions are
    /// finished.
    fn new(by: EndedBy, deadline: Option<Instant>, settings: &Settings) -> RunEnd {
        let until_stopped = WaitLimit::AfterStop(settings.grace);
        let wait_limit = deadline.map_or(until_stopped, WaitLimit::Until);
        RunEnd { wait_limit, refused: None, by }
    }

    fn stopped_now(settings: &Settings) -> RunEnd {
        RunEnd::new(EndedBy::Stop, Some(deadline_after(settings.grace)), settings)
    }

    /// Why the run stopped, if so many tasks had to be cancelled.
    pub(crate) fn reason(
        &self,
        shutdown: &Shutdown,
        budget: &TaskBudget,
        cancelled: usize,
    ) -> StopReason {
        match self.by {
            EndedBy::Limit if cancelled == 0 => budget.closed_by().unwrap_or(StopReason::MaxTasks),
            EndedBy::Drain if cancelled == 0 => StopReason::Drained,
            _ if shutdown.is_aborting() => StopReason::Aborted,
            _ if cancelled > 0 => StopReason::GraceExceeded,
            _ => StopReason::Stopped,
        }
    }
}

/// What the earlier sessions say about the next.
struct History {
    ever_consumed: bool,
    backoff: Backoff,
    malformed_in_a_row: u32,
    /// Until when the broker may keep tasks for a lost connection.
    broker_holds_until: Option<Instant>,
    /// Since when all that hold a connection wait for this worker, which gets none.
    stuck_since: Option<Instant>,
}

impl History {
    fn new(longest_pause: Duration) -> History {
        History {
            ever_consumed: false,
            backoff: Backoff::up_to(longest_pause),
            malformed_in_a_row: 0,
            broker_holds_until: None,
            stuck_since: None,
        }
    }

    /// Notes that a session could not begin or was lost. Returns whether no other will begin.
    fn is_stuck(&mut self, error: &Error, session: &Session<'_>) -> bool {
        let is_awaited = is_over_limit(error) && session.run.drain.wait_for_connection();
        let since = self.stuck_since.filter(|_| is_awaited).unwrap_or_else(Instant::now);
        self.stuck_since = is_awaited.then_some(since);
        is_awaited && since.elapsed() >= STUCK_AFTER
    }

    /// Notes how a session went, how long it lasted, and how many tasks it settled.
    fn note(&mut self, report: &SessionReport, lasted: Duration, settled: u64) {
        self.ever_consumed |= report.consumed;
        self.broker_holds_until = self.broker_holds_until.max(report.broker_holds_until);
        let has_worked = report.consumed && lasted >= WORKED_AFTER;
        if has_worked {
            self.backoff.reset();
        }
        if has_worked && settled > 0 {
            self.malformed_in_a_row = 0;
        }
        match &report.end {
            SessionEnd::Lost(error) if report.consumed && error.is_malformed() => {
                self.malformed_in_a_row += 1;
            }
            _ => self.malformed_in_a_row = 0,
        }
    }

    fn is_poisoned(&self) -> bool {
        self.malformed_in_a_row >= POISONED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::close_reason::CloseReason;

    const SHORT: Duration = Duration::from_secs(1);

    fn died(cause: CloseReason) -> SessionReport {
        let end = SessionEnd::Lost(Error::session_lost("b:5672", cause));
        SessionReport { consumed: true, broker_holds_until: None, deadline: None, end }
    }

    /// After which of these sessions, each so long and with so many tasks settled, all of which
    /// die of the same message, the worker gives up.
    fn poisoned_at(sessions: &[(Duration, u64)]) -> Option<usize> {
        let mut history = History::new(Backoff::LONGEST_OF_A_WORKER);
        let mut sessions = sessions.iter();
        sessions.position(|(lasted, settled)| {
            history.note(&died(CloseReason::Malformed("poison".into())), *lasted, *settled);
            history.is_poisoned()
        })
    }

    #[test]
    fn the_third_session_in_a_row_that_dies_of_a_message_is_the_last() {
        assert_eq!(poisoned_at(&[(SHORT, 0); 5]), Some(2));
        assert_eq!(poisoned_at(&[(SHORT, 7); 5]), Some(2), "short tasks before the message");
        assert_eq!(
            poisoned_at(&[(WORKED_AFTER * 2, 0); 5]),
            Some(2),
            "long tasks that are never done"
        );
        assert_eq!(
            poisoned_at(&[(WORKED_AFTER * 2, 0), (SHORT, 0), (WORKED_AFTER * 2, 0)]),
            Some(2)
        );
    }

    #[test]
    fn a_session_that_held_and_got_something_done_begins_a_new_row() {
        assert_eq!(poisoned_at(&[(WORKED_AFTER, 1); 5]), None);
        assert_eq!(poisoned_at(&[(SHORT, 0), (SHORT, 0), (WORKED_AFTER, 1), (SHORT, 0)]), None);
    }

    #[test]
    fn a_session_that_dies_of_something_else_begins_a_new_row() {
        let mut history = History::new(Backoff::LONGEST_OF_A_WORKER);
        for cause in [CloseReason::Malformed("poison".into()), CloseReason::Disconnected]
            .into_iter()
            .cycle()
            .take(9)
        {
            history.note(&died(cause), SHORT, 0);
            assert!(!history.is_poisoned());
        }
    }
}
