//! What operators ask for of clusters: each request is checked against the present state (its preconditions), becomes a
//! plan, and if all holds, an operation.
//!
//! The same checks serve `validate_only`, so a plan never promises what the call would refuse.

mod access;
pub mod connection;
mod create;
mod drain;
mod failover;
mod members;
mod policy;
mod preconditions;
mod promote;
mod reboot;
mod removal;
mod restart;
mod resync;
mod retune;
mod set;
mod upgrade;

use std::sync::Arc;

use holdfast_common::error::{Classify as _, Failure, Reason, Violation};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::pki::Keyring;
use holdfast_common::question::{Answer, Question};

use super::{ClusterRef, Means, Procedures, node_resource, records, resource};
use crate::cluster::{Cluster, Member};
use crate::directory::{self, Node, node_key, node_name_key};
use crate::operation::procedure::StepLabel;
use crate::operation::{self, Operation, Request, Submit};
use crate::store::record::Record;

pub use create::CreateCluster;
pub use drain::DrainNode;
pub use failover::FailoverCluster;
pub use members::AddMember;
pub use policy::{PauseCluster, ResumeCluster, Settings};
pub use preconditions::Precondition;
pub use promote::PromoteMember;
pub(super) use promote::successor;
pub use reboot::RebootNode;
pub use removal::{DeleteCluster, RemoveMember};
pub use restart::RestartCluster;
pub use resync::ResyncCluster;
pub use set::SetCluster;
pub use upgrade::UpgradeCluster;

/// How often a request is looked at again because others had changed the same nodes meanwhile.
const TRIES: usize = 10;

/// Takes requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    pub means: Arc<Means>,
    pub operations: operation::Handle<Procedures>,
    pub keyring: Arc<Keyring>,
}

/// Who asks, and whether it was asked before.
#[derive(Debug, Clone)]
pub struct Asker {
    /// `operator/NAME`.
    pub caller: String,
    pub request: Option<Request>,
}

/// A checked request.
#[derive(Debug)]
pub struct Prepared {
    pub preconditions: Vec<Precondition>,
    pub steps: Vec<StepLabel>,
    /// What a person should know before saying yes.
    pub notes: Vec<String>,
    submit: Option<Submit<Procedures>>,
}

/// A request that can be prepared.
pub trait Prepare {
    /// Checks the request; changes nothing.
    ///
    /// # Errors
    /// What no plan can be made of: unknown names, a missing `confirm`.
    fn prepare(&self, desk: &Desk, asker: &Asker) -> impl Future<Output = Result<Prepared, Failure>> + Send;
}

// === impl Asker ===

impl Asker {
    /// `procedure` on the cluster, as this asker's operation.
    fn submit(&self, procedure: impl Into<Procedures>, cluster: &Cluster) -> Submit<Procedures> {
        self.submit_on(procedure.into(), resource(&cluster.name))
    }

    /// The same on the node.
    fn submit_on_node(&self, procedure: impl Into<Procedures>, node: &NodeName) -> Submit<Procedures> {
        self.submit_on(procedure.into(), node_resource(node))
    }

    fn submit_on(&self, procedure: Procedures, resource: String) -> Submit<Procedures> {
        let submit = Submit::new(procedure, resource, self.caller.clone());
        match &self.request {
            Some(request) => submit.request(request.clone()),
            None => submit,
        }
    }
}

// === impl Desk ===

impl Desk {
    /// The plan, and every precondition, met or not.
    ///
    /// # Errors
    /// Those of [`Prepare::prepare`].
    pub async fn plan(&self, request: &impl Prepare, asker: &Asker) -> Result<Prepared, Failure> {
        request.prepare(self, asker).await
    }

