//! What PostgreSQL itself takes: names, kinds, units and bounds of its parameters, version by version. Pure.
//!
//! `settings.tsv` is what `pg_settings` of each major version says, one line a parameter and span of versions:
//!
//! ```text
//! name  first-last  bool | text | internal
//! name  first-last  int|real [unit]  least  most
//! name  first-last  enum  word,word,…
//! ```
//!
//! It refuses what no such server would start with. What it cannot know (minor versions, texts with a meaning, parameters of
//! extensions) the server on the node is asked before it makes anything.

use std::str::FromStr as _;
use std::sync::LazyLock;

const TABLE: &str = include_str!("settings.tsv");
/// Parameters that make the server, or each of its sessions, take memory.
const MEMORY: &[&str] = &[
    "autovacuum_work_mem",
    "logical_decoding_work_mem",
    "maintenance_work_mem",
    "min_dynamic_shared_memory",
    "shared_buffers",
    "temp_buffers",
    "wal_buffers",
    "work_mem",
];
/// Units by what they measure, each in the smallest of its kind.
const BYTES: &[(&str, f64)] = &[
    ("B", 1.0),
    ("kB", 1024.0),
    ("8kB", 8192.0),
    ("MB", 1_048_576.0),
    ("GB", 1_073_741_824.0),
    ("TB", 1_099_511_627_776.0),
];
const MICROSECONDS: &[(&str, f64)] =
    &[("us", 1.0), ("ms", 1e3), ("s", 1e6), ("min", 6e7), ("h", 3.6e9), ("d", 8.64e10)];
/// Words of choices that have `on` and `off`, and of those that are levels of messages, which the server takes but does not
/// tell.
const SILENT_SWITCHES: &[&str] = &["true", "false", "yes", "no", "1", "0"];
const SILENT_LEVELS: &[&str] = &["debug", "info", "fatal", "panic"];
/// A most that bounds nothing: the largest number there is.
const UNBOUNDED: f64 = 1e300;

static SETTINGS: LazyLock<Vec<Setting>> =
    LazyLock::new(|| TABLE.lines().filter_map(Setting::parse).collect());

/// One line of the table.
struct Setting {
    name: &'static str,
    first: u32,
    last: u32,
    kind: Kind,
}

