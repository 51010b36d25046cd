//! The fields of a row: eight bytes at a time, since most fields are shorter than what a call of `memchr` costs.

use super::Span;

/// Why a row is not in the snapshot.
pub(super) enum RowError {
    /// It is not what the header promised.
    Malformed,
    /// There is no room for its text.
    Full,
}

/// The fields of a row, from left to right. What is wrong with one is told at the [`end`](Self::end): a test for each
/// field costs more than the field.
pub(super) struct Fields<'a> {
    row: &'a [u8],
    /// Where the next field starts: one past the row's end behind the last.
    position: usize,
    /// The separator, eight times.
    separators: u64,
    malformed: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn of(row: &'a [u8], separator: u8) -> Self {
        Self {
            row,
            position: 0,
            separators: u64::from_ne_bytes([separator; 8]),
            malformed: false,
        }
    }

    /// A field that is kept.
    #[inline(always)]
    pub(super) fn text(&mut self, text: &mut RowText<'_>) -> Span {
        let start = self.position;
        self.skip();
        if self.position == start {
            return Span::default();
        }
        text.push(self.row, start, self.position - 1)
    }

    /// A field that is not; moves on unless there is none.
    #[inline(always)]
    pub(super) fn skip(&mut self) {
        if self.position > self.row.len() {
            self.malformed = true;
            return;
        }
        // Sixteen bytes at a time: most fields are no longer, and a loop that ends where it is foreseen is half the cost.
        while let Some(sixteen) = self.row[self.position..].first_chunk::<16>() {
            let [low, high] = halves(sixteen).map(|eight| zero_bytes(eight ^ self.separators));
            if low | high != 0 {
                let found = if low != 0 {
                    low.trailing_zeros()
                } else {
                    64 + high.trailing_zeros()
                };
                self.position += found as usize / 8 + 1;
                return;
            }
            self.position += 16;
        }
        while self.position < self.row.len() {
            let found = zero_bytes(self.eight() ^ self.separators);
            if found != 0 {
                self.position += found.trailing_zeros() as usize / 8 + 1;
                return;
            }
            self.position += 8;
        }
        self.position = self.row.len() + 1;
    }

    /// A decimal number without sign; finds the field's end on the way.
    #[inline(always)]
    pub(super) fn number(&mut self) -> u64 {
        let start = self.position;
        let (mut value, mut count) = leading_number(self.eight());
        self.position += count;
        while count == 8 {
            let more;
            (more, count) = leading_number(self.eight());
            match push_digits(value, more, count) {
                Some(pushed) => value = pushed,
                None => self.malformed = true,
            }
            self.position += count;
        }
        let ends = match self.row.get(self.position) {
            Some(byte) => *byte == self.separators.to_le_bytes()[0],
            None => true,
        };
        self.malformed |= !ends || self.position == start;
        self.position += 1;
        value
    }

    /// The next eight bytes, the first lowest; behind the row's end NULs, which are no digits and no separators.
    #[inline(always)]
    fn eight(&self) -> u64 {
        let rest = self.row.get(self.position..).unwrap_or_default();
        if let Some(eight) = rest.first_chunk() {
            u64::from_le_bytes(*eight)
        } else if rest.is_empty() {
            0
        } else if let Some(last) = self.row.last_chunk() {
            u64::from_le_bytes(*last) >> (64 - 8 * rest.len())
        } else {
            rest.iter()
                .rev()
                .fold(0, |eight, byte| eight << 8 | u64::from(*byte))
        }
    }

    /// Whether every field was there and was what it had to be, and nothing is left; writes what is kept of the row.
    pub(super) fn end(&self, text: &mut RowText<'_>) -> Result<(), RowError> {
        // Spans are 16 bits wide; a row that is longer only comes with another line limit than ours.
        if self.malformed
            || self.position != self.row.len() + 1
            || self.row.len() > usize::from(u16::MAX)
        {
            return Err(RowError::Malformed);
        }
        text.flush(self.row);
        if text.full {
            Err(RowError::Full)
        } else {
            Ok(())
        }
    }
}

#[inline(always)]
fn halves(sixteen: &[u8; 16]) -> [u64; 2] {
    let sixteen = u128::from_le_bytes(*sixteen);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each half is meant to be a half"
    )]
    [sixteen as u64, (sixteen >> 64) as u64]
}

/// The high bit of the first byte that is zero, and perhaps of later ones.
#[inline]
fn zero_bytes(eight: u64) -> u64 {
    const LOW_BITS: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    eight.wrapping_sub(LOW_BITS) & !eight & HIGH_BITS
}

