//! Packages under members that run.

use std::sync::PoisonError;

use holdfast_common::command::UpgradeEngine;
use holdfast_common::id::ClusterId;
use holdfast_common::question::Upgrades;

use super::Inner;
use crate::engine::{Error, Work};

impl Inner {
    pub(super) async fn upgrades(&self, cluster: ClusterId) -> Result<Upgrades, Error> {
        let (_, marker) = self.complete(cluster).await?;
        self.packages.upgrades(&marker.engine_version).await
    }

    pub(super) async fn upgrade(&self, request: &UpgradeEngine, work: &Work) -> Result<String, Error> {
        self.require_installed(&request.engine_version).await?;
        let installed = self.packages.upgrade(&request.engine_version, work).await;
        // Also after a failure: some packages may be other ones by then.
        for known in self.members.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            known.build_at = None;
        }
        installed
    }
}
