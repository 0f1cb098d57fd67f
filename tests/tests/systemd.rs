//! Holdfast as users install it: packages, cloud-init, hardened units and systemd, on machines that had no PostgreSQL.

use anyhow::ensure;
use holdfast_tests::machine::fleet::{AGENT, COORDINATOR, MachineFleet};

#[tokio::test]
async fn a_new_machine_becomes_a_node_by_its_user_data_alone() -> anyhow::Result<()> {
    let mut fleet = MachineFleet::start().await?;
    fleet.join(&["n1"]).await?;
    ensure!(fleet.coordinator().property(COORDINATOR, "User").await? == "holdfast", "it has its own user");
    let node = &fleet.nodes()[0];
    ensure!(node.property(AGENT, "ActiveState").await? == "active", "the agent is a unit");
    ensure!(node.property(AGENT, "UnitFileState").await? == "enabled", "it will be there after a boot");
    let shown = fleet.online("n1").await?;
    ensure!(shown["inventory"]["service_manager"] == "systemd", "it is {}", shown["inventory"]);
    Ok(())
}
