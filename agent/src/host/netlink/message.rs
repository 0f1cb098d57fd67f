//! Netlink messages of the nftables subsystem, as bytes. Pure.
//!
//! ```text
//! nlmsghdr (16) · nfgenmsg (4) · attribute (length, kind, payload, padding to 4) · attribute · …
//! ```
//! Header fields are in the machine's order, what nftables itself defines in network order.

use nix::errno::Errno;
use nix::libc;

use super::Error;

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

// Where the crate that has the system's constants leaves them out; from linux/netlink.h and linux/netfilter/nfnetlink.h.
const SUBSYSTEM_NFTABLES: u16 = 10;
pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

/// The family of tables that hold IPv4 and IPv6.
pub const INET: u8 = 1;

/// What a message does or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    NewElements,
    DeleteElements,
    GetElements,
    GetGeneration,
    NewGeneration,
    GetObjects,
    NewObject,
    /// One that the agent does not use.
    Other(u16),
}

/// One message: its verb, and attributes as bytes. Of a connection: what follows the first four bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub verb: Verb,
    pub attributes: Vec<u8>,
}

/// What the kernel says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Data {
        sequence: u32,
        interrupted: bool,
        message: Message,
    },
    Error {
        sequence: u32,
        errno: Errno,
    },
    /// An acknowledgement, or the end of a listing.
    Done {
        sequence: u32,
    },
}

/// Writes attributes.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

/// An attribute that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub payload: &'a [u8],
}

/// The messages as one transaction, the first of them with sequence number `first + 1`; and the number under which the
/// last of them is acknowledged.
pub(super) fn batch(messages: &[Message], first: u32) -> (Vec<u8>, u32) {
    let size: usize = messages.iter().map(|message| message.attributes.len() + HEADER + FAMILY_HEADER).sum();
    let mut bytes = Vec::with_capacity(size + 2 * (HEADER + FAMILY_HEADER));
    let mut sequence = first;
    frame(&mut bytes, BATCH_BEGIN, NLM_F_REQUEST, sequence, (0, SUBSYSTEM_NFTABLES), &[]);
    for (number, message) in messages.iter().enumerate() {
        sequence = sequence.wrapping_add(1);
        let create = if message.verb == Verb::NewElements { NLM_F_CREATE } else { 0 };
        let acknowledge = if number + 1 == messages.len() { NLM_F_ACK } else { 0 };
        let flags = NLM_F_REQUEST | create | acknowledge;
        frame(&mut bytes, message.verb.number(), flags, sequence, (INET, 0), &message.attributes);
    }
    frame(&mut bytes, BATCH_END, NLM_F_REQUEST, sequence.wrapping_add(1), (0, SUBSYSTEM_NFTABLES), &[]);
    (bytes, sequence)
}

/// The message as a request outside of a transaction.
pub(super) fn request(message: &Message, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let listing = if message.verb == Verb::GetGeneration { NLM_F_ACK } else { NLM_F_DUMP };
    frame(
        &mut bytes,
        message.verb.number(),
        NLM_F_REQUEST | listing,
        sequence,
        (INET, 0),
        &message.attributes,
    );
    bytes
}

/// What the kernel sent in one datagram.
///
/// # Errors
/// [`Error::Malformed`].
pub(super) fn answers(mut bytes: &[u8]) -> Result<Vec<Answer>, Error> {
    let mut told = Vec::new();
    while !bytes.is_empty() {
        let length = read_u32(bytes, 0)? as usize;
        let body =
            bytes.get(HEADER..length).ok_or(Error::Malformed("a message is longer than its datagram"))?;
        let (kind, flags, sequence) = (read_u16(bytes, 4)?, read_u16(bytes, 6)?, read_u32(bytes, 8)?);
        told.push(match kind {
            NLMSG_ERROR => error_or_done(sequence, read_u32(body, 0)?),
            // A listing may end with an error.
            NLMSG_DONE if body.len() >= 4 => error_or_done(sequence, read_u32(body, 0)?),
            NLMSG_DONE => Answer::Done { sequence },
            kind => Answer::Data {
                sequence,
                interrupted: flags & NLM_F_DUMP_INTR != 0,
                message: Message {
                    verb: Verb::of(kind),
                    attributes: body.get(FAMILY_HEADER..).unwrap_or_default().to_vec(),
                },
            },
        });
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    Ok(told)
}

/// The attributes in these bytes.
///
/// # Errors
/// [`Error::Malformed`].
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, Error>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let length = bytes.first_chunk::<2>().map(|two| usize::from(u16::from_ne_bytes(*two)));
        let read = (|| {
            let length = length?;
            let kind = read_u16(bytes, 2).ok()? & KIND_MASK;
            Some((length, Attribute { kind, payload: bytes.get(ATTRIBUTE_HEADER..length)? }))
        })();
        match read {
            Some((length, attribute)) => {
                bytes = bytes.get(align(length)..).unwrap_or_default();
                Some(Ok(attribute))
            }
            None => {
                bytes = &[];
                Some(Err(Error::Malformed("an attribute is cut off")))
            }
        }
    })
}

