//! Changes of elements to netlink messages, and the kernel's listings back. Pure.
//!
//! An interval is two elements, as the kernel wants it: one where it begins, and one, marked as an end, at the address
//! *after* its last one. An interval up to the very last address has no end.
//!
//! Ports bear a mark, which nft lists as a comment: they come and go with leases and trials, so nothing else tells one that the agent
//! has put in from one of somebody else's.

use std::time::Duration;

use nix::libc;

use super::TABLE;
use super::plan::{Change, Deed};
use super::sets::{Elements, Interval, PortElement, SetId};
use crate::host::netlink::Error;
use crate::host::netlink::message::{Message, Verb, Writer, attributes, find};

/// What elements may take in one message: an answer that quotes it must still be readable at once.
const MAX_ELEMENTS_BYTES: usize = 24 * 1024;

// linux/netfilter/nf_tables.h
const ELEM_LIST_TABLE: u16 = 1;
const ELEM_LIST_SET: u16 = 2;
const ELEM_LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_FLAGS: u16 = 3;
const ELEM_TIMEOUT: u16 = 4;
const ELEM_EXPIRATION: u16 = 5;
const ELEM_USERDATA: u16 = 6;
const DATA_VALUE: u16 = 1;
const OBJ_TABLE: u16 = 1;
const OBJ_NAME: u16 = 2;
const OBJ_TYPE: u16 = 3;
const OBJ_DATA: u16 = 4;
const OBJECT_COUNTER: u32 = 1;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const GEN_ID: u16 = 1;

/// A comment as nft reads it: its kind, its length, and a text that ends with a zero.
const MARK: &[u8] = b"\0\x06agent\0";

/// What went through a counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// An address as the kernel has it: in network order.
pub(super) trait Bits: Copy + Ord {
    fn of(bytes: &[u8]) -> Option<Self>;
    fn write(self, writer: &mut Writer, kind: u16);
    /// `None` after the last one.
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
    const LAST: Self;
}

/// The messages of one change.
pub(super) fn encode(change: &Change) -> Vec<Message> {
    let verb = match change.deed {
        Deed::Add => Verb::NewElements,
        Deed::Delete => Verb::DeleteElements,
    };
    let mut chunks = Chunks { set: change.set, verb, messages: Vec::new(), elements: Writer::default() };
    match &change.elements {
        Elements::Ports(ports) => ports.iter().for_each(|element| chunks.port(change.deed, *element)),
        Elements::V4(intervals) => intervals.iter().for_each(|interval| chunks.interval(*interval)),
        Elements::V6(intervals) => intervals.iter().for_each(|interval| chunks.interval(*interval)),
    }
    chunks.close();
    chunks.messages
}

pub(super) fn list_elements(set: SetId) -> Message {
    let mut writer = Writer::default();
    writer.text(ELEM_LIST_TABLE, TABLE);
    writer.text(ELEM_LIST_SET, &set.to_string());
    Message { verb: Verb::GetElements, attributes: writer.finish() }
}

pub(super) fn list_counters() -> Message {
    let mut writer = Writer::default();
    writer.text(OBJ_TABLE, TABLE);
    writer.bytes(OBJ_TYPE, &OBJECT_COUNTER.to_be_bytes());
    Message { verb: Verb::GetObjects, attributes: writer.finish() }
}

pub(super) fn get_generation() -> Message {
    Message { verb: Verb::GetGeneration, attributes: Vec::new() }
}

/// The number of the kernel's ruleset, which rises with every transaction of anybody.
pub(super) fn generation(told: &[Message]) -> Result<u32, Error> {
    let message = told.iter().find(|message| message.verb == Verb::NewGeneration);
    let message = message.ok_or(Error::Malformed("there is no generation in it"))?;
    be32(find(&message.attributes, GEN_ID)?)
}

/// The table's counters by name.
pub(super) fn counters(told: &[Message]) -> Result<Vec<(String, Counter)>, Error> {
    let mut counters = Vec::new();
    for message in told.iter().filter(|message| message.verb == Verb::NewObject) {
        // Older kernels do not filter by table.
        if text(find(&message.attributes, OBJ_TABLE)?) != TABLE {
            continue;
        }
        let data = find(&message.attributes, OBJ_DATA)?;
        let counter = Counter {
            packets: be64(find(data, COUNTER_PACKETS)?)?,
            bytes: be64(find(data, COUNTER_BYTES)?)?,
        };
        counters.push((text(find(&message.attributes, OBJ_NAME)?), counter));
    }
    Ok(counters)
}

/// A listed set of ports. What has expired is not in it.
pub(super) fn ports(told: &[Message]) -> Result<Vec<PortElement>, Error> {
    let mut ports = Vec::new();
    for_each_element(told, |element| {
        let left = find(element, ELEM_EXPIRATION).ok().map(be64).transpose()?;
        ports.push(PortElement { port: port(element)?, lasts: left.map(Duration::from_millis) });
        Ok(())
    })?;
    Ok(ports)
}

