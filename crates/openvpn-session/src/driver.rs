//! One session, from the greeting to its end.

use std::io;
use std::time::{Duration, Instant};

use openvpn_management::{
    Command, CommandId, DaemonState, HoldRequest, Notification, Output, Rejected, Reply, SendError,
    StatusFormat,
};
use tokio::task::yield_now;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::attach::Synchronisation;
use crate::call::{CallError, Guard, NotSent, OutcomeUnknown};
use crate::condition::Condition;
use crate::config::{DisconnectPolicy, HoldPolicy, SessionConfig};
use crate::in_flight::{Caller, InFlight, Purpose, unknown};
use crate::link::{Link, Received};
use crate::mailbox::Queued;
use crate::observation::{Hint, Moment, Observation, Observer, Snapshot};
use crate::pace::Pace;
use crate::polls::Polls;
use crate::report::Report;
use crate::turns::TableTurn;

/// Most bytes read in a row before the other sessions of the thread have their turn.
const TURN_BYTES_MAX: usize = 64 * 1024;
/// Most notifications and answers of a turn, give or take those of one line: a daemon may write one with every byte, and
/// each may take as long as some hundred bytes of a status.
const TURN_OUTPUTS_MAX: usize = 64;
/// Most bytes read before a command is sent. What the kernel holds for a socket is less (`net.ipv4.tcp_rmem`: 6 MiB),
/// so that everything that had arrived when the read began has been seen.
const DRAIN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Told of a daemon that dialled in, once another one did so too.
const CONTESTED: &str = "another daemon dialled in at this address too and was turned away: give each daemon an address of its own";

/// Why a session is over.
#[derive(Debug)]
pub(crate) enum Ended {
    /// We were told to end.
    Cancelled,
    /// It broke, or the daemon left; a sentence.
    Broken(String),
    /// The daemon broke the protocol; a sentence.
    Violated(String),
}

/// Drives one session: reads all there is, tells the observer, sends what is due, one command at a time.
pub(crate) struct Driver<'a, O> {
    link: Box<Link>,
    config: &'a SessionConfig,
    report: &'a mut Report<O>,
    stage: Stage,
    /// The one command that is owed a reply.
    in_flight: Option<InFlight>,
    /// Whether the daemon waits for a `hold release` that is ours to send.
    release_due: bool,
    /// Ours to read a large table.
    table_turn: TableTurn,
    /// How fast the daemon is read.
    pace: Pace,
    /// Since when the daemon does not answer.
    unresponsive_since: Option<Instant>,
    /// Whether somebody else dialled in at the daemon's address.
    is_contested: bool,
    /// What the daemon said about its own end.
    farewell: Option<String>,
}

/// How far the session is.
enum Stage {
    Syncing(Box<Synchronisation>),
    Attached { polls: Polls, since: Instant },
}

impl<'a, O: Observer> Driver<'a, O> {
    /// Takes over a link on which the greeting has just been read.
    pub(crate) fn new(
        link: Box<Link>,
        management_version: Option<u32>,
        config: &'a SessionConfig,
        table_turn: TableTurn,
        report: &'a mut Report<O>,
    ) -> Self {
        Self {
            link,
            config,
            report,
            stage: Stage::Syncing(Box::new(Synchronisation::new(management_version))),
            in_flight: None,
            release_due: false,
            table_turn,
            pace: Pace::new(Moment::now().monotonic),
            unresponsive_since: None,
            is_contested: false,
            farewell: None,
        }
    }

