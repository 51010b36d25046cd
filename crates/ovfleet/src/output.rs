//! Standard output, in the form that was asked for; notes go to standard error.

use std::{
    env,
    io::{self, IsTerminal as _, Stdout, Write as _},
};

use prost::Message;

use crate::{
    args::{CallerArgs, Format},
    failure::Failure,
    json,
    table::{Table, Tone},
};

/// Where a command writes what it found.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: Stdout,
    format: Format,
    terminal: bool,
    color: bool,
}

impl Output {
    pub(crate) fn new(args: &CallerArgs) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let no_color =
            args.no_color || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            terminal,
            color: terminal && !no_color,
            stdout,
            format: args.output,
        }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Standard output is a terminal, and people read what is on it.
    pub(crate) fn is_live(&self) -> bool {
        self.terminal && self.format == Format::Table
    }

    /// Colours are wanted and possible.
    pub(crate) fn paints(&self) -> bool {
        self.color
    }

    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        tone.paint(text, self.color)
    }

    /// A table, fitted to the terminal unless all of it is wanted. A pipe gets
    /// all of it: nobody can make it wider.
    pub(crate) fn table(&mut self, table: &Table, wide: bool) -> Result<(), Failure> {
        let width = if wide {
            None
        } else {
            self.size().map(|(columns, _)| columns)
        };
        self.text(&table.render(width, self.color))
    }

    /// Columns and rows of the terminal, if it is one.
    pub(crate) fn size(&self) -> Option<(usize, usize)> {
        if !self.terminal {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(&self.stdout).ok()?;
        (size.ws_col > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
    }

    /// Text as it is, at once.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// A line of text.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.text(&format!("{text}\n"))
    }

    /// A message of the API as one document. The lists in `lists` are there
    /// also when they are empty, so that scripts need not ask.
    pub(crate) fn document<M: Message>(
        &mut self,
        name: &str,
        message: &M,
        lists: &[&str],
    ) -> Result<(), Failure> {
        let mut value = json::value(name, message)?;
        if let Some(fields) = value.as_object_mut() {
            for list in lists {
                fields
                    .entry(*list)
                    .or_insert_with(|| serde_json::Value::Array(Vec::new()));
            }
        }
        self.line(&format!("{value:#}"))
    }

    /// A message of the API as one line.
    pub(crate) fn json_line<M: Message>(&mut self, name: &str, message: &M) -> Result<(), Failure> {
        let value = json::value(name, message)?;
        self.line(&value.to_string())
    }

    /// Many messages of one type, a line each.
    pub(crate) fn json_lines<M: Message>(&mut self, name: &str, rows: &[M]) -> Result<(), Failure> {
        let mut text = String::new();
        for row in rows {
            text += &json::value(name, row)?.to_string();
            text.push('\n');
        }
        self.text(&text)
    }
}

/// Something worth knowing that is no result.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
