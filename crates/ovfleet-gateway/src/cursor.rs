//! Cursors: the places in the event journal that callers keep.
//!
//! Inside is a vector with one entry per origin gateway, from the start: a
//! gateway that stands over others adds entries, not a new format.

use std::sync::{Mutex, MutexGuard, PoisonError};

use openvpn_fleet::{Position, RunId};
use thiserror::Error;

use crate::seal::{Purpose, Sealer};

/// The text is not a cursor of this gateway.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum CursorError {
    /// Not written by this gateway, or altered.
    #[error("it was not written by this gateway, or was altered")]
    NotOurs,
    /// Ours, but it has no entry for this gateway.
    #[error("it belongs to gateway {found:?}, and this is {own:?}")]
    OtherGateway {
        /// Gateways that the cursor names, joined by commas.
        found: String,
        /// This gateway.
        own: String,
    },
}

/// What is inside of a cursor.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(message, repeated, tag = "1")]
    origins: Vec<Origin>,
}

/// A place in the journal of one gateway.
#[derive(Clone, PartialEq, prost::Message)]
struct Origin {
    #[prost(string, tag = "1")]
    gateway: String,
    #[prost(fixed64, tag = "2")]
    run: u64,
    #[prost(uint64, tag = "3")]
    sequence: u64,
}

/// Writes and reads the cursors of one gateway.
#[derive(Debug)]
pub(crate) struct Cursors {
    gateway: String,
    sealer: Sealer,
    /// The last one written, because most callers stand at the same place: all
    /// streams behind the newest event, all reads between two events. Locked to
    /// copy or replace it.
    last: Mutex<Option<(Position, String)>>,
}

impl Cursors {
    /// Cursors of the gateway of this name, authenticated with this key.
    #[must_use]
    pub(crate) fn new(gateway: impl Into<String>, key: &[u8]) -> Self {
        Self {
            gateway: gateway.into(),
            sealer: Sealer::new(key),
            last: Mutex::new(None),
        }
    }

    /// The sealer, for other tokens of the same gateway.
    pub(crate) const fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The cursor of a place: resuming from it gives what follows.
    pub(crate) fn write(&self, position: Position) -> String {
        if let Some((of, cursor)) = &*self.last()
            && *of == position
        {
            return cursor.clone();
        }
        let origin = Origin {
            gateway: self.gateway.clone(),
            run: position.run.0,
            sequence: position.sequence,
        };
        let cursor = self.sealer.seal(
            Purpose::Cursor,
            &Body {
                origins: vec![origin],
            },
        );
        *self.last() = Some((position, cursor.clone()));
        cursor
    }

    fn last(&self) -> MutexGuard<'_, Option<(Position, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of a cursor.
    ///
    /// # Errors
    /// [`CursorError`] when it is not one of this gateway's.
    pub(crate) fn read(&self, cursor: &str) -> Result<Position, CursorError> {
        let body: Body = self
            .sealer
            .open(Purpose::Cursor, cursor)
            .map_err(|_| CursorError::NotOurs)?;
        let own = body
            .origins
            .iter()
            .find(|origin| origin.gateway == self.gateway);
        let Some(own) = own else {
            let found: Vec<_> = body
                .origins
                .into_iter()
                .map(|origin| origin.gateway)
                .collect();
            return Err(CursorError::OtherGateway {
                found: found.join(", "),
                own: self.gateway.clone(),
            });
        };
        Ok(Position {
            run: RunId(own.run),
            sequence: own.sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSITION: Position = Position {
        run: RunId(7),
        sequence: u64::MAX,
    };

    /// Fails if a place gets the cursor that was written for another.
    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let cursors = Cursors::new("vpn1", b"key");
        let next_run = Position {
            run: RunId(8),
            ..POSITION
        };
        for position in [POSITION, POSITION, next_run, POSITION] {
            assert_eq!(cursors.read(&cursors.write(position)), Ok(position));
        }
    }

    #[test]
    fn the_cursor_of_another_gateway_names_both() {
        let cursor = Cursors::new("vpn2", b"key").write(POSITION);
        let error = Cursors::new("vpn1", b"key").read(&cursor).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"it belongs to gateway "vpn2", and this is "vpn1""#
        );
    }
}
