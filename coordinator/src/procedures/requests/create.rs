//! `CreateCluster`.

use std::collections::BTreeSet;

use holdfast_common::assignment::{Exposure, Synchronous};
use holdfast_common::command::{CheckMember, DatabaseName, Verifier};
use holdfast_common::engine::{Engine, EngineVersion, ExtensionName, Parameters};
use holdfast_common::error::{Classify as _, Failure, Reason, Violations};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::pki;
use holdfast_common::protocol::Profile;
use holdfast_common::role::Durability;
use holdfast_common::term::Term;

use super::preconditions::{
    Precondition, about_node, check_nodes, filters, not_draining, online, parameters_fit, ports_not_taken,
};
use super::{Asker, Desk, Prepare, Prepared, store_failure};
use crate::cluster::observed::common_version;
use crate::cluster::{
    Access, Cluster, MAX_LAG_ON_FAILOVER, Member, MemberPhase, OnReplicaLoss, Password, Phase,
};
use crate::directory::{Node, put};
use crate::operation::Submit;
use crate::procedures::records::{Writes, cluster_key};
use crate::procedures::{Procedures, create};
use crate::store::Compare;

/// As whom clients connect, and to which database.
const CLIENT: &str = "app";

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct CreateCluster {
    pub name: ClusterName,
    pub engine: Engine,
    pub engine_version: Option<EngineVersion>,
    pub nodes: Vec<NodeName>,
    pub primary: NodeName,
    pub durability: Durability,
    pub port: u16,
    pub replication_port: Option<u16>,
    pub gated_ports: Vec<u16>,
    pub parameters: Parameters,
    pub extensions: Vec<ExtensionName>,
    pub exposure: Exposure,
    pub lease_profile: Profile,
}

impl Prepare for CreateCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let records = &desk.means.records;
        if records.find(&self.name).await.map_err(|error| store_failure(&error))?.is_some() {
            let message = format!("there is a cluster `{}` already; choose another name", self.name);
            return Err(Failure::about(Reason::ClusterExists, "cluster", &self.name, message));
        }
        let mut nodes = Vec::new();
        for (index, name) in self.nodes.iter().enumerate() {
            nodes.push(desk.node(&format!("nodes[{index}]"), name).await?);
        }
        let id = ClusterId::generate();
        let (preconditions, version) = self.check(desk, id, &nodes).await?;
        // Which version it will be was perhaps not known before the nodes had told theirs.
        let mut misfits = Violations::default();
        misfits.extend(self.engine.misfits(&self.parameters, version.as_ref()));
        misfits.check()?;
        let steps = create::plan();
        let notes = self.notes();
        if preconditions.iter().any(|condition| !condition.met) {
            return Ok(Prepared { preconditions, steps, notes, submit: None });
        }
        let Some(version) = version else {
            return Err(Failure::new(
                Reason::EngineUnavailable,
                "no node said which version of the engine it can run",
            ));
        };
        let cluster = self.record(desk, id, &nodes, version)?;
        let submit = self.submit(desk, asker, &cluster, &nodes).await?;
        Ok(Prepared { preconditions, steps, notes, submit: Some(submit) })
    }
}

impl CreateCluster {
    async fn check(
        &self,
        desk: &Desk,
        id: ClusterId,
        nodes: &[Node],
    ) -> Result<(Vec<Precondition>, Option<EngineVersion>), Failure> {
        let named: Vec<(NodeId, NodeName)> = nodes.iter().map(|node| (node.id, node.name.clone())).collect();
        let mut conditions = online(&desk.means, id, &named);
        let reachable: Vec<&Node> = nodes
            .iter()
            .zip(&conditions)
            .filter(|(_, condition)| condition.met)
            .map(|(node, _)| node)
            .collect();
        conditions.extend(nodes.iter().map(|node| not_draining(&node.name, node.drained.as_ref())));
        let clusters = desk.means.records.all().await.map_err(|error| store_failure(&error))?;
        conditions.extend(filters(desk, self.exposure, &reachable));
        let ports: Vec<u16> =
            [self.port].into_iter().chain(self.replication_port).chain(self.gated_ports.clone()).collect();
        let remedy = "choose others with --port, --replication-port or --gated-port";
        conditions.extend(ports_not_taken(&clusters, id, &nodes.iter().collect::<Vec<_>>(), &ports, remedy));
        let mut check = CheckMember {
            cluster_id: id,
            engine: self.engine,
            engine_version: self.engine_version.clone(),
            port: self.port,
            replication_port: self.replication_port,
            extensions: self.extensions.clone(),
        };
        let (mut checked, mut found) = check_nodes(desk, &reachable, &check).await;
        let offers: BTreeSet<&EngineVersion> =
            found.iter().filter_map(|(_, it)| it.engine_version.as_ref()).collect();
        let version = common_version(offers.iter().copied());
        if offers.len() > 1 {
            // Nodes differ in what they would take: all must have the least of it.
            check.engine_version.clone_from(&version);
            (checked, found) = check_nodes(desk, &reachable, &check).await;
        }
        // What the records say of a port says more than that something listens there.
        checked.retain(|one| {
            one.met || !conditions.iter().any(|it| (&it.name, &it.subject) == (&one.name, &one.subject))
        });
        conditions.extend(checked);
        for node in nodes {
            let Some((_, checked)) = found.iter().find(|(id, _)| *id == node.id) else { continue };
            conditions.extend(parameters_fit(self.engine, &self.parameters, node, checked));
        }
        for (node, checked) in &found {
            if checked.engine_version.is_none()
                && let Some(node) = nodes.iter().find(|it| it.id == *node)
                && !conditions.iter().any(|it| !it.met && it.subject == about_node(&node.name))
            {
                let message = format!("the node cannot run {}", self.engine);
                conditions.push(Precondition::new(
                    "engine_available",
                    about_node(&node.name),
                    false,
                    message,
                ));
            }
        }
        Ok((conditions, version))
    }

