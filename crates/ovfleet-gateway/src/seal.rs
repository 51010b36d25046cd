//! Opaque tokens that callers keep for us: cursors and page tokens.
//!
//! A token is printable, at most [`TOKEN_BYTES_MAX`] long, and authenticated:
//! one that this gateway did not write, or that was altered, is refused instead
//! of being believed. It hides nothing, so nothing secret goes into one.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use thiserror::Error;

/// Longest token that is written or read. A longer one is not ours.
pub(crate) const TOKEN_BYTES_MAX: usize = 4096;
/// Bytes kept of the HMAC-SHA-256 tag.
const TAG_BYTES: usize = 16;

/// What a token is for. A token of one purpose is refused for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A place in the event journal.
    Cursor,
    /// A place in a list.
    Page,
}

impl Purpose {
    // First byte of every token: purpose and layout version in one. A new
    // layout takes a new byte, and the old one stays readable for a release.
    const fn mark(self) -> u8 {
        match self {
            Self::Cursor => 0x11,
            Self::Page => 0x21,
        }
    }
}

/// The token was not written by this gateway, or was altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a token of this gateway")]
pub(crate) struct NotOurs;

/// Writes and reads tokens with one key.
#[derive(Debug)]
pub(crate) struct Sealer {
    key: hmac::Key,
}

impl Sealer {
    /// A sealer with this key. Gateways that shall read each other's tokens, or
    /// their own after a restart, use the same key.
    #[must_use]
    pub(crate) fn new(key: &[u8]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// Writes a token around `body`.
    pub(crate) fn seal(&self, purpose: Purpose, body: &impl Message) -> String {
        let mut bytes = vec![purpose.mark()];
        bytes.extend_from_slice(&body.encode_to_vec());
        let tag = hmac::sign(&self.key, &bytes);
        bytes.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads back what [`Sealer::seal`] wrote.
    ///
    /// # Errors
    /// [`NotOurs`] for anything else.
    pub(crate) fn open<M: Message + Default>(
        &self,
        purpose: Purpose,
        token: &str,
    ) -> Result<M, NotOurs> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(NotOurs);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| NotOurs)?;
        let (signed, tag) = bytes
            .split_at_checked(bytes.len().saturating_sub(TAG_BYTES))
            .ok_or(NotOurs)?;
        let expected = hmac::sign(&self.key, signed);
        // Constant time: the comparison must not tell how much of a guess is right.
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.as_ref()[..TAG_BYTES], tag)
            .map_err(|_| NotOurs)?;
        let body = signed.strip_prefix(&[purpose.mark()]).ok_or(NotOurs)?;
        M::decode(body).map_err(|_| NotOurs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Body {
        #[prost(string, tag = "1")]
        text: String,
    }

    fn body() -> Body {
        Body {
            text: "eu1".to_owned(),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was() {
        let sealer = Sealer::new(b"key");
        let token = sealer.seal(Purpose::Cursor, &body());
        assert!(token.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(sealer.open(Purpose::Cursor, &token), Ok(body()));
    }

    /// Fails if any byte of a token is not covered by its tag.
    #[test]
    fn an_altered_token_is_refused_at_every_byte() {
        let sealer = Sealer::new(b"key");
        let token = sealer.seal(Purpose::Cursor, &body());
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for index in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[index] ^= 1;
            let altered = URL_SAFE_NO_PAD.encode(altered);
            assert_eq!(
                sealer.open::<Body>(Purpose::Cursor, &altered),
                Err(NotOurs),
                "byte {index}"
            );
        }
        for length in 0..token.len() {
            assert_eq!(
                sealer.open::<Body>(Purpose::Cursor, &token[..length]),
                Err(NotOurs)
            );
        }
    }

    #[test]
    fn another_key_and_another_purpose_are_refused() {
        let token = Sealer::new(b"key").seal(Purpose::Cursor, &body());
        assert_eq!(
            Sealer::new(b"other").open::<Body>(Purpose::Cursor, &token),
            Err(NotOurs)
        );
        assert_eq!(
            Sealer::new(b"key").open::<Body>(Purpose::Page, &token),
            Err(NotOurs)
        );
        assert_eq!(
            Sealer::new(b"key").open::<Body>(Purpose::Page, "§"),
            Err(NotOurs)
        );
    }
}
