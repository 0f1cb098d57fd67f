//! Which builds the fake's nodes have, and the one that their package sources offer.

use holdfast_common::id::NodeId;
use holdfast_common::question::{PackageUpgrade, Upgrades};

use super::World;
use super::state::State;

impl World {
    /// From here on the package sources have this build.
    pub fn offer(&self, build: impl Into<String>) {
        self.lock().offered = Some(build.into());
    }
}

pub(super) fn offered(state: &State, node: NodeId) -> Upgrades {
    let installed_build = state.installed(node);
    let offered = state.offered.clone().filter(|offered| *offered != installed_build);
    let package =
        |offered| PackageUpgrade { name: "fake".to_owned(), installed: installed_build.clone(), offered };
    let packages = offered.into_iter().map(package).collect();
    Upgrades { installed_build, packages, may_install: true }
}

pub(super) fn upgrade(state: &mut State, node: NodeId) -> String {
    if let Some(offered) = state.offered.clone() {
        state.installed.insert(node, offered);
    }
    state.installed(node)
}
