//! Machine-readable output.

use dafs_client::keys::shown::is_harmless;
use std::fmt::{self, Write};

/// A JSON value.
#[derive(Clone, Debug)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Number(i128),
    /// A number, rounded to one decimal.
    Decimal(f64),
    /// Text.
    Text(String),
    /// Values in order.
    Array(Vec<Json>),
    /// Names and values, in order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// An object of these fields.
    pub fn object<const N: usize>(fields: [(&str, Json); N]) -> Self {
        Self::Object(fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// A number.
    pub fn number(number: impl Into<i128>) -> Self {
        Self::Number(number.into())
    }

    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Decimal(number) if number.is_finite() => write!(f, "{number:.1}"),
            Self::Decimal(_) => f.write_str("null"),
            Self::Text(text) => quote(f, text),
            Self::Array(values) => {
                f.write_char('[')?;
                for (place, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if place == 0 { "" } else { "," })?;
                }
                f.write_char(']')
            }
            Self::Object(fields) => {
                f.write_char('{')?;
                for (place, (name, value)) in fields.iter().enumerate() {
                    f.write_str(if place == 0 { "" } else { "," })?;
                    quote(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            // A terminal may be what shows it.
            c if !is_harmless(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(f, "\\u{unit:04x}")?;
                }
            }
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_fields_keep_their_order() {
        let value = Json::object([
            ("b", Json::text("a\"\\\n\u{1}ü\u{9b}\u{202e}\u{e0041}\u{1f600}")),
            ("a", Json::Array(vec![Json::Null, Json::Bool(true), Json::number(-3)])),
            ("c", Json::Decimal(1.25)),
        ]);
        assert_eq!(
            value.to_string(),
            r#"{"b":"a\"\\\n\u0001ü\u009b\u202e\udb40\udc41😀","a":[null,true,-3],"c":1.2}"#
        );
    }
}
