//! Domain → wire → domain for everything; each bad field refused by its name; no bytes that make it panic.

mod asked;
mod questions;
mod refusals;
mod samples;

use std::time::Duration;

use holdfast_proto::link::v1 as proto;
use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message as _;

use self::samples::{at, down, event, report, up};
use super::*;
use crate::access::{Access, Cidr, Trial};
use crate::assignment::*;
use crate::budget::{Budget, Tuning};
use crate::command::{
    Check, CheckMember, CheckedMember, CloneMember, Command, DatabaseName, DestroyMember, InitialiseMember,
    InstallEngine, Outcome, Payload, Progress, RebootNode, RestartMember, ResyncMember, ResyncMode,
    ResyncedBy, RetuneMember, SetPassword, Success, UpgradeEngine, Verifier,
};
use crate::error::{Failure, Retry};
use crate::generation::Generation;
use crate::id::*;
use crate::link::*;
use crate::position::Position;
use crate::protocol::{Profile, Version};
use crate::question::{self, PackageUpgrade, Retuning, SettingChange, Upgrades};
use crate::report::*;
use crate::role::Role;
use crate::set_aside;
use crate::telemetry::*;
use crate::term::Term;

fn decode_up(bytes: &[u8]) -> Option<Result<FromAgent, Error>> {
    proto::SessionRequest::decode(bytes).ok().map(FromAgent::try_from)
}

fn decode_down(bytes: &[u8]) -> Option<Result<FromCoordinator, Error>> {
    proto::SessionResponse::decode(bytes).ok().map(FromCoordinator::try_from)
}

#[test]
fn what_an_agent_says_arrives_unchanged() {
    for message in up() {
        let bytes = proto::SessionRequest::from(&message).encode_to_vec();
        assert_eq!(decode_up(&bytes), Some(Ok(message)));
    }
}

#[test]
fn what_the_coordinator_says_arrives_unchanged() {
    for message in down() {
        let bytes = proto::SessionResponse::from(&message).encode_to_vec();
        assert_eq!(decode_down(&bytes), Some(Ok(message)));
    }
}

#[test]
fn every_reason_crosses_the_wire_under_its_own_name() {
    for reason in Reason::ALL {
        let name = holdfast_proto::r#type::v1::ErrorReason::from(*reason).as_str_name();
        assert_eq!(name.strip_prefix("ERROR_REASON_"), Some(reason.as_str()));
        assert_eq!(Reason::from_wire(reason.to_wire()), Ok(*reason));
    }
    assert_eq!(Reason::from_wire(0), Err(Problem::Missing));
    assert_eq!(Reason::from_wire(9999), Err(Problem::UnknownValue { value: 9999 }));
}

#[test]
fn enrollment_arrives_unchanged() {
    let enroll = Enroll {
        token: "hf1.a.b.c".into(),
        certificate_signing_request: "pem".into(),
        node_name: "n1".parse().unwrap(),
        address: [192, 0, 2, 1].into(),
        request_id: uuid::Uuid::now_v7(),
    };
    assert!(Enroll::try_from(proto::EnrollRequest::from(&enroll)).is_ok_and(|back| back == enroll));
    let certificate =
        Renewed { certificate_chain: "c".into(), trust_bundle: "t".into(), not_after: at(1_900_000_000) };
    let enrolled = Enrolled { fleet_id: FleetId::generate(), node_id: NodeId::generate(), certificate };
    assert_eq!(Enrolled::try_from(proto::EnrollResponse::from(&enrolled)), Ok(enrolled));
}

#[test]
fn a_long_text_is_cut_and_never_refused() {
    let long = "ä\0".repeat(100_000);
    let mut report = report();
    report.members[0].message.clone_from(&long);
    let failure = Failure::new(Reason::EngineFailed, long.clone()).with("path", &long);
    let outcome = Update::Outcome(Err(failure));
    for message in [
        FromAgent::Heartbeat(Box::new(Heartbeat { sequence: 1, report })),
        FromAgent::CommandUpdate(Box::new(CommandUpdate {
            command_id: CommandId::generate(),
            sequence: 1,
            update: outcome,
        })),
        FromAgent::Event(Box::new(NodeEvent { message: long, ..event(None) })),
    ] {
        let bytes = proto::SessionRequest::from(&message).encode_to_vec();
        assert!(bytes.len() < 64 * 1024, "{}", bytes.len());
        assert!(matches!(decode_up(&bytes), Some(Ok(_))));
    }
    assert_eq!(cut("äöü", 5), "ä…");
    assert_eq!(cut("äö", 4), "äö");
}

/// What converts must survive the way back and forth; nothing may panic.
fn is_sound(bytes: &[u8]) {
    if let Some(Ok(message)) = decode_up(bytes) {
        let again = proto::SessionRequest::from(&message).encode_to_vec();
        assert_eq!(decode_up(&again), Some(Ok(message)));
    }
    if let Some(Ok(message)) = decode_down(bytes) {
        let again = proto::SessionResponse::from(&message).encode_to_vec();
        assert_eq!(decode_down(&again), Some(Ok(message)));
    }
    if let Ok(request) = proto::EnrollRequest::decode(bytes) {
        let _ = Enroll::try_from(request);
    }
    if let Ok(response) = proto::EnrollResponse::decode(bytes) {
        let _ = Enrolled::try_from(response);
    }
}

#[test]
fn every_flipped_byte_is_refused_or_understood_and_never_a_panic() {
    let messages =
        up().iter().map(|message| proto::SessionRequest::from(message).encode_to_vec()).collect::<Vec<_>>();
    let answers = down()
        .iter()
        .map(|message| proto::SessionResponse::from(message).encode_to_vec())
        .collect::<Vec<_>>();
    for bytes in messages.into_iter().chain(answers) {
        for position in 0..bytes.len() {
            is_sound(&bytes[..position]);
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[position] ^= flip;
                is_sound(&changed);
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        is_sound(&bytes);
    }

    #[test]
    fn every_time_and_duration_crosses_unchanged(seconds in -62_000_000_000_i64..250_000_000_000, nanos in 0..1_000_000_000) {
        let time = Timestamp::new(seconds, nanos).unwrap();
        prop_assert_eq!(Field("t").time(Some(time_to_wire(time))), Ok(time));
        let duration = Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs());
        prop_assert_eq!(Field("d").duration(Some(duration_to_wire(duration))), Ok(duration));
    }
}
