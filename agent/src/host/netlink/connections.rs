//! TCP connections of this machine, as the kernel's socket monitoring tells and ends them. Pure.
//!
//! ```text
//! nlmsghdr (16) · inet_diag_req_v2: family, protocol, extensions, padding (1 each), states (4), id (48)
//!                 inet_diag_msg:    family, state, timer, retransmissions (1 each), id (48), …
//! id: own port (2) · port of the other end (2) · own address (16) · that of the other end (16) · device (4) · cookie (8)
//! ```
//! Ports and addresses are in network order; of an IPv4 address the first four bytes count. A server that listens in both
//! families at once has its IPv4 connections among those of IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use super::Error;
use super::message::{Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, header};

// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Those that somebody on this machine holds and hears on: established, or the other end says no more (linux/tcp_states.h).
const HELD: u32 = 1 << 1 | 1 << 8;
const ID: usize = 48;
const REQUEST: usize = 8 + ID;

/// The families of which connections are listed.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// A connection, and its other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// An IPv4 address is one, whichever family the server listens in.
    pub peer: IpAddr,
    family: Family,
    /// By which the kernel knows it; no later one between the same ends is meant.
    id: [u8; ID],
}

/// To list those at this port.
pub(super) fn list(family: Family, port: u16, sequence: u32) -> Vec<u8> {
    let mut id = [0; ID];
    id[..2].copy_from_slice(&port.to_be_bytes());
    request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &id, sequence)
}

/// To end this one.
pub(super) fn end(connection: &Connection, sequence: u32) -> Vec<u8> {
    let Connection { peer: _, family, id } = connection;
    request(SOCK_DESTROY, NLM_F_ACK, *family, id, sequence)
}

fn request(kind: u16, flags: u16, family: Family, id: &[u8; ID], sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    header(&mut bytes, kind, NLM_F_REQUEST | flags, sequence, REQUEST);
    let protocol = u8::try_from(libc::IPPROTO_TCP).unwrap_or(u8::MAX);
    bytes.extend_from_slice(&[family.number(), protocol, 0, 0]);
    bytes.extend_from_slice(&HELD.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

// === impl Connection ===

impl Connection {
    /// One that was listed.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(super) fn read(family: Family, message: &Message) -> Result<Self, Error> {
        let cut_off = Error::Malformed("a connection is cut off");
        let Some(id) = message.attributes.first_chunk::<ID>() else { return Err(cut_off) };
        let Some(other) = id.get(20..).and_then(|rest| rest.first_chunk::<16>()) else {
            return Err(cut_off);
        };
        let [a, b, c, d, ..] = *other;
        let peer = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(*other)).to_canonical(),
        };
        Ok(Self { peer, family, id: *id })
    }
}

// === impl Family ===

impl Family {
    fn number(self) -> u8 {
        let number = match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        };
        u8::try_from(number).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::Verb;
    use super::*;

    fn told(other: [u8; 16]) -> Message {
        let mut attributes = vec![0x15, 0x38, 0xc0, 0x01];
        attributes.extend_from_slice(&[1; 16]);
        attributes.extend_from_slice(&other);
        attributes.extend_from_slice(&[0, 0, 0, 0, 9, 8, 7, 6, 5, 4, 3, 2]);
        attributes.extend_from_slice(&[0xee; 20]);
        Message { verb: Verb::Other(SOCK_DIAG_BY_FAMILY), attributes }
    }

    fn peer(family: Family, other: [u8; 16]) -> String {
        Connection::read(family, &told(other)).unwrap().peer.to_string()
    }

    #[test]
    fn the_other_end_is_told_and_an_ipv4_address_is_one_in_either_family() {
        assert_eq!(peer(Family::V4, [203, 0, 113, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "203.0.113.9");
        assert_eq!(
            peer(Family::V6, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9]),
            "203.0.113.9"
        );
        assert_eq!(peer(Family::V6, [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]), "2001:db8::9");
    }

    #[test]
    fn a_listing_names_the_port_and_what_is_ended_is_what_was_listed() {
        let listing = list(Family::V6, 5432, 7);
        assert_eq!(listing.len(), 16 + REQUEST);
        assert_eq!(listing[..4], u32::try_from(listing.len()).unwrap().to_ne_bytes());
        assert_eq!((listing[16], listing[17], &listing[24..26]), (10, 6, &[0x15, 0x38][..]));
        assert!(listing[26..].iter().all(|byte| *byte == 0), "of any other end");
        let message = told([7; 16]);
        let ending = end(&Connection::read(Family::V4, &message).unwrap(), 8);
        assert_eq!((ending[16], &ending[24..]), (2, &message.attributes[..ID]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(attributes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let message = Message { verb: Verb::Other(SOCK_DIAG_BY_FAMILY), attributes };
            for family in FAMILIES {
                let _ = Connection::read(family, &message);
            }
        }
    }
}
