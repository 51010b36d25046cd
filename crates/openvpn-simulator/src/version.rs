//! The release lines of OpenVPN, and what the management interface of each does its own way.

use std::fmt;

use tokio::time::Duration;

/// A release line of OpenVPN that a daemon plays.
///
/// 2.6 is played to the letter, log lines included. Of the others it is the management
/// interface that is theirs: greeting, commands, replies, notifications, `status`; their log is
/// worded as that of 2.6. 2.3 is played after its source alone, the others after real daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 2.3.18: no client IDs in `status`, and five fields in a state.
    V2_3,
    /// 2.4.12.
    V2_4,
    /// 2.5.11.
    V2_5,
    /// 2.6.14.
    V2_6,
    /// 2.7.6: addresses with their protocol, byte counts by timer, push updates.
    V2_7,
}

impl Version {
    /// Every one of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V2_3, Self::V2_4, Self::V2_5, Self::V2_6, Self::V2_7];

    /// How long a restarting daemon waits before it serves again.
    pub fn restart_pause(self) -> Duration {
        if self <= Self::V2_5 {
            Duration::from_secs(5)
        } else {
            Duration::from_secs(1)
        }
    }

    /// Number in the greeting.
    pub(crate) fn management_version(self) -> u8 {
        match self {
            Self::V2_3 | Self::V2_4 => 1,
            Self::V2_5 => 3,
            Self::V2_6 => 5,
            Self::V2_7 => 6,
        }
    }

    /// Number of a client's first key; later ones follow from it.
    pub(crate) fn first_kid(self) -> u64 {
        if self <= Self::V2_5 { 0 } else { 1 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2_3 => "2.3.18",
            Self::V2_4 => "2.4.12",
            Self::V2_5 => "2.5.11",
            Self::V2_6 => "2.6.14",
            Self::V2_7 => "2.7.6",
        })
    }
}
