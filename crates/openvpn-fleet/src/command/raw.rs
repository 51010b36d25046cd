//! The lines that are taken as they were typed.

use openvpn_management::RawCommand;

use super::CommandError;

/// The raw lines that are taken, by first word. Everything that has a typed call with a check of its own (`kill`,
/// `signal`, `client-*`, `password`, `username`, `push-update-*`) is left out, and so is whatever ends or starves the
/// session.
pub const RAW_COMMANDS: [&str; 16] = [
    "auth-retry",
    "echo",
    "forget-passwords",
    "help",
    "hold",
    "log",
    "mute",
    "nclients",
    "net",
    "network-change",
    "pkcs11-id-count",
    "pkcs11-id-get",
    "remote-entry-count",
    "remote-entry-get",
    "state",
    "status",
];
/// Those that are taken only without an argument: with one they need the check of a typed call.
pub const RAW_QUERIES: [&str; 2] = ["verb", "version"];

/// The command of a raw line, if it is one that is taken.
pub(super) fn allowed(line: &[u8]) -> Result<RawCommand, CommandError> {
    let command = RawCommand::parse(line).map_err(CommandError::RawMalformed)?;
    let mut parameters = command.parameters();
    let word = String::from_utf8_lossy(parameters.next().unwrap_or_default()).into_owned();
    let has_argument = parameters.next().is_some();
    drop(parameters);
    if RAW_COMMANDS.contains(&word.as_str()) {
        return Ok(command);
    }
    let why = match word.as_str() {
        word if RAW_QUERIES.contains(&word) && !has_argument => return Ok(command),
        "verb" => "SetVerb sets it, within its bounds",
        "version" => "it changes what the daemon tells this gateway",
        "kill" | "client-kill" => "KillClients ends clients, and nobody else",
        "signal" => "SignalInstances sends signals",
        "password" | "username" | "needok" | "needstr" | "remote" | "proxy" | "cr-response" => {
            "AnswerQuestion answers what the daemon asks"
        }
        "push-update-broad" | "push-update-cid" => "PushUpdate does that",
        "client-auth-nt" | "client-deny" | "client-pending-auth" => {
            "this gateway does not decide who may connect"
        }
        _ => "it is not on the list of commands that are",
    };
    // A line may hold a secret, so only a word that is known is repeated.
    let is_word = word.len() <= 32
        && word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    Err(CommandError::RawRefused {
        word: if is_word { word } else { "…".to_owned() },
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever ends, starves or blinds the session, or goes around a check, must not pass as a raw line.
    #[test]
    fn raw_lines_are_those_on_the_list() {
        for line in [
            "status 2",
            "help",
            "  \"hold\" release",
            "verb",
            "version",
            "net",
            "log 5",
        ] {
            assert!(allowed(line.as_bytes()).is_ok(), "{line}");
        }
        for line in [
            "",
            "exit",
            "quit",
            "test 5",
            "kill alice",
            "client-kill 0",
            "signal SIGTERM",
            "verb 11",
            "version 5",
            "'verb' 9",
            "log on",
            "state on all",
            "bytecount 1",
            "client-auth 0 0",
            "client-deny 0 0 x",
            "password Auth x",
            "username Auth x",
            "env-filter 3",
            "hold\x01",
            "nonsense",
            "EXIT",
        ] {
            assert!(allowed(line.as_bytes()).is_err(), "{line}");
        }
    }

    /// A refused line is not repeated where it may be logged.
    #[test]
    fn a_refusal_does_not_repeat_a_secret() {
        for line in [
            "password Auth canary",
            "canary-Secret1 x",
            "username canary1 'b",
        ] {
            let error = allowed(line.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("canary"), "{shown}");
        }
    }
}
