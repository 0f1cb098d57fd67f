//! How clients connect, and with which password.

use std::fmt::Write as _;
use std::net::IpAddr;

use holdfast_common::command::{Command, Payload, SetPassword};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::{CommandId, NodeId};
use holdfast_common::name::ClusterName;
use holdfast_common::role::Availability;

use super::create::{new_password, password_context};
use super::{Desk, reference, store_failure};
use crate::cluster::{Access, Cluster, Member, MemberPhase, Password, PendingPassword, Phase};
use crate::procedures::nodes::{CallError, step_error};
use crate::procedures::steps::deadline;

/// How long the primary may take to change a password.
const SET_TIME: std::time::Duration = std::time::Duration::from_secs(15);

/// How clients connect.
#[derive(Clone)]
pub struct Connection {
    /// All hosts, for those that write; with the password if `password` is there.
    pub uri: String,
    /// All hosts, for those that only read.
    pub read_uri: String,
    pub user: String,
    pub database: String,
    /// Only in the one answer that reveals it.
    pub password: Option<String>,
    pub shown_before: bool,
}

/// Whether the password is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveal {
    Yes,
    No,
}

impl Desk {
    /// How clients connect to the cluster. With [`Reveal::Yes`] the first such answer has the password; that it was shown is
    /// stored before.
    ///
    /// # Errors
    /// `CLUSTER_NOT_FOUND`; `PRECONDITION_FAILED` until it has been made; those of the store.
    pub async fn connection(&self, name: &ClusterName, reveal: Reveal) -> Result<Connection, Failure> {
        let cluster = self.cluster(name).await?.value;
        ready(&cluster)?;
        if reveal == Reveal::No || cluster.access.shown {
            return Ok(connection(&cluster, None, cluster.access.shown));
        }
        if cluster.access.pending.is_some() {
            return Err(not_ready(&cluster, "had a reset of its password cut off; reset it again"));
        }
        let password = self.password(&cluster)?;
        // Of two callers at once, one sees it: the one whose write found it unshown.
        let first = std::sync::atomic::AtomicBool::new(false);
        let cluster = self
            .means
            .records
            .update(&reference(&cluster), |mut cluster| {
                first.store(!cluster.access.shown, std::sync::atomic::Ordering::Relaxed);
                cluster.access.shown = true;
                Ok(cluster)
            })
            .await
            .map_err(|error| store_failure(&error))?;
        let first = first.into_inner();
        Ok(connection(&cluster, first.then_some(password), !first))
    }

    /// Draws a new password and gives it to the primary; the answer has it. It is stored before the primary gets it, so a
    /// reset that was cut off is finished, with the same password, by the next one.
    ///
    /// # Errors
    /// As [`Desk::connection`]; `AGENT_OFFLINE` if the primary's node is known to be away; and what that node says. If that node was not reached, the old password still works;
    /// else the reset must be repeated.
    pub async fn reset_password(&self, name: &ClusterName) -> Result<Connection, Failure> {
        let cluster = self.cluster(name).await?.value;
        ready(&cluster)?;
        let Some(primary) = cluster.primary_member() else {
            return Err(not_ready(&cluster, "has no primary"));
        };
        let state = self.means.nodes.state(primary.node_id, cluster.id);
        if state.is_some_and(|state| state.availability == Availability::Offline) {
            return Err(offline(primary));
        }
        let drawn = Box::new(PendingPassword { password: new_password(self, cluster.id)?, attempts: 0 });
        let stored = self.update_access(&cluster, |access| {
            access.pending.get_or_insert_with(|| drawn.clone()).attempts += 1;
        });
        let pending = stored.await?.access.pending.unwrap_or(drawn);
        if let Err(error) = self.give_password(&cluster, primary.node_id, &pending.password).await {
            if matches!(error, CallError::NotSent { .. }) && pending.attempts == 1 {
                let forget = |access: &mut Access| drop(access.pending.take_if(|still| *still == pending));
                self.update_access(&cluster, forget).await?;
            }
            return Err(step_error(&primary.node_name, error).failure().clone());
        }
        let taken = self.update_access(&cluster, |access| {
            if let Some(taken) = access.pending.take_if(|still| still.password == pending.password) {
                access.password = taken.password;
                access.shown = true;
            }
        });
        let cluster = taken.await?;
        // A rival may have finished this one, and begun the next.
        if cluster.access.password != pending.password {
            let message = "another reset of the password came between; repeat the call";
            return Err(Failure::new(Reason::VersionConflict, message));
        }
        let password = self.password(&cluster)?;
        Ok(connection(&cluster, Some(password), false))
    }

