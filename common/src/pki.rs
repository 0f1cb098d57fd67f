//! Who is who in a fleet: the certificate authority, signing requests, the identity inside a certificate, tokens, and
//! the few other secrets that programs make and keep.
//!
//! ```text
//! node: NodeKey ── request (PEM) ──► coordinator: SigningRequest::parse ── Authority::issue_node ──► Issued
//!                                                                                                     │
//! peer's certificate (DER, from the handshake) ── PeerIdentity::parse ──► fleet, kind, serial ◄────────┘
//! ```
//!
//! Answerable for: what a certificate says, what a token looks like, what may be stored. Not for: files (PEM goes in and
//! out as text), handshakes ([`crate::tls`]), who may call what (the coordinator's `rpc`), or which serials are still
//! welcome (the coordinator's store).
//!
//! Names are URIs in the subject alternative name: `spiffe://<fleet-id>/node/<node-id>`, `/operator/<name>`,
//! `/coordinator/<name>`. Nothing but this URI identifies a peer; the common name is for PostgreSQL's certificate login.

mod authority;
mod cipher;
mod credentials;
mod digest;
mod identity;
mod password;
mod request;
pub mod scram;
pub mod token;

#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, DEFAULT_VALIDITY, Issued, Validity};
pub use cipher::{CipherError, Keyring, MasterKey, Sealed};
#[cfg(test)]
pub(crate) use credentials::chain_pem;
pub(crate) use credentials::is_authority;
pub use credentials::{Credentials, CredentialsError, TrustBundle};
pub use digest::{Fingerprint, Serial, sha256};
pub use identity::{IdentityError, PeerIdentity, PeerKind};
pub use password::generate_password;
pub use request::{MAX_REQUEST_BYTES, NodeKey, RequestError, SigningRequest};
pub use token::{AccessToken, JoinToken, SecretHash, TokenSecret};

use aws_lc_rs::rand;

/// A random number that nobody can guess or meet again.
pub fn random_number() -> u64 {
    u64::from_ne_bytes(random_bytes())
}

/// `N` random bytes from the operating system's generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the generator of aws-lc is seeded at start and cannot run dry");
    bytes
}