    /// Begins the operation; a repeat of a request gets the operation that it began before.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED` with all unmet ones; those of [`Prepare::prepare`] and of the operation engine.
    pub async fn begin(&self, request: &impl Prepare, asker: &Asker) -> Result<Operation, Failure> {
        if let Some(id) = &asker.request
            && let Some(known) =
                self.operations.find_request(&asker.caller, id).await.map_err(|error| error.to_failure())?
        {
            return Ok(known);
        }
        let mut tries = 1;
        loop {
            match self.begin_with(request, asker, Ok).await {
                // Another cluster took something on the same nodes in this very moment: look again, at everything.
                Err(failure) if failure.reason == Reason::VersionConflict && tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// Begins it together with what `with` adds, or neither.
    ///
    /// # Errors
    /// As of [`Desk::begin`]; `VERSION_CONFLICT` if what was added does not hold any more.
    pub async fn begin_with(
        &self,
        request: &impl Prepare,
        asker: &Asker,
        with: impl FnOnce(Submit<Procedures>) -> Result<Submit<Procedures>, Failure>,
    ) -> Result<Operation, Failure> {
        let submit = with(self.checked(request, asker).await?)?;
        self.operations.submit(submit).await.map_err(|error| error.to_failure())
    }

    /// What is to be begun, if all preconditions are met.
    async fn checked(&self, request: &impl Prepare, asker: &Asker) -> Result<Submit<Procedures>, Failure> {
        let prepared = request.prepare(self, asker).await?;
        let unmet: Vec<&Precondition> =
            prepared.preconditions.iter().filter(|condition| !condition.met).collect();
        if !unmet.is_empty() {
            return Err(unmet_failure(&unmet));
        }
        prepared.submit.ok_or_else(|| Failure::new(Reason::Internal, "a plan without an operation"))
    }

    /// What a member's node says to a question, or in words why it does not.
    async fn ask<T>(
        &self,
        cluster: &Cluster,
        member: &Member,
        question: Question,
        answer: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, String> {
        let said = self.means.nodes.ask(member.node_id, cluster.id, question).await;
        let said = said.map_err(|error| error.to_failure().message)?;
        answer(said).ok_or_else(|| "it answered another question".to_owned())
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// `CLUSTER_NOT_FOUND`; those of the store.
    pub async fn cluster(&self, name: &ClusterName) -> Result<Record<Cluster>, Failure> {
        let found = self.means.records.find(name).await.map_err(|error| error.to_failure())?;
        found.ok_or_else(|| no_cluster(name))
    }

    /// The node of this name.
    ///
    /// # Errors
    /// `NODE_NOT_FOUND`, naming the field; those of the store.
    pub async fn node(&self, field: &str, name: &NodeName) -> Result<Node, Failure> {
        self.find_node(name).await?.ok_or_else(|| {
            let problem =
                format!("names node `{name}`, which the fleet does not have; `holdfast node list` shows all");
            let whole = format!("`{field}` {problem}");
            let violation = Violation { name: field.to_owned(), subject: String::new(), message: problem };
            Failure {
                violations: vec![violation],
                ..Failure::about(Reason::NodeNotFound, "node", name, whole)
            }
        })
    }

    async fn find_node(&self, name: &NodeName) -> Result<Option<Node>, Failure> {
        let directory = self.means.records.directory();
        let failed = |error: directory::Error| error.to_failure();
        let Some(id) = directory.get(&node_name_key(name)).await.map_err(failed)? else { return Ok(None) };
        Ok(directory.get(&node_key(id.value)).await.map_err(failed)?.map(|record| record.value))
    }
}

/// `CLUSTER_NOT_FOUND`.
pub fn no_cluster(name: &ClusterName) -> Failure {
    let message = format!("there is no cluster `{name}`; `holdfast cluster list` shows all");
    Failure::about(Reason::ClusterNotFound, "cluster", name, message)
}

fn unmet_failure(unmet: &[&Precondition]) -> Failure {
    let message = unmet
        .iter()
        .map(|it| format!("{} ({}): {}", it.subject, it.name, it.message))
        .collect::<Vec<_>>()
        .join("; ");
    let violations = unmet
        .iter()
        .map(|it| Violation {
            name: it.name.clone(),
            subject: it.subject.clone(),
            message: it.message.clone(),
        })
        .collect();
    Failure { violations, ..Failure::new(Reason::PreconditionFailed, message) }
}

/// Destructive calls need the name once more.
fn confirmed(field_of: &str, name: &str, confirm: &str) -> Result<(), Failure> {
    if confirm == name {
        return Ok(());
    }
    let given =
        if confirm.is_empty() { "is missing".to_owned() } else { format!("is `{}`", shortened(confirm)) };
    let message = format!("`confirm` {given}; it must be the {field_of}'s name, `{name}`");
    let violation = Violation { name: "confirm".into(), subject: String::new(), message: message.clone() };
    Err(Failure { violations: vec![violation], ..Failure::new(Reason::NotConfirmed, message) })
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

fn store_failure(error: &records::Error) -> Failure {
    error.to_failure()
}

fn reference(cluster: &Cluster) -> ClusterRef {
    ClusterRef { id: cluster.id, name: cluster.name.clone() }
}
