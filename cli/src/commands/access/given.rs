//! Addresses and networks as they were given, as arguments, in a file or on standard input; and which of them a refusal is about.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use holdfast_common::access::{MAX_ENTRIES, visible};
use holdfast_common::error::{Failure, Reason};
use holdfast_proto::v1;

use crate::args::Entries;
use crate::error::Error;

/// The largest file of entries that is read.
const MAX_FILE_BYTES: usize = 32 * 1024 * 1024;

/// Where each entry was written: the arguments, then the lines of the file.
#[derive(Default)]
pub(super) struct Places {
    arguments: Vec<String>,
    lines: Vec<usize>,
    /// As it is called.
    file: Option<String>,
}

/// From the arguments and the file. What is wrong with an entry is for the coordinator to say, once for all clients.
pub(super) fn read(given: Entries) -> Result<(Vec<v1::AccessEntry>, Places), Error> {
    let Entries { cidrs, file, comment } = given;
    let mut places =
        Places { arguments: cidrs.iter().map(|cidr| visible(cidr)).collect(), ..Places::default() };
    let mut entries: Vec<_> =
        cidrs.into_iter().map(|cidr| v1::AccessEntry { cidr, comment: comment.clone() }).collect();
    if let Some(file) = file {
        let stdin = file == Path::new("-");
        let name = if stdin { "standard input".to_owned() } else { file.display().to_string() };
        for (number, entry) in parse(&text(&name, bytes(&name, &file)?)?, &comment) {
            places.lines.push(number);
            entries.push(entry);
        }
        places.file = Some(name);
    }
    if entries.len() > MAX_ENTRIES {
        return Err(Error::Usage(format!("{} entries; a cluster has at most {MAX_ENTRIES}", entries.len())));
    }
    Ok((entries, places))
}

// === impl Places ===

impl Places {
    /// # Errors
    /// `Usage`, if there is no entry: `missing` where nothing was given at all, `instead` what to do but write one into the file.
    pub(super) fn check_some(&self, missing: &str, instead: &str) -> Result<(), Error> {
        if !self.arguments.is_empty() || !self.lines.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(match &self.file {
            None => missing.to_owned(),
            Some(file) => format!("{file} has no address or network in it; write one a line{instead}"),
        }))
    }

    /// A refusal of entries, which the coordinator knows by their numbers alone, by where they were written.
    pub(super) fn located(&self, error: Error) -> Error {
        let mut failure = match error {
            Error::Refused(failure) if failure.reason == Reason::InvalidField => failure,
            other => return other,
        };
        for violation in &mut failure.violations {
            let Some(place) = self.of(&violation.name) else { continue };
            // An argument is not told twice.
            if let Some(rest) = violation.message.strip_prefix(&format!("{place} ")) {
                violation.message = rest.to_owned();
            }
            if let Some((is, field)) = violation.message.rsplit_once(", as ")
                && let Some(other) = self.of(field)
            {
                violation.message = format!("{is}, as {other}");
            }
            violation.subject = place;
        }
        failure.message = whole(&failure);
        Error::Refused(failure)
    }

    /// Of a field such as `entries[3].cidr`.
    fn of(&self, field: &str) -> Option<String> {
        let rest = field.strip_prefix("entries[").or_else(|| field.strip_prefix("cidrs["))?;
        let index: usize = rest.split_once(']')?.0.parse().ok()?;
        if let Some(argument) = self.arguments.get(index) {
            return Some(format!("`{argument}`"));
        }
        let number = self.lines.get(index - self.arguments.len())?;
        Some(format!("{}, line {number}", self.file.as_deref()?))
    }
}

fn whole(failure: &Failure) -> String {
    let each = failure.violations.iter().map(|violation| match violation.subject.as_str() {
        "" => format!("`{}` {}", violation.name, violation.message),
        place => format!("{place}: {}", violation.message),
    });
    each.collect::<Vec<_>>().join("; ")
}