    async fn give_password(
        &self,
        cluster: &Cluster,
        primary: NodeId,
        password: &Password,
    ) -> Result<(), CallError> {
        let command = Command {
            id: CommandId::generate(),
            coordinator_generation: self.means.coordinator_generation,
            term: cluster.term,
            deadline: deadline(self.means.clock.now(), SET_TIME),
            payload: Payload::SetPassword(SetPassword {
                cluster_id: cluster.id,
                user: cluster.access.user.clone(),
                password: password.verifier.clone(),
            }),
        };
        self.means.nodes.call(primary, command, &|_| {}).await.map(drop)
    }

    async fn update_access(
        &self,
        cluster: &Cluster,
        change: impl Fn(&mut Access) + Sync,
    ) -> Result<Cluster, Failure> {
        let reference = reference(cluster);
        let update = self.means.records.update(&reference, |mut cluster| {
            change(&mut cluster.access);
            Ok(cluster)
        });
        update.await.map_err(|error| store_failure(&error))
    }

    fn password(&self, cluster: &Cluster) -> Result<String, Failure> {
        let opened = self.keyring.open(&password_context(cluster.id), &cluster.access.password.sealed);
        let opened = opened.map_err(|error| Failure::new(Reason::StateDamaged, error.to_string()))?;
        String::from_utf8(opened.to_vec())
            .map_err(|error| Failure::new(Reason::StateDamaged, error.to_string()))
    }
}

fn ready(cluster: &Cluster) -> Result<(), Failure> {
    match cluster.phase {
        Phase::Active => Ok(()),
        Phase::Creating => Err(not_ready(cluster, "is still being made; wait for that operation")),
        Phase::Deleting => Err(not_ready(cluster, "is being deleted")),
    }
}

fn offline(primary: &Member) -> Failure {
    let name = &primary.node_name;
    let message = format!(
        "node {name}, which has the primary, is offline; start its agent (systemctl start holdfast-agent), then reset again"
    );
    Failure::new(Reason::AgentOffline, message).with("node", name)
}

fn not_ready(cluster: &Cluster, why: &str) -> Failure {
    let message = format!("cluster `{}` {why}", cluster.name);
    Failure::about(Reason::PreconditionFailed, "cluster", &cluster.name, message)
}

fn connection(cluster: &Cluster, password: Option<String>, shown_before: bool) -> Connection {
    Connection {
        uri: uri(cluster, password.as_deref(), "read-write"),
        read_uri: uri(cluster, password.as_deref(), "prefer-standby"),
        user: cluster.access.user.as_str().to_owned(),
        database: cluster.access.database.as_str().to_owned(),
        password,
        shown_before,
    }
}

/// The primary first: most connections need one attempt then. Passwords are letters and digits, and need no escape.
fn uri(cluster: &Cluster, password: Option<&str>, attributes: &str) -> String {
    let primary = cluster.primary_member().into_iter();
    let hosts = primary
        .chain(cluster.replicas())
        .filter(|member| matches!(member.phase, MemberPhase::Active | MemberPhase::Aligning))
        .map(|member| match member.address {
            IpAddr::V4(address) => format!("{address}:{}", cluster.port),
            IpAddr::V6(address) => format!("[{address}]:{}", cluster.port),
        })
        .collect::<Vec<_>>()
        .join(",");
    let mut uri = format!("postgresql://{}", cluster.access.user.as_str());
    if let Some(password) = password {
        let _ = write!(uri, ":{password}");
    }
    let database = cluster.access.database.as_str();
    let _ = write!(uri, "@{hosts}/{database}?target_session_attrs={attributes}&sslmode=require");
    uri
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("user", &self.user).finish_non_exhaustive()
    }
}
