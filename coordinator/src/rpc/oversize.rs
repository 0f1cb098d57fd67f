//! Which field makes a message too large: told from the first bytes of the message, while none of it is held.
//!
//! Top-level fields only, by the wire format of <https://protobuf.dev/programming-guides/encoding/>; what is inside of one counts
//! for it. Of many small ones it is the one with which the message grows too large.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Label;

/// Longest encoding of a number.
const MAX_VARINT: u32 = 10;

/// The fields of a method's request, by number.
pub(super) type Fields = HashMap<u64, Field>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    name: String,
    repeated: bool,
}

/// Looks through a message that is too large for the field by which it is.
#[derive(Debug)]
pub(super) struct Search {
    /// `None`: nothing is known of this method's messages.
    fields: Option<&'static Fields>,
    /// Bytes that the message may still have.
    room: u32,
    seen: HashMap<u64, u32>,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Tag(Varint),
    Number,
    Length { field: u64, length: Varint },
    Skip(u64),
}

#[derive(Debug, Clone, Copy, Default)]
struct Varint {
    value: u64,
    bytes: u32,
}

/// What the search has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// More bytes are needed.
    NotYet,
    /// This field, which has so many bytes.
    Field { name: String, bytes: u64 },
    /// No single one, or nothing that can be understood.
    Nothing,
}

static FIELDS: LazyLock<HashMap<String, Fields>> = LazyLock::new(all_fields);

/// The fields of the request of a method such as `holdfast.v1.NodeService/GetNode`.
pub(super) fn fields(method: &str) -> Option<&'static Fields> {
    FIELDS.get(method)
}

fn all_fields() -> HashMap<String, Fields> {
    let set = FileDescriptorSet::decode(holdfast_proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut messages = HashMap::new();
    for file in &set.file {
        for message in &file.message_type {
            let maps = message
                .nested_type
                .iter()
                .filter(|nested| nested.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry));
            let maps: Vec<_> = maps.map(|nested| format!(".{}", nested.name())).collect();
            let fields: Fields = message
                .field
                .iter()
                .filter_map(|field| {
                    let map = maps.iter().any(|map| field.type_name().ends_with(map));
                    let repeated = field.label() == Label::Repeated && !map;
                    let number = u64::try_from(field.number()).ok()?;
                    Some((number, Field { name: field.name().to_owned(), repeated }))
                })
                .collect();
            messages.insert(format!(".{}.{}", file.package(), message.name()), fields);
        }
    }
    let mut methods = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let fields = messages.get(method.input_type()).cloned().unwrap_or_default();
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                methods.insert(name, fields);
            }
        }
    }
    methods
}

// === impl Search ===

impl Search {
    /// Of a message that may have `room` bytes, and has more.
    pub(super) fn new(fields: Option<&'static Fields>, room: u32) -> Self {
        Self { fields, room, seen: HashMap::new(), state: State::Tag(Varint::default()) }
    }

    /// Goes on with the next bytes of the message.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Found {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if self.room == 0 || self.fields.is_none() {
                return Found::Nothing;
            }
            if let State::Skip(left) = self.state {
                let here = u64::try_from(rest.len()).unwrap_or(u64::MAX).min(left);
                let passed = u32::try_from(here).unwrap_or(u32::MAX);
                self.room = self.room.saturating_sub(passed);
                rest = rest.get(usize::try_from(here).unwrap_or(usize::MAX)..).unwrap_or_default();
                self.state =
                    if here == left { State::Tag(Varint::default()) } else { State::Skip(left - here) };
                continue;
            }
            self.room -= 1;
            rest = after;
            match self.step(byte) {
                Found::NotYet => {}
                found => return found,
            }
        }
        Found::NotYet
    }

    fn step(&mut self, byte: u8) -> Found {
        match self.state {
            State::Tag(mut tag) => match tag.push(byte) {
                Pushed::More => self.state = State::Tag(tag),
                Pushed::Whole => match (tag.value >> 3, tag.value & 7) {
                    (_, 0) => self.state = State::Number,
                    (_, 1) => self.state = State::Skip(8),
                    (field, 2) => self.state = State::Length { field, length: Varint::default() },
                    (_, 5) => self.state = State::Skip(4),
                    _ => return Found::Nothing,
                },
                Pushed::TooLong => return Found::Nothing,
            },
            State::Number if byte & 0x80 == 0 => self.state = State::Tag(Varint::default()),
            State::Number => {}
            State::Length { field, mut length } => match length.push(byte) {
                Pushed::More => self.state = State::Length { field, length },
                Pushed::Whole => return self.field(field, length.value),
                Pushed::TooLong => return Found::Nothing,
            },
            State::Skip(_) => {}
        }
        Found::NotYet
    }

    fn field(&mut self, number: u64, bytes: u64) -> Found {
        let place = self.seen.entry(number).or_default();
        let index = *place;
        *place += 1;
        if bytes > u64::from(self.room) {
            let Some(field) = self.fields.and_then(|fields| fields.get(&number)) else {
                return Found::Nothing;
            };
            let Field { name, repeated } = field;
            let name = if *repeated { format!("{name}[{index}]") } else { name.clone() };
            return Found::Field { name, bytes };
        }
        self.state = if bytes == 0 { State::Tag(Varint::default()) } else { State::Skip(bytes) };
        Found::NotYet
    }
}

