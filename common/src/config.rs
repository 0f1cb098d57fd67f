//! Configuration files: TOML, checked before it is believed, with errors that name file, line and key.
//!
//! A type that is loaded must bear `#[serde(deny_unknown_fields)]`: a misspelt key is an error, not a default. The file
//! must belong to root or to the caller, must not be a link, and nobody else may write it; one that holds secrets, nobody
//! else may read either. No error repeats a value: the value may be a password.

mod file;

pub use file::{FileError, Privacy, read, write_private};

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or must not be trusted.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not TOML, or not what the program expects.
    #[error("{}, line {line}{}: {message}", path.display(), in_key(key))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// The key on that line, with its table.
        key: Option<String>,
        /// What is wrong.
        message: String,
    },
}

// === impl Error ===

impl Error {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        let Self::File(FileError::Io { source, .. }) = self else { return false };
        source.kind() == std::io::ErrorKind::NotFound
    }
}

/// Loads a configuration.
///
/// # Errors
/// See [`Error`].
pub fn load<T: DeserializeOwned>(path: &Path, privacy: Privacy) -> Result<T, Error> {
    let text = read(path, privacy)?;
    parse(path, &text)
}

/// Parses a configuration that was read from `path`.
///
/// # Errors
/// [`Error::Invalid`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        // The library's own rendering quotes the line, and with it whatever secret is there.
        let (line, key) = locate(text, at);
        Error::Invalid { path: path.to_owned(), line, key, message: without_values(error.message()) }
    })
}

/// The number of the line at `at`, and the key that it sets.
fn locate(text: &str, at: usize) -> (usize, Option<String>) {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let table = text.lines().take(line).filter_map(table_of).last();
    let key = text.lines().nth(line - 1).and_then(|text| text.split_once('=')).map(|(key, _)| key.trim());
    let key = key.filter(|key| !key.is_empty() && key.bytes().all(is_of_a_key));
    let named = match (table, key) {
        (Some(table), Some(key)) => Some(format!("{table}.{key}")),
        (Some(name), None) | (None, Some(name)) => Some(name.to_owned()),
        (None, None) => None,
    };
    (line, named)
}

fn table_of(line: &str) -> Option<&str> {
    let name = line.trim().strip_prefix('[')?.split(']').next()?.trim_start_matches('[').trim();
    (!name.is_empty() && name.bytes().all(is_of_a_key)).then_some(name)
}

fn is_of_a_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// `invalid type: string "hunter2", expected u16` without the value.
fn without_values(message: &str) -> String {
    let Some((before, after)) = message.split_once('"') else { return message.to_owned() };
    let after = after.rsplit_once('"').map_or("", |(_, after)| after);
    format!("{}{after}", before.trim_end())
}

fn in_key(key: &Option<String>) -> String {
    key.as_ref().map_or_else(String::new, |key| format!(", `{key}`"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        name: String,
        listen: Listen,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Listen {
        port: u16,
    }

    fn refused(text: &str) -> String {
        parse::<Config>(Path::new("/etc/holdfast/agent.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_file_line_and_key() {
        parse::<Config>(Path::new("x"), "name = \"n\"\n[listen]\nport = 1\n").unwrap();
        assert_eq!(
            refused("name = \"n\"\n\n[listen]\nport = 1\nprot = 2\n"),
            "/etc/holdfast/agent.toml, line 5, `listen.prot`: unknown field `prot`, expected `port`"
        );
        assert_eq!(
            refused("name = \"n\"\n[listen]\nport = 70000\n"),
            "/etc/holdfast/agent.toml, line 3, `listen.port`: invalid value: integer `70000`, expected u16"
        );
        assert_eq!(
            refused("name = \"n\"\n[listen]\n"),
            "/etc/holdfast/agent.toml, line 2, `listen`: missing field `port`"
        );
        assert!(refused("name = \n").starts_with("/etc/holdfast/agent.toml, line 1, `name`: "));
    }

    #[test]
    fn no_error_repeats_a_value() {
        for text in [
            "name = \"n\"\n[listen]\nport = \"hunter2\"\n",
            "name = \"n\"\n[listen]\nport = \"hunter2\\\"hunter2\"\n",
            "name = hunter2\n",
            "name = \"hunter2\n",
            "[listen]\nhunter2\n",
            "name = \"n\"\nlisten = \"hunter2\"\n",
        ] {
            let error = refused(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