/// Those of a listed set of ports that somebody else has put in.
pub(super) fn foreign_ports(told: &[Message]) -> Result<Vec<u16>, Error> {
    let mut ports = Vec::new();
    for_each_element(told, |element| {
        if find(element, ELEM_USERDATA).ok() != Some(MARK) {
            ports.push(port(element)?);
        }
        Ok(())
    })?;
    Ok(ports)
}

fn port(element: &[u8]) -> Result<u16, Error> {
    let key = find(find(element, ELEM_KEY)?, DATA_VALUE)?;
    let port = key.first_chunk().map(|two| u16::from_be_bytes(*two));
    port.ok_or(Error::Malformed("a port has two bytes"))
}

/// A listed set of addresses, in order.
pub(super) fn intervals<T: Bits>(told: &[Message]) -> Result<Vec<Interval<T>>, Error> {
    let mut edges: Vec<(T, Edge)> = Vec::new();
    for_each_element(told, |element| {
        let key = T::of(find(find(element, ELEM_KEY)?, DATA_VALUE)?);
        let key = key.ok_or(Error::Malformed("an address has four or sixteen bytes"))?;
        let flags = find(element, ELEM_FLAGS).ok().map(be32).transpose()?.unwrap_or(0);
        let end = flags & libc::NFT_SET_ELEM_INTERVAL_END.cast_unsigned() != 0;
        edges.push((key, if end { Edge::End } else { Edge::Start }));
        Ok(())
    })?;
    edges.sort_unstable();
    Ok(join(edges))
}

/// Where an interval begins or has ended; of neighbours the end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End,
    Start,
}

fn join<T: Bits>(edges: Vec<(T, Edge)>) -> Vec<Interval<T>> {
    let mut intervals = Vec::with_capacity(edges.len() / 2);
    let mut open: Option<T> = None;
    for (key, edge) in edges {
        match (edge, open.take()) {
            (Edge::Start, None) => open = Some(key),
            // One that is not closed before the next begins: nothing of ours.
            (Edge::Start, Some(first)) => {
                intervals.extend(key.previous().map(|last| Interval { first, last }));
                open = Some(key);
            }
            (Edge::End, Some(first)) => intervals.extend(key.previous().map(|last| Interval { first, last })),
            // nft puts one at the very beginning, where nothing was open.
            (Edge::End, None) => {}
        }
    }
    intervals.extend(open.map(|first| Interval { first, last: T::LAST }));
    intervals
}

fn for_each_element(told: &[Message], mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    for message in told.iter().filter(|message| message.verb == Verb::NewElements) {
        // A part of a listing may have no elements.
        let Ok(list) = find(&message.attributes, ELEM_LIST_ELEMENTS) else { continue };
        for element in attributes(list) {
            each(element?.payload)?;
        }
    }
    Ok(())
}

fn be32(bytes: &[u8]) -> Result<u32, Error> {
    bytes.first_chunk().map(|it| u32::from_be_bytes(*it)).ok_or(Error::Malformed("a number has four bytes"))
}

