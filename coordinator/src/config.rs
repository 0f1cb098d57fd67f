//! What the coordinator is told: `coordinator.toml` in its state directory, written by `init`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use holdfast_common::config::{self, Privacy};
use holdfast_common::logging;
use serde::{Deserialize, Serialize};

use crate::rpc::CallLimits;

/// Everything in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where operators connect.
    pub operators: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// Names and addresses with ports under which agents reach `agents` from elsewhere.
    #[serde(default)]
    pub advertise: Vec<Endpoint>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default, skip_serializing)]
    pub logging: logging::Settings,
}

/// Bounds; the usual ones suit a thousand nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub agent_connections: usize,
    pub agent_connections_per_address: usize,
    pub operator_connections: usize,
    pub operator_connections_per_address: usize,
    /// Attempts to join from one address: at once, and a second.
    pub enroll_burst: NonZeroU32,
    pub enroll_per_second: NonZeroU32,
}

/// `host:port`: a DNS name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
}

/// The host of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Address(std::net::IpAddr),
    Name(String),
}

/// A text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no endpoint; expected HOST:PORT such as `coordinator.example:7444`, `192.0.2.1:7444` or `[2001:db8::1]:7444`"
)]
pub struct EndpointError {
    text: String,
}

/// Where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{} is no state directory: it has no coordinator.toml; give the one that `holdfast-coordinator init` made, or make one with it",
        state.display()
    )]
    Missing { state: PathBuf },
    #[error(transparent)]
    File(#[from] config::Error),
}

// === impl Config ===

impl Config {
    /// Loads the file of a state directory.
    ///
    /// # Errors
    /// Names file, line and key.
    pub fn load(state: &StateDir) -> Result<Self, Error> {
        config::load(&state.config(), Privacy::Public).map_err(|error: config::Error| {
            match error.is_missing() {
                true => Error::Missing { state: state.path.clone() },
                false => error.into(),
            }
        })
    }

    /// Where agents reach the coordinator, for join tokens.
    pub fn agent_endpoints(&self) -> Vec<String> {
        if self.advertise.is_empty() {
            return vec![self.agents.to_string()];
        }
        self.advertise.iter().cloned().map(String::from).collect()
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        let CallLimits { enroll_burst, enroll_per_second, .. } = CallLimits::default();
        Self {
            agent_connections: 10_000,
            agent_connections_per_address: 2_500,
            operator_connections: 1_000,
            operator_connections_per_address: 250,
            enroll_burst,
            enroll_per_second,
        }
    }
}

impl Limits {
    /// The bounds of calls.
    pub fn calls(&self) -> CallLimits {
        CallLimits {
            enroll_burst: self.enroll_burst,
            enroll_per_second: self.enroll_per_second,
            ..CallLimits::default()
        }
    }
}

// === impl Endpoint ===

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let refused = || EndpointError { text: text.chars().take(100).collect() };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(refused())
            } else {
                Ok(Self { host: Host::Address(address.ip()), port: address.port() })
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(refused)?;
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // All digits and dots is a broken address, not a name.
        let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if host.len() > 253 || numeric || !host.split('.').all(label) {
            return Err(refused());
        }
        Ok(Self { host: Host::Name(host.to_ascii_lowercase()), port })
    }
}

impl From<Endpoint> for String {
    fn from(Endpoint { host, port }: Endpoint) -> Self {
        match host {
            Host::Address(address) => SocketAddr::new(address, port).to_string(),
            Host::Name(name) => format!("{name}:{port}"),
        }
    }
}

// === impl StateDir ===

impl StateDir {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> PathBuf {
        self.path.join("coordinator.toml")
    }

    pub fn authority_certificate(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    pub fn authority_key(&self) -> PathBuf {
        self.path.join("ca-key.pem")
    }

    pub fn master_key(&self) -> PathBuf {
        self.path.join("master.key")
    }

    pub fn store(&self) -> PathBuf {
        self.path.join("store.db")
    }

    pub fn history(&self) -> PathBuf {
        self.path.join("history.db")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_the_file_is_told_with_what_to_give() {
        let error = Config::load(&StateDir::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent is no state directory") && error.contains("init"), "{error}");
    }

    #[test]
    fn endpoints_are_names_or_addresses_with_a_port() {
        for good in ["c.example:7444", "192.0.2.1:1", "[2001:db8::1]:7444", "localhost:65535"] {
            assert_eq!(good.parse::<Endpoint>().map(String::from).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "c.example",
            ":1",
            "c.example:0",
            "c.example:65536",
            "1.2.3:5",
            "-a.b:5",
            "a..b:5",
            "a b:5",
            "../x:5",
            "2001:db8::1:7444",
            "a\n:5",
            "http://a:5",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let text = "operators = \"127.0.0.1:1\"\nagents = \"127.0.0.1:2\"\noperatosr = 1\n";
        let error = config::parse::<Config>(Path::new("coordinator.toml"), text).unwrap_err();
        assert!(error.to_string().contains("operatosr"), "{error}");
    }
}