// === impl Varint ===

enum Pushed {
    More,
    Whole,
    TooLong,
}

impl Varint {
    fn push(&mut self, byte: u8) -> Pushed {
        if self.bytes == MAX_VARINT {
            return Pushed::TooLong;
        }
        self.value |= u64::from(byte & 0x7f).checked_shl(7 * self.bytes).unwrap_or(0);
        self.bytes += 1;
        if byte & 0x80 == 0 { Pushed::Whole } else { Pushed::More }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1 as proto;
    use proptest::prelude::*;

    use super::*;

    const CREATE: &str = "holdfast.v1.ClusterService/CreateCluster";
    const ROOM: u32 = 1000;

    fn search(message: &proto::CreateClusterRequest, cut: usize) -> Found {
        let mut search = Search::new(fields(CREATE), ROOM);
        for piece in message.encode_to_vec().chunks(cut) {
            match search.look(piece) {
                Found::NotYet => {}
                found => return found,
            }
        }
        Found::NotYet
    }

    #[test]
    fn the_field_that_is_too_large_is_named_however_the_message_is_cut() {
        let long = || "x".repeat(2000);
        let with = |change: fn(&mut proto::CreateClusterRequest, String)| {
            let mut request = proto::CreateClusterRequest { port: 5432, engine: 1, ..Default::default() };
            change(&mut request, long());
            request
        };
        for cut in [1, 2, 3, 7, 64, 10_000] {
            for (request, name) in [
                (with(|it, long| it.name = long), "name"),
                (with(|it, long| it.nodes = vec!["a".into(), long]), "nodes[1]"),
                (with(|it, long| drop(it.parameters.insert("k".into(), long))), "parameters"),
                (with(|it, long| it.request_id = long), "request_id"),
            ] {
                let found = search(&request, cut);
                assert!(matches!(&found, Found::Field { name: told, .. } if told == name), "{found:?}");
            }
        }
    }

    #[test]
    fn of_many_small_fields_it_is_the_one_that_does_not_fit_any_more() {
        let request = proto::CreateClusterRequest { nodes: vec!["n".repeat(90); 100], ..Default::default() };
        assert_eq!(search(&request, 17), Found::Field { name: "nodes[10]".into(), bytes: 90 });
    }

    #[test]
    fn of_an_unknown_message_nothing_is_claimed() {
        assert_eq!(Search::new(None, ROOM).look(&[0; 3]), Found::Nothing);
    }

    #[test]
    fn every_method_of_ours_is_known() {
        for rule in super::super::rules::RULES.iter().filter(|rule| rule.method.starts_with("holdfast.")) {
            assert!(fields(rule.method).is_some(), "{}", rule.method);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_the_search_and_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cut in 1_usize..100,
        ) {
            let mut search = Search::new(fields(CREATE), ROOM);
            let mut passed = 0;
            for piece in bytes.chunks(cut) {
                if search.look(piece) != Found::NotYet {
                    return Ok(());
                }
                passed += piece.len();
            }
            prop_assert!(passed <= 1000);
        }
    }
}
