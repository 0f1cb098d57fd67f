//! Names that people give: nodes, clusters, operators. A value that exists is valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name.
pub const MAX_BYTES: usize = 40;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("is empty; give a name such as `{example}`")]
    Empty { example: &'static str },
    #[error("has {bytes} characters; at most {MAX_BYTES} are allowed")]
    TooLong { bytes: usize },
    #[error("must start with a letter a–z and not with {found:?}")]
    FirstCharacter { found: char },
    #[error("has {found:?} in it; only a–z, 0–9 and `-` are allowed")]
    Character { found: char },
    #[error("must not end with `-`")]
    LastCharacter,
}

fn check(text: &str, example: &'static str) -> Result<(), Error> {
    let Some(first) = text.chars().next() else { return Err(Error::Empty { example }) };
    if text.len() > MAX_BYTES {
        return Err(Error::TooLong { bytes: text.len() });
    }
    if !first.is_ascii_lowercase() {
        return Err(Error::FirstCharacter { found: first });
    }
    if let Some(found) = text.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')) {
        return Err(Error::Character { found });
    }
    if text.ends_with('-') {
        return Err(Error::LastCharacter);
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                check(text, $example)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name!(
    /// What people call a node; unique in the fleet, and a DNS label.
    NodeName, "db-1"
);
name!(
    /// What people call a cluster; unique in the fleet.
    ClusterName, "orders"
);
name!(
    /// What people call an operator.
    OperatorName, "alice"
);
name!(
    /// What a coordinator is called in its certificate.
    CoordinatorName, "main"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken_as_they_are() {
        for good in ["a", "n1", "db-1", "a-b-c9", &"a".repeat(40)] {
            assert_eq!(good.parse::<NodeName>().map(String::from).as_deref(), Ok(good));
        }
    }

    #[test]
    fn bad_names_are_refused_by_what_is_wrong_with_them() {
        for (bad, why) in [
            ("", Error::Empty { example: "orders" }),
            (&"a".repeat(41), Error::TooLong { bytes: 41 }),
            ("1a", Error::FirstCharacter { found: '1' }),
            ("-a", Error::FirstCharacter { found: '-' }),
            ("../etc", Error::FirstCharacter { found: '.' }),
            ("a b", Error::Character { found: ' ' }),
            ("a\0", Error::Character { found: '\0' }),
            ("a\n", Error::Character { found: '\n' }),
            ("aB", Error::Character { found: 'B' }),
            ("a;b", Error::Character { found: ';' }),
            ("a\u{202e}", Error::Character { found: '\u{202e}' }),
            ("ä", Error::FirstCharacter { found: 'ä' }),
            ("a-", Error::LastCharacter),
        ] {
            assert_eq!(bad.parse::<ClusterName>(), Err(why), "{bad:?}");
        }
    }
}
