//! Who may call what: one row per method. A method without a row is refused, and fails a test.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use holdfast_common::link::MAX_LEASE_BYTES;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// Anyone, with or without an identity.
    Open,
    /// A node, for itself: which one is in its certificate.
    Node,
    /// Any operator.
    Viewer,
    Operator,
    Admin,
}

/// Whether a call changes anything; if so it is written down first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Reads,
    Changes,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Call(Duration),
    Stream,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `package.Service/Method`.
    pub method: &'static str,
    pub who: Who,
    pub effect: Effect,
    pub length: Length,
    /// The most bytes of one of its messages.
    pub message_bytes: u32,
}

/// What a message may have.
pub const MESSAGE_BYTES: u32 = 1024 * 1024;
/// The same with a list of access entries: a hundred thousand, each with a comment.
pub const LIST_BYTES: u32 = 16 * 1024 * 1024;
/// The usual bound of a call.
const CALL: Length = Length::Call(Duration::from_secs(30));
/// For calls that ask nodes or wait by their nature.
const LONG: Length = Length::Call(Duration::from_secs(120));
const WAIT: Length = Length::Call(Duration::from_secs(620));

const fn reads(method: &'static str, who: Who) -> Rule {
    Rule { method, who, effect: Effect::Reads, length: CALL, message_bytes: MESSAGE_BYTES }
}

const fn changes(method: &'static str, who: Who) -> Rule {
    Rule { method, who, effect: Effect::Changes, length: LONG, message_bytes: MESSAGE_BYTES }
}

/// A change by a long list.
const fn changes_by_list(method: &'static str, who: Who) -> Rule {
    Rule { message_bytes: LIST_BYTES, ..changes(method, who) }
}

const fn stream(method: &'static str, who: Who) -> Rule {
    Rule { method, who, effect: Effect::Reads, length: Length::Stream, message_bytes: MESSAGE_BYTES }
}

