//! Logs that a member's node keeps because perhaps nobody else had them: what they are, and what may be asked of them.
//!
//! An [`Id`] names a folder on a node and a [`FileName`] a file in it: both have one narrow spelling, so that no path ever comes from
//! outside. Not here: setting log aside (the engines), and carrying the questions (the link).

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::position::Position;

/// The most logs that a node tells of for one member; the newest.
pub const MAX_LOGS: usize = 64;
/// The most files of one of them.
pub const MAX_FILES: usize = 4096;
/// The most bytes of a file that are asked for at a time.
pub const MAX_PART_BYTES: u32 = 64 * 1024;
/// The longest name of a file.
const MAX_FILE_NAME_BYTES: usize = 64;

/// When a log was set aside, and the newest timeline in it: `20260102T030405.678Z-2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

/// The name of a file in a log that was set aside: letters, digits, `.`, `_` and `-`, and no dot in front.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

/// A text that is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}")]
pub struct ParseError {
    what: &'static str,
    text: String,
}

/// A log that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub id: Id,
    pub taken_at: Timestamp,
    /// The newest in it.
    pub timeline: u64,
    /// From the beginning of the first file to the end of the last, by offset.
    pub from: u64,
    pub to: u64,
    /// Until where the primary had the same; `None`: nothing told.
    pub fork: Option<Position>,
    /// The last checkpoint before it was set aside.
    pub checkpoint: Option<Position>,
    pub bytes: u64,
    pub files: u32,
    /// There was more than a set may have.
    pub cut: bool,
    /// From then on it may be removed to make room for a later one.
    pub keep_until: Timestamp,
    /// From then on it is removed when log is next set aside there.
    pub remove_after: Timestamp,
}

/// A file of such a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: FileName,
    pub bytes: u64,
}

/// What may be asked of a member's node. Nothing of it changes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Logs,
    Files {
        id: Id,
    },
    Part {
        id: Id,
        file: FileName,
        offset: u64,
        /// At most [`MAX_PART_BYTES`].
        bytes: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Newest first.
    Logs(Vec<Log>),
    Files(Vec<File>),
    Part(Part),
}

/// Bytes of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Part {
    pub data: Vec<u8>,
    /// Of `data`, made where they were read.
    pub sha256: [u8; 32],
}

// === impl Id ===

impl Id {
    /// The name of what is set aside at that time with that newest timeline.
    pub fn new(taken_at: Timestamp, timeline: u64) -> Self {
        Self(format!("{}-{timeline}", taken_at.strftime("%Y%m%dT%H%M%S%.3fZ")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError {
            what: "id of a log that was set aside, such as 20260102T030405.678Z-2",
            text: start(text),
        };
        let (time, timeline) = text.split_once('-').ok_or_else(refused)?;
        let fits = |text: &str, shape: &str| {
            text.len() == shape.len()
                && text.bytes().zip(shape.bytes()).all(|(byte, like)| match like {
                    b'0' => byte.is_ascii_digit(),
                    other => byte == other,
                })
        };
        let number = timeline.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == timeline);
        if fits(time, "00000000T000000.000Z") && number { Ok(Self(text.to_owned())) } else { Err(refused()) }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl FileName ===

impl FileName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if first && text.len() <= MAX_FILE_NAME_BYTES && text.bytes().all(ordinary) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError { what: "name of a file of such a log", text: start(text) })
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Part ===

impl Part {
    pub fn new(data: Vec<u8>) -> Self {
        let sha256 = crate::pki::sha256(&data);
        Self { data, sha256 }
    }

    /// Whether the bytes are still those that were read.
    pub fn is_whole(&self) -> bool {
        crate::pki::sha256(&self.data) == self.sha256
    }
}

impl fmt::Debug for Part {
    /// Without the bytes: they are users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("bytes", &self.data.len()).finish_non_exhaustive()
    }
}

fn start(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling_and_is_no_path() {
        let at: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let id = Id::new(at, 12);
        assert_eq!(id.as_str(), "20260102T030405.678Z-12");
        assert_eq!(id.as_str().parse(), Ok(id));
        for wrong in [
            "",
            "..",
            "20260102T030405.678Z",
            "20260102T030405.678Z-",
            "20260102T030405.678Z-0",
            "20260102T030405.678Z-01",
            "20260102T030405.678Z-+1",
            "20260102T030405.678Z-1/..",
            "20260102T030405.678Z-1.partial",
            "20260102T030405/678Z-1",
            "2026010xT030405.678Z-1",
            "20260102T030405.678Z-99999999999",
        ] {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_name_of_a_file_is_no_path() {
        for good in ["000000010000000000000003", "00000002.history", "summary.json"] {
            assert_eq!(good.parse::<FileName>().unwrap().as_str(), good);
        }
        for wrong in ["", ".", "..", ".x", "a/b", "/a", "a\0", "a b", "ä", &"a".repeat(65)] {
            assert!(wrong.parse::<FileName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_changed_part_is_found_out_and_none_is_printed() {
        let mut part = Part::new(b"canary".to_vec());
        assert!(part.is_whole());
        assert!(!format!("{part:?}").contains("99") && !format!("{part:?}").contains("canary"));
        part.data[0] ^= 1;
        assert!(!part.is_whole());
    }
}
