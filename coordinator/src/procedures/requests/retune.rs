//! What a retuning would change on each member, as its own node says.

use futures::future::join_all;
use holdfast_common::engine::TakesEffect;
use holdfast_common::question::{Answer, Question, Retuning, SettingChange};

use super::Desk;
use super::preconditions::{Precondition, about_node};
use crate::cluster::{Cluster, Member};
use crate::procedures::set::{Declared, Retune};

/// The answers of all members.
pub(super) struct Previews<'a> {
    cluster: &'a Cluster,
    all: Vec<(&'a Member, Result<Retuning, String>)>,
}

impl<'a> Previews<'a> {
    pub(super) async fn ask(desk: &Desk, cluster: &'a Cluster) -> Self {
        let ask = |member: &'a Member| async move {
            let retuning = |answer| match answer {
                Answer::Retuning(retuning) => Some(retuning),
                Answer::Upgrades(_) | Answer::SetAside(_) => None,
            };
            (member, desk.ask(cluster, member, Question::Retuning, retuning).await)
        };
        Self { cluster, all: join_all(cluster.members.iter().map(ask)).await }
    }

    /// Where nobody knows what would change, nothing is.
    pub(super) fn preconditions(&self) -> impl Iterator<Item = Precondition> + '_ {
        self.all.iter().map(|(member, said)| {
            let message = match said {
                Ok(_) => "the node has told what would change".to_owned(),
                Err(why) => format!("what would change is not known: {why}"),
            };
            Precondition::new("retuning_known", about_node(&member.node_name), said.is_ok(), message)
        })
    }

    /// What each had, for the way back.
    pub(super) fn kept(&self) -> Retune {
        let kept =
            self.all.iter().filter_map(|(member, said)| Some((member.node_id, said.as_ref().ok()?.kept)));
        Retune { kept: kept.collect() }
    }

    /// Whether a server has to be started anew for it.
    pub(super) fn restarts(&self, to: &Declared) -> bool {
        let mut all = self.all.iter().filter_map(|(_, said)| said.as_ref().ok());
        all.any(|retuning| retuning.changes.iter().any(|change| self.takes(change, to) == Taken::AtStart))
    }

    fn takes(&self, change: &SettingChange, to: &Declared) -> Taken {
        let Cluster { engine, engine_version, .. } = self.cluster;
        match engine.takes_effect(&change.name, engine_version) {
            _ if to.parameters.get(&change.name).is_some() => Taken::Never,
            TakesEffect::AtOnce | TakesEffect::AsTheServerSays => Taken::AtOnce,
            TakesEffect::AtStart => Taken::AtStart,
        }
    }

    pub(super) fn notes(&self, to: &Declared) -> Vec<String> {
        let note = |(member, said): &(&Member, Result<Retuning, String>)| {
            let name = &member.node_name;
            let Retuning { kept, possible, changes } = match said {
                Ok(retuning) => retuning,
                Err(why) => return format!("{name}: what would change is not known: {why}"),
            };
            let changes = changes.iter().filter_map(|change| {
                let SettingChange { name, from, to: value } = change;
                match self.takes(change, to) {
                    // The operator's own stays.
                    Taken::Never => None,
                    Taken::AtOnce => Some(format!("{name} {from} → {value}")),
                    Taken::AtStart => Some(format!("{name} {from} → {value} (restart)")),
                }
            });
            let changes: Vec<String> = changes.collect();
            if changes.is_empty() {
                return format!("{name}: its settings count on {kept}, and stay as they are");
            }
            format!("{name}: from {kept} to {possible}: {}", changes.join(", "))
        };
        let kept = "parameters that somebody has set stay as they are set".to_owned();
        self.all.iter().map(note).chain([kept]).collect()
    }
}

/// When a server goes by a changed setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Never,
    AtOnce,
    AtStart,
}
