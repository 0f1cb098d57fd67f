//! The records themselves, as they are stored.

use std::fmt;
use std::net::IpAddr;

use holdfast_common::id::{NodeId, TokenId};
use holdfast_common::name::{NodeName, OperatorName};
use holdfast_common::pki::{Fingerprint, Sealed, SecretHash, Serial};
use holdfast_common::telemetry::Inventory;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How long a token that has ended is still listed.
const KEEP_ENDED: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The most certificates of one node that are welcome at a time.
const MAX_CERTIFICATES: usize = 8;

/// A machine of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: NodeName,
    /// Where other members reach it.
    pub address: IpAddr,
    pub joined_at: Timestamp,
    /// Those that are welcome, oldest first; any other of the node's is refused.
    pub certificates: Vec<IssuedCertificate>,
    /// It gets no new roles; none: it may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Drained>,
}

/// Who keeps new roles off a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// `operator/NAME`.
    pub by: String,
    pub since: Timestamp,
    /// In a person's words; may be empty.
    pub reason: String,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    pub serial: Serial,
    pub issued_at: Timestamp,
    pub not_after: Timestamp,
}

/// What a node last told of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    pub agent_version: String,
    pub inventory: Inventory,
}

/// Brings nodes into the fleet. The secret itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: TokenId,
    pub secret: SecretHash,
    pub description: String,
    pub created_at: Timestamp,
    pub created_by: String,
    pub expires_at: Timestamp,
    pub uses_allowed: u32,
    pub uses_left: u32,
    pub revoked: bool,
    /// Only a node of this name may use it.
    pub node_name: Option<NodeName>,
    /// It brings back this node, and makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejoins: Option<NodeId>,
}

/// A use of a join token, by the request that made it: a repeat gets the same node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrollment {
    pub token: TokenId,
    pub node: NodeId,
    pub name: NodeName,
    /// SHA-256 of the node's public key.
    pub key: Fingerprint,
    pub keep_until: Timestamp,
}

/// A person, or a program that acts for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    pub name: OperatorName,
    pub role: OperatorRole,
    pub created_at: Timestamp,
    pub certificate: IssuedCertificate,
}

/// Every right of a lower role is also one of the higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorRole {
    Viewer,
    Operator,
    Admin,
}

/// A bearer token of an operator. The secret itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessToken {
    pub id: TokenId,
    pub secret: SecretHash,
    pub operator: OperatorName,
    /// When the operator was created whom it is for: one who is created anew under the same name does not inherit it.
    pub operator_created_at: Timestamp,
    pub description: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked: bool,
}

/// The answer to a call that bore a request id, for its repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// SHA-256 of the request.
    pub body: Fingerprint,
    /// Encrypted, since it may have a secret in it.
    pub answer: Sealed,
    pub keep_until: Timestamp,
}

// === impl Node ===

impl Node {
    /// Whether a certificate of this serial is welcome.
    pub fn welcomes(&self, serial: &Serial, now: Timestamp) -> bool {
        self.certificates
            .iter()
            .any(|certificate| certificate.serial == *serial && certificate.not_after > now)
    }

    /// Notes a new certificate. The one that was `used` to ask for it stays welcome, however many are asked for: a node
    /// that loses every answer must not lock itself out.
    pub fn add_certificate(&mut self, new: IssuedCertificate, used: Option<&Serial>, now: Timestamp) {
        self.certificates.retain(|certificate| certificate.not_after > now);
        while self.certificates.len() >= MAX_CERTIFICATES {
            let oldest = self.certificates.iter().position(|old| Some(&old.serial) != used).unwrap_or(0);
            self.certificates.remove(oldest);
        }
        self.certificates.push(new);
    }

    /// When the newest certificate ends.
    pub fn certificate_not_after(&self) -> Option<Timestamp> {
        self.certificates.iter().map(|certificate| certificate.not_after).max()
    }
}

// === impl JoinToken ===

impl JoinToken {
    pub(super) fn forgettable(&self, now: Timestamp) -> bool {
        self.expires_at.saturating_add(KEEP_ENDED).is_ok_and(|end| end < now)
    }
}

// === impl AccessToken ===

impl AccessToken {
    pub(super) fn forgettable(&self, now: Timestamp) -> bool {
        self.expires_at.saturating_add(KEEP_ENDED).is_ok_and(|end| end < now)
    }
}

// === impl Drained ===

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, since, reason } = self;
        write!(f, "by {by} since {}", since.strftime("%Y-%m-%d %H:%M:%S UTC"))?;
        if reason.is_empty() { Ok(()) } else { write!(f, " ({reason})") }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(number: u8, now: Timestamp) -> IssuedCertificate {
        let serial = serde_json::from_str(&format!("\"{number:02x}\"")).unwrap();
        IssuedCertificate { serial, issued_at: now, not_after: now + SignedDuration::from_hours(1) }
    }

    #[test]
    fn a_node_that_loses_every_answer_does_not_lock_itself_out() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
        let used = certificate(0, now);
        let mut node = Node {
            id: NodeId::generate(),
            name: "n1".parse().unwrap(),
            address: [192, 0, 2, 1].into(),
            joined_at: now,
            certificates: vec![used.clone()],
            drained: None,
        };
        for number in 1..100 {
            node.add_certificate(certificate(number, now), Some(&used.serial), now);
        }
        assert_eq!(node.certificates.len(), MAX_CERTIFICATES);
        assert!(node.welcomes(&used.serial, now));
        assert!(node.welcomes(&certificate(99, now).serial, now));
        assert!(!node.welcomes(&certificate(50, now).serial, now));
        assert!(!node.welcomes(&used.serial, used.not_after), "an ended certificate is not welcome");
    }
}
