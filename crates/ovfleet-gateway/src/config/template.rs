//! Placeholders in strings: `{name} {host} {stem} {port} {label.x}`.

use std::{collections::BTreeMap, fmt};

use super::secrets::FileRule;

/// A string with placeholders. `{{` and `}}` stand for single braces.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Piece {
    Text(String),
    Place(Placeholder),
}

/// What a template can ask for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Placeholder {
    /// The name of the instance.
    Name,
    /// The host of a TCP address; of a Unix socket, this machine's name.
    Host,
    /// The file name of a Unix socket, without its extension.
    Stem,
    /// The port of a TCP address.
    Port,
    /// A label of the instance.
    Label(String),
}

/// What is known of an instance when its templates are filled in. `None` is
/// not known: not yet, or not for this kind of address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) host: Option<&'a str>,
    pub(crate) stem: Option<&'a str>,
    pub(crate) port: Option<&'a str>,
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
    /// Which files may be named.
    pub(crate) files: FileRule,
}

impl Template {
    /// `{stem}`
    pub(crate) fn stem() -> Self {
        Self(vec![Piece::Place(Placeholder::Stem)])
    }

    /// `{host}-{port}`
    pub(crate) fn host_and_port() -> Self {
        Self(vec![
            Piece::Place(Placeholder::Host),
            Piece::Text("-".to_owned()),
            Piece::Place(Placeholder::Port),
        ])
    }

    /// Reads a template; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let end = if brace == "{" { rest.find('}') } else { None };
            let Some(end) = end else {
                return Err(format!(
                    "`{text}` has a single `{brace}`: write `{brace}{brace}` for a brace"
                ));
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Place(Placeholder::parse(&rest[..end])?));
            rest = &rest[end + 1..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The text, or the first placeholder that has no value.
    pub(crate) fn expand(&self, values: &Values<'_>) -> Result<String, &Placeholder> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Place(placeholder) => {
                    text.push_str(placeholder.value(values).ok_or(placeholder)?)
                }
            }
        }
        Ok(text)
    }
}

impl Template {
    /// What is filled in for the placeholders.
    pub(super) fn filled_in<'a>(&'a self, values: &'a Values<'_>) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Place(placeholder) => placeholder.value(values),
        })
    }
}

impl Placeholder {
    fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "name" => Self::Name,
            "host" => Self::Host,
            "stem" => Self::Stem,
            "port" => Self::Port,
            _ => match word.strip_prefix("label.") {
                Some(label) if !label.is_empty() => Self::Label(label.to_owned()),
                _ => {
                    return Err(format!(
                        "unknown placeholder `{{{word}}}`: known are {{name}}, {{host}}, {{stem}}, {{port}} and {{label.x}}"
                    ));
                }
            },
        })
    }

    fn value<'a>(&self, values: &Values<'a>) -> Option<&'a str> {
        match self {
            Self::Name => values.name,
            Self::Host => values.host,
            Self::Stem => values.stem,
            Self::Port => values.port,
            Self::Label(label) => values.labels?.get(label).map(String::as_str),
        }
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("{name}"),
            Self::Host => f.write_str("{host}"),
            Self::Stem => f.write_str("{stem}"),
            Self::Port => f.write_str("{port}"),
            Self::Label(label) => write!(f, "{{label.{label}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template filled in wrongly reads another instance's password file.
    #[test]
    fn fills_in_what_is_known_and_names_what_is_not() {
        let labels = BTreeMap::from([("site".to_owned(), "ams".to_owned())]);
        let values = Values {
            name: Some("eu1"),
            stem: Some("s"),
            labels: Some(&labels),
            ..Values::default()
        };
        let table = [
            ("plain", Ok("plain")),
            ("", Ok("")),
            ("/pw/{name}", Ok("/pw/eu1")),
            ("{name}{stem}-{label.site}", Ok("eu1s-ams")),
            ("{{name}} }}", Ok("{name} }")),
            ("é{name}é", Ok("éeu1é")),
            ("{port}", Err("{port}")),
            ("{label.rack}", Err("{label.rack}")),
        ];
        for (text, expected) in table {
            let template = Template::parse(text).unwrap();
            let found = template.expand(&values).map_err(ToString::to_string);
            assert_eq!(
                found,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{text}"
            );
        }
    }

    /// A misspelt placeholder must not become a part of a file name.
    #[test]
    fn refuses_what_is_no_placeholder() {
        for text in ["{nmae}", "{", "a}", "{name", "{label.}", "{}", "{ name }"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
