//! Networks none of which lies in another: each address of the declared ones is in exactly one.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::Cidr;

/// What is let in, by network. Neighbours are not joined, so that a change of one never touches another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Reach {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

/// As it is written down.
#[derive(Serialize, Deserialize)]
struct Parts {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

/// Lists that are no reach: unsorted, overlapping, or with host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the networks are not in order, overlap, or have host bits")]
pub struct ReachError;

// === impl Reach ===

impl Reach {
    pub const NOBODY: Self = Self { v4: Vec::new(), v6: Vec::new() };

    pub fn everybody() -> Self {
        Self { v4: vec![Ipv4Net::default()], v6: vec![Ipv6Net::default()] }
    }

    /// From lists that must be in order, without overlaps and host bits.
    ///
    /// # Errors
    /// [`ReachError`].
    pub fn from_sorted(v4: Vec<Ipv4Net>, v6: Vec<Ipv6Net>) -> Result<Self, ReachError> {
        let whole4 = v4.iter().all(|net| net.addr() == net.network());
        let whole6 = v6.iter().all(|net| net.addr() == net.network());
        let apart4 = v4.array_windows().all(|[one, two]| one.broadcast() < two.network());
        let apart6 = v6.array_windows().all(|[one, two]| one.broadcast() < two.network());
        if whole4 && whole6 && apart4 && apart6 { Ok(Self { v4, v6 }) } else { Err(ReachError) }
    }

    pub fn v4(&self) -> &[Ipv4Net] {
        &self.v4
    }

    pub fn v6(&self) -> &[Ipv6Net] {
        &self.v6
    }

    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// With these too; they are few.
    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = Cidr>) -> Self {
        let mut with = self.clone();
        for network in more.into_iter().map(Cidr::network) {
            match network {
                IpNet::V4(network) => {
                    let at = with.v4.partition_point(|it| it.broadcast() < network.network());
                    insert(&mut with.v4, at, network, |one, other| one.contains(other));
                }
                IpNet::V6(network) => {
                    let at = with.v6.partition_point(|it| it.broadcast() < network.network());
                    insert(&mut with.v6, at, network, |one, other| one.contains(other));
                }
            }
        }
        with
    }
}

/// Puts a network before which the first `at` end: unless one contains it, instead of those that it contains.
fn insert<T: Copy>(networks: &mut Vec<T>, at: usize, network: T, contains: impl Fn(&T, &T) -> bool) {
    let after = networks.get(at..).unwrap_or_default();
    if after.first().is_some_and(|it| contains(it, &network)) {
        return;
    }
    let within = after.iter().take_while(|it| contains(&network, it)).count();
    networks.splice(at..at + within, [network]);
}

impl FromIterator<Cidr> for Reach {
    fn from_iter<I: IntoIterator<Item = Cidr>>(networks: I) -> Self {
        networks.into_iter().map(Cidr::network).collect()
    }
}

impl FromIterator<IpNet> for Reach {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(network) => v4.push(network.trunc()),
                IpNet::V6(network) => v6.push(network.trunc()),
            }
        }
        // Wider ones first among those that begin at the same address; then each that lies in the one before it goes.
        v4.sort_by_key(|net| (net.network(), net.prefix_len()));
        v4.dedup_by(|next, before| before.contains(&*next));
        v6.sort_by_key(|net| (net.network(), net.prefix_len()));
        v6.dedup_by(|next, before| before.contains(&*next));
        Self { v4, v6 }
    }
}

impl TryFrom<Parts> for Reach {
    type Error = ReachError;

    fn try_from(Parts { v4, v6 }: Parts) -> Result<Self, ReachError> {
        Self::from_sorted(v4, v6)
    }
}

impl From<Reach> for Parts {
    fn from(Reach { v4, v6 }: Reach) -> Self {
        Self { v4, v6 }
    }
}
