//! The agent's own files: one line that says what it is and what its bytes must add up to, then JSON.
//!
//! ```text
//! holdfast assignment 1 sha256:9f86d0…
//! {"generation":7, …}
//! ```
//!
//! A file that was cut, flipped, emptied or is of another kind is never read as something else and never as a default:
//! it is [`Error::Damaged`], and [`set_aside`] keeps it for a person to look at. Deletion is for the owner of the file to
//! notice; here it is `None`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use holdfast_common::error::{Classify, Reason, Retry};
use holdfast_common::pki::sha256;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::files::{self, Access, Files};

/// The largest file of the agent's own: an assignment with all the access rules that a node may have.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What a file holds, and in which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// One word.
    pub name: &'static str,
    pub version: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] files::Error),
    #[error("{} is damaged: {problem}", path.display())]
    Damaged { path: PathBuf, problem: &'static str },
    #[error("{} has version {found}, made by a newer agent; this one knows up to {known}", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("write {} as JSON", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
}

/// The bytes of a file that holds `value`.
///
/// # Errors
/// [`Error::Encode`].
pub fn encode<T: Serialize>(path: &Path, kind: Kind, value: &T) -> Result<Vec<u8>, Error> {
    let body = serde_json::to_vec(value).map_err(|source| Error::Encode { path: path.to_owned(), source })?;
    let mut bytes = header(kind, &body).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The value in the bytes of a file.
///
/// # Errors
/// [`Error::Damaged`] or [`Error::Newer`].
pub fn decode<T: DeserializeOwned>(path: &Path, kind: Kind, bytes: &[u8]) -> Result<T, Error> {
    let damaged = |problem| Error::Damaged { path: path.to_owned(), problem };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("its first line is cut off"))?;
    let (line, body) = (&bytes[..=end], &bytes[end + 1..]);
    let text = std::str::from_utf8(line).map_err(|_| damaged("its first line is no text"))?;
    let mut words = text.trim_end().split(' ');
    if words.next() != Some("holdfast") || words.next() != Some(kind.name) {
        return Err(damaged("its first line does not say what it should"));
    }
    let version: u32 =
        words.next().and_then(|word| word.parse().ok()).ok_or_else(|| damaged("it has no version"))?;
    // The sum covers kind and version too: a flipped version must not pass for one of a newer agent.
    if text != header(Kind { name: kind.name, version }, body) {
        return Err(damaged("its checksum does not fit"));
    }
    if version > kind.version {
        return Err(Error::Newer { path: path.to_owned(), found: version, known: kind.version });
    }
    serde_json::from_slice(body).map_err(|_| damaged("its contents make no sense"))
}

/// Replaces the file, durably, readable by the agent alone.
///
/// # Errors
/// Where it cannot be written; the earlier contents are then still there.
pub async fn write<T: Serialize>(files: &Files, path: &Path, kind: Kind, value: &T) -> Result<(), Error> {
    let bytes = encode(path, kind, value)?;
    Ok(files.write(path, bytes, Access::PRIVATE).await?)
}

/// What the file holds; `None` where there is none.
///
/// # Errors
/// Where it cannot be read, is damaged, or is of a newer version.
pub async fn read<T: DeserializeOwned>(files: &Files, path: &Path, kind: Kind) -> Result<Option<T>, Error> {
    match files.read(path, MAX_BYTES).await {
        Ok(bytes) => decode(path, kind, &bytes).map(Some),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Moves a damaged file out of the way, so that it stays for a person to look at. One that was set aside under the same
/// name before is replaced.
///
/// # Errors
/// Where it cannot be moved.
pub async fn set_aside(files: &Files, path: &Path) -> Result<PathBuf, Error> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    files.rename(path, &aside).await?;
    Ok(aside)
}

// === impl Error ===

impl Error {
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Newer { .. } => true,
            Self::File(_) | Self::Encode { .. } => false,
        }
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::File(error) if error.is_full() => Reason::StorageFull,
            Self::File(_) | Self::Encode { .. } => Reason::Internal,
            Self::Damaged { .. } | Self::Newer { .. } => Reason::StateDamaged,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::File(_) => Retry::Later(None),
            Self::Encode { .. } | Self::Damaged { .. } | Self::Newer { .. } => Retry::Never,
        }
    }
}

fn header(kind: Kind, body: &[u8]) -> String {
    let Kind { name, version } = kind;
    let start = format!("holdfast {name} {version}");
    let mut covered = start.clone().into_bytes();
    covered.push(b'\n');
    covered.extend_from_slice(body);
    format!("{start} sha256:{}\n", STANDARD_NO_PAD.encode(sha256(&covered)))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const KIND: Kind = Kind { name: "thing", version: 2 };

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        #[serde(default)]
        number: u64,
        #[serde(default)]
        text: String,
    }

    fn thing() -> Thing {
        Thing { number: 7, text: "ä\n".repeat(20) }
    }

    fn decoded(bytes: &[u8]) -> Result<Thing, Error> {
        decode(Path::new("/state/thing"), KIND, bytes)
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = encode(Path::new("/state/thing"), KIND, &thing()).unwrap();
        assert_eq!(decoded(&bytes).unwrap(), thing());
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_damage() {
        let good = encode(Path::new("/state/thing"), KIND, &thing()).unwrap();
        for end in 0..good.len() {
            assert!(matches!(decoded(&good[..end]), Err(Error::Damaged { .. })), "cut at {end}");
        }
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(matches!(decoded(&bad), Err(Error::Damaged { .. })), "bit {bit} of byte {position}");
            }
        }
        let mut longer = good.clone();
        longer.push(b' ');
        assert!(matches!(decoded(&longer), Err(Error::Damaged { .. })));
        let doubled = [good.clone(), good].concat();
        assert!(matches!(decoded(&doubled), Err(Error::Damaged { .. })));
    }

    /// The checksum is what finds it: without one, JSON with defaults takes most flips for a value.
    #[test]
    fn without_the_checksum_damage_would_be_believed() {
        let body = serde_json::to_vec(&thing()).unwrap();
        let believed = (0..body.len() * 8).filter(|bit| {
            let mut bad = body.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            serde_json::from_slice::<Thing>(&bad).is_ok_and(|value| value != thing())
        });
        assert!(believed.count() > 100);
    }

    #[test]
    fn another_kind_or_a_newer_version_is_refused() {
        let path = Path::new("/state/thing");
        let other = encode(path, Kind { name: "other", version: 2 }, &thing()).unwrap();
        assert!(matches!(decoded(&other), Err(Error::Damaged { .. })));
        let newer = encode(path, Kind { name: "thing", version: 3 }, &thing()).unwrap();
        assert!(matches!(decoded(&newer), Err(Error::Newer { found: 3, known: 2, .. })));
    }
}
