//! Label expressions in the grammar of Kubernetes: `region=eu, tier notin (test, dev), canary, !old`.

use std::fmt;
use std::str::FromStr;

use crate::name::Labels;

/// Longest label expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4_096;

/// What labels must be like: every requirement must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelExpression {
    requirements: Vec<Requirement>,
}

/// What one label must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    /// `key = value`, `key in (values)`.
    In(Vec<String>),
    /// `key != value`, `key notin (values)`. Holds also where the label is absent, as in Kubernetes.
    NotIn(Vec<String>),
    /// `key`.
    Exists,
    /// `!key`.
    Absent,
}

/// Why a text is not a label expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelExpressionError {
    /// It is longer than [`EXPRESSION_BYTES_MAX`].
    #[error("the expression has {bytes} bytes; at most {EXPRESSION_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Something else was expected.
    #[error("expected {expected} at byte {offset}, found {found}")]
    Unexpected {
        /// Where, from 0.
        offset: usize,
        /// What could have stood there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
}

impl LabelExpression {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether `labels` are like that.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let is_in = |values: &[String]| {
                value.is_some_and(|value| values.iter().any(|known| known == value))
            };
            match &requirement.operator {
                Operator::In(values) => is_in(values),
                Operator::NotIn(values) => !is_in(values),
                Operator::Exists => value.is_some(),
                Operator::Absent => value.is_none(),
            }
        })
    }
}

impl FromStr for LabelExpression {
    type Err = LabelExpressionError;

    /// An empty text asks for nothing.
    fn from_str(text: &str) -> Result<Self, LabelExpressionError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(LabelExpressionError::TooLong { bytes: text.len() });
        }
        let mut parser = Parser { text, offset: 0 };
        let mut requirements = Vec::new();
        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(Self::default());
        }
        loop {
            requirements.push(parser.requirement()?);
            if parser.rest().is_empty() {
                return Ok(Self { requirements });
            }
            parser.expect(",", "',' or the end")?;
        }
    }
}

/// Written so that parsing gives the same again.
impl fmt::Display for LabelExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::Absent => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Everything before it is parsed, white space behind a token included.
    offset: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn skip_space(&mut self) {
        self.offset = self.text.len() - self.rest().trim_start_matches(is_space).len();
    }

    /// Takes `token` and the space behind it, if it is next.
    fn take(&mut self, token: &str) -> bool {
        let is_next = self.rest().starts_with(token);
        if is_next {
            self.offset += token.len();
            self.skip_space();
        }
        is_next
    }

    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), LabelExpressionError> {
        if self.take(token) {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn unexpected(&self, expected: &'static str) -> LabelExpressionError {
        LabelExpressionError::Unexpected {
            offset: self.offset,
            expected,
            found: match self.rest().chars().next() {
                Some(character) => format!("{character:?}"),
                None => "the end".to_owned(),
            },
        }
    }

    /// The characters of a key or value; empty if there are none.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest
            .find(|character| !is_word(character))
            .unwrap_or(rest.len());
        self.offset += end;
        self.skip_space();
        &rest[..end]
    }

    fn key(&mut self) -> Result<String, LabelExpressionError> {
        let error = self.unexpected("a label key");
        match self.word() {
            "" => Err(error),
            key => Ok(key.to_owned()),
        }
    }

    fn requirement(&mut self) -> Result<Requirement, LabelExpressionError> {
        if self.take("!") {
            return Ok(Requirement {
                key: self.key()?,
                operator: Operator::Absent,
            });
        }
        let key = self.key()?;
        let operator = if self.take("==") || self.take("=") {
            Operator::In(vec![self.word().to_owned()])
        } else if self.take("!=") {
            Operator::NotIn(vec![self.word().to_owned()])
        } else if self.rest().is_empty() || self.rest().starts_with(',') {
            Operator::Exists
        } else {
            let error = self.unexpected("one of =, ==, !=, in, notin, ',' or the end");
            match self.word() {
                "in" => Operator::In(self.values()?),
                "notin" => Operator::NotIn(self.values()?),
                _ => return Err(error),
            }
        };
        Ok(Requirement { key, operator })
    }

    fn values(&mut self) -> Result<Vec<String>, LabelExpressionError> {
        self.expect("(", "'('")?;
        let mut values = vec![self.word().to_owned()];
        while self.take(",") {
            values.push(self.word().to_owned());
        }
        self.expect(")", "',' or ')'")?;
        Ok(values)
    }
}

fn is_space(character: char) -> bool {
    character.is_ascii_whitespace()
}

/// Keys may have a prefix with `/`; values are not held to Kubernetes' 63 characters.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || "._-/:@+~".contains(character)
}
