//! The agent's configuration: what an administrator may change, with defaults that need no file. What the node *is* (its
//! fleet, id, certificate) is no configuration; it comes from joining and lies in the state folder.

use std::path::{Path, PathBuf};

use holdfast_common::config::{self, Privacy};
use holdfast_common::logging;
use serde::Deserialize;

use crate::health;
use crate::host::units::Supervisor;
use crate::link::client::{Address, AddressError, Coordinators};

/// Where the agent keeps its state unless it is told otherwise.
pub const STATE_DIR: &str = "/var/lib/holdfast/agent";
/// Where the databases lie unless joining said otherwise.
pub const DATA_DIR: &str = "/var/lib/holdfast/data";

/// The file, as an administrator writes it. Every key may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub state_dir: Option<PathBuf>,
    /// Instead of the addresses that the node joined with.
    pub coordinators: Vec<Address>,
    /// What all databases together may count on; the machine's memory if it is not set.
    pub memory_bytes: Option<u64>,
    pub supervisor: Supervisor,
    /// Where load balancers ask who is primary.
    pub health: health::Settings,
    pub log: logging::Settings,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no configuration file {}; give one that is there, or none: every key has a default", path.display())]
    Missing { path: PathBuf },
    #[error(transparent)]
    File(#[from] config::Error),
    #[error("`coordinators` in {}", path.display())]
    Coordinators { path: PathBuf, source: AddressError },
    #[error("`{key}` is {}: give an absolute path", path.display())]
    NotAbsolute { key: &'static str, path: PathBuf },
}

// === impl Config ===

impl Config {
    /// Reads the file, if there is one to be read.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        let config: Self = config::load(path, Privacy::Public).map_err(|error| match error.is_missing() {
            true => Error::Missing { path: path.to_owned() },
            false => error.into(),
        })?;
        if !config.coordinators.is_empty() {
            Coordinators::new(config.coordinators.clone())
                .map_err(|source| Error::Coordinators { path: path.to_owned(), source })?;
        }
        if let Some(state) = &config.state_dir {
            absolute("state_dir", state)?;
        }
        Ok(config)
    }
}

/// # Errors
/// [`Error::NotAbsolute`].
pub fn absolute(key: &'static str, path: &Path) -> Result<(), Error> {
    if path.is_absolute() { Ok(()) } else { Err(Error::NotAbsolute { key, path: path.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config, config::Error> {
        config::parse(Path::new("/etc/holdfast/agent.toml"), text)
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_what_to_give() {
        let error = Config::load(Some(Path::new("/nonexistent/agent.toml"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.toml; give one"), "{error}");
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parsed("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_misspelt_or_senseless_is_named() {
        let config =
            parsed("coordinators = [\"192.0.2.1:7443\"]\nsupervisor = \"plain\"\n[log]\nformat = \"json\"\n");
        assert_eq!(config.unwrap().coordinators.len(), 1);
        for (text, named) in [
            ("state_dri = \"/x\"\n", "state_dri"),
            ("coordinators = [\"nonsense\"]\n", "coordinators"),
            ("supervisor = \"upstart\"\n", "supervisor"),
            ("[health]\nport = 0\n", "health.port"),
            ("[health]\non = true\n", "health.on"),
            ("[log]\nformat = \"xml\"\n", "log.format"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
