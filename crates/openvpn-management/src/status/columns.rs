//! A table's header: which of a row's fields are kept, and where each goes.

use super::Span;
use super::fields::{COLUMNS_MAX, Fields, RowError};

/// The columns of a table, found by their names.
#[derive(Debug, Clone)]
pub(super) struct Columns<const TEXTS: usize, const NUMBERS: usize> {
    /// How many fields a row has; none if there was no header.
    count: usize,
    /// Where each text is.
    texts: [Option<usize>; TEXTS],
    /// Where each number is.
    numbers: [Option<usize>; NUMBERS],
    /// What each number is where there is no such column.
    absent: [u64; NUMBERS],
    /// The last text: what stands behind it is not kept.
    last_text: Option<usize>,
}

/// A row's fields, in the order of the names that [`Columns::find`] was given.
pub(super) struct Row<const TEXTS: usize, const NUMBERS: usize> {
    /// Where its text starts in what is kept.
    pub(super) start: u32,
    /// [`NO_TEXT`] where there is no such column.
    pub(super) texts: [Span; TEXTS],
    pub(super) numbers: [u64; NUMBERS],
}

/// No field ends before it starts.
pub(super) const NO_TEXT: Span = Span { start: 1, end: 0 };

impl<const TEXTS: usize, const NUMBERS: usize> Columns<TEXTS, NUMBERS> {
    /// Before there is a header: no row is what it promised.
    pub(super) fn none() -> Self {
        Self {
            count: 0,
            texts: [None; TEXTS],
            numbers: [None; NUMBERS],
            absent: [0; NUMBERS],
            last_text: None,
        }
    }

    /// The columns of these names, and what the numbers are where there is no such column.
    pub(super) fn find(
        header: &[u8],
        separator: u8,
        texts: [&[u8]; TEXTS],
        numbers: [(&[u8], u64); NUMBERS],
    ) -> Self {
        let mut columns = Self {
            absent: numbers.map(|(_, absent)| absent),
            ..Self::none()
        };
        for (column, name) in header.split(|byte| *byte == separator).enumerate() {
            if column == COLUMNS_MAX {
                return Self::none();
            }
            if let Some(text) = texts.iter().position(|text| *text == name) {
                columns.texts[text] = Some(column);
                columns.last_text = Some(column);
            } else if let Some(number) = numbers.iter().position(|number| number.0 == name) {
                columns.numbers[number] = Some(column);
            }
            columns.count += 1;
        }
        columns
    }

    /// Takes a row apart, and appends its text to `kept`.
    #[inline(always)]
    pub(super) fn take(
        &self,
        row: &[u8],
        separator: u8,
        kept: &mut Vec<u8>,
        kept_bytes_max: usize,
    ) -> Result<Row<TEXTS, NUMBERS>, RowError> {
        let mut fields = Fields::of(row);
        fields.split(separator, self.count)?;
        let mut taken = Row {
            start: kept.len().try_into().map_err(|_| RowError::Full)?,
            texts: [NO_TEXT; TEXTS],
            numbers: self.absent,
        };
        for (number, column) in taken.numbers.iter_mut().zip(&self.numbers) {
            if let Some(column) = column {
                *number = fields.number(*column);
            }
        }
        fields.end()?;
        for (text, column) in taken.texts.iter_mut().zip(&self.texts) {
            if let Some(column) = column {
                *text = fields.span(*column);
            }
        }
        if let Some(last) = self.last_text {
            let text = row.get(..fields.span(last).end.into()).unwrap_or_default();
            if kept.len() + text.len() > kept_bytes_max {
                return Err(RowError::Full);
            }
            kept.extend_from_slice(text);
        }
        Ok(taken)
    }
}