fn be64(bytes: &[u8]) -> Result<u64, Error> {
    bytes.first_chunk().map(|it| u64::from_be_bytes(*it)).ok_or(Error::Malformed("a number has eight bytes"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// Messages that are being filled.
struct Chunks {
    set: SetId,
    verb: Verb,
    messages: Vec<Message>,
    elements: Writer,
}

// === impl Chunks ===

impl Chunks {
    fn port(&mut self, deed: Deed, element: PortElement) {
        self.elements.nest(LIST_ELEM, |writer| {
            writer.nest(ELEM_KEY, |key| key.bytes(DATA_VALUE, &element.port.to_be_bytes()));
            if let (Deed::Add, Some(lasts)) = (deed, element.lasts) {
                // At least one: zero would be for ever.
                let millis = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX).max(1);
                writer.bytes(ELEM_TIMEOUT, &millis.to_be_bytes());
            }
            if deed == Deed::Add {
                writer.bytes(ELEM_USERDATA, MARK);
            }
        });
        self.close_if_full();
    }

    fn interval<T: Bits>(&mut self, interval: Interval<T>) {
        let Interval { first, last } = interval;
        self.elements.nest(LIST_ELEM, |writer| writer.nest(ELEM_KEY, |key| first.write(key, DATA_VALUE)));
        if let Some(end) = last.next() {
            self.elements.nest(LIST_ELEM, |writer| {
                writer.nest(ELEM_KEY, |key| end.write(key, DATA_VALUE));
                writer.bytes(ELEM_FLAGS, &libc::NFT_SET_ELEM_INTERVAL_END.to_be_bytes());
            });
        }
        self.close_if_full();
    }

    fn close_if_full(&mut self) {
        if self.elements.len() >= MAX_ELEMENTS_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        if self.elements.is_empty() {
            return;
        }
        let elements = std::mem::take(&mut self.elements).finish();
        let mut writer = Writer::default();
        writer.text(ELEM_LIST_TABLE, TABLE);
        writer.text(ELEM_LIST_SET, &self.set.to_string());
        writer.nest(ELEM_LIST_ELEMENTS, |list| list.append(&elements));
        self.messages.push(Message { verb: self.verb, attributes: writer.finish() });
    }
}

/// The two widths differ in nothing else.
macro_rules! bits {
    ($($number:ty)+) => {$(
        impl Bits for $number {
            const LAST: Self = Self::MAX;

            fn of(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_be_bytes)
            }

            fn write(self, writer: &mut Writer, kind: u16) {
                writer.bytes(kind, &self.to_be_bytes());
            }

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn previous(self) -> Option<Self> {
                self.checked_sub(1)
            }
        }
    )+};
}

bits!(u32 u128);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sets::Family;
    use super::*;

    fn change(elements: Elements) -> Change {
        Change { set: SetId::Kept(5432, Family::V4), deed: Deed::Add, elements }
    }

    #[test]
    fn an_interval_ends_after_its_last_address_and_the_last_of_all_nowhere() {
        let kept = |first, last| encode(&change(Elements::V4(vec![Interval { first, last }])));
        let edges = |messages: Vec<Message>| {
            let mut edges = Vec::new();
            for_each_element(&messages, |element| {
                let key = find(find(element, ELEM_KEY)?, DATA_VALUE)?.to_vec();
                edges.push((key, find(element, ELEM_FLAGS).is_ok()));
                Ok(())
            })
            .unwrap();
            edges
        };
        let (start, end) = (false, true);
        assert_eq!(
            edges(kept(0x0a00_0000, 0x0a00_00ff)),
            [(vec![10, 0, 0, 0], start), (vec![10, 0, 1, 0], end)]
        );
        assert_eq!(edges(kept(0, u32::MAX)), [(vec![0; 4], start)]);
        assert_eq!(edges(kept(u32::MAX, u32::MAX)), [(vec![255; 4], start)]);
        assert_eq!(
            edges(kept(u32::MAX - 1, u32::MAX - 1)),
            [(vec![255, 255, 255, 254], start), (vec![255; 4], end)]
        );
    }

    #[test]
    fn the_mark_that_nft_puts_first_is_no_interval() {
        assert_eq!(
            join(vec![(0_u32, Edge::End), (5, Edge::Start), (7, Edge::End)]),
            [Interval { first: 5, last: 6 }]
        );
    }

    fn apart<T: Copy + Ord>(points: &[T]) -> Vec<Interval<T>> {
        let pairs = points.chunks_exact(2);
        pairs.map(|two| Interval { first: two[0], last: two[1] }).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            v4 in proptest::collection::btree_set(prop_oneof![any::<u32>(), Just(u32::MAX), Just(0)], 0..40),
            v6 in proptest::collection::btree_set(prop_oneof![any::<u128>(), Just(u128::MAX), Just(0)], 0..40),
        ) {
            let v4 = apart(&v4.into_iter().collect::<Vec<_>>());
            let v6 = apart(&v6.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(intervals::<u32>(&encode(&change(Elements::V4(v4.clone())))).unwrap(), v4);
            prop_assert_eq!(intervals::<u128>(&encode(&change(Elements::V6(v6.clone())))).unwrap(), v6);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let told = [Message { verb: Verb::NewElements, attributes: bytes.clone() }];
            let _ = (ports(&told), foreign_ports(&told), intervals::<u32>(&told), intervals::<u128>(&told));
            let told = [Message { verb: Verb::NewObject, attributes: bytes.clone() }];
            let _ = counters(&told);
            let told = [Message { verb: Verb::NewGeneration, attributes: bytes }];
            let _ = generation(&told);
        }
    }

    #[test]
    fn a_port_that_the_agent_has_put_in_bears_its_mark() {
        let elements = Elements::Ports(vec![
            PortElement::lasting(5432),
            PortElement::lasting_for(6432, Duration::from_secs(4)),
        ]);
        let put_in = |mark: &[u8]| {
            let told = encode(&Change { set: SetId::Readers, deed: Deed::Add, elements: elements.clone() });
            let marked = told.into_iter().map(|message| {
                let text = message.attributes;
                let at = text.windows(MARK.len()).position(|it| it == MARK).unwrap();
                let attributes = [&text[..at], mark, &text[at + MARK.len()..]].concat();
                Message { attributes, ..message }
            });
            marked.collect::<Vec<_>>()
        };
        assert_eq!(foreign_ports(&put_in(MARK)).unwrap(), [0; 0]);
        assert_eq!(foreign_ports(&put_in(b"\0\x06other\0")).unwrap(), [5432]);
    }

    #[test]
    fn many_elements_are_cut_into_messages_that_the_kernel_takes() {
        let v6 = (0..10_000_u128).map(|n| Interval { first: n * 8, last: n * 8 + 3 }).collect::<Vec<_>>();
        let messages = encode(&change(Elements::V6(v6.clone())));
        assert!(messages.len() > 10 && messages.iter().all(|message| message.attributes.len() < 32 * 1024));
        assert_eq!(intervals::<u128>(&messages).unwrap(), v6);
    }
}