    fn notes(&self) -> Vec<String> {
        let members = self.nodes.len();
        let synchronous = self.durability.synchronous_count(members);
        let mut notes = Vec::new();
        match self.durability {
            Durability::Quorum if synchronous == 0 => notes.push(
                "durability quorum with one member waits for nobody; it takes effect with the first replica"
                    .to_owned(),
            ),
            Durability::Quorum => {
                let spare = members - 1 - synchronous;
                notes.push(format!(
                    "durability quorum: a commit is acknowledged once {synchronous} of {} replicas have it; {}",
                    members - 1,
                    if spare == 0 {
                        "with one replica away, writes wait until it is back or removed".to_owned()
                    } else {
                        format!("writes go on with up to {spare} replicas away, and wait beyond that")
                    }
                ));
            }
            Durability::Async if members > 1 => {
                notes.push("durability async: losing the primary may lose the last commits; --durability quorum does not".to_owned());
            }
            Durability::Async => {}
        }
        notes.push(
            "access is closed to all but the members and the coordinator; `holdfast access` lets others in"
                .to_owned(),
        );
        if members == 1 {
            notes.push("one member only: nothing takes over when its node fails".to_owned());
        }
        notes
    }

    fn record(
        &self,
        desk: &Desk,
        id: ClusterId,
        nodes: &[Node],
        version: EngineVersion,
    ) -> Result<Cluster, Failure> {
        let members = nodes
            .iter()
            .map(|node| Member {
                node_id: node.id,
                node_name: node.name.clone(),
                address: node.address,
                phase: MemberPhase::Joining,
            })
            .collect();
        let access = access(desk, id)?;
        let parameters = self.parameters.clone();
        let parameters = self.engine.with_needed(parameters, &self.extensions, access.database.as_str());
        Ok(Cluster {
            id,
            name: self.name.clone(),
            engine: self.engine,
            engine_version: version,
            durability: self.durability,
            port: self.port,
            replication_port: self.replication_port,
            gated_ports: self.gated_ports.clone(),
            parameters: parameters.map_err(|error| Failure::invalid_field("parameters", error))?,
            extensions: self.extensions.clone(),
            phase: Phase::Creating,
            term: Term::NONE,
            primary: None,
            members,
            synchronous: Synchronous::default(),
            strengthening: None,
            system_identifier: None,
            access,
            exposure: self.exposure,
            lease_profile: self.lease_profile,
            lease_patience: None,
            max_lag_on_failover: MAX_LAG_ON_FAILOVER,
            on_replica_loss: OnReplicaLoss::default(),
            paused: None,
            hung: None,
            created_at: desk.means.clock.now(),
        })
    }

    async fn submit(
        &self,
        desk: &Desk,
        asker: &Asker,
        cluster: &Cluster,
        nodes: &[Node],
    ) -> Result<Submit<Procedures>, Failure> {
        let Some(first) = nodes.iter().find(|node| node.name == self.primary) else {
            return Err(Failure::invalid_field("primary", format!("`{}` is none of `nodes`", self.primary)));
        };
        let procedure = create::Create::new(cluster, first.id);
        let mut submit = asker.submit(procedure, cluster);
        let key = cluster_key(&cluster.name);
        let record = put(&key, cluster).map_err(|error| error.to_failure())?;
        submit = submit.when(Compare::absent(&key)).then(record);
        for member in &cluster.members {
            let Writes { compares, ops } = desk
                .means
                .records
                .writes_of_new(cluster, member)
                .await
                .map_err(|error| store_failure(&error))?;
            submit = compares.into_iter().fold(submit, Submit::when);
            submit = ops.into_iter().fold(submit, Submit::then);
        }
        Ok(submit)
    }
}

/// A drawn password: encrypted for the one time that it is shown, and as the verifier that nodes get.
pub(in crate::procedures) fn access(desk: &Desk, cluster: ClusterId) -> Result<Access, Failure> {
    let name = || DatabaseName::try_from(CLIENT.to_owned()).map_err(|error| internal(&error));
    let password = new_password(desk, cluster)?;
    Ok(Access { user: name()?, database: name()?, password, shown: false, pending: None })
}

/// A password that nobody has seen yet.
pub(super) fn new_password(desk: &Desk, cluster: ClusterId) -> Result<Password, Failure> {
    let password = pki::generate_password();
    let verifier = pki::scram::verifier(&password).map_err(|error| internal(&error))?;
    let sealed = desk.keyring.seal(&password_context(cluster), password.as_bytes());
    Ok(Password {
        verifier: Verifier::try_from(verifier).map_err(|error| internal(&error))?,
        sealed: sealed.map_err(|error| internal(&error))?,
    })
}

fn internal(error: &impl ToString) -> Failure {
    Failure::new(Reason::Internal, error.to_string())
}

/// What a sealed password is bound to: it opens for no other cluster.
pub(super) fn password_context(cluster: ClusterId) -> String {
    format!("clusters/{cluster}/password")
}