    /// Runs the session to its end; gives why, and how long it was attached.
    pub(crate) async fn run(&mut self, cancel: &CancellationToken) -> (Ended, Duration) {
        let ended = loop {
            let is_drained = match self.advance() {
                Ok(is_drained) => is_drained,
                Err(ended) => break ended,
            };
            if !is_drained {
                yield_now().await;
            }
            let is_paused = self.pace.paused_until().is_some();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Ended::Cancelled,
                ready = self.link.ready(), if !is_paused => if let Err(error) = ready {
                    break broken(&error);
                },
                () = self.report.mailbox.wake.notified() => {}
                () = sleep_until(self.next_wake().into()) => {}
            }
        };
        self.finish(ended)
    }

    /// Does all there is to do now; gives whether the socket was read to its end.
    fn advance(&mut self) -> Result<bool, Ended> {
        let now = Moment::now().monotonic;
        let is_drained = self.pace.is_paused(now)
            || self.receive(Link::receive, TURN_BYTES_MAX, TURN_OUTPUTS_MAX)?;
        self.handle_time()?;
        self.handle_turned_away();
        while self.dispatch()? {
            self.handle_outputs(Moment::now())?;
        }
        self.transmit()?;
        Ok(is_drained)
    }

    /// Reads into the protocol, and tells what it has to say; `false` if there may be more than `bytes_max` or
    /// `outputs_max`.
    fn receive(
        &mut self,
        receive: fn(&mut Link, Instant) -> io::Result<Received>,
        bytes_max: usize,
        outputs_max: usize,
    ) -> Result<bool, Ended> {
        let (mut length, mut outputs) = (0, 0);
        let lines_wanted = self.report.mailbox.tap.lines_wanted();
        self.link.connection.tell_lines(lines_wanted);
        while length < bytes_max && outputs < outputs_max {
            let now = Moment::now();
            match receive(&mut self.link, now.monotonic) {
                Ok(Received::Bytes(more)) => {
                    length += more;
                    self.pace.take(more, now.monotonic);
                }
                Ok(Received::Nothing) => {
                    self.handle_outputs(now)?;
                    return Ok(true);
                }
                Ok(Received::End) => {
                    self.handle_outputs(now)?;
                    return Err(self.left());
                }
                Err(error) => return Err(broken(&error)),
            }
            outputs += self.handle_outputs(now)?;
        }
        Ok(false)
    }

    fn transmit(&mut self) -> Result<(), Ended> {
        self.link.transmit().map_err(|error| broken(&error))
    }

    /// The daemon closed its end.
    fn left(&mut self) -> Ended {
        let farewell = self.farewell.take();
        Ended::Broken(farewell.unwrap_or_else(|| "the daemon closed the session".to_owned()))
    }

    /// Acts on deadlines that have passed.
    fn handle_time(&mut self) -> Result<(), Ended> {
        let now = Moment::now();
        self.link.connection.handle_timeout(now.monotonic);
        self.handle_outputs(now)?;
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.expire(now);
        }
        if self.gives_up_at().is_some_and(|at| at <= now.monotonic) {
            let waited = self.config.timings.unresponsive_reconnect;
            return Err(Ended::Broken(format!(
                "no answer for {waited:?}: connecting anew"
            )));
        }
        Ok(())
    }

    /// When an unresponsive daemon loses its session; never where that would harm it.
    fn gives_up_at(&self) -> Option<Instant> {
        match self.config.disconnect {
            DisconnectPolicy::Harmless => {
                Some(self.unresponsive_since? + self.config.timings.unresponsive_reconnect)
            }
            DisconnectPolicy::Destructive => None,
        }
    }

    /// When there is something to do though nothing happens.
    fn next_wake(&self) -> Instant {
        // Far enough, and representable everywhere.
        let mut wake = Moment::now().monotonic + Duration::from_secs(3_600);
        let mut at = |due: Option<Instant>| wake = due.map_or(wake, |due| wake.min(due));
        at(self.link.connection.poll_timeout());
        at(self.gives_up_at());
        at(self.in_flight.as_ref().and_then(InFlight::expires));
        at(self.table_turn.looks_at());
        at(self.pace.paused_until());
        if let Stage::Attached { polls, .. } = &self.stage
            && self.is_idle()
        {
            at(Some(polls.liveness_due()));
            if self.table_turn.looks_at().is_none() {
                let wanted = self.report.mailbox.refresh_wanted();
                at(Some(polls.status_due(wanted, &self.config.timings)));
            }
        }
        wake
    }

    /// Whether the daemon owes us nothing.
    fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.link.connection.is_ready()
    }

    /// Sends the next command if there is one and the daemon owes us nothing; whether to look again.
    fn dispatch(&mut self) -> Result<bool, Ended> {
        if !self.is_idle() {
            return Ok(false);
        }
        let now = Moment::now().monotonic;
        let timings = &self.config.timings;
        let (command, purpose, deadline) = match &mut self.stage {
            Stage::Syncing(synchronisation) => match synchronisation.next_command(self.config) {
                Some(Command::Status { .. }) if !self.table_turn.take(now) => return Ok(false),
                Some(command @ Command::Status { .. }) => {
                    (command, Purpose::Synchronise, timings.status_deadline)
                }
                Some(command) => (command, Purpose::Synchronise, timings.reply_deadline),
                None => {
                    self.synchronised();
                    return Ok(true);
                }
            },
            Stage::Attached { polls, .. } => {
                if let Some(queued) = self.report.mailbox.next_control() {
                    return self.send_call(queued).map(|()| true);
                }
                let wanted = self.report.mailbox.refresh_wanted();
                if self.release_due {
                    self.release_due = false;
                    let release = Command::Hold(HoldRequest::Release);
                    (release, Purpose::Release, timings.reply_deadline)
                } else if polls.liveness_due() <= now {
                    polls.handle_liveness_sent(self.config, now);
                    (
                        Command::LoadStats,
                        Purpose::Liveness,
                        timings.reply_deadline,
                    )
                } else if polls.status_due(wanted, timings) <= now && self.table_turn.take(now) {
                    polls.handle_status_sent(self.config, now);
                    let format = StatusFormat::V3;
                    (
                        Command::Status { format },
                        Purpose::Status,
                        timings.status_deadline,
                    )
                } else if let Some(queued) = self.report.mailbox.next_read() {
                    return self.send_call(queued).map(|()| true);
                } else {
                    return Ok(false);
                }
            }
        };
        match self.send(&command, deadline, purpose) {
            Ok(()) => Ok(true),
            // All of them are constant but for their numbers.
            Err((_, error)) => Err(Ended::Broken(format!("{}: {error}", command.name()))),
        }
    }

    /// Puts a command on the wire.
    fn send(
        &mut self,
        command: &Command,
        deadline: Duration,
        purpose: Purpose,
    ) -> Result<(), (Purpose, SendError)> {
        let sent = Moment::now();
        match self.link.connection.send(command, deadline, sent.monotonic) {
            Ok(id) => {
                self.in_flight = Some(InFlight { id, purpose, sent });
                Ok(())
            }
            Err(error) => Err((purpose, error)),
        }
    }

    /// Sends a caller's command, unless there is a reason by now not to.
    fn send_call(&mut self, queued: Queued) -> Result<(), Ended> {
        let Queued { call, reply, .. } = queued;
        // The guard must know all that the daemon had said by now, also what no poll has found yet.
        if let Err(ended) = self.receive(Link::receive_unannounced, DRAIN_BYTES_MAX, usize::MAX) {
            let condition = Condition::Connecting;
            drop(reply.send(Err(NotSent::Detached { condition }.into())));
            return Err(ended);
        }
        if let Err(not_sent) = self.admit(call.guard, call.deadline) {
            drop(reply.send(Err(not_sent.into())));
            return Ok(());
        }
        let caller = Caller {
            command: call.command.name(),
            deadline: call.deadline,
            reply: Some(reply),
        };
        let reply_deadline = self.reply_deadline(&call.command);
        let sent = self.send(&call.command, reply_deadline, Purpose::Call(caller));
        if let Err((
            Purpose::Call(Caller {
                reply: Some(reply), ..
            }),
            error,
        )) = sent
        {
            let not_sent = match error {
                SendError::Encode(error) => NotSent::Encode(error),
                _ => NotSent::Detached {
                    condition: self.report.condition(),
                },
            };
            drop(reply.send(Err(not_sent.into())));
        }
        // Now, so that nothing is read between the guard and the write.
        self.transmit()
    }

    fn reply_deadline(&self, command: &Command) -> Duration {
        match command {
            Command::Status { .. } => self.config.timings.status_deadline,
            _ => self.config.timings.reply_deadline,
        }
    }

    /// Whether a call may still be sent.
    fn admit(&self, guard: Option<Guard>, deadline: Instant) -> Result<(), NotSent> {
        if !self.link.connection.is_ready() {
            return Err(NotSent::Detached {
                condition: self.report.condition(),
            });
        }
        if deadline <= Moment::now().monotonic {
            return Err(NotSent::Deadline);
        }
        guard
            .map_or(Ok(()), |guard| guard())
            .map_err(NotSent::Guard)
    }

    /// Tells what the protocol has to say; gives how much that was.
    fn handle_outputs(&mut self, now: Moment) -> Result<usize, Ended> {
        let mut outputs = 0;
        while let Some(output) = self.link.poll_output() {
            outputs += 1;
            match output {
                Output::Notification(notification) => self.handle_notification(notification, now),
                Output::Line(line) => self.report.mailbox.tap.tell(&line),
                Output::Reply { id, result, .. } => self.handle_answer(id, Some(result), now),
                Output::Lost { id } => self.handle_answer(id, None, now),
                Output::Unanswered { .. } => self.handle_unanswered(now),
                Output::Responsive => self.handle_responsive(now),
                Output::Unsolicited(text) => self.observe(Observation::Unsolicited(text), now),
                Output::Violation(violation) => {
                    return Err(Ended::Violated(format!(
                        "the daemon breaks the protocol: {violation}"
                    )));
                }
                // All of these come before the greeting only.
                Output::PasswordRequested
                | Output::PasswordRefused
                | Output::PasswordAccepted
                | Output::Greeted { .. } => {}
            }
        }
        Ok(outputs)
    }

    fn observe(&mut self, observation: Observation, now: Moment) {
        let hint = self.report.observe(observation, now);
        self.handle_hint(hint, now);
    }

    fn handle_hint(&mut self, hint: Hint, now: Moment) {
        match &mut self.stage {
            Stage::Attached { polls, .. } => {
                polls.handle_hint(hint, &self.config.timings, now.monotonic);
            }
            // The synchronisation asks everything anyway.
            Stage::Syncing(_) => {}
        }
    }

    fn handle_notification(&mut self, notification: Notification, now: Moment) {
        match &notification {
            Notification::Hold { .. } => {
                self.release_due = self.config.hold == HoldPolicy::Release;
            }
            Notification::Fatal(text) => {
                self.farewell = Some(format!("the daemon ended: {text}"));
            }
            Notification::State(record) => match record.state {
                // Only now does `status` list clients again.
                DaemonState::Connected => self.handle_hint(Hint::Poll, now),
                DaemonState::Exiting => {
                    self.farewell = Some(format!("the daemon exited: {}", record.detail));
                }
                _ => {}
            },
            _ => {}
        }
        self.observe(Observation::Notification(notification), now);
    }

    /// The command on the wire is answered; `None` if it never will be.
    fn handle_answer(
        &mut self,
        id: CommandId,
        answer: Option<Result<Reply, Rejected>>,
        now: Moment,
    ) {
        let Some(InFlight { purpose, sent, .. }) = self.in_flight.take_if(|sent| sent.id == id)
        else {
            return;
        };
        if let Some(Ok(Reply::LoadStats(stats))) = &answer {
            self.table_turn.handle_clients(stats.clients);
        }
        match purpose {
            Purpose::Synchronise => {
                if let Stage::Syncing(synchronisation) = &mut self.stage {
                    synchronisation.record(answer, sent, now);
                }
            }
            Purpose::Liveness => {
                if let Some(Ok(Reply::LoadStats(stats))) = answer {
                    self.observe(Observation::LoadStats(stats), now);
                }
            }
            Purpose::Status => {
                self.handle_status(answer, sent, now);
                self.table_turn.give_back();
            }
            Purpose::Release => {
                if let Some(Ok(_)) = answer {
                    self.report.mailbox.tap.answered();
                    self.observe(Observation::Released, now);
                }
            }
            Purpose::Call(caller) => {
                let position = self.report.mailbox.tap.position();
                caller.settle(answer, sent, position);
            }
        }
    }

    fn handle_status(
        &mut self,
        answer: Option<Result<Reply, Rejected>>,
        asked: Moment,
        answered: Moment,
    ) {
        match answer {
            Some(Ok(Reply::Status(status))) => {
                let status = *status;
                let snapshot = Snapshot {
                    status,
                    asked,
                    answered,
                };
                self.observe(Observation::Snapshot(Box::new(snapshot)), answered);
                self.refreshed(asked, answered);
            }
            Some(Err(Rejected { text })) => {
                let sent = asked.wall;
                self.report
                    .mailbox
                    .refresh_failed(asked, || CallError::Rejected {
                        text: text.clone(),
                        sent,
                    });
                self.observe(Observation::SnapshotRefused { text }, answered);
            }
            Some(Ok(_)) | None => {
                self.report
                    .mailbox
                    .refresh_failed(asked, || unknown(asked, OutcomeUnknown::Skipped));
            }
        }
    }

    fn handle_unanswered(&mut self, now: Moment) {
        self.unresponsive_since.get_or_insert(now.monotonic);
        self.table_turn.give_back();
        let reason = match &self.in_flight {
            Some(in_flight) => {
                let waited = now.monotonic - in_flight.sent.monotonic;
                format!(
                    "no answer for {:.1} s; the daemon hangs or its host does",
                    waited.as_secs_f64()
                )
            }
            None => "no answer".to_owned(),
        };
        self.report.stands(Condition::Unresponsive, reason);
    }

    fn handle_responsive(&mut self, now: Moment) {
        self.unresponsive_since = None;
        self.stand();
        self.handle_hint(Hint::Poll, now);
    }

    /// Reports a session in which all is well, but perhaps for its address.
    fn stand(&mut self) {
        let condition = match self.stage {
            Stage::Syncing(_) => Condition::Syncing,
            Stage::Attached { .. } => Condition::Attached,
        };
        let reason = if self.is_contested { CONTESTED } else { "" };
        self.report.stands(condition, reason);
    }

    fn handle_turned_away(&mut self) {
        if self.report.mailbox.take_turned_away() && !self.is_contested {
            self.is_contested = true;
            // A daemon that hangs is the greater news.
            if self.unresponsive_since.is_none() {
                self.stand();
            }
        }
    }

    /// All is asked: hands over the facts and opens the lanes.
    fn synchronised(&mut self) {
        let now = Moment::now();
        let polls = Polls::new(self.config, now.monotonic);
        let since = now.monotonic;
        let stage = std::mem::replace(&mut self.stage, Stage::Attached { polls, since });
        if let Stage::Syncing(synchronisation) = stage {
            let facts = synchronisation.into_facts();
            let snapshot = facts.snapshot.as_ref();
            let times = snapshot.map(|snapshot| (snapshot.asked, snapshot.answered));
            self.observe(Observation::Synchronised(Box::new(facts)), now);
            if let Some((asked, answered)) = times {
                self.refreshed(asked, answered);
            }
        }
        self.table_turn.give_back();
        self.stand();
    }

    /// The table is as the daemon's when it was `asked`.
    fn refreshed(&mut self, asked: Moment, answered: Moment) {
        if let Stage::Attached { polls, .. } = &mut self.stage {
            polls.handle_status_answered(answered.monotonic - asked.monotonic);
        }
        self.report.mailbox.refreshed(asked);
    }

    /// Tells everybody that the session is over.
    fn finish(&mut self, ended: Ended) -> (Ended, Duration) {
        let now = Moment::now();
        let reason = match &ended {
            Ended::Cancelled => "the session was ended by the gateway".to_owned(),
            Ended::Broken(reason) | Ended::Violated(reason) => reason.clone(),
        };
        self.report.mailbox.forget_snapshot();
        self.report.mailbox.tap.ended();
        // Asked for while there was a session, which needed none.
        self.report.mailbox.take_retry();
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.abandon(&reason);
        }
        self.report.observe(Observation::Detached { reason }, now);
        let attached = match self.stage {
            Stage::Attached { since, .. } => now.monotonic - since,
            Stage::Syncing(_) => Duration::ZERO,
        };
        (ended, attached)
    }
}

fn broken(error: &io::Error) -> Ended {
    Ended::Broken(format!("the session broke: {error}"))
}
