//! A cluster as it is seen now: the record, and what the members' own nodes report. Pure.

use holdfast_common::budget::Tuning;
use holdfast_common::engine::EngineVersion;
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::name::NodeName;
use holdfast_common::position::Position;
use holdfast_common::report::{EngineState, MemberReport, NodeReport, Trouble};
use holdfast_common::role::{Availability, Role};
use holdfast_common::term::Term;
use jiff::Timestamp;

use super::{Cluster, Member, Phase};

/// What is known of the node that a member is on.
#[derive(Debug, Clone)]
pub struct NodeState {
    pub availability: Availability,
    /// The newest report about the member, and when it came; `None` where the node never told of it.
    pub report: Option<(MemberReport, Timestamp)>,
}

impl NodeState {
    /// From what a node reported last of all its members, and when that came.
    pub fn new(
        availability: Availability,
        report: Option<(&NodeReport, Timestamp)>,
        cluster: ClusterId,
    ) -> Self {
        let report = report.and_then(|(report, at)| {
            let member = report.members.iter().find(|member| member.cluster_id == cluster)?;
            Some((member.clone(), at))
        });
        Self { availability, report }
    }

    /// Whether it may be bound by a promise. What came no later than `before` says nothing of promises that were given since; nor
    /// does a node that is offline.
    pub fn may_have_promised(&self, before: Option<Timestamp>) -> bool {
        let bound = |(report, at): &(MemberReport, Timestamp)| {
            report.has_promised || before.is_some_and(|before| *at <= before)
        };
        self.availability == Availability::Online && self.report.as_ref().is_some_and(bound)
    }

    /// Whether it is a replica that receives from its primary.
    pub fn receives(&self) -> bool {
        let streams = |(report, _): &(MemberReport, Timestamp)| report.streaming == Some(true);
        self.availability == Availability::Online && self.report.as_ref().is_some_and(streams)
    }
}

/// A cluster as it is seen now.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub health: Health,
    /// Why it is in that state; empty where nothing is wrong.
    pub message: String,
    pub members: Vec<MemberView>,
    /// W as the primary enforces it now; `None`: unknown.
    pub synchronous_count: Option<u32>,
}

/// How a cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Creating,
    Healthy,
    /// Clients are served; a member is missing or behind.
    Degraded,
    /// The primary does not serve, or its writes wait for replicas that do not receive them.
    Unavailable,
    Deleting,
    /// The primary's node is silent.
    Unknown,
}

/// A member as it is seen now; `None` is unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    pub node_id: NodeId,
    pub node_name: NodeName,
    pub address: std::net::IpAddr,
    /// What it should be.
    pub role: Role,
    pub state: Option<MemberState>,
    pub message: String,
    pub term: Option<Term>,
    pub position: Option<Position>,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub streaming: Option<bool>,
    pub synchronous: bool,
    pub engine_version: Option<String>,
    /// Which build the server runs, and which one a start of it would run.
    pub server_build: Option<String>,
    pub installed_build: Option<String>,
    pub observed_at: Option<Timestamp>,
    /// What is not as it should be with its replication; `message` has it too.
    pub troubles: Vec<Trouble>,
    /// What it counts on of its machine.
    pub tuning: Option<Tuning>,
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    Running,
    /// A replica that receives from its primary.
    Streaming,
    Starting,
    Stopped,
    Failed,
    Building,
    Absent,
}

/// Puts the record and the reports together.
pub fn view(cluster: &Cluster, node: impl Fn(NodeId) -> Option<NodeState>) -> View {
    let primary_report =
        cluster.primary.and_then(&node).and_then(|state| state.report).map(|(report, _)| report);
    let primary_position = primary_report.as_ref().and_then(|report| report.position);
    let members: Vec<MemberView> = cluster
        .members
        .iter()
        .map(|member| {
            member_view(cluster, member, node(member.node_id), primary_report.as_ref(), primary_position)
        })
        .collect();
    let leads = primary_report.as_ref().is_some_and(|report| report.role == Some(Role::Primary));
    let (health, message) = health(cluster, &members, leads);
    let primary_known = members.iter().any(|member| member.role == Role::Primary && member.state.is_some());
    let synchronous_count = primary_report.filter(|_| primary_known).map(|report| report.synchronous.count);
    View { health, message, members, synchronous_count }
}

