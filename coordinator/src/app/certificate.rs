//! The coordinator's own certificate: for every name under which it is reached, renewed before it ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::error::Chain;
use holdfast_common::pki::{Authority, AuthorityError, Credentials, CredentialsError, TrustBundle, Validity};
use holdfast_common::tls::{BuildError, ClientCertificate, Protocols, ServerSettings, ServerTls};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::config::{Config, Host};

/// What the coordinator is called in its certificate.
const NAME: &str = "main";
/// How long a certificate lives, and when it is renewed.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
const RENEW_EVERY: Duration = Duration::from_secs(10 * 24 * 3600);
/// After a failure.
const RETRY: Duration = Duration::from_secs(300);
/// The authority takes at most 64 names; a machine with more addresses must be told which matter.
const MAX_ADDRESSES: usize = 32;

/// Issues the coordinator's certificate.
#[derive(Debug)]
pub(super) struct Certificate {
    authority: Authority,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Tls(#[from] BuildError),
}

// === impl Certificate ===

impl Certificate {
    pub(super) fn new(authority: Authority, config: &Config) -> Self {
        let mut names = BTreeSet::from(["localhost".to_owned()]);
        let mut addresses =
            BTreeSet::from([IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)]);
        for endpoint in &config.advertise {
            match &endpoint.host {
                Host::Name(name) => drop(names.insert(name.clone())),
                Host::Address(address) => drop(addresses.insert(*address)),
            }
        }
        for listen in [config.operators.ip(), config.agents.ip()] {
            if listen.is_unspecified() {
                addresses.extend(own_addresses());
            } else {
                addresses.insert(listen);
            }
        }
        Self {
            authority,
            names: names.into_iter().collect(),
            addresses: addresses.into_iter().take(MAX_ADDRESSES).collect(),
        }
    }

    /// The TLS sides of both listeners, with a fresh certificate.
    pub(super) fn listeners(&self, parts: &Parts) -> Result<(Arc<ServerTls>, Arc<ServerTls>), Error> {
        let settings = |protocols| ServerSettings {
            fleet: parts.identity.fleet(),
            client_certificate: ClientCertificate::Optional,
            protocols,
        };
        let (credentials, roots) = self.issue()?;
        let agents = ServerTls::new(settings(Protocols::H2), &credentials, &roots)?;
        let operators = ServerTls::new(settings(Protocols::H2AndHttp1), &credentials, &roots)?;
        Ok((Arc::new(agents), Arc::new(operators)))
    }

    /// Renews both until `shutdown`; open connections are left alone.
    pub(super) async fn renew(
        self,
        agents: Arc<ServerTls>,
        operators: Arc<ServerTls>,
        shutdown: CancellationToken,
    ) {
        let mut pause = RENEW_EVERY;
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = match self.reload(&agents, &operators) {
                Ok(()) => {
                    tracing::info!("the coordinator's certificate was renewed");
                    RENEW_EVERY
                }
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "the coordinator's certificate is not renewed");
                    RETRY
                }
            };
        }
    }

    fn reload(&self, agents: &ServerTls, operators: &ServerTls) -> Result<(), Error> {
        let (credentials, roots) = self.issue()?;
        agents.reload(&credentials, &roots)?;
        operators.reload(&credentials, &roots)?;
        Ok(())
    }

    fn issue(&self) -> Result<(Credentials, TrustBundle), Error> {
        let name = NAME.parse().expect("the coordinator's name is a name");
        let validity = Validity { now: Timestamp::now(), lifetime: LIFETIME };
        let (issued, key) =
            self.authority.issue_coordinator(&name, &self.names, &self.addresses, validity)?;
        Ok((issued.credentials(&key)?, self.authority.bundle()))
    }
}

/// The machine's addresses, as far as they can be read.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .collect()
}