/// The first attribute of this kind.
///
/// # Errors
/// [`Error::Malformed`], also where there is none.
pub fn find(bytes: &[u8], kind: u16) -> Result<&[u8], Error> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.kind == kind {
            return Ok(attribute.payload);
        }
    }
    Err(Error::Malformed("an attribute is missing"))
}

fn frame(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, (family, id): (u8, u16), body: &[u8]) {
    header(bytes, kind, flags, sequence, FAMILY_HEADER + body.len());
    bytes.push(family);
    bytes.push(0);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(body);
}

/// What every netlink message begins with, before a body of so many bytes.
pub(super) fn header(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: usize) {
    bytes.extend_from_slice(&u32::try_from(HEADER + body).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
}

fn error_or_done(sequence: u32, negated: u32) -> Answer {
    match negated.cast_signed().checked_neg() {
        Some(0) => Answer::Done { sequence },
        Some(errno) => Answer::Error { sequence, errno: Errno::from_raw(errno) },
        None => Answer::Error { sequence, errno: Errno::UnknownErrno },
    }
}

const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn read_u16(bytes: &[u8], at: usize) -> Result<u16, Error> {
    let two = bytes.get(at..).and_then(|rest| rest.first_chunk());
    two.map(|two| u16::from_ne_bytes(*two)).ok_or(Error::Malformed("a header is cut off"))
}

fn read_u32(bytes: &[u8], at: usize) -> Result<u32, Error> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.map(|four| u32::from_ne_bytes(*four)).ok_or(Error::Malformed("a header is cut off"))
}

// === impl Verb ===

impl Verb {
    fn number(self) -> u16 {
        let verb = match self {
            Self::NewElements => libc::NFT_MSG_NEWSETELEM,
            Self::DeleteElements => libc::NFT_MSG_DELSETELEM,
            Self::GetElements => libc::NFT_MSG_GETSETELEM,
            Self::GetGeneration => libc::NFT_MSG_GETGEN,
            Self::NewGeneration => libc::NFT_MSG_NEWGEN,
            Self::GetObjects => libc::NFT_MSG_GETOBJ,
            Self::NewObject => libc::NFT_MSG_NEWOBJ,
            Self::Other(kind) => return kind,
        };
        SUBSYSTEM_NFTABLES << 8 | u16::try_from(verb).unwrap_or(u16::MAX)
    }

    fn of(kind: u16) -> Self {
        const KNOWN: [Verb; 7] = [
            Verb::NewElements,
            Verb::DeleteElements,
            Verb::GetElements,
            Verb::GetGeneration,
            Verb::NewGeneration,
            Verb::GetObjects,
            Verb::NewObject,
        ];
        KNOWN.into_iter().find(|verb| verb.number() == kind).unwrap_or(Self::Other(kind))
    }
}

// === impl Message ===

impl Message {
    pub(super) fn deed(&self) -> &'static str {
        match self.verb {
            Verb::NewElements | Verb::DeleteElements => "a change of elements",
            Verb::GetElements => "to list a set",
            Verb::GetGeneration | Verb::NewGeneration => "to tell the generation of its rules",
            Verb::GetObjects | Verb::NewObject => "to list the counters",
            Verb::Other(_) => "a request",
        }
    }
}

// === impl Writer ===

impl Writer {
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) {
        let length =
            u16::try_from(ATTRIBUTE_HEADER + payload.len()).expect("attributes are kept far below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// Ends with a zero, as names do here.
    pub fn text(&mut self, kind: u16, text: &str) {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.bytes(kind, &payload);
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
        inner(self);
        let length = u16::try_from(self.bytes.len() - at).expect("attributes are kept far below 64 KiB");
        if let Some(header) = self.bytes.get_mut(at..at + ATTRIBUTE_HEADER) {
            header[..2].copy_from_slice(&length.to_ne_bytes());
            header[2..].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        }
    }

    /// Attributes that were written elsewhere.
    pub fn append(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
