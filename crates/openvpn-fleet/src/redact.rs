//! What a daemon's log gives away, left out.

use openvpn_management::Text;

/// Commands whose arguments a daemon writes into its log although they may be secrets.
const SECRET_COMMANDS: [&[u8]; 4] = [b"cr-response", b"needstr", b"password", b"username"];
/// How a daemon logs a command.
const COMMAND: &[u8] = b"MANAGEMENT: CMD '";
/// What a dynamic challenge begins with: a client logs it whole, with the state that stands for the first login.
const CHALLENGE: &[u8] = b"CRV1:";
/// Stands in for what is left out.
const LEFT_OUT: &[u8] = b"[...]";

/// A line of a daemon's log without what may be a secret in it.
#[must_use]
pub fn redact_log(line: Text) -> Text {
    let bytes = line.as_bytes();
    if let Some(command) = bytes.strip_prefix(COMMAND) {
        let word = SECRET_COMMANDS
            .into_iter()
            .find(|word| command.starts_with(word));
        return match word {
            Some(word) => Text::copy_from(&[COMMAND, word, b" ", LEFT_OUT, b"'"].concat()),
            None => line,
        };
    }
    let Some(at) = find(bytes, CHALLENGE) else {
        return line;
    };
    // CRV1:{flags}:{state}:{username}:{text}
    let (head, rest) = bytes.split_at(at + CHALLENGE.len());
    let mut parts = rest.splitn(3, |byte| *byte == b':');
    let (flags, _state) = (parts.next().unwrap_or_default(), parts.next());
    match parts.next() {
        Some(tail) => Text::copy_from(&[head, flags, b":", LEFT_OUT, b":", tail].concat()),
        None => Text::copy_from(&[head, LEFT_OUT].concat()),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon logs what it was told and what its server asked, and callers read its log.
    #[test]
    fn what_may_be_a_secret_is_left_out() {
        for (line, shown) in [
            (
                "MANAGEMENT: CMD 'cr-response Y2FuYXJ5'",
                "MANAGEMENT: CMD 'cr-response [...]'",
            ),
            ("MANAGEMENT: CMD 'pid'", "MANAGEMENT: CMD 'pid'"),
            (
                "AUTH: Received control message: AUTH_FAILED,CRV1:R,E:state42:dXM=:Second: factor",
                "AUTH: Received control message: AUTH_FAILED,CRV1:R,E:[...]:dXM=:Second: factor",
            ),
            ("AUTH_FAILED,CRV1:R,E:state42", "AUTH_FAILED,CRV1:[...]"),
            ("a, b", "a, b"),
            ("CRV1", "CRV1"),
        ] {
            assert_eq!(redact_log(line.into()), shown, "{line}");
        }
    }
}
