//! Tables that fit: on a narrow terminal the least needed columns go first.

use unicode_width::UnicodeWidthStr as _;

/// Between two columns.
const GUTTER: &str = "  ";
/// No column is cut shorter than this.
const CUT_MIN: usize = 8;

/// One column.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    title: &'static str,
    right: bool,
    /// When the table is too wide the greatest rank goes first; 0 stays.
    rank: u8,
    /// Shown only when some row has a value.
    optional: bool,
}

/// A column that always stays.
pub(crate) fn column(title: &'static str) -> Column {
    Column {
        title,
        right: false,
        rank: 0,
        optional: false,
    }
}

impl Column {
    /// For numbers.
    pub(crate) fn right(self) -> Self {
        Self {
            right: true,
            ..self
        }
    }

    /// Goes before those of a lesser rank when the table is too wide.
    pub(crate) fn rank(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    /// Shown only when some row has a value.
    pub(crate) fn optional(self) -> Self {
        Self {
            optional: true,
            ..self
        }
    }
}

/// How a cell is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
}

impl Tone {
    /// The text in this tone.
    pub(crate) fn paint(self, text: &str, color: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            _ if !color => return text.to_owned(),
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell. Its text must be harmless already: see `text::outside`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            tone: Tone::Plain,
        }
    }
}

impl Cell {
    /// A cell with a tone.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

/// Rows under titles.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: a cell per column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell per column");
        self.rows.push(cells.into());
    }

    /// The table as text, each line ended. `width` is what it must fit into, if
    /// anything: then columns are left out, and the widest is cut.
    pub(crate) fn render(&self, width: Option<usize>, color: bool) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len())
            .filter(|&index| !self.columns[index].optional || self.has_value(index))
            .collect();
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .map(|column| column.title.width())
            .collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        if let Some(width) = width {
            self.fit(&mut shown, &mut widths, width);
        }

        let mut text = String::new();
        let titles: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::toned(column.title, Tone::Dim))
            .collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (position, &index) in shown.iter().enumerate() {
                if position > 0 {
                    line += GUTTER;
                }
                let last = position + 1 == shown.len();
                line += &pad(
                    &row[index],
                    widths[index],
                    self.columns[index].right,
                    last,
                    color,
                );
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    fn has_value(&self, index: usize) -> bool {
        self.rows.iter().any(|row| !row[index].text.is_empty())
    }

    /// Leaves out columns by rank until the rest fits; what is then still too
    /// wide loses from its widest column.
    fn fit(&self, shown: &mut Vec<usize>, widths: &mut [usize], width: usize) {
        let total = |shown: &[usize], widths: &[usize]| {
            let gutters = GUTTER.len() * shown.len().saturating_sub(1);
            shown.iter().map(|&index| widths[index]).sum::<usize>() + gutters
        };
        while total(shown, widths) > width {
            let rank = |&index: &usize| self.columns[index].rank;
            match shown.iter().copied().max_by_key(rank) {
                Some(index) if self.columns[index].rank > 0 => {
                    shown.retain(|&other| other != index)
                }
                _ => break,
            }
        }
        while total(shown, widths) > width {
            let widest = shown.iter().copied().max_by_key(|&index| widths[index]);
            match widest {
                Some(index) if widths[index] > CUT_MIN => widths[index] -= 1,
                _ => break,
            }
        }
    }
}

/// A cell at the width of its column. The last column of a line needs no
/// padding on its right.
fn pad(cell: &Cell, width: usize, right: bool, last: bool, color: bool) -> String {
    let text = cut(&cell.text, width);
    let space = " ".repeat(width.saturating_sub(text.width()));
    let painted = cell.tone.paint(&text, color);
    match (right, last) {
        (true, _) => space + &painted,
        (false, true) => painted,
        (false, false) => painted + &space,
    }
}

/// The text, or what of it fits before an ellipsis.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if kept.width() + 1 > width {
            kept.pop();
            break;
        }
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Table {
        let mut table = Table::new([
            column("INSTANCE"),
            column("NAME"),
            column("USERNAME").rank(1).optional(),
            column("RECEIVED").right().rank(1),
            column("CIPHER").rank(2),
        ]);
        table.row([
            "eu1".into(),
            "alice".into(),
            "".into(),
            "1.0 KiB".into(),
            "AES-256-GCM".into(),
        ]);
        table.row([
            "eu2".into(),
            Cell::toned("日本", Tone::Good),
            "".into(),
            "12 B".into(),
            "AES-256-GCM".into(),
        ]);
        table
    }

    #[test]
    fn columns_line_up_whatever_the_script() {
        assert_eq!(
            clients().render(None, false),
            "INSTANCE  NAME   RECEIVED  CIPHER\n\
             eu1       alice   1.0 KiB  AES-256-GCM\n\
             eu2       日本       12 B  AES-256-GCM\n"
        );
    }

    #[test]
    fn a_narrow_terminal_loses_the_least_needed_columns_first() {
        let table = clients();
        let width = |text: &str| text.lines().map(|line| line.width()).max().unwrap();
        let narrower = table.render(Some(30), false);
        assert!(width(&narrower) <= 30 && narrower.contains("RECEIVED"));
        assert!(!narrower.contains("CIPHER"));
        let narrowest = table.render(Some(16), false);
        assert!(width(&narrowest) <= 16 && !narrowest.contains("RECEIVED"));
        assert!(narrowest.contains("alice"));
    }

    #[test]
    fn what_still_does_not_fit_is_cut_visibly() {
        let mut table = Table::new([column("NAME")]);
        table.row(["a-very-long-common-name".into()]);
        assert_eq!(table.render(Some(10), false), "NAME\na-very-lo…\n");
        table.row(["日本日本日本日本".into()]);
        assert_eq!(
            table.render(Some(10), false).lines().last(),
            Some("日本日本…")
        );
    }

    #[test]
    fn colour_is_outside_the_padding_and_only_when_asked() {
        let table = clients();
        assert!(!table.render(None, false).contains('\x1b'));
        assert!(table.render(None, true).contains("\x1b[32m日本\x1b[0m "));
    }
}
