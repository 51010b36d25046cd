//! What is asked of a daemon that has just greeted us.

use openvpn_management::{
    Command, HistoryDepth, HistoryRequest, HoldRequest, Rejected, Reply, StatusFormat,
};

use crate::config::SessionConfig;
use crate::observation::{Facts, Mode, Moment, Snapshot};

/// What we tell a daemon that we understand: requests for signatures that name the algorithm. From 4 on it would ask in
/// other forms too.
const CLIENT_VERSION: u32 = 3;
/// The management version of OpenVPN 2.5, the first that can be told. Earlier ones, which have 1, take it for a question.
const ANNOUNCED_FROM: u32 = 3;

/// One question or setting of the synchronisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The daemon keeps the level a former manager set, even across sessions.
    EnvFilter,
    /// As early as can be: a daemon may ask for a signature at any moment.
    Announce,
    Version,
    Pid,
    Hold,
    /// History and notifications in one, so that no state is lost between them.
    State,
    Log,
    Bytecount,
    LoadStats,
    /// Last, so that nothing has come between its answer and the moment the facts are handed over.
    Status,
}

/// The steps in their order.
const STEPS: [Step; 10] = [
    Step::EnvFilter,
    Step::Announce,
    Step::Version,
    Step::Pid,
    Step::Hold,
    Step::State,
    Step::Log,
    Step::Bytecount,
    Step::LoadStats,
    Step::Status,
];

/// A synchronisation under way.
///
/// A refused step is skipped: older daemons know less, and one that is held or restarting refuses `status`.
#[derive(Debug)]
pub(crate) struct Synchronisation {
    facts: Facts,
    /// The daemon can be told what we understand.
    announces: bool,
    /// How many of [`STEPS`] are done.
    done: usize,
}

impl Synchronisation {
    /// A synchronisation with a daemon that greeted with this management version.
    pub(crate) fn new(management_version: Option<u32>) -> Self {
        Self {
            facts: Facts::default(),
            announces: management_version.is_some_and(|version| version >= ANNOUNCED_FROM),
            done: 0,
        }
    }

    /// The next command, or `None` when all is asked.
    pub(crate) fn next_command(&mut self, config: &SessionConfig) -> Option<Command> {
        while let Some(step) = STEPS.get(self.done) {
            let is_left_out = *step == Step::Announce && !self.announces;
            if !is_left_out && let Some(command) = step.command(config) {
                return Some(command);
            }
            self.done += 1;
        }
        None
    }

    /// Takes the answer to the command given last; `None` if it will never come.
    pub(crate) fn record(
        &mut self,
        answer: Option<Result<Reply, Rejected>>,
        asked: Moment,
        answered: Moment,
    ) {
        let step = STEPS.get(self.done);
        self.done += 1;
        let reply = match answer {
            Some(Ok(reply)) => reply,
            Some(Err(rejected)) => {
                tracing::debug!(?step, text = %rejected.text, "refused while synchronising");
                return;
            }
            None => return,
        };
        match reply {
            Reply::Version(version) => self.facts.version = Some(version),
            Reply::Pid(pid) => self.facts.pid = Some(pid),
            Reply::Hold(hold) => self.facts.hold = Some(hold),
            Reply::States(states) => self.facts.states = states.records,
            Reply::LoadStats(stats) => self.facts.load_stats = Some(stats),
            Reply::Status(status) => {
                self.facts.mode = Mode::of(&status);
                self.facts.snapshot = Some(Snapshot {
                    status: *status,
                    asked,
                    answered,
                });
            }
            // The others only say that it was done.
            _ => {}
        }
    }

    /// What was learned.
    pub(crate) fn into_facts(self) -> Facts {
        self.facts
    }
}

impl Step {
    /// The command of this step, or `None` if the configuration does without.
    fn command(self, config: &SessionConfig) -> Option<Command> {
        Some(match self {
            Self::EnvFilter => Command::EnvFilter(Some(0)),
            Self::Announce => Command::VersionSet(CLIENT_VERSION),
            Self::Version => Command::Version,
            Self::Pid => Command::Pid,
            Self::Hold => Command::Hold(HoldRequest::Query),
            Self::State => Command::State(HistoryRequest::OnWithHistory(HistoryDepth::All)),
            Self::Log if config.log => Command::Log(HistoryRequest::On),
            Self::Log => return None,
            Self::Bytecount => Command::Bytecount(config.bytecount_secs()?),
            Self::LoadStats => Command::LoadStats,
            Self::Status => Command::Status {
                format: StatusFormat::V3,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcements(management_version: Option<u32>) -> usize {
        let mut synchronisation = Synchronisation::new(management_version);
        let config = SessionConfig::new("unix:/run/x.sock".parse().expect("an address"));
        let (mut announcements, now) = (0, Moment::now());
        while let Some(command) = synchronisation.next_command(&config) {
            announcements += usize::from(command == Command::VersionSet(CLIENT_VERSION));
            synchronisation.record(None, now, now);
        }
        announcements
    }

    /// An old daemon would answer with its own version, and one that is not told leaves out how to sign.
    #[test]
    fn a_daemon_is_told_what_we_understand_if_it_can_be() {
        for (management_version, expected) in [(None, 0), (Some(1), 0), (Some(3), 1), (Some(5), 1)]
        {
            assert_eq!(
                announcements(management_version),
                expected,
                "{management_version:?}"
            );
        }
    }
}