/// All of them.
pub const RULES: &[Rule] = &[
    changes("holdfast.link.v1.EnrollmentService/Enroll", Who::Open),
    stream("holdfast.link.v1.AgentService/Session", Who::Node),
    changes("holdfast.link.v1.AgentService/RenewCertificate", Who::Node),
    Rule { message_bytes: MAX_LEASE_BYTES, ..stream("holdfast.link.v1.LeaseService/Exchange", Who::Node) },
    reads("holdfast.v1.NodeService/ListNodes", Who::Viewer),
    reads("holdfast.v1.NodeService/GetNode", Who::Viewer),
    stream("holdfast.v1.NodeService/WatchNodes", Who::Viewer),
    changes("holdfast.v1.NodeService/RemoveNode", Who::Operator),
    changes("holdfast.v1.NodeService/DrainNode", Who::Operator),
    changes("holdfast.v1.NodeService/UndrainNode", Who::Operator),
    changes("holdfast.v1.NodeService/RebootNode", Who::Operator),
    changes("holdfast.v1.NodeService/SetRebootSchedule", Who::Operator),
    reads("holdfast.v1.NodeService/ListRebootSchedules", Who::Viewer),
    changes("holdfast.v1.NodeService/RemoveRebootSchedule", Who::Operator),
    reads("holdfast.v1.NodeService/QueryMetrics", Who::Viewer),
    changes("holdfast.v1.ClusterService/CreateCluster", Who::Operator),
    reads("holdfast.v1.ClusterService/ListClusters", Who::Viewer),
    reads("holdfast.v1.ClusterService/GetCluster", Who::Viewer),
    stream("holdfast.v1.ClusterService/WatchCluster", Who::Viewer),
    changes("holdfast.v1.ClusterService/DeleteCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/AddMember", Who::Operator),
    changes("holdfast.v1.ClusterService/RemoveMember", Who::Operator),
    changes("holdfast.v1.ClusterService/PromoteMember", Who::Operator),
    changes("holdfast.v1.ClusterService/FailoverCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/ResyncCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/RestartCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/UpgradeCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/PauseCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/ResumeCluster", Who::Operator),
    changes("holdfast.v1.ClusterService/UpdateCluster", Who::Operator),
    // Shows the password, once: so it also changes something.
    changes("holdfast.v1.ClusterService/GetConnection", Who::Operator),
    changes("holdfast.v1.ClusterService/ResetPassword", Who::Operator),
    reads("holdfast.v1.AccessService/GetAccess", Who::Viewer),
    changes_by_list("holdfast.v1.AccessService/SetAccess", Who::Operator),
    changes_by_list("holdfast.v1.AccessService/AddAccessEntries", Who::Operator),
    changes_by_list("holdfast.v1.AccessService/RemoveAccessEntries", Who::Operator),
    changes("holdfast.v1.AccessService/ConfirmAccess", Who::Operator),
    reads("holdfast.v1.SetAsideService/ListSetAsideLogs", Who::Viewer),
    // Shows users' data: for those who may see the password, and on record like a change.
    Rule { effect: Effect::Changes, ..stream("holdfast.v1.SetAsideService/FetchSetAsideLog", Who::Operator) },
    reads("holdfast.v1.OperationService/ListOperations", Who::Viewer),
    reads("holdfast.v1.OperationService/GetOperation", Who::Viewer),
    stream("holdfast.v1.OperationService/WatchOperation", Who::Viewer),
    Rule {
        method: "holdfast.v1.OperationService/WaitOperation",
        who: Who::Viewer,
        effect: Effect::Reads,
        length: WAIT,
        message_bytes: MESSAGE_BYTES,
    },
    changes("holdfast.v1.OperationService/CancelOperation", Who::Operator),
    changes("holdfast.v1.OperationService/ResumeOperation", Who::Operator),
    reads("holdfast.v1.EventService/ListEvents", Who::Viewer),
    stream("holdfast.v1.EventService/WatchEvents", Who::Viewer),
    reads("holdfast.v1.IdentityService/GetCaller", Who::Viewer),
    changes("holdfast.v1.IdentityService/CreateJoinToken", Who::Admin),
    reads("holdfast.v1.IdentityService/ListJoinTokens", Who::Viewer),
    changes("holdfast.v1.IdentityService/RevokeJoinToken", Who::Admin),
    changes("holdfast.v1.IdentityService/CreateOperator", Who::Admin),
    reads("holdfast.v1.IdentityService/ListOperators", Who::Viewer),
    changes("holdfast.v1.IdentityService/RemoveOperator", Who::Admin),
    // Only for oneself, and no longer than the credential it is made with.
    changes("holdfast.v1.IdentityService/CreateAccessToken", Who::Viewer),
    // One's own; an admin's list has all.
    reads("holdfast.v1.IdentityService/ListAccessTokens", Who::Viewer),
    changes("holdfast.v1.IdentityService/RevokeAccessToken", Who::Viewer),
    reads("grpc.health.v1.Health/Check", Who::Viewer),
    stream("grpc.health.v1.Health/Watch", Who::Viewer),
    stream("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Who::Viewer),
    stream("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Who::Viewer),
    // Not gRPC: Prometheus.
    reads("metrics", Who::Viewer),
];

static BY_METHOD: LazyLock<HashMap<&'static str, &'static Rule>> =
    LazyLock::new(|| RULES.iter().map(|rule| (rule.method, rule)).collect());

/// The row for a path such as `/holdfast.v1.NodeService/GetNode`.
pub fn rule(path: &str) -> Option<&'static Rule> {
    BY_METHOD.get(path.strip_prefix('/')?).copied()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every method of every service that is served, from the descriptors.
    fn served() -> Vec<String> {
        let sets = [
            holdfast_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut methods = Vec::new();
        for set in sets {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                // Agents serve that one to each other.
                for service in file.service.iter().filter(|service| service.name() != "PeerService") {
                    for method in &service.method {
                        methods.push(format!("{}.{}/{}", file.package(), service.name(), method.name()));
                    }
                }
            }
        }
        methods
    }

    #[test]
    fn every_method_has_exactly_one_row_and_every_row_a_method() {
        let mut served = served();
        served.push("metrics".to_owned());
        served.sort();
        let mut rows: Vec<&str> = RULES.iter().map(|rule| rule.method).collect();
        rows.sort_unstable();
        assert_eq!(rows, served.iter().map(String::as_str).collect::<Vec<_>>());
    }

    #[test]
    fn what_sounds_like_a_change_is_one() {
        const READING: [&str; 9] =
            ["List", "Get", "Watch", "Wait", "Query", "Check", "ServerReflectionInfo", "Session", "Exchange"];
        for rule in RULES.iter().filter(|rule| rule.method != "metrics") {
            let name = rule.method.rsplit('/').next().unwrap();
            let reading = READING.iter().any(|verb| name.starts_with(verb)) && name != "GetConnection";
            assert_eq!(rule.effect == Effect::Reads, reading, "{}", rule.method);
        }
    }

    #[test]
    fn only_joining_is_open_and_only_agents_methods_are_for_nodes() {
        for rule in RULES {
            match rule.who {
                Who::Open => assert_eq!(rule.method, "holdfast.link.v1.EnrollmentService/Enroll"),
                Who::Node => assert!(
                    ["AgentService", "LeaseService"]
                        .iter()
                        .any(|service| rule.method.starts_with(&format!("holdfast.link.v1.{service}/")))
                ),
                Who::Viewer | Who::Operator | Who::Admin => {
                    assert!(!rule.method.starts_with("holdfast.link"))
                }
            }
        }
    }

    #[test]
    fn a_path_that_is_not_known_has_no_row() {
        for path in
            ["", "/", "holdfast.v1.NodeService/GetNode", "/holdfast.v1.NodeService/GetNode/", "//", "/x/Y"]
        {
            assert_eq!(rule(path), None, "{path}");
        }
        assert!(rule("/holdfast.v1.NodeService/GetNode").is_some());
    }
}
