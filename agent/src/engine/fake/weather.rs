//! What befalls the fake's members.

use holdfast_common::id::{ClusterId, NodeId};

use super::World;

impl World {
    /// Cuts a node off from the others, or joins it again.
    pub fn cut(&self, node: NodeId) {
        self.lock().cut.insert(node);
    }

    pub fn join(&self, node: NodeId) {
        self.lock().cut.remove(&node);
    }

    /// The member's process dies, as by a crash or a reboot.
    pub fn crash(&self, cluster: ClusterId, node: NodeId) {
        if let Some(member) = self.lock().members.get_mut(&(cluster, node)) {
            member.running_since = None;
        }
    }

    /// A resync of the member was cut: its data cannot be started.
    pub fn break_data(&self, cluster: ClusterId, node: NodeId) {
        if let Some(member) = self.lock().members.get_mut(&(cluster, node)) {
            (member.broken, member.running_since) = (true, None);
        }
    }
}