fn bytes(name: &str, file: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let failed = |error: io::Error| Error::Usage(format!("read {name}: {error}"));
    let most = MAX_FILE_BYTES as u64 + 1;
    if file == Path::new("-") {
        io::stdin().take(most).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        File::open(file).map_err(failed)?.take(most).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() > MAX_FILE_BYTES {
        return Err(Error::Usage(format!("{name} has more than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(bytes)
}

/// One a line; after `#` is its comment. Empty lines, and lines that are only a comment, are passed over. With the lines' numbers.
fn parse(text: &str, comment: &str) -> Vec<(usize, v1::AccessEntry)> {
    let entry = |line: &str| {
        let (cidr, own) = line.split_once('#').unwrap_or((line, ""));
        let (cidr, own) = (cidr.trim(), own.trim());
        let comment = if own.is_empty() { comment } else { own };
        (!cidr.is_empty()).then(|| v1::AccessEntry { cidr: cidr.to_owned(), comment: comment.to_owned() })
    };
    let lines = text.lines().enumerate();
    lines.filter_map(|(index, line)| Some((index + 1, entry(line)?))).collect()
}

/// UTF-8, without the mark that some editors begin it with.
fn text(name: &str, bytes: Vec<u8>) -> Result<String, Error> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::Usage(format!("{name} is UTF-16; save it as UTF-8")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        Error::Usage(format!("{name}, line {line}: this is not UTF-8; save the file as UTF-8"))
    })?;
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_network_a_line_and_comments() {
        let text = "# the office\n10.0.0.0/8 # first floor\n\n  192.0.2.7\t \r\n2001:db8::/32#home\r\n";
        let read: Vec<_> =
            parse(text, "usual").into_iter().map(|(line, entry)| (line, entry.cidr, entry.comment)).collect();
        let wanted =
            [(2, "10.0.0.0/8", "first floor"), (4, "192.0.2.7", "usual"), (5, "2001:db8::/32", "home")];
        assert_eq!(read, wanted.map(|(line, cidr, comment)| (line, cidr.to_owned(), comment.to_owned())));
    }

    #[test]
    fn text_is_utf8_with_or_without_a_mark_and_all_else_is_told_as_such() {
        let read = |bytes: &[u8]| text("f", bytes.to_vec()).map_err(|error| error.to_string());
        assert_eq!(read(b"\xef\xbb\xbf10.0.0.1\r\n").as_deref(), Ok("10.0.0.1\r\n"));
        assert_eq!(read(b"10.0.0.1").as_deref(), Ok("10.0.0.1"));
        assert_eq!(read(b"\xff\xfe1\0").unwrap_err(), "f is UTF-16; save it as UTF-8");
        assert!(read(b"10.0.0.1\n# B\xfcro\n").unwrap_err().starts_with("f, line 2: this is not UTF-8"));
    }

    #[test]
    fn only_refused_entries_are_told_by_their_place() {
        let places =
            Places { arguments: vec!["10.0.0.1/8".into()], lines: vec![2, 4], file: Some("f".into()) };
        let mut violations = holdfast_common::error::Violations::default();
        violations.add("mode", "must be open");
        violations.add("entries[0].cidr", "`10.0.0.1/8` has bits set");
        violations.add("entries[2].cidr", "is 10.0.0.1 again, as entries[1].cidr");
        violations.add("entries[9].cidr", "is none of ours");
        let located = places.located(Error::Refused(Box::new(violations.into_failure())));
        assert_eq!(
            located.to_string(),
            "`mode` must be open; `10.0.0.1/8`: has bits set; \
             f, line 4: is 10.0.0.1 again, as f, line 2; `entries[9].cidr` is none of ours"
        );
        let other = Error::Refused(Box::new(Failure::new(Reason::ClusterNotFound, "entries[0]")));
        assert_eq!(places.located(other).to_string(), "entries[0]");
    }
}
