//! The fields of a row. Where they end is found for 64 bytes at a time: most are shorter than what a search for each
//! would cost, and a branch for each byte or each length would be guessed wrong too often.

use super::Span;
use crate::text::parse_u64;

/// Most columns of a table; OpenVPN 2.7 has twelve.
pub(super) const COLUMNS_MAX: usize = 32;

/// Why a row is not in the snapshot.
pub(super) enum RowError {
    /// It is not what the header promised.
    Malformed,
    /// There is no room for its text.
    Full,
}

/// A row and where its fields are.
pub(super) struct Fields<'a> {
    row: &'a [u8],
    /// Where each field starts, and one past the separator that the last one would have.
    starts: [u32; COLUMNS_MAX + 1],
    /// Whether a number was none. It is told at the [`end`](Self::end): a branch for each costs more than the number.
    malformed: bool,
}

impl<'a> Fields<'a> {
    /// A row that is not split yet.
    #[inline(always)]
    pub(super) fn of(row: &'a [u8]) -> Self {
        Self {
            row,
            starts: [0; _],
            malformed: false,
        }
    }

    /// Splits the row, which must have `columns` fields. Not part of `of`: that would have to copy `starts`.
    #[inline(always)]
    pub(super) fn split(&mut self, separator: u8, columns: usize) -> Result<(), RowError> {
        let Self { row, starts, .. } = self;
        // Spans are 16 bits wide; a row that is longer only comes with another line limit than ours.
        let length = u16::try_from(row.len()).map_err(|_| RowError::Malformed)?;
        if columns > COLUMNS_MAX {
            return Err(RowError::Malformed);
        }
        let mut found = 1;
        let mut block_start = 0;
        while block_start < u32::from(length) {
            let rest = &row[block_start as usize..];
            let mut padded;
            let (block, seen) = match (rest.first_chunk(), row.last_chunk()) {
                (Some(block), _) => (block, 0),
                // The end again, rather than a shorter block.
                (None, Some(last)) => (last, last.len() - rest.len()),
                (None, None) => {
                    padded = [0; _];
                    padded[..rest.len()].copy_from_slice(rest);
                    (&padded, 0)
                }
            };
            let mut separators = matches(block, separator) >> seen;
            while separators != 0 {
                let start = starts.get_mut(found).ok_or(RowError::Malformed)?;
                *start = block_start.wrapping_add(separators.trailing_zeros() + 1);
                separators &= separators - 1;
                found += 1;
            }
            block_start += u64::BITS;
        }
        if found != columns {
            return Err(RowError::Malformed);
        }
        starts[columns] = u32::from(length) + 1;
        Ok(())
    }

    /// Where the field of this column is.
    #[inline(always)]
    pub(super) fn span(&self, column: usize) -> Span {
        let (start, end) = self.range(column);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`split` refuses rows that are too long for it"
        )]
        Span {
            start: start as u16,
            end: end as u16,
        }
    }

    #[inline(always)]
    fn range(&self, column: usize) -> (usize, usize) {
        // No column is beyond the last, so there is nothing to check.
        let column = column % COLUMNS_MAX;
        (
            self.starts[column] as usize,
            (self.starts[column + 1] as usize).wrapping_sub(1),
        )
    }

    /// The decimal number without sign that is in this column.
    #[inline(always)]
    pub(super) fn number(&mut self, column: usize) -> u64 {
        let (start, end) = self.range(column);
        let short = match self.row.get(..end).and_then(<[u8]>::last_chunk) {
            Some(sixteen) => short_number(sixteen, end.wrapping_sub(start)),
            None => None,
        };
        let number = short.or_else(|| parse_u64(self.row.get(start..end)?));
        self.malformed |= number.is_none();
        number.unwrap_or_default()
    }

    /// Whether every number was one.
    #[inline(always)]
    pub(super) fn end(&self) -> Result<(), RowError> {
        if self.malformed {
            Err(RowError::Malformed)
        } else {
            Ok(())
        }
    }
}

/// A bit for each byte of the block that is this one, the first lowest.
#[inline(always)]
fn matches(block: &[u8; 64], byte: u8) -> u64 {
    // Compilers compare sixteen at a time. The multiplication moves the ones of eight bytes into its highest byte.
    let ones = block.map(|candidate| u8::from(candidate == byte));
    let (eights, _) = ones.as_chunks();
    eights.iter().enumerate().fold(0, |found, (at, eight)| {
        let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        found | gathered << (8 * at)
    })
}