enum Kind {
    Switch,
    Text,
    /// Only ever shown.
    Internal,
    Number {
        whole: Whole,
        unit: &'static str,
        least: f64,
        most: f64,
    },
    Choice(Vec<&'static str>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

/// Why PostgreSQL would not take the parameter, in `version` or, without one, in any that is known.
pub(super) fn misfit(name: &str, value: &str, version: Option<u32>) -> Option<String> {
    // Of an extension; the server keeps any value until the extension's library looks at it.
    if name.contains('.') {
        return None;
    }
    if version.is_some_and(|version| !SETTINGS.iter().any(|it| it.covers(version))) {
        return None;
    }
    let fits = |it: &&Setting| it.name == name && version.is_none_or(|version| it.covers(version));
    let mut why = None;
    for setting in SETTINGS.iter().filter(fits) {
        // The newest version's words, unless another one takes it.
        why = Some(setting.kind.refusal(value)?);
    }
    let product = version.map_or_else(|| "PostgreSQL".to_owned(), |version| format!("PostgreSQL {version}"));
    Some(why.unwrap_or_else(|| {
        format!(
            "is no parameter of {product}; look at its spelling (one of an extension has a dot), or leave it out"
        )
    }))
}

/// How much memory this parameter asks for, if it is one that takes memory.
pub(super) fn memory_bytes(name: &str, value: &str) -> Option<f64> {
    let setting = SETTINGS.iter().find(|it| it.name == name && MEMORY.contains(&name))?;
    let Kind::Number { whole, unit, .. } = &setting.kind else { return None };
    let (_, scale) = *BYTES.iter().find(|(known, _)| known == unit)?;
    Some(amount(value, *whole, unit).ok()? * scale)
}

/// The value of a parameter that is a plain number.
pub(super) fn plain_number(name: &str, value: &str) -> Option<f64> {
    let setting = SETTINGS.iter().find(|it| it.name == name)?;
    let Kind::Number { whole, unit, .. } = &setting.kind else { return None };
    amount(value, *whole, unit).ok()
}

#[cfg(test)]
pub(super) fn is_known(name: &str) -> bool {
    SETTINGS.iter().any(|it| it.name == name)
}

// === impl Setting ===

impl Setting {
    fn parse(line: &'static str) -> Option<Self> {
        let mut columns = line.split('\t');
        let name = columns.next()?;
        let (first, last) = columns.next()?.split_once('-')?;
        let (kind, unit) = columns.next().map(|kind| kind.split_once(' ').unwrap_or((kind, "")))?;
        let number = |whole, mut columns: std::str::Split<'_, char>| {
            let mut bound = || f64::from_str(columns.next()?).ok();
            Some(Kind::Number { whole, unit, least: bound()?, most: bound()? })
        };
        let kind = match kind {
            "bool" => Kind::Switch,
            "text" => Kind::Text,
            "internal" => Kind::Internal,
            "int" => number(Whole::Yes, columns)?,
            "real" => number(Whole::No, columns)?,
            "enum" => Kind::Choice(columns.next()?.split(',').collect()),
            _ => return None,
        };
        Some(Self { name, first: first.parse().ok()?, last: last.parse().ok()?, kind })
    }

    fn covers(&self, version: u32) -> bool {
        (self.first..=self.last).contains(&version)
    }
}

// === impl Kind ===

impl Kind {
    fn refusal(&self, value: &str) -> Option<String> {
        match self {
            Self::Text => None,
            Self::Internal => Some("is only shown by the server and cannot be set; leave it out".to_owned()),
            Self::Switch => (!is_switch(value))
                .then(|| format!("is `{}`; give on or off", super::super::shortened(value))),
            Self::Choice(words) => (!is_choice(words, value)).then(|| {
                format!("is `{}`; give one of: {}", super::super::shortened(value), words.join(", "))
            }),
            Self::Number { whole, unit, least, most } => match amount(value, *whole, unit) {
                Err(expected) => Some(format!("is `{}`; give {expected}", super::super::shortened(value))),
                Ok(amount) if (*least..=*most).contains(&amount) => None,
                Ok(_) => {
                    let shown = super::super::shortened(value);
                    Some(format!("is `{shown}`; give {}", range(*least, *most, unit)))
                }
            },
        }
    }
}

/// All that may be given, each end as it can be typed.
fn range(least: f64, most: f64, unit: &str) -> String {
    // The server reads no unit that is a number of blocks.
    let (size, unit, note) = match unit {
        "8kB" => (8.0, "kB", " (a number without a unit counts blocks of 8kB)"),
        unit => (1.0, unit, ""),
    };
    let end = |amount: f64| if amount == 0.0 { "0".to_owned() } else { format!("{}{unit}", amount * size) };
    let (special, least) = if least == -1.0 && !unit.is_empty() { ("-1, or ", 0.0) } else { ("", least) };
    if most >= UNBOUNDED {
        return format!("{special}{} or more", end(least));
    }
    format!("{special}{} to {}{note}", end(least), end(most))
}

/// What the server takes for a switch: any beginning of a word that only one has.
fn is_switch(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str| !value.is_empty() && word.starts_with(&value);
    ["true", "false", "yes", "no"].into_iter().any(begins) || ["on", "of", "off", "1", "0"].contains(&&*value)
}

fn is_choice(words: &[&str], value: &str) -> bool {
    let among = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(value));
    among(words)
        || (words.contains(&"on") && among(SILENT_SWITCHES))
        || (words.contains(&"debug1") && among(SILENT_LEVELS))
}

