//! The database software that Holdfast runs, and what may be said about it in a request.

pub mod postgresql;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Violation;

/// The database software.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    Postgresql,
}

/// Major version of an engine, such as `15`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EngineVersion(Box<str>);

/// Name of an extension, such as `pg_stat_statements`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExtensionName(Box<str>);

/// Engine parameters by name, as the operator set them. Names and values are safe to write into a configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Parameters(BTreeMap<String, String>);

/// When a running engine goes by a changed parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesEffect {
    AtOnce,
    /// When it is started next.
    AtStart,
    /// It is an extension's: only the server knows.
    AsTheServerSays,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("`{text}` is no engine; known are: postgresql")]
    UnknownEngine { text: String },
    #[error("`{text}` is no major version; expected a number such as `15`")]
    Version { text: String },
    #[error(
        "`{text}` is no extension name; expected 1–63 characters of a–z, 0–9, `_` and `-`, the first a letter"
    )]
    Extension { text: String },
    #[error(
        "`{text}` is no parameter name; expected 1–63 characters of a–z, 0–9, `_` and `.`, the first a letter (write it in lower case)"
    )]
    ParameterName { text: String },
    #[error(
        "value of `{name}` has {problem}; at most {MAX_VALUE_BYTES} bytes without control characters are allowed"
    )]
    ParameterValue { name: String, problem: &'static str },
    #[error("{count} parameters; at most {MAX_PARAMETERS} are allowed")]
    TooManyParameters { count: usize },
}

/// The longest parameter value.
pub const MAX_VALUE_BYTES: usize = 1024;
/// The most parameters of one cluster.
pub const MAX_PARAMETERS: usize = 200;
/// The most extensions of one cluster.
pub const MAX_EXTENSIONS: usize = 32;

// === impl Engine ===

impl Engine {
    /// Where clients reach it unless they are told otherwise.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Postgresql => 5432,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgresql => "postgresql",
        }
    }

    /// All parameters that an operator may not set like this, each with the reason.
    pub fn violations(self, parameters: &Parameters) -> Vec<Violation> {
        match self {
            Self::Postgresql => postgresql::violations(parameters),
        }
    }

    /// All parameters that the engine itself would not take, each with the reason: unknown names, values of another kind or
    /// out of bounds. Without a version only what none would take.
    pub fn misfits(self, parameters: &Parameters, version: Option<&EngineVersion>) -> Vec<Violation> {
        match self {
            Self::Postgresql => postgresql::misfits(parameters, version),
        }
    }

    /// All parameters that ask for more than `bytes` of memory, each with the reason.
    pub fn beyond_memory(self, parameters: &Parameters, bytes: u64) -> Vec<Violation> {
        match self {
            Self::Postgresql => postgresql::beyond_memory(parameters, bytes),
        }
    }

    /// When a running engine of this version goes by a change of the parameter.
    pub fn takes_effect(self, name: &str, version: &EngineVersion) -> TakesEffect {
        match self {
            Self::Postgresql => postgresql::takes_effect(name, version),
        }
    }

    /// Parameters that a replica must not have less of than its primary, and that become less: the primary must take them
    /// over first.
    pub fn lowered(self, from: &Parameters, to: &Parameters) -> Vec<&'static str> {
        match self {
            Self::Postgresql => postgresql::lowered(from, to),
        }
    }

    /// The parameters with those that the extensions need in `database`, unless they were set.
    ///
    /// # Errors
    /// [`Error`], if they are too many with these.
    pub fn with_needed(
        self,
        parameters: Parameters,
        extensions: &[ExtensionName],
        database: &str,
    ) -> Result<Parameters, Error> {
        let mut all = BTreeMap::from(parameters);
        for extension in extensions {
            let needed = match self {
                Self::Postgresql => postgresql::needed_by(extension.as_str(), database),
            };
            if let Some((name, value)) = needed {
                all.entry(name.to_owned()).or_insert(value);
            }
        }
        Parameters::try_from(all)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "postgresql" => Ok(Self::Postgresql),
            _ => Err(Error::UnknownEngine { text: shortened(text) }),
        }
    }
}

// === impl EngineVersion ===

impl EngineVersion {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a number, for comparisons.
    pub fn number(&self) -> u32 {
        self.0.parse().unwrap_or(0)
    }
}