/// The number these bytes begin with, and how many digits it has.
#[inline(always)]
fn leading_number(eight: u64) -> (u64, usize) {
    const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    const ODD_PAIRS: u64 = 0x0000_00ff_0000_00ff;

    let digits = eight ^ u64::from_ne_bytes([b'0'; 8]);
    // 10 + 0x76 is 0x80. A byte that overflows disturbs only those behind it, and is itself found by its high bit.
    let others = (digits.wrapping_add(u64::from_ne_bytes([0x76; 8])) | digits) & HIGH_BITS;
    let count = others.trailing_zeros() / 8;
    // Shifted so that zeros stand before them, the digits are added up by twos, fours and eights.
    let digits = digits.checked_shl(64 - 8 * count).unwrap_or_default();
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let first = (pairs & ODD_PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let second = ((pairs >> 16) & ODD_PAIRS).wrapping_mul(1 + (10_000 << 32));
    (first.wrapping_add(second) >> 32, count as usize)
}

/// `value` with these digits behind it; `None` if that is too large.
fn push_digits(value: u64, digits: u64, count: usize) -> Option<u64> {
    const POWERS_OF_TEN: [u64; 9] = [
        1,
        10,
        100,
        1_000,
        10_000,
        100_000,
        1_000_000,
        10_000_000,
        100_000_000,
    ];
    value.checked_mul(POWERS_OF_TEN[count])?.checked_add(digits)
}

/// The snapshot's text, where one row's fields go: neighbouring ones together, with the separator between them.
pub(super) struct RowText<'a> {
    text: &'a mut Vec<u8>,
    row_start: usize,
    bytes_max: usize,
    /// Neighbouring fields of the row that are kept and not written yet.
    run_start: usize,
    run_end: usize,
    full: bool,
}

impl<'a> RowText<'a> {
    pub(super) fn new(text: &'a mut Vec<u8>, bytes_max: usize) -> Self {
        let row_start = text.len();
        Self {
            text,
            row_start,
            bytes_max,
            run_start: 0,
            run_end: 0,
            full: false,
        }
    }

    pub(super) fn row_start(&self) -> Result<u32, RowError> {
        self.row_start.try_into().map_err(|_| RowError::Full)
    }

    #[inline(always)]
    fn push(&mut self, row: &[u8], start: usize, end: usize) -> Span {
        if start != self.run_end + 1 {
            self.flush(row);
            self.run_start = start;
        }
        self.run_end = end;
        let offset = self.text.len() - self.row_start;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`end` refuses rows that are too long for it"
        )]
        let position = |at: usize| (offset + at - self.run_start) as u16;
        Span {
            start: position(start),
            end: position(end),
        }
    }

    fn flush(&mut self, row: &[u8]) {
        let run = row.get(self.run_start..self.run_end).unwrap_or_default();
        if self.text.len() + run.len() > self.bytes_max {
            self.full = true;
        } else {
            self.text.extend_from_slice(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(field: &[u8]) -> Option<u64> {
        let mut text = Vec::new();
        let mut fields = Fields::of(field, b'\t');
        let number = fields.number();
        fields
            .end(&mut RowText::new(&mut text, 0))
            .is_ok()
            .then_some(number)
    }

    /// A number that is read wrong is a CID that names somebody else.
    #[test]
    fn numbers_are_read_whole_or_not_at_all() {
        let mut numbers = vec![0, u64::MAX, u64::MAX - 1];
        for power in 0..20 {
            let power = 10u64.pow(power);
            numbers.extend([power - 1, power, power + 1, power.saturating_mul(7)]);
        }
        for value in numbers {
            assert_eq!(number(value.to_string().as_bytes()), Some(value));
        }
        for text in [
            "",
            "-1",
            "1x",
            "x",
            "12345678x",
            "1234567 ",
            "18446744073709551616",
            "99999999999999999999999",
        ] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
        for byte in (0..=255u8).filter(|byte| !byte.is_ascii_digit() && *byte != b'\t') {
            for length in 0..20 {
                let field = [&b"1".repeat(length)[..], &[byte]].concat();
                assert_eq!(number(&field), None, "{length} digits and {byte}");
            }
        }
    }

    /// Every length of a field, before every length of rest, with bytes that look like the separator to a sloppy scan.
    #[test]
    fn fields_end_at_their_separator() {
        for length in 0..40 {
            for rest in 0..20 {
                for filler in [b'x', b'\t' + 1, b'\t' - 1, b'\t' | 0x80, 0, 0xff] {
                    let row = [&vec![filler; length][..], b"\t", &vec![filler; rest]].concat();
                    let mut text = Vec::new();
                    let mut row_text = RowText::new(&mut text, usize::MAX);
                    let mut fields = Fields::of(&row, b'\t');
                    let spans = [fields.text(&mut row_text), fields.text(&mut row_text)];
                    assert!(fields.end(&mut row_text).is_ok());
                    let lengths = spans.map(|span| usize::from(span.end - span.start));
                    assert_eq!(lengths, [length, rest]);
                    assert_eq!(text, row);
                }
            }
        }
    }
}
