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
    character.is_alphanumeric() || "._-/:@+".contains(character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(expression: &str, labels: &[(&str, &str)]) -> bool {
        let expression: LabelExpression = expression.parse().expect(expression);
        expression.matches(&labels.iter().copied().collect())
    }

    /// The grammar of Kubernetes, form by form: an expression copied from there must mean the same here.
    #[test]
    fn expressions_mean_what_they_mean_in_kubernetes() {
        let eu = &[("region", "eu"), ("proto", "udp"), ("empty", "")];
        for (expression, expected) in [
            ("", true),
            ("  ", true),
            ("region=eu", true),
            ("region==eu", true),
            ("region = eu", true),
            ("region=us", false),
            ("region!=us", true),
            ("region!=eu", false),
            ("tier!=test", true),
            ("region in (eu,us)", true),
            ("region in (us)", false),
            ("region in ( us , eu )", true),
            ("tier in (test)", false),
            ("region notin (us,asia)", true),
            ("region notin (eu)", false),
            ("tier notin (test)", true),
            ("region", true),
            ("tier", false),
            ("!tier", true),
            ("!region", false),
            ("! tier", true),
            ("region=eu,proto=udp", true),
            ("region=eu , proto!=udp", false),
            ("empty=", true),
            ("region=", false),
            ("in", false),
            ("in in (x)", false),
            ("example.com/region", false),
        ] {
            assert_eq!(matches(expression, eu), expected, "{expression}");
        }
    }

    /// A mistake is found where it is: whoever typed it should not have to search.
    #[test]
    fn mistakes_say_where() {
        for (expression, offset, expected) in [
            ("=eu", 0, "a label key"),
            ("region=eu,", 10, "a label key"),
            (",", 0, "a label key"),
            ("!", 1, "a label key"),
            ("region~eu", 6, "one of"),
            ("region like eu", 7, "one of"),
            ("region in eu", 10, "'('"),
            ("region in (eu", 13, "')'"),
            ("region in (eu us)", 14, "')'"),
            ("region=eu proto=udp", 10, "','"),
            ("region=\"eu\"", 7, "','"),
            ("a=b;c", 3, "','"),
        ] {
            match expression.parse::<LabelExpression>() {
                Err(LabelExpressionError::Unexpected {
                    offset: found,
                    expected: wanted,
                    ..
                }) => assert!(
                    found == offset && wanted.contains(expected),
                    "{expression}: byte {found}, {wanted}"
                ),
                other => panic!("{expression}: {other:?}"),
            }
        }
        let long = "a".repeat(EXPRESSION_BYTES_MAX + 1);
        assert!(matches!(
            long.parse::<LabelExpression>(),
            Err(LabelExpressionError::TooLong { .. })
        ));
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let values = prop::collection::vec("[a-z0-9.-]{0,4}", 1..4);
        let operator = prop_oneof![
            values.clone().prop_map(Operator::In),
            values.prop_map(Operator::NotIn),
            Just(Operator::Exists),
            Just(Operator::Absent),
        ];
        ("[a-c]|in|notin", operator).prop_map(|(key, operator)| Requirement { key, operator })
    }

    /// What a requirement means, said another way.
    fn holds(requirement: &Requirement, labels: &[(String, String)]) -> bool {
        let value = labels
            .iter()
            .find(|(key, _)| *key == requirement.key)
            .map(|(_, value)| value);
        match (&requirement.operator, value) {
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::In(_), None) => false,
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::NotIn(_), None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::Absent, value) => value.is_none(),
        }
    }

    proptest! {
        /// What is written is read again as the same, and means that every requirement holds.
        #[test]
        fn expressions_round_trip_and_match(
            requirements in prop::collection::vec(requirement(), 0..4),
            labels in prop::collection::btree_map("[a-c]|in", "[a-z0-9.-]{0,2}", 0..4),
        ) {
            let expression = LabelExpression { requirements };
            let written = expression.to_string();
            let read = written.parse::<LabelExpression>();
            prop_assert_eq!(read.as_ref(), Ok(&expression), "{}", written);
            let labels: Vec<_> = labels.into_iter().collect();
            let expected = expression.requirements.iter().all(|requirement| holds(requirement, &labels));
            prop_assert_eq!(expression.matches(&labels.iter().cloned().collect()), expected);
        }

        /// No text makes the parser panic, and an error points into the text.
        #[test]
        fn any_text_is_an_expression_or_an_error(text in "[a-c=!,() innot~é\"]{0,24}") {
            if let Err(LabelExpressionError::Unexpected { offset, .. }) = text.parse::<LabelExpression>() {
                prop_assert!(offset <= text.len() && text.is_char_boundary(offset));
            }
        }
    }
}
