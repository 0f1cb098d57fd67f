//! A node that is not there: below the agent's own link code, reports, samples and outcomes that are made up, but as
//! large and as restless as those of a real node with one member.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use holdfast_agent::assignment;
use holdfast_agent::dispatch::Order;
use holdfast_agent::link::Below;
use holdfast_agent::outbox::Outbox;
use holdfast_common::assignment::Assignment;
use holdfast_common::clock::Clock;
use holdfast_common::command::{Check, CheckedMember, Command, Success};
use holdfast_common::engine::Engine;
use holdfast_common::error::{Failure, Reason};
use holdfast_common::generation::Generation;
use holdfast_common::id::{ClusterId, InstanceId};
use holdfast_common::link::{Hello, VERSIONS};
use holdfast_common::position::Position;
use holdfast_common::report::{EngineState, MemberReport, NodeReport};
use holdfast_common::role::Role;
use holdfast_common::telemetry::{
    Bounded, EngineAvailability, EngineOffer, Filtering, Inventory, OperatingSystem, Privilege, Sample,
    ServiceManager,
};
use holdfast_common::term::Term;

use super::sample::{Dice, busy};

/// One simulated node.
#[derive(Debug)]
pub(super) struct Simulated {
    name: String,
    instance: InstanceId,
    cluster: ClusterId,
    outbox: Outbox,
    clock: Clock,
    /// Numbers the heartbeats: the member's position moves with each.
    beats: AtomicU64,
    dice: Arc<Dice>,
}

// === impl Simulated ===

impl Simulated {
    pub(super) fn new(name: String, seed: u64) -> Self {
        Self {
            name,
            instance: InstanceId::generate(),
            cluster: ClusterId::generate(),
            outbox: Outbox::default(),
            clock: Clock::system(),
            beats: AtomicU64::new(0),
            dice: Arc::new(Dice::new(seed)),
        }
    }

    fn inventory(&self) -> Inventory {
        let offer = EngineOffer {
            engine: "postgresql".into(),
            version: "15.14".into(),
            availability: EngineAvailability::Installed,
        };
        Inventory {
            hostname: self.name.clone(),
            os: OperatingSystem {
                id: "debian".into(),
                version: Some("12".into()),
                pretty_name: "Debian GNU/Linux 12 (bookworm)".into(),
            },
            kernel: "6.1.0-28-cloud-amd64".into(),
            architecture: "x86_64".into(),
            cpu_model: Some("simulated".into()),
            logical_cores: 4,
            physical_cores: Some(2),
            memory_bytes: 8 << 30,
            swap_bytes: 0,
            disks: Bounded::default(),
            addresses: Bounded::default(),
            virtualisation: Some("kvm".into()),
            service_manager: ServiceManager::Systemd,
            privilege: Privilege::Root,
            engines: Bounded { items: vec![offer], omitted: 0 },
            filtering: Filtering::Available,
        }
    }

    fn member(&self) -> MemberReport {
        let beat = self.beats.fetch_add(1, Ordering::Relaxed);
        let position = Position { era: 1, offset: 0x0300_0000 + beat * 8192 };
        MemberReport {
            role: Some(Role::Replica),
            position: Some(position),
            replayed: Some(position),
            lag_seconds: Some(0.0),
            streaming: Some(true),
            system_identifier: Some("7440000000000000000".into()),
            engine_version: Some("15.14".into()),
            data_bytes: Some(40 << 20),
            ..MemberReport::only(self.cluster, Engine::Postgresql, EngineState::Running, Term::FIRST)
        }
    }

    /// Does what a real node does with a command, but for the work and the journal on the disk.
    fn run(&self, command: &Command) {
        let outcome = match command.payload.kind() {
            "check_member" => Ok(Success::CheckMember(self.checked())),
            other => Err(Failure::new(Reason::UnknownCommand, format!("a simulated node does no {other}"))),
        };
        self.outbox.outcome(command.id, 1, outcome);
    }

    fn checked(&self) -> CheckedMember {
        let check = |name: &str| Check { name: name.into(), met: true, message: "as it should be".into() };
        CheckedMember {
            checks: ["port_free", "disk", "memory", "engine"].map(check).to_vec(),
            engine_version: None,
            engine_installed: true,
            memory_bytes: 8 << 30,
            cores: 4,
            free_bytes: 75_000_000_000,
            node_time: self.clock.now(),
        }
    }
}

impl Below for Simulated {
    fn hello(&self) -> BoxFuture<'_, Hello> {
        Box::pin(std::future::ready(Hello {
            versions: VERSIONS,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: "11111111-2222-3333-4444-555555555555".into(),
            instance_id: self.instance,
            inventory: self.inventory(),
            assignment_generation: Generation::NONE,
            coordinator_generation: Generation::NONE,
            unfinished: Vec::new(),
            node_time: self.clock.now(),
        }))
    }

    fn report(&self) -> NodeReport {
        NodeReport {
            members: vec![self.member()],
            assignment_generation: Generation::NONE,
            node_time: self.clock.now(),
        }
    }

    fn sample(&self) -> Option<Box<Sample>> {
        Some(Box::new(busy(&self.dice, self.clock.now())))
    }

    fn assign(&self, _assignment: Box<Assignment>) -> BoxFuture<'_, Result<(), assignment::Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn order(&self, order: Order) -> BoxFuture<'_, ()> {
        match order {
            Order::Run(command) => self.run(&command),
            Order::Refuse(id, failure) => self.outbox.outcome(id, 1, Err(failure)),
            Order::Acknowledged(id) => self.outbox.acknowledge(id),
            // It has ended already.
            Order::Cancel(_) => {}
        }
        Box::pin(std::future::ready(()))
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::command::{CheckMember, Payload};
    use holdfast_common::id::CommandId;
    use holdfast_common::link::{FromAgent, Update};

    use super::*;

    #[tokio::test]
    async fn a_command_has_its_outcome_until_it_is_acknowledged() {
        let node = Simulated::new("s1".into(), 1);
        let id = CommandId::generate();
        let check = CheckMember {
            replication_port: None,
            cluster_id: ClusterId::generate(),
            engine: Engine::Postgresql,
            engine_version: None,
            port: 5432,
            extensions: Vec::new(),
        };
        let deadline = node.clock.now();
        let command = Command {
            id,
            coordinator_generation: Generation::new(1),
            term: Term::NONE,
            deadline,
            payload: Payload::CheckMember(check),
        };
        node.order(Order::Run(Box::new(command))).await;
        let Some(FromAgent::CommandUpdate(update)) = node.outbox.take(&node.clock) else {
            panic!("no outcome");
        };
        assert_eq!(update.command_id, id);
        assert!(matches!(update.update, Update::Outcome(Ok(Success::CheckMember(_)))), "{update:?}");
        node.order(Order::Acknowledged(id)).await;
        assert_eq!(node.outbox.unacknowledged(), 0);
    }

    #[test]
    fn no_two_reports_are_the_same() {
        let node = Simulated::new("s1".into(), 1);
        assert_ne!(node.report().members, node.report().members);
        assert!(node.sample().is_some());
    }
}