impl TryFrom<String> for EngineVersion {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for EngineVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sound = (1..=3).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_digit())
            && !text.starts_with('0');
        if sound { Ok(Self(text.into())) } else { Err(Error::Version { text: shortened(text) }) }
    }
}

impl From<EngineVersion> for String {
    fn from(version: EngineVersion) -> Self {
        version.0.into()
    }
}

impl fmt::Display for EngineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

// === impl ExtensionName ===

impl ExtensionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ExtensionName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for ExtensionName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sound = is_word(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
        if sound { Ok(Self(text.into())) } else { Err(Error::Extension { text: shortened(text) }) }
    }
}

impl From<ExtensionName> for String {
    fn from(name: ExtensionName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for ExtensionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

// === impl Parameters ===

impl Parameters {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names whose values differ, or that only one of both has.
    pub fn changed<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a str> {
        let names = self.0.keys().chain(other.0.keys()).map(String::as_str);
        names.filter(|name| self.get(name) != other.get(name)).collect()
    }

    /// All names and values that cannot be written into a configuration file, each with the reason.
    pub fn unsound(map: &BTreeMap<String, String>) -> Vec<Violation> {
        let violation = |(name, value): (&String, &String)| {
            let message = Self::check(name, value).err()?.to_string();
            Some(Violation {
                name: format!("parameters[{}]", shortened(name)),
                subject: String::new(),
                message,
            })
        };
        map.iter().filter_map(violation).collect()
    }

    fn check(name: &str, value: &str) -> Result<(), Error> {
        if !is_word(name, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.') {
            return Err(Error::ParameterName { text: shortened(name) });
        }
        let refused = |problem| Err(Error::ParameterValue { name: name.to_owned(), problem });
        if value.len() > MAX_VALUE_BYTES {
            return refused("too many bytes");
        }
        if value.chars().any(char::is_control) {
            return refused("a control character");
        }
        Ok(())
    }
}

impl TryFrom<BTreeMap<String, String>> for Parameters {
    type Error = Error;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, Error> {
        if map.len() > MAX_PARAMETERS {
            return Err(Error::TooManyParameters { count: map.len() });
        }
        for (name, value) in &map {
            Self::check(name, value)?;
        }
        Ok(Self(map))
    }
}

impl From<Parameters> for BTreeMap<String, String> {
    fn from(parameters: Parameters) -> Self {
        parameters.0
    }
}

fn is_word(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(allowed)
}

/// Enough of a refused text to recognise it.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(name: &str, value: &str) -> Result<Parameters, Error> {
        BTreeMap::from([(name.to_owned(), value.to_owned())]).try_into()
    }

    #[test]
    fn what_an_extension_needs_is_added_unless_it_was_set() {
        let extensions = ["hstore", "pg_cron"].map(|name| ExtensionName::try_from(name.to_owned()).unwrap());
        let needed = |given: Parameters| Engine::Postgresql.with_needed(given, &extensions, "app").unwrap();
        assert_eq!(needed(Parameters::default()).get("cron.database_name"), Some("app"));
        let set = parameters("cron.database_name", "other").unwrap();
        assert_eq!(needed(set.clone()), set);
    }

    #[test]
    fn parameters_that_could_break_out_of_a_line_are_refused() {
        parameters("work_mem", "64MB").unwrap();
        parameters("timescaledb.max_background_workers", "8").unwrap();
        for name in ["", "Work_mem", "a b", "a=b", "a\nb", "1a", "../a", &"a".repeat(64)] {
            assert!(parameters(name, "1").is_err(), "{name:?}");
        }
        for value in ["a\nb", "a\0", "a\r", &"a".repeat(1025)] {
            assert!(parameters("work_mem", value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn extension_names_are_words() {
        "pg_stat_statements".parse::<ExtensionName>().unwrap();
        "uuid-ossp".parse::<ExtensionName>().unwrap();
        for bad in ["", "-x", "../x", "a;b", "A", "a'b", "$(x)"] {
            assert!(bad.parse::<ExtensionName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!("15".parse::<EngineVersion>().map(|v| v.number()), Ok(15));
        for bad in ["", "0", "015", "15.1", "latest", "1234", "-1"] {
            assert!(bad.parse::<EngineVersion>().is_err(), "{bad:?}");
        }
    }
}