/// The number in the parameter's own unit; else what would be one.
fn amount(value: &str, whole: Whole, unit: &str) -> Result<f64, String> {
    let text = value.trim_matches(|c: char| c.is_ascii_whitespace());
    let units = [BYTES, MICROSECONDS].into_iter().find(|units| units.iter().any(|(known, _)| *known == unit));
    let expected = || {
        let kind = if whole == Whole::Yes { "a whole number" } else { "a number" };
        let names = |units: &[(&'static str, f64)]| {
            units.iter().map(|(name, _)| *name).filter(|name| *name != "8kB").collect::<Vec<_>>().join(", ")
        };
        match units {
            Some(units) => format!("a number with one of the units {}", names(units)),
            None => format!("{kind} without a unit"),
        }
    };
    let (number, rest) = number(text).ok_or_else(expected)?;
    let scale = |name: &str| units?.iter().find(|(known, _)| *known == name).map(|(_, scale)| *scale);
    let amount = match (rest.trim_start_matches(|c: char| c.is_ascii_whitespace()), scale(unit)) {
        ("", _) => number,
        ("8kB", _) | (_, None) => return Err(expected()),
        (given, Some(own)) => number * scale(given).ok_or_else(expected)? / own,
    };
    Ok(if whole == Whole::Yes { amount.round_ties_even() } else { amount })
}

/// The number at the beginning, as C reads it, and what follows.
fn number(text: &str) -> Option<(f64, &str)> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let number = u32::from_str_radix(hex.get(..end)?, 16).ok()?;
        return Some((sign * f64::from(number), hex.get(end..)?));
    }
    let plain = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut end = plain;
    if digits[end..].starts_with('.') {
        end += 1;
        end += digits[end..].find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len() - end);
    }
    if let Some(exponent) = digits[end..].strip_prefix(['e', 'E']) {
        let signed = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        let digits_in = signed.find(|c: char| !c.is_ascii_digit()).unwrap_or(signed.len());
        if digits_in > 0 {
            end += 1 + (exponent.len() - signed.len()) + digits_in;
        }
    }
    let (found, rest) = digits.split_at(end);
    let is_octal = end == plain && plain > 1 && found.starts_with('0');
    let number =
        if is_octal { f64::from(u32::from_str_radix(found, 8).ok()?) } else { f64::from_str(found).ok()? };
    Some((sign * number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(name: &str, value: &str) -> bool {
        misfit(name, value, Some(15)).is_none()
    }

    #[test]
    fn every_line_of_the_table_is_understood() {
        assert_eq!(SETTINGS.len(), TABLE.lines().count());
        for version in 14..=18 {
            assert!(SETTINGS.iter().filter(|it| it.covers(version)).count() > 330, "{version}");
            for name in MEMORY {
                assert!(memory_bytes(name, "1MB").is_some(), "{name}");
            }
        }
        for (index, one) in SETTINGS.iter().enumerate() {
            let overlaps = |other: &Setting| other.name == one.name && other.covers(one.first);
            assert!(!SETTINGS[..index].iter().any(overlaps), "{} is there twice", one.name);
        }
    }

    #[test]
    fn what_a_server_takes_is_taken() {
        for (name, value) in [
            ("max_connections", "300"),
            ("max_connections", " 0x10 "),
            ("max_connections", "1e2"),
            ("shared_buffers", "128MB"),
            ("shared_buffers", "16384"),
            ("shared_buffers", "1.5 GB"),
            ("work_mem", "64 kB"),
            ("wal_buffers", "-1"),
            ("statement_timeout", "1min"),
            ("statement_timeout", "1.5h"),
            ("checkpoint_timeout", "1d"),
            ("autovacuum_vacuum_cost_delay", "2500us"),
            ("random_page_cost", "1.1"),
            ("random_page_cost", ".5"),
            ("jit", "of"),
            ("jit", "T"),
            ("log_statement", "DDL"),
            ("huge_pages", "true"),
            ("log_min_messages", "debug"),
            ("default_transaction_isolation", "repeatable read"),
            ("wal_compression", "lz4"),
            ("timezone", "Europe/Zurich"),
            ("cron.database_name", "app"),
            ("no_such.thing", "1"),
        ] {
            assert!(fits(name, value), "{name} = {value}: {:?}", misfit(name, value, Some(15)));
        }
    }

    #[test]
    fn what_no_server_takes_is_refused_with_what_it_would_take() {
        for (name, value, told) in [
            ("max_connections", "abc", "a whole number without a unit"),
            ("max_connections", "", "a whole number without a unit"),
            ("max_connections", "100MB", "a whole number without a unit"),
            ("max_connections", "0", "1 to 262143"),
            ("max_connections", "262144", "1 to 262143"),
            ("shared_buffers", "128mb", "one of the units B, kB, MB, GB, TB"),
            ("shared_buffers", "1min", "one of the units B, kB, MB, GB, TB"),
            (
                "shared_buffers",
                "8kB",
                "give 128kB to 8589934584kB (a number without a unit counts blocks of 8kB)",
            ),
            ("wal_buffers", "3GB", "give -1, or 0 to 2097144kB (a number"),
            ("autovacuum_vacuum_cost_delay", "1s", "give -1, or 0 to 100ms"),
            ("random_page_cost", "-1", "give 0 or more"),
            ("statement_timeout", "5 minutes", "one of the units us, ms, s, min, h, d"),
            ("checkpoint_timeout", "1s", "30s to 86400s"),
            ("random_page_cost", "cheap", "a number without a unit"),
            ("jit", "o", "on or off"),
            ("jit", "maybe", "on or off"),
            ("log_statement", "some", "none, ddl, mod, all"),
            ("server_version", "16", "cannot be set"),
            ("max_conections", "1", "no parameter of PostgreSQL 15"),
            ("transaction_timeout", "1s", "no parameter of PostgreSQL 15"),
        ] {
            let why = misfit(name, value, Some(15)).unwrap_or_default();
            assert!(why.contains(told), "{name} = {value}: {why:?}");
        }
    }

    #[test]
    fn versions_differ_and_without_one_any_will_do() {
        assert_eq!(misfit("transaction_timeout", "1s", Some(17)), None);
        assert_eq!(misfit("transaction_timeout", "1s", None), None);
        assert!(misfit("wal_compression", "lz4", Some(14)).is_some());
        assert!(misfit("transaction_timeout", "soon", None).is_some());
        assert!(misfit("no_such_parameter", "1", None).is_some());
        assert_eq!(misfit("no_such_parameter", "1", Some(99)), None, "nothing is known of it");
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        assert_eq!(memory_bytes("shared_buffers", "16"), Some(131_072.0));
        assert_eq!(memory_bytes("shared_buffers", "900GB"), Some(900.0 * 1_073_741_824.0));
        assert_eq!(memory_bytes("work_mem", "4096"), Some(4_194_304.0));
        assert_eq!(memory_bytes("max_wal_size", "900GB"), None, "that is disk");
    }
}
