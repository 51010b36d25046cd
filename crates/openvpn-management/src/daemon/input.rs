//! How OpenVPN cuts a manager's bytes into lines.

/// What OpenVPN reads at a time.
pub const READ_BYTES: usize = 256;
/// OpenVPN's buffer for what it has read and not run: a line with its LF, and whatever of the next lines was read.
pub const LINE_BUFFER_BYTES: usize = 1_024;

/// Cuts a manager's bytes into lines as OpenVPN does.
///
/// CR and all other control bytes but LF are deleted. A byte that no longer fits empties the buffer and is lost itself,
/// so the tail of a line that is too long becomes a line of its own, and is run.
#[derive(Debug, Clone, Default)]
pub struct InputLines {
    buffer: Vec<u8>,
}

impl InputLines {
    /// Takes bytes, as read in pieces of [`READ_BYTES`], and gives the lines completed by them, without LF.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in bytes.chunks(READ_BYTES) {
            for byte in piece
                .iter()
                .copied()
                .filter(|byte| *byte == b'\n' || !byte.is_ascii_control())
            {
                if self.buffer.len() < LINE_BUFFER_BYTES {
                    self.buffer.push(byte);
                } else {
                    self.buffer.clear();
                }
            }
            while let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.truncate(end);
                lines.push(line);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<Vec<u8>> {
        InputLines::default().handle_input(input)
    }

    /// OpenVPN 2.6.14 ran `pid` for each of these but the two that vanish.
    #[test]
    fn long_lines_are_cut_as_openvpn_cuts_them() {
        let long = |length| vec![b'x'; length];
        let with = |length, tail: &[u8]| [long(length), tail.to_vec()].concat();
        assert_eq!(
            lines(&with(1_023, b"\npid\n")),
            [long(1_023), b"pid".to_vec()]
        );
        // The LF finds no room: the line vanishes, and the next is whole.
        assert_eq!(lines(&with(1_024, b"\n")), Vec::<Vec<u8>>::new());
        // The last byte finds no room: an empty line is left.
        assert_eq!(lines(&with(1_025, b"\n")), [b"".to_vec()]);
        assert_eq!(lines(&with(1_024, b"ypid\n")), [b"pid".to_vec()]);
    }

    /// A value with a TAB in it would name something else.
    #[test]
    fn control_bytes_are_deleted() {
        assert_eq!(
            lines(b"pi\0d\r\npid\tx\npid\x07\n"),
            [b"pid".to_vec(), b"pidx".to_vec(), b"pid".to_vec()]
        );
    }

    /// What limits a block's lines: a line that would fit alone is lost when too much is read behind it.
    #[test]
    fn a_long_line_among_others_is_lost() {
        let input = [
            &b"pid\n".repeat(50)[..],
            &[b'x'; 1_000],
            b"\n",
            &b"pid\n".repeat(50),
        ]
        .concat();
        assert!(!lines(&input).contains(&vec![b'x'; 1_000]));
    }
}
