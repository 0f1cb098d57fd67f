//! The context file: which coordinators an operator's programs may call, and as whom.
//!
//! ```toml
//! current = "default"
//!
//! [contexts.default]
//! server = "10.0.0.1:7443"
//! trust_bundle = "-----BEGIN CERTIFICATE-----…"
//! certificate = "-----BEGIN CERTIFICATE-----…"
//! key = "-----BEGIN PRIVATE KEY-----…"
//! ```
//!
//! It has a private key in it, so it is its owner's alone (mode 0600), and a file that others can read is refused.
//! Not here: where the file lies (the command line decides), and what is in the PEM texts ([`crate::pki`]).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// The most bytes that a context file has.
const MAX_BYTES: u64 = 1024 * 1024;

/// All that the file says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// Which of `contexts` is used where none is named.
    pub current: String,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One coordinator, and as whom to call it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Where operators reach the coordinator: `host:port`.
    pub server: String,
    /// Roots of the fleet, PEM.
    pub trust_bundle: String,
    /// The operator's certificate and those that issued it, PEM, leaf first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The certificate's private key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    pub key: Option<SecretString>,
}

/// Why a context file cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read context file {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("context file {} has mode {mode:03o}: others could read the private key in it; run `chmod 600 {}`", .path.display(), .path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("context file {} is larger than {MAX_BYTES} bytes", .path.display())]
    TooLarge { path: PathBuf },
    #[error("context file {} is not valid", .path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error("write context file {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("render context file")]
    Render(#[from] toml::ser::Error),
    #[error("there is no context `{name}`; there are: {known}")]
    Unknown { name: String, known: String },
}

// === impl ContextFile ===

impl ContextFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Readable`] if anyone but its owner can read it; see [`Error`] for the others.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::Readable { path: path.to_owned(), mode });
        }
        if metadata.len() > MAX_BYTES {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        let text = io::read_to_string(file).map_err(read)?;
        toml::from_str(&text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: without_input(source) })
    }

    /// Writes the file whole (mode 0600), and the folder above it if it is missing (mode 0700).
    ///
    /// # Errors
    /// [`Error::Write`]; the file is then as it was.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = toml::to_string(self)?;
        write_private(path, text.as_bytes()).map_err(|source| Error::Write { path: path.to_owned(), source })
    }

    /// The context of this name, or the current one.
    ///
    /// # Errors
    /// [`Error::Unknown`], naming those that there are.
    pub fn context(&self, name: Option<&str>) -> Result<&Context, Error> {
        let name = name.unwrap_or(&self.current);
        self.contexts.get(name).ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
            known: self.contexts.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A parser's error shows the line it stumbled on, which may be the key.
fn without_input(mut error: toml::de::Error) -> toml::de::Error {
    error.set_input(None);
    error
}

fn expose<S: Serializer>(key: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    key.as_ref().map(|key| key.expose_secret()).serialize(serializer)
}

/// Beside the file first, then renamed over it: a crash leaves the old one or the new one.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if !folder.exists() {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(folder)?;
    }
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut beside = name.to_os_string();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = folder.join(beside);
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file() -> ContextFile {
        let context = Context {
            server: "127.0.0.1:7443".into(),
            trust_bundle: "roots\n".into(),
            certificate: Some("certificate\n".into()),
            key: Some("hidden key\n".into()),
        };
        ContextFile { current: "default".into(), contexts: BTreeMap::from([("default".into(), context)]) }
    }

    #[test]
    fn a_context_file_comes_back_as_it_was_saved_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/config.toml");
        file().save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let loaded = ContextFile::load(&path).unwrap();
        let context = loaded.context(None).unwrap();
        assert_eq!(context.server, "127.0.0.1:7443");
        assert_eq!(context.key.as_ref().unwrap().expose_secret(), "hidden key\n");
        assert!(loaded.context(Some("other")).unwrap_err().to_string().contains("there are: default"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        file().save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(ContextFile::load(&path), Err(Error::Readable { mode: 0o644, .. })));
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_key() {
        assert!(!format!("{:?}", file()).contains("hidden"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        write_private(
            &path,
            b"current = \"a\"\n[contexts.a]\nserver = \"x\"\ntrust_bundle = \"\"\nkey = \"hidden\" junk\n",
        )
        .unwrap();
        let error = ContextFile::load(&path).unwrap_err();
        assert!(!crate::error::Chain(&error).to_string().contains("hidden"), "{error:?}");
        assert!(!format!("{error:?}").contains("hidden"));
    }
}
