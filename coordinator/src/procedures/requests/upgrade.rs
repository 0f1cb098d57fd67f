//! `UpgradeCluster`.

use std::collections::BTreeSet;

use futures::future::join_all;
use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::name::ClusterName;
use holdfast_common::question::{Answer, PackageUpgrade, Question, Upgrades};

use super::preconditions::{Precondition, about_node};
use super::restart::{Outline, RestartCluster};
use super::{Asker, Desk, Prepare, Prepared};
use crate::cluster::{Cluster, Member};
use crate::procedures::records::cluster_key;
use crate::procedures::restart::Writes;
use crate::procedures::upgrade::Upgrade;
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct UpgradeCluster {
    pub cluster: ClusterName,
    pub writes: Writes,
}

/// What a member's node says is on offer, or why it does not.
struct Offer<'a> {
    member: &'a Member,
    said: Result<Upgrades, String>,
    /// As its server says.
    runs: Option<String>,
}

impl Prepare for UpgradeCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let restart =
            RestartCluster { cluster: self.cluster.clone(), nodes: Vec::new(), writes: self.writes };
        // Whatever keeps servers from being restarted keeps them from being upgraded.
        let Outline { mut preconditions, notes: of_restart, restart } =
            restart.outline(desk, &cluster).await?;
        let offers = join_all(cluster.members.iter().map(|member| offer(desk, &cluster, member))).await;
        preconditions.extend(offers.iter().filter_map(Offer::may_install));
        let mut notes: Vec<String> = offers.iter().map(Offer::note).collect();
        notes.extend(differing(&offers));
        notes.push("each node reads its package sources anew before: it may find newer ones".to_owned());
        notes.extend(neighbours(desk, &cluster).await?);
        notes.extend(of_restart);
        let procedure = restart.map(Upgrade::new);
        let steps = procedure.as_ref().map(Upgrade::plan).unwrap_or_default();
        let submit = procedure.map(|procedure| {
            let unchanged = Compare::unchanged(cluster_key(&cluster.name), found.revision);
            asker.submit(procedure, &cluster).when(unchanged)
        });
        Ok(Prepared { preconditions, steps, notes, submit })
    }
}

async fn offer<'a>(desk: &Desk, cluster: &Cluster, member: &'a Member) -> Offer<'a> {
    let nodes = &desk.means.nodes;
    let report = nodes.state(member.node_id, cluster.id).and_then(|state| Some(state.report?.0));
    let upgrades = |answer| match answer {
        Answer::Upgrades(upgrades) => Some(upgrades),
        Answer::Retuning(_) | Answer::SetAside(_) => None,
    };
    let said = desk.ask(cluster, member, Question::Upgrades, upgrades).await;
    Offer { member, said, runs: report.and_then(|report| report.server_build) }
}

impl Offer<'_> {
    fn may_install(&self) -> Option<Precondition> {
        let Upgrades { packages, may_install, .. } = self.said.as_ref().ok()?;
        let met = *may_install || packages.is_empty();
        let message = match (may_install, packages.as_slice()) {
            (_, []) => "no package is to be changed".to_owned(),
            (true, _) => "its agent may change packages".to_owned(),
            (false, packages) => {
                let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
                format!("its agent is not root; upgrade by hand, then try again: {}", names.join(" "))
            }
        };
        Some(Precondition::new("may_install", about_node(&self.member.node_name), met, message))
    }

    fn note(&self) -> String {
        let name = &self.member.node_name;
        let Upgrades { installed_build, packages, .. } = match &self.said {
            Ok(upgrades) => upgrades,
            Err(why) => return format!("{name}: what is on offer is not known: {why}"),
        };
        let runs = self.runs.as_deref();
        let current = runs == Some(installed_build.as_str());
        let runs = runs.unwrap_or("an unknown build");
        match (packages.as_slice(), current) {
            ([], true) => format!("{name}: runs {runs}, and nothing newer is on offer: it is left alone"),
            ([], false) => format!("{name}: runs {runs}, {installed_build} is installed: it is restarted"),
            (packages, _) => {
                let changes = packages.iter().map(|package| {
                    let PackageUpgrade { name, installed, offered } = package;
                    format!("{name} {installed} → {offered}")
                });
                let changes = changes.collect::<Vec<_>>().join(", ");
                format!("{name}: runs {runs}; {changes}; it is restarted where its server's program changes")
            }
        }
    }
}

/// Where some nodes would get another version of the server than others.
fn differing(offers: &[Offer<'_>]) -> Option<String> {
    // The server's own package is named as the major version alone is.
    let is_server = |package: &&PackageUpgrade| {
        let version = package.name.strip_prefix("postgresql-").unwrap_or_default();
        !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit())
    };
    let packages = offers.iter().filter_map(|offer| offer.said.as_ref().ok()).flat_map(|it| &it.packages);
    let versions: BTreeSet<&str> =
        packages.filter(is_server).map(|package| package.offered.as_str()).collect();
    let differ = versions.len() > 1;
    differ.then(|| "the nodes' package sources differ: not all members would run the same".to_owned())
}

/// Members of other clusters whose packages these are too.
async fn neighbours(desk: &Desk, cluster: &Cluster) -> Result<Option<String>, Failure> {
    let all = desk.means.records.all().await.map_err(|error| error.to_failure())?;
    let shares = |other: &&Cluster| {
        let same = (other.engine, &other.engine_version) == (cluster.engine, &cluster.engine_version);
        let beside = cluster.members.iter().any(|member| other.member(member.node_id).is_some());
        other.id != cluster.id && same && beside
    };
    let names: Vec<&str> = all.iter().filter(shares).map(|other| other.name.as_str()).collect();
    let note = || {
        let names = names.join(", ");
        format!(
            "{names}: on some of these nodes too; its servers run on as they are until they are restarted"
        )
    };
    Ok((!names.is_empty()).then(note))
}
