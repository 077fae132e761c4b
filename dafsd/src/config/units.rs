//! Sizes and times as people write them.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written as `4096`, `4KiB`, `64MiB` or `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A time, written as `500ms`, `5s`, `2m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// What is allowed in place of something that is neither a size nor a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(&'static str);

const SIZES: UnitError =
    UnitError("must be a whole number with a unit: 512B, 4KiB, 64MiB, 1GiB or 1TiB, for example");
const TIMES: UnitError =
    UnitError("must be a whole number with a unit: 500ms, 5s, 2m or 1h, for example");

/// Splits `64MiB` into 64 and `MiB`.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text).ok_or(SIZES)?;
        let shift = match unit {
            "B" | "" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(SIZES),
        };
        number.checked_mul(1 << shift).map(Self).ok_or(SIZES)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text).ok_or(TIMES)?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(TIMES),
        };
        let total = number.checked_mul(milliseconds).ok_or(TIMES)?;
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        for (length, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
            if milliseconds >= length && milliseconds.is_multiple_of(length) {
                return write!(f, "{}{unit}", milliseconds / length);
            }
        }
        write!(f, "{milliseconds}ms")
    }
}

/// Reads a size or a time from a string.
struct Text<T>(std::marker::PhantomData<T>, UnitError);

impl<T: FromStr<Err = UnitError>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string that {}", self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|error| E::custom(format!("{text:?} {error}")))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(std::marker::PhantomData, SIZES))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(std::marker::PhantomData, TIMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_round_trip() {
        for text in ["0B", "512B", "4KiB", "5000B", "64MiB", "3GiB", "1TiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["1500ms", "5s", "2m", "1h", "90m"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
        assert_eq!("16 MiB".parse(), Ok(ByteSize(16 << 20)));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["", "MiB", "-1MiB", "1.5GiB", "1GB", "1kib", "99999999999TiB", "1 2MiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(SIZES), "{text}");
        }
        for text in ["", "s", "5", "5sec", "-5s", "0.5s", "99999999999999999999h"] {
            assert_eq!(text.parse::<Span>(), Err(TIMES), "{text}");
        }
    }
}
