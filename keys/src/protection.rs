//! Protection levels (dissertation section 4.1).

use std::fmt;
use std::str::FromStr;

/// How an export guards its pages, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protection {
    /// A trusted network: no authentication. Must be asked for by name on both sides.
    None,
    /// Access control and authentication: each one-sided request bears a tag. Engine `tcp` only.
    Keyed,
    /// And encryption: pages lie encrypted in exported memory. The default.
    #[default]
    Sealed,
}

impl Protection {
    /// All levels, weakest first.
    pub const ALL: [Self; 3] = [Self::None, Self::Keyed, Self::Sealed];

    /// The level's number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::None => 1,
            Self::Keyed => 2,
            Self::Sealed => 3,
        }
    }

    /// The level with this number on the wire.
    #[must_use]
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.to_wire() == number)
    }

    /// The level's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Keyed => "keyed",
            Self::Sealed => "sealed",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no such protection level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protection level {0:?}: must be \"sealed\", \"keyed\" or \"none\"")]
pub struct UnknownProtection(String);

impl FromStr for Protection {
    type Err = UnknownProtection;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|level| level.name() == s);
        found.ok_or_else(|| UnknownProtection(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for level in Protection::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(Protection::from_wire(level.to_wire()), Some(level));
        }
        assert_eq!(Protection::from_wire(0), None);
        assert_eq!(Protection::default(), Protection::Sealed);
        assert!(Protection::None < Protection::Keyed && Protection::Keyed < Protection::Sealed);
        let error = "paper".parse::<Protection>().unwrap_err().to_string();
        assert!(error.contains("paper") && error.contains("sealed"), "{error}");
    }
}