/// The number that the last `count` of these bytes make; `None` if they do not, or if it takes more of them.
#[inline(always)]
fn short_number(sixteen: &[u8; 16], count: usize) -> Option<u64> {
    let sixteen = u128::from_le_bytes(*sixteen);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each half is meant to be a half"
    )]
    let [high, low] = [sixteen as u64, (sixteen >> 64) as u64];
    match count {
        1..=8 => last_digits(low, count),
        9..=16 => {
            let (high, low) = last_digits(high, count - 8).zip(last_digits(low, 8))?;
            Some(high * 100_000_000 + low)
        }
        _ => None,
    }
}

/// The number that the last `count` of eight bytes make, the first lowest, if they are digits.
#[inline(always)]
fn last_digits(eight: u64, count: usize) -> Option<u64> {
    const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    const ODD_PAIRS: u64 = 0x0000_00ff_0000_00ff;

    // What stands before them becomes zeros.
    let before = 64 - 8 * count;
    let digits = (eight ^ u64::from_ne_bytes([b'0'; 8])) >> before << before;
    // 10 + 0x76 is 0x80. A byte that overflows disturbs only those behind it, and is itself found by its high bit.
    let others = (digits.wrapping_add(u64::from_ne_bytes([0x76; 8])) | digits) & HIGH_BITS;
    if others != 0 {
        return None;
    }
    // Added up by twos, fours and eights.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let first = (pairs & ODD_PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let second = ((pairs >> 16) & ODD_PAIRS).wrapping_mul(1 + (10_000 << 32));
    Some(first.wrapping_add(second) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number in a row's only column, behind as many bytes of other columns.
    fn number(before: usize, field: &[u8]) -> Option<u64> {
        let row = [&vec![b'7'; before][..], b"\t", field].concat();
        let mut fields = Fields::of(&row);
        fields.split(b'\t', 2).ok()?;
        let number = fields.number(1);
        fields.end().is_ok().then_some(number)
    }

    /// A number that is read wrong is a CID that names somebody else.
    #[test]
    fn numbers_are_read_whole_or_not_at_all() {
        let mut numbers = vec![0, u64::MAX, u64::MAX - 1];
        for power in 0..20 {
            let power = 10u64.pow(power);
            numbers.extend([power - 1, power, power + 1, power.saturating_mul(7)]);
        }
        for before in 0..20 {
            for value in &numbers {
                assert_eq!(number(before, value.to_string().as_bytes()), Some(*value));
            }
            for text in [
                "",
                "-1",
                "1x",
                "x",
                "x1",
                "12345678x",
                "x12345678",
                "1234567 ",
                "18446744073709551616",
                "99999999999999999999999",
            ] {
                assert_eq!(number(before, text.as_bytes()), None, "{text}");
            }
            for byte in (0..=255u8).filter(|byte| !byte.is_ascii_digit() && *byte != b'\t') {
                for length in 0..20 {
                    let field = [&b"1".repeat(length)[..], &[byte]].concat();
                    assert_eq!(number(before, &field), None, "{length} digits and {byte}");
                    let field = [&[byte], &b"1".repeat(length)[..]].concat();
                    assert_eq!(number(before, &field), None, "{byte} and {length} digits");
                }
            }
        }
    }

    /// Every length of a field, before every length of rest, with bytes that look like the separator to a sloppy scan.
    #[test]
    fn fields_end_at_their_separator() {
        for length in 0..140 {
            for rest in 0..70 {
                for filler in [b'x', b'\t' + 1, b'\t' - 1, b'\t' | 0x80, 0, 0xff] {
                    let row = [&vec![filler; length][..], b"\t", &vec![filler; rest]].concat();
                    let mut fields = Fields::of(&row);
                    assert!(fields.split(b'\t', 2).is_ok());
                    let spans = [0, 1].map(|column| fields.range(column));
                    assert_eq!(spans, [(0, length), (length + 1, length + 1 + rest)]);
                    for columns in [0, 1, 3] {
                        assert!(Fields::of(&row).split(b'\t', columns).is_err());
                    }
                }
            }
        }
    }

    /// A row of separators only, to the most columns there can be and beyond.
    #[test]
    fn rows_have_as_many_fields_as_columns() {
        for separators in 0..200 {
            let row = vec![b','; separators];
            for columns in 0..200 {
                let mut fields = Fields::of(&row);
                let is_split = fields.split(b',', columns).is_ok();
                let fits = columns == separators + 1 && columns <= COLUMNS_MAX;
                assert_eq!(is_split, fits, "{separators} separators, {columns} columns");
                if is_split {
                    assert_eq!(fields.range(columns - 1), (separators, separators));
                }
            }
        }
    }
}
