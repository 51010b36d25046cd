//! Which commands a tool may give.

use std::collections::BTreeSet;
use std::fmt;

/// What it takes to give a command that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// Only asks, or concerns the tool alone.
    Read,
    /// Changes the daemon or its clients.
    Operate,
    /// Speaks for the daemon's owner: passwords, and who is let in.
    Own,
}

/// A command OpenVPN knows, in one version or another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    /// With an argument.
    right: Right,
    /// Without one, it only asks.
    asks_when_bare: bool,
}

const fn verb(name: &'static str, right: Right) -> Verb {
    Verb {
        name,
        right,
        asks_when_bare: false,
    }
}

const fn setting(name: &'static str, right: Right) -> Verb {
    Verb {
        name,
        right,
        asks_when_bare: true,
    }
}

/// Every command of OpenVPN 2.3 to 2.7. A word that is not here never reaches a daemon.
const VERBS: [Verb; 45] = [
    setting("auth-retry", Right::Operate),
    verb("bytecount", Right::Read),
    verb("certificate", Right::Own),
    verb("client-auth", Right::Own),
    verb("client-auth-nt", Right::Own),
    verb("client-deny", Right::Own),
    verb("client-kill", Right::Operate),
    verb("client-pending-auth", Right::Own),
    verb("client-pf", Right::Own),
    verb("cr-response", Right::Own),
    verb("echo", Right::Read),
    verb("env-filter", Right::Read),
    verb("exit", Right::Read),
    verb("forget-passwords", Right::Operate),
    verb("help", Right::Read),
    setting("hold", Right::Operate),
    verb("kill", Right::Operate),
    verb("load-stats", Right::Read),
    verb("log", Right::Read),
    setting("mute", Right::Operate),
    verb("nclients", Right::Read),
    verb("needok", Right::Own),
    verb("needstr", Right::Own),
    verb("net", Right::Read),
    verb("network-change", Right::Operate),
    verb("password", Right::Own),
    verb("pid", Right::Read),
    verb("pk-sig", Right::Own),
    verb("pkcs11-id-count", Right::Read),
    verb("pkcs11-id-get", Right::Read),
    verb("proxy", Right::Operate),
    verb("push-update-broad", Right::Operate),
    verb("push-update-cid", Right::Operate),
    verb("quit", Right::Read),
    verb("remote", Right::Operate),
    verb("remote-entry-count", Right::Read),
    verb("remote-entry-get", Right::Read),
    verb("rsa-sig", Right::Own),
    verb("signal", Right::Operate),
    verb("state", Right::Read),
    verb("status", Right::Read),
    verb("test", Right::Read),
    verb("username", Right::Own),
    setting("verb", Right::Operate),
    verb("version", Right::Read),
];

impl Verb {
    /// The verb of this name, in exactly this spelling: OpenVPN's are case-sensitive.
    pub(crate) fn find(name: &[u8]) -> Option<&'static Self> {
        VERBS.iter().find(|verb| verb.name.as_bytes() == name)
    }

    /// What it takes to give it with so many arguments.
    pub(crate) fn right(&self, arguments: usize) -> Right {
        if self.asks_when_bare && arguments == 0 {
            Right::Read
        } else {
            self.right
        }
    }
}

/// Which commands the tools of one socket may give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Policy {
    /// What only asks, and each tool's own switches.
    #[default]
    ReadOnly,
    /// Also what changes the daemon or its clients: `kill`, `signal`, `verb`, `mute`, `hold`, `auth-retry` and the like.
    Operator,
    /// Also passwords, and who is let in.
    Full,
    /// What only asks, and these.
    Verbs(BTreeSet<&'static str>),
}

/// There is no such command in any version of OpenVPN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no command of OpenVPN")]
pub struct UnknownVerb {
    /// The word.
    pub name: String,
}

impl Policy {
    /// A policy by its commands.
    ///
    /// # Errors
    /// [`UnknownVerb`] for the first word that is none.
    pub fn of_verbs<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownVerb> {
        let find = |name: &str| match Verb::find(name.as_bytes()) {
            Some(verb) => Ok(verb.name),
            None => Err(UnknownVerb {
                name: name.to_owned(),
            }),
        };
        names
            .into_iter()
            .map(find)
            .collect::<Result<_, _>>()
            .map(Self::Verbs)
    }

    pub(crate) fn allows(&self, verb: &Verb, arguments: usize) -> bool {
        let needed = verb.right(arguments);
        match self {
            Self::ReadOnly => needed == Right::Read,
            Self::Operator => needed <= Right::Operate,
            Self::Full => true,
            Self::Verbs(names) => needed == Right::Read || names.contains(verb.name),
        }
    }

    /// Whether the passwords of VPN users are the tool's business: it decides who is let in.
    pub(crate) fn shows_secrets(&self) -> bool {
        const DECIDING: [&str; 3] = ["client-auth", "client-auth-nt", "client-deny"];
        let allows =
            |name: &&str| Verb::find(name.as_bytes()).is_some_and(|verb| self.allows(verb, 2));
        DECIDING.iter().any(allows)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("read-only"),
            Self::Operator => f.write_str("operator"),
            Self::Full => f.write_str("full"),
            Self::Verbs(names) => {
                let names: Vec<&str> = names.iter().copied().collect();
                write!(f, "[{}]", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(policy: &Policy, name: &str, arguments: usize) -> bool {
        policy.allows(Verb::find(name.as_bytes()).unwrap(), arguments)
    }

    /// A level that allows too much hands a monitoring tool the daemon.
    #[test]
    fn levels_allow_what_they_say() {
        let list = Policy::of_verbs(["kill", "verb"]).unwrap();
        let table = [
            // name, arguments, read-only, operator, full, list
            ("status", 1, true, true, true, true),
            ("verb", 0, true, true, true, true),
            ("verb", 1, false, true, true, true),
            ("mute", 1, false, true, true, false),
            ("hold", 1, false, true, true, false),
            ("auth-retry", 1, false, true, true, false),
            ("kill", 1, false, true, true, true),
            ("kill", 0, false, true, true, true),
            ("signal", 1, false, true, true, false),
            ("client-kill", 1, false, true, true, false),
            ("password", 2, false, false, true, false),
            ("client-auth-nt", 2, false, false, true, false),
            ("forget-passwords", 0, false, true, true, false),
        ];
        for (name, arguments, read_only, operator, full, listed) in table {
            assert_eq!(
                allows(&Policy::ReadOnly, name, arguments),
                read_only,
                "{name}"
            );
            assert_eq!(
                allows(&Policy::Operator, name, arguments),
                operator,
                "{name}"
            );
            assert_eq!(allows(&Policy::Full, name, arguments), full, "{name}");
            assert_eq!(allows(&list, name, arguments), listed, "{name}");
        }
        assert!(Policy::of_verbs(["kill", "Kill"]).is_err());
    }
}
