//! The `NAME=VALUE` lines behind a client or up/down notification.

use std::fmt;

use bytes::Bytes;

use crate::limits::{ENV_BYTES_MAX, ENV_LINES_MAX};
use crate::text::Text;

/// Names whose values are secrets: what a client typed, or what stands in for it.
const SECRET_NAMES: [&[u8]; 4] = [b"password", b"auth_token", b"session_id", b"cr_response"];

/// An ENV block: names and values in the order the daemon sent them.
///
/// One buffer for all lines. `Debug` hides the values of passwords and tokens; [`get`](Self::get) does not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env {
    /// All lines, `name=value`, without separators between them.
    text: Bytes,
    /// Where each line's name and the line itself end; it starts where the one before ends.
    ends: Box<[EntryEnd]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct EntryEnd {
    name: u32,
    line: u32,
}

impl Env {
    /// The value of `name`: the last one, should the daemon repeat it.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter()
            .filter(|(candidate, _)| *candidate == name)
            .last()
            .map(|(_, value)| value)
    }

    /// Like [`get`](Self::get), sharing the block's buffer.
    #[must_use]
    pub fn get_text(&self, name: &[u8]) -> Option<Text> {
        self.get(name)
            .map(|value| Text::from(self.text.slice_ref(value)))
    }

    /// Names and values, in the daemon's order. A line without `=` is a name with an empty value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let line = &self.text[start..end.line as usize];
            let name_length = end.name as usize - start;
            start = end.line as usize;
            (
                &line[..name_length],
                line.get(name_length + 1..).unwrap_or_default(),
            )
        })
    }

    /// Number of lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the block had no line, as in the DISCONNECT of a client that never established.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes it holds on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.text.len() + size_of_val(&*self.ends)
    }

    /// Whether the value of `name` is hidden by `Debug`, and should be by others who show it.
    #[must_use]
    pub fn is_secret(name: &[u8]) -> bool {
        SECRET_NAMES.contains(&name)
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| {
                let shown = if Self::is_secret(name) {
                    Text::from("[redacted]")
                } else {
                    Text::copy_from(value)
                };
                (Text::copy_from(name), shown)
            }))
            .finish()
    }
}

/// Collects pairs up to the default limits of an ENV block; pairs beyond them are left out.
impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut builder = EnvBuilder::default();
        for (name, value) in pairs {
            let line = [name.as_ref(), value.as_ref()].join(&b'=');
            if builder.push(&line, ENV_LINES_MAX, ENV_BYTES_MAX).is_err() {
                break;
            }
        }
        builder.build()
    }
}

/// An ENV block in the making.
#[derive(Clone, Default)]
pub(crate) struct EnvBuilder {
    text: Vec<u8>,
    ends: Vec<EntryEnd>,
}

/// The block has more lines or bytes than allowed.
pub(crate) struct EnvTooLarge;

impl EnvBuilder {
    /// Adds one `name=value` line.
    pub(crate) fn push(
        &mut self,
        line: &[u8],
        lines_max: usize,
        bytes_max: usize,
    ) -> Result<(), EnvTooLarge> {
        let start = self.text.len();
        let end = start + line.len();
        let name = start + memchr::memchr(b'=', line).unwrap_or(line.len());
        let (Ok(name), Ok(line_end)) = (u32::try_from(name), u32::try_from(end)) else {
            return Err(EnvTooLarge);
        };
        if self.ends.len() >= lines_max || end > bytes_max {
            return Err(EnvTooLarge);
        }
        self.text.extend_from_slice(line);
        self.ends.push(EntryEnd {
            name,
            line: line_end,
        });
        Ok(())
    }

    pub(crate) fn build(self) -> Env {
        Env {
            text: self.text.into(),
            ends: self.ends.into(),
        }
    }
}

/// Says nothing of its text: passwords are in there.
impl fmt::Debug for EnvBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvBuilder")
            .field("lines", &self.ends.len())
            .finish_non_exhaustive()
    }
}
