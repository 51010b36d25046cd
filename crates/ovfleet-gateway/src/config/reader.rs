//! Tables and values of a TOML file that know their place, so that every
//! mistake can be reported with file, line and key, and all of them at once.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Mistakes, Place},
    value,
};

/// A file under reading.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Arc<Path>,
    pub(super) text: &'a str,
    pub(super) mistakes: &'a Mistakes,
}

impl<'a> Source<'a> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Place {
            file: Arc::clone(self.path),
            line,
        }
    }

    /// The parsed file; syntax errors are noted, and what could be read is given.
    pub(super) fn parse(self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            self.mistakes.add(&self.place(offset), "", error.message());
        }
        table
    }

    pub(super) fn root(self, table: &'a DeTable<'a>) -> Section<'a> {
        let place = self.place(0);
        Section {
            source: self,
            prefix: String::new(),
            place,
            table,
            known: BTreeSet::new(),
        }
    }
}

/// A table. Every key is taken by name; [`finish`](Self::finish) reports the
/// keys that nobody took.
pub(super) struct Section<'a> {
    source: Source<'a>,
    prefix: String,
    place: Place,
    table: &'a DeTable<'a>,
    known: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    /// Where its header stands.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.insert(key);
        let (name, value) = self.table.get_key_value(key)?;
        let place = self.source.place(name.span().start);
        Some(Value {
            source: self.source,
            key: self.key(key),
            place,
            value,
        })
    }

    /// The value of a key that has to be there.
    pub(super) fn require(&mut self, key: &'static str) -> Option<Value<'a>> {
        let value = self.take(key);
        if value.is_none() {
            self.error(key, "this key is required");
        }
        value
    }

    pub(super) fn error(&self, key: &str, message: impl Into<String>) {
        self.source
            .mistakes
            .add(&self.place, &self.key(key), message);
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(self) {
        for (name, _) in self.table {
            let name_text = name.get_ref().as_ref();
            if !self.known.contains(name_text) {
                let known: Vec<&str> = self.known.iter().copied().collect();
                let message = format!("unknown key; known here: {}", known.join(", "));
                let place = self.source.place(name.span().start);
                self.source
                    .mistakes
                    .add(&place, &self.key(name_text), message);
            }
        }
    }

    /// All entries, of a table whose keys are data.
    fn entries(&self) -> impl Iterator<Item = (String, Value<'a>)> {
        self.table.iter().map(|(name, value)| {
            let text = name.get_ref().as_ref().to_owned();
            let place = self.source.place(name.span().start);
            let key = self.key(&text);
            (
                text,
                Value {
                    source: self.source,
                    key,
                    place,
                    value,
                },
            )
        })
    }

    fn key(&self, key: &str) -> String {
        match (self.prefix.as_str(), key) {
            ("", key) => key.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, key) => format!("{prefix}.{key}"),
        }
    }
}

/// The value of a key. Each conversion reports what does not fit and gives `None`.
pub(super) struct Value<'a> {
    source: Source<'a>,
    key: String,
    place: Place,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn mistakes(&self) -> &'a Mistakes {
        self.source.mistakes
    }

    pub(super) fn error(&self, message: impl Into<String>) {
        self.source.mistakes.add(&self.place, &self.key, message);
    }

    pub(super) fn string(&self) -> Option<&'a str> {
        let DeValue::String(text) = self.value.get_ref() else {
            return self.expected("a string");
        };
        Some(text)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let DeValue::Boolean(value) = self.value.get_ref() else {
            return self.expected("true or false");
        };
        Some(*value)
    }

    /// What `parse` makes of a string; its error is reported.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.string()?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(message);
                None
            }
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let DeValue::Integer(number) = self.value.get_ref() else {
            return self.expected("a whole number");
        };
        let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
        self.within(number, &range, ToString::to_string)
    }

    /// A [`integer`](Self::integer) as a count in memory.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Option<usize> {
        self.integer(range)
            .and_then(|count| usize::try_from(count).ok())
    }

    /// A duration such as `"5s"`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration = self.parsed(value::duration)?;
        self.within(Some(duration), &range, |duration| {
            value::format_duration(*duration)
        })
    }

    /// A size in bytes such as `"64MiB"`.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<usize> {
        let size = self.parsed(value::size)?;
        let size = self.within(Some(size), &range, |size| value::format_size(*size))?;
        usize::try_from(size).ok()
    }

    fn within<T: PartialOrd>(
        &self,
        value: Option<T>,
        range: &RangeInclusive<T>,
        format: impl Fn(&T) -> String,
    ) -> Option<T> {
        let value = value.filter(|value| range.contains(value));
        if value.is_none() {
            let (low, high) = (format(range.start()), format(range.end()));
            self.error(format!("must be between {low} and {high}"));
        }
        value
    }

    /// A path; a relative one is relative to the directory of the file it stands in.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        if text.is_empty() {
            self.error("must not be empty");
            return None;
        }
        Some(self.resolve(text))
    }

    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.source
            .path
            .parent()
            .unwrap_or(Path::new(""))
            .join(path)
    }

    /// A table.
    pub(super) fn section(&self) -> Option<Section<'a>> {
        let DeValue::Table(table) = self.value.get_ref() else {
            return self.expected("a table");
        };
        Some(Section {
            source: self.source,
            prefix: self.key.clone(),
            place: self.place.clone(),
            table,
            known: BTreeSet::new(),
        })
    }

    /// A table whose keys are data, such as labels.
    pub(super) fn entries(&self) -> Vec<(String, Self)> {
        self.section()
            .map_or_else(Vec::new, |section| section.entries().collect())
    }

    /// The tables of `[[key]]`.
    pub(super) fn sections(&self) -> Vec<Section<'a>> {
        let DeValue::Array(_) = self.value.get_ref() else {
            let name = &self.key;
            self.error(format!("must be an array of tables: write [[{name}]]"));
            return Vec::new();
        };
        self.items().iter().filter_map(Value::section).collect()
    }

    /// The elements of a list, or the one value that stands instead of it.
    pub(super) fn items(&self) -> Vec<Self> {
        let item = |value: &'a Spanned<DeValue<'a>>| Value {
            source: self.source,
            key: self.key.clone(),
            place: self.source.place(value.span().start),
            value,
        };
        match self.value.get_ref() {
            DeValue::Array(values) => values.iter().map(item).collect(),
            _ => vec![item(self.value)],
        }
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.get_ref().is_array()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.error(format!(
            "must be {what}, not {}",
            type_name(self.value.get_ref())
        ));
        None
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
