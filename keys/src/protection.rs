//! Protection levels (dissertation section 4.1).

use std::fmt;
use std::str::FromStr;

/// How an export guards its pages, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protection {
    /// A trusted network: no authentication. Must be asked for by name on both sides.
    None,
}

impl Protection {
    /// The level's number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        match self {
            Self::None => 1,
        }
    }

    /// The level with this number on the wire.
    #[must_use]
    pub fn from_wire(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::None),
            _ => None,
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
        })
    }
}

/// A protection level this build does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProtection(String);

impl fmt::Display for UnknownProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown protection level {:?}: this version knows \"none\"", self.0)
    }
}

impl std::error::Error for UnknownProtection {}

impl FromStr for Protection {
    type Err = UnknownProtection;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "none" => Ok(Self::None),
            other => Err(UnknownProtection(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        let level = Protection::None;
        assert_eq!(level.to_string().parse(), Ok(level));
        assert_eq!(Protection::from_wire(level.to_wire()), Some(level));
        assert_eq!(Protection::from_wire(0), None);
        let error = "paper".parse::<Protection>().unwrap_err().to_string();
        assert!(error.contains("paper") && error.contains("none"), "{error}");
    }
}