fn member_view(
    cluster: &Cluster,
    member: &Member,
    node: Option<NodeState>,
    primary: Option<&MemberReport>,
    primary_position: Option<Position>,
) -> MemberView {
    let Member { node_id, node_name, address, phase: _ } = member;
    let role = cluster.role(*node_id);
    let unknown = MemberView {
        node_id: *node_id,
        node_name: node_name.clone(),
        address: *address,
        role,
        state: None,
        message: String::new(),
        term: None,
        position: None,
        lag_bytes: None,
        lag_seconds: None,
        streaming: None,
        synchronous: false,
        engine_version: None,
        server_build: None,
        installed_build: None,
        observed_at: None,
        troubles: Vec::new(),
        tuning: None,
    };
    let Some(NodeState { availability, report }) = node else {
        return MemberView { message: "the node has left the fleet".into(), ..unknown };
    };
    let observed_at = report.as_ref().map(|(_, at)| *at);
    if availability == Availability::Offline {
        return MemberView { message: "the node is offline".into(), observed_at, ..unknown };
    }
    let Some((report, _)) = report else {
        return MemberView { message: "the node has not reported it yet".into(), ..unknown };
    };
    let lag_bytes = match role {
        Role::Primary => None,
        Role::Replica => {
            primary_position.zip(report.replayed.or(report.position)).map(|(ahead, own)| own.behind(ahead))
        }
    };
    MemberView {
        state: state(&report, role),
        message: told(&report, role),
        term: Some(report.term),
        position: report.position,
        lag_bytes,
        lag_seconds: lag_seconds(*node_id, &report, role, primary),
        streaming: report.streaming,
        synchronous: primary.is_some_and(|primary| primary.synchronous.nodes.contains(node_id)),
        engine_version: report.engine_version,
        server_build: report.server_build,
        installed_build: report.installed_build,
        observed_at,
        troubles: report.troubles,
        tuning: report.tuning,
        ..unknown
    }
}

/// A replica whose receiver hangs goes on believing that there is nothing more; its primary hears no more of it after a while,
/// and lets it go.
fn lag_seconds(
    node: NodeId,
    report: &MemberReport,
    role: Role,
    primary: Option<&MemberReport>,
) -> Option<f64> {
    let follows = |primary: &MemberReport| {
        primary.followers.iter().any(|follower| follower.node_id == node && follower.streaming)
    };
    let let_go = primary.is_some_and(|primary| primary.role == Some(Role::Primary) && !follows(primary));
    report.lag_seconds.filter(|lag| role == Role::Replica && (*lag > 0.0 || !let_go))
}

fn state(report: &MemberReport, role: Role) -> Option<MemberState> {
    match report.state {
        EngineState::Unknown => None,
        EngineState::Absent => Some(MemberState::Absent),
        EngineState::Stopped => Some(MemberState::Stopped),
        EngineState::Starting => Some(MemberState::Starting),
        EngineState::Failed => Some(MemberState::Failed),
        EngineState::Building => Some(MemberState::Building),
        EngineState::Running if role == Role::Replica && report.streaming == Some(true) => {
            Some(MemberState::Streaming)
        }
        EngineState::Running => Some(MemberState::Running),
    }
}

fn told(report: &MemberReport, role: Role) -> String {
    if !report.message.is_empty() {
        return report.message.clone();
    }
    match report.role {
        Some(own) if own != role => format!("runs as {own}, should be {role}"),
        Some(_) | None => String::new(),
    }
}

/// `leads`: the primary's server says itself that it is one.
fn health(cluster: &Cluster, members: &[MemberView], leads: bool) -> (Health, String) {
    match cluster.phase {
        Phase::Creating => return (Health::Creating, String::new()),
        Phase::Deleting => return (Health::Deleting, String::new()),
        Phase::Active => {}
    }
    let Some(primary) = members.iter().find(|member| member.role == Role::Primary) else {
        return (Health::Unavailable, "there is no primary".into());
    };
    match primary.state {
        None => return (Health::Unknown, format!("primary {}: {}", primary.node_name, primary.message)),
        Some(MemberState::Running) if leads => {}
        Some(state) => {
            let why =
                if primary.message.is_empty() { format!("is {state}") } else { primary.message.clone() };
            return (Health::Unavailable, format!("primary {}: {why}", primary.node_name));
        }
    }
    // One that serves, and about which there is something to say.
    let complaint = (!primary.message.is_empty())
        .then(|| format!("primary {} (running): {}", primary.node_name, primary.message));
    let replicas = members
        .iter()
        .filter(|member| member.role == Role::Replica)
        .filter(|member| member.state != Some(MemberState::Streaming) || !member.message.is_empty())
        .map(|member| {
            let state = member.state.map_or_else(|| "unknown".to_owned(), |state| state.to_string());
            let why = if member.message.is_empty() { "is not streaming" } else { &member.message };
            format!("replica {} ({state}): {why}", member.node_name)
        });
    let troubled: Vec<String> = complaint.into_iter().chain(replicas).collect();
    let trouble = troubled.join("; ");
    let needed = usize::try_from(cluster.synchronous.count).unwrap_or(usize::MAX);
    let streaming = members
        .iter()
        .filter(|member| cluster.synchronous.nodes.contains(&member.node_id))
        .filter(|member| member.state == Some(MemberState::Streaming))
        .count();
    if streaming < needed {
        let message = format!("writes wait: {streaming} of {needed} needed replicas receive them; {trouble}");
        return (Health::Unavailable, message);
    }
    if troubled.is_empty() { (Health::Healthy, String::new()) } else { (Health::Degraded, trouble) }
}

/// The newest version that all can run: the least of what each offers.
pub fn common_version<'a>(offers: impl IntoIterator<Item = &'a EngineVersion>) -> Option<EngineVersion> {
    offers.into_iter().min_by_key(|version| version.number()).cloned()
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
            Self::Deleting => "deleting",
            Self::Unknown => "unknown",
        })
    }
}

impl std::fmt::Display for MemberState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Streaming => "streaming",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Building => "building",
            Self::Absent => "absent",
        })
    }
}
