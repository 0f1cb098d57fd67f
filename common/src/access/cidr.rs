//! One address or network, in the one spelling that has one meaning.

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A network without host bits; a single address is one of full length. Never an IPv4 address inside of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

/// The longest part of a text that is shown.
const MAX_SHOWN_CHARS: usize = 100;

/// Why a text is no address or network; each says what to write instead where that is known. Texts are as [`visible`] shows them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("it is empty; write an address such as 192.0.2.7 or a network such as 2001:db8::/32")]
    Empty,
    #[error("`{0}` is no address: host names are not resolved, write the address itself")]
    Name(String),
    #[error("`{text}` is no IP address or network")]
    Malformed { text: String, source: AddrParseError },
    #[error("`{text}` has a number with a leading zero, which some programs read as octal; write {plain}")]
    LeadingZero { text: String, plain: String },
    #[error("`{text}` has {parts} numbers; an IPv4 address has four")]
    Parts { text: String, parts: usize },
    #[error(
        "`{text}` has a zone; an access rule is about addresses as they arrive, write it without `%{zone}`"
    )]
    Zone { text: String, zone: String },
    #[error("`{text}` is an IPv4 address inside of IPv6, which never arrives like that; write {plain}")]
    Mapped { text: String, plain: String },
    #[error("`/{mask}` is no prefix length; it is a number from 0 to {most}")]
    Mask { mask: String, most: u8 },
    #[error("`{text}` has bits set beyond /{length}; the network is {network}, the address alone {address}")]
    HostBits { text: String, length: u8, network: IpNet, address: IpAddr },
}

// === impl Cidr ===

impl Cidr {
    pub fn network(self) -> IpNet {
        self.0
    }
}

impl From<IpAddr> for Cidr {
    /// An address that arrives as IPv4 inside of IPv6 is taken for the IPv4 address.
    fn from(address: IpAddr) -> Self {
        Self(IpNet::from(address.to_canonical()))
    }
}

impl TryFrom<IpNet> for Cidr {
    type Error = CidrError;

    fn try_from(network: IpNet) -> Result<Self, CidrError> {
        let text = network.to_string();
        if let IpNet::V6(v6) = network
            && let Some(plain) = mapped(v6)
        {
            return Err(CidrError::Mapped { text, plain });
        }
        if network.addr() != network.network() {
            return Err(CidrError::HostBits {
                text,
                length: network.prefix_len(),
                network: network.trunc(),
                address: network.addr(),
            });
        }
        Ok(Self(network))
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        if text.is_empty() {
            return Err(CidrError::Empty);
        }
        let (address_text, mask) = match text.split_once('/') {
            Some((address, mask)) => (address, Some(mask)),
            None => (text, None),
        };
        let address = parse_address(address_text)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = mask.map_or(Ok(most), |mask| parse_mask(mask, most))?;
        let network = match address {
            IpAddr::V4(v4) => Ipv4Net::new(v4, length).map(IpNet::V4),
            IpAddr::V6(v6) => Ipv6Net::new(v6, length).map(IpNet::V6),
        };
        let network = network.map_err(|_| CidrError::Mask { mask: length.to_string(), most })?;
        Self::try_from(network)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    /// A single address without its length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(network) = self;
        if network.prefix_len() == network.max_prefix_len() { network.addr().fmt(f) } else { network.fmt(f) }
    }
}

/// The beginning of what was written for an address. Addresses are plain ASCII: all else is escaped, so that nobody looks for what
/// cannot be seen.
pub fn visible(text: &str) -> String {
    let each = |c: char| {
        let plain = c.is_ascii_graphic() || c == ' ';
        plain.then_some(c).into_iter().chain(c.escape_unicode().filter(move |_| !plain))
    };
    text.chars().take(MAX_SHOWN_CHARS).flat_map(each).collect()
}

fn parse_address(text: &str) -> Result<IpAddr, CidrError> {
    let shown = || visible(text);
    if let Some((_, zone)) = text.split_once('%') {
        return Err(CidrError::Zone { text: shown(), zone: visible(zone) });
    }
    let source = match text.parse::<IpAddr>() {
        Ok(address) => return Ok(address),
        Err(source) => source,
    };
    if text.contains(':') {
        return Err(CidrError::Malformed { text: shown(), source });
    }
    let parts: Vec<&str> = text.split('.').collect();
    let numbers = parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if numbers && parts.len() != 4 {
        return Err(CidrError::Parts { text: shown(), parts: parts.len() });
    }
    if numbers {
        let plain: Option<Vec<u8>> = parts.iter().map(|part| part.parse().ok()).collect();
        return Err(match plain.and_then(|plain| <[u8; 4]>::try_from(plain).ok()) {
            Some(plain) => CidrError::LeadingZero { text: shown(), plain: Ipv4Addr::from(plain).to_string() },
            None => CidrError::Malformed { text: shown(), source },
        });
    }
    let label = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if parts.iter().all(|part| label(part)) && text.bytes().any(|b| b.is_ascii_alphabetic()) {
        return Err(CidrError::Name(shown()));
    }
    Err(CidrError::Malformed { text: shown(), source })
}

/// Digits alone: no sign, no space, no second meaning by a leading zero, no dotted netmask.
fn parse_mask(mask: &str, most: u8) -> Result<u8, CidrError> {
    let plain = mask.bytes().all(|b| b.is_ascii_digit()) && (mask == "0" || !mask.starts_with('0'));
    let length = if plain { mask.parse().ok() } else { None };
    length.filter(|length| *length <= most).ok_or_else(|| CidrError::Mask { mask: visible(mask), most })
}

/// The IPv4 network that lies in `::ffff:0:0/96`.
fn mapped(network: Ipv6Net) -> Option<String> {
    let v4 = network.addr().to_ipv4_mapped()?;
    match network.prefix_len().checked_sub(96) {
        Some(length) => Some(Cidr(IpNet::V4(Ipv4Net::new(v4, length).ok()?)).to_string()),
        // All of them: the prefix itself stands for every IPv4 address.
        None if network.addr() == Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0) => Some("0.0.0.0/0".to_owned()),
        None => Some(v4.to_string()),
    }
}
