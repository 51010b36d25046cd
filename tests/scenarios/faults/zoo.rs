//! Daemons that do wrong, one for each way we could think of.

use std::time::Duration;

use openvpn_simulator::Misbehaviour as Evil;
use ovfleet_tests::random::soak;

const GREETING: &[u8] =
    b">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info\r\n";
const UNKNOWN_CIDS: &[u8] = b">CLIENT:ADDRESS,77777,10.8.9.9,1\r\n\
    >CLIENT:DISCONNECT,99999\r\n>CLIENT:ENV,END\r\n";
const NUMBERS: &[u8] = b">BYTECOUNT_CLI:99999999999999999999999999,1,1\r\n\
    >BYTECOUNT_CLI:0,18446744073709551615,18446744073709551616\r\n\
    >STATE:99999999999999999999,CONNECTED,SUCCESS,,,,,\r\n";
const BROKEN_BLOCK: &[u8] = b">CLIENT:ESTABLISHED,5\r\n>CLIENT:ENV,common_name=x\r\n\
    >LOG:1700000000,,in between\r\n";
const STRAY_LINES: &[u8] = b">LOG:1700000000,,in between\r\n>CLIENT:ENV,stray=1\r\n";

/// Clients with environments just within the bounds, 4 MiB of them.
fn large_environments() -> Vec<u8> {
    let value = "x".repeat(240);
    let block = |cid: usize| {
        let lines = (0..900).map(|line| format!(">CLIENT:ENV,made_up_{line}={value}\r\n"));
        let lines: String = lines.collect();
        format!(">CLIENT:ESTABLISHED,{cid}\r\n{lines}>CLIENT:ENV,END\r\n")
    };
    (77_000..77_018).map(block).collect::<String>().into()
}

/// What a kind of evil has to end in.
#[derive(Clone, Copy)]
pub(super) enum Verdict {
    /// It is seen through: the reason, or the last error where it has come back by then, has
    /// these words in it.
    Named(&'static str),
    /// It can be lived with: it is ATTACHED.
    Lived,
    /// One or the other, as it falls; it does not go unsaid.
    Either,
}

/// One daemon that does wrong.
pub(super) struct Wrong {
    pub(super) name: &'static str,
    pub(super) evil: Evil,
    pub(super) verdict: Verdict,
}

/// Every way to be wrong, one daemon for each.
pub(super) fn zoo() -> Vec<Wrong> {
    use Verdict::{Either, Lived, Named};

    let says = |bytes: &[u8]| Evil::Interjects(bytes.to_vec());
    let interrupts = |bytes: &[u8]| Evil::InterjectsInside(bytes.to_vec());
    let rows = if soak() { 1_000_000 } else { 30_000 };
    let lines = if soak() { 1_000_000 } else { 50_000 };
    let wrong = |name, evil, verdict| Wrong {
        name,
        evil,
        verdict,
    };
    vec![
        // No OpenVPN at all.
        wrong(
            "ssh",
            Evil::Banner(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
            Named("no OpenVPN management interface"),
        ),
        wrong(
            "http",
            Evil::Banner(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            Named("no OpenVPN management interface"),
        ),
        wrong("mute", Evil::NeverGreets, Named("hears nothing")),
        wrong(
            "no-newline",
            Evil::Banner(vec![b'x'; 1_000]),
            Named("no OpenVPN management interface"),
        ),
        wrong(
            "prompts-for-ever",
            Evil::PasswordPromptForever,
            Named("asks for a password"),
        ),
        // The line.
        wrong("endless-line", Evil::EndlessLine, Named("a line is longer")),
        wrong("garbage", Evil::Garbage { bytes: 1 << 20 }, Either),
        wrong(
            "nul",
            says(b">LOG:1700000000,,nul \0 in\0side\r\n\0\0\r\n"),
            Lived,
        ),
        wrong(
            "ansi",
            says(b">LOG:1700000000,,\x1b[2J\x1b]0;title\x07 \x9b31m\r\n"),
            Lived,
        ),
        wrong("not-utf8", Evil::InvalidNames, Lived),
        wrong("nothing-but-newlines", says(&[b'\n'; 1 << 16]), Lived),
        wrong(
            "slow-loris",
            Evil::SlowLoris {
                pause: Duration::from_secs(1),
            },
            Named("hears nothing"),
        ),
        // The session.
        wrong("silent", Evil::SilentAfterGreeting, Named("no answer for")),
        wrong(
            "closes-at-once",
            Evil::EarlyClose { after_bytes: 1 },
            Named("closed the connection"),
        ),
        wrong(
            "closes-in-the-greeting",
            Evil::EarlyClose { after_bytes: 40 },
            Named("closed the connection"),
        ),
        wrong(
            "closes-in-the-attach",
            Evil::EarlyClose { after_bytes: 300 },
            Named("closed the session"),
        ),
        wrong(
            "closes-in-the-status",
            Evil::EarlyClose { after_bytes: 3_000 },
            Named("closed the session"),
        ),
        wrong("half-closes", Evil::HalfClose, Named("closed the session")),
        wrong("greets-again", says(GREETING), Either),
        wrong("prompts-again", Evil::PasswordPromptMidSession, Either),
        wrong("dies-and-goes-on", says(b">FATAL:all is lost\r\n"), Either),
        // The reply.
        wrong("huge-status", Evil::HugeStatus { rows }, Lived),
        wrong("no-end", Evil::MissingEnd, Named("no answer for")),
        wrong(
            "endless-replies",
            Evil::EndlessReplies,
            Named("a reply does not end"),
        ),
        wrong("two-ends", Evil::ExtraEnd, Lived),
        wrong("stray-ends", says(b"END\r\n"), Either),
        wrong("unasked", Evil::UnaskedReplies, Either),
        wrong("unasked-error", says(b"ERROR: no, not that\r\n"), Either),
        wrong("doubled", Evil::DoubledReplies, Either),
        wrong("swapped", Evil::SwappedReplies, Named("no answer for")),
        wrong(
            "late",
            Evil::LateReplies {
                delay: Duration::from_secs(7),
            },
            Named("no answer for"),
        ),
        wrong("fields", Evil::WrongFieldCount, Lived),
        wrong("header", Evil::ForeignHeader, Either),
        wrong(
            "clock-jumps",
            Evil::NonsenseClock {
                jump_max: Duration::from_secs(86_400),
            },
            Lived,
        ),
        wrong("clock-zero", Evil::ClockAt(0), Lived),
        wrong("clock-negative", Evil::ClockAt(-86_400 * 365 * 100), Lived),
        wrong("clock-future", Evil::ClockAt(1 << 52), Lived),
        // The notification.
        wrong("cid-reuse", Evil::CidReuse, Lived),
        wrong(
            "endless-env",
            Evil::EndlessEnv,
            Named("an ENV block has more than"),
        ),
        wrong(
            "long-env",
            Evil::LongEnv { lines },
            Named("an ENV block has more than"),
        ),
        wrong("large-env", says(&large_environments()), Lived),
        wrong("unknown-cids", says(UNKNOWN_CIDS), Either),
        wrong("numbers", says(NUMBERS), Either),
        wrong("interrupts-a-reply", interrupts(STRAY_LINES), Either),
        wrong("interrupts-a-block", says(BROKEN_BLOCK), Either),
        wrong(
            "flood",
            Evil::LogFlood {
                lines_per_second: 20_000,
            },
            Lived,
        ),
    ]
}
