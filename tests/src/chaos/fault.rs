//! The faults.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{Chaos, Strike, WHOLE};
use crate::cluster::{self, NODES};
use crate::fault::{empty_disk, fill_disk};
use crate::fleet::{AGENT, COORDINATOR};
use crate::host::Host;
use crate::proc::Process;
use crate::wait::wait_until;

/// To whom something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Replica,
    Coordinator,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and whoever looks after it may start it again.
    KillServer,
    KillAgent,
    KillBoth,
    KillCoordinator,
    /// Kept from starting again for a while.
    StopAgent,
    StopCoordinator,
    /// SIGSTOP for a while.
    FreezeServer,
    FreezeAgent,
    FreezeCoordinator,
    /// The machine is off for a while.
    PowerCut,
    /// No byte is left on the disk that its agent and its server share.
    FullDisk,
    /// From everybody but the clients, both ways, or one.
    Isolate,
    Deaf,
    Mute,
    /// From the coordinator alone, from the other members alone.
    FromCoordinator,
    FromMembers,
    LossAndDelay,
    /// Switchovers, and what disturbs them.
    Switchover,
    SwitchoverAndKillCoordinator,
    SwitchoverAndKillAgents,
    TwoSwitchovers,
}

impl Fault {
    /// Every kind on every role that it has a meaning for.
    #[must_use]
    pub fn all() -> Vec<(Self, Role)> {
        use Fault::*;
        let of_members = [
            KillServer,
            KillAgent,
            KillBoth,
            StopAgent,
            FreezeServer,
            FreezeAgent,
            PowerCut,
            FullDisk,
            Isolate,
            Deaf,
            Mute,
            FromCoordinator,
            FromMembers,
            LossAndDelay,
        ];
        let of_coordinator = [KillCoordinator, StopCoordinator, FreezeCoordinator];
        let of_both = [Switchover, SwitchoverAndKillCoordinator, SwitchoverAndKillAgents, TwoSwitchovers];
        let members =
            of_members.into_iter().flat_map(|fault| [(fault, Role::Primary), (fault, Role::Replica)]);
        let others = of_coordinator.into_iter().chain(of_both).map(|fault| (fault, Role::Coordinator));
        members.chain(others).collect()
    }
}

impl Chaos {
    /// Does it, and ends it.
    pub(super) async fn inflict(&self, strike: Strike, primary: &str) -> anyhow::Result<()> {
        let fleet = &self.stage.fleet;
        let replicas: Vec<&str> = NODES.into_iter().filter(|node| *node != primary).collect();
        let name = if strike.role == Role::Replica { replicas[0] } else { primary };
        let host = fleet.node(name)?;
        let lasts = || sleep(Duration::from_secs_f64(strike.seconds));
        match strike.fault {
            Fault::KillServer => kill_server(host).await?,
            Fault::KillAgent => crashed(host, AGENT).await?,
            Fault::KillBoth => {
                kill_server(host).await?;
                crashed(host, AGENT).await?;
            }
            Fault::KillCoordinator => crashed(fleet.controller(), COORDINATOR).await?,
            Fault::StopAgent => stopped(host, AGENT, lasts()).await?,
            Fault::StopCoordinator => stopped(fleet.controller(), COORDINATOR, lasts()).await?,
            Fault::FreezeServer => frozen(server(host).await?, lasts()).await?,
            Fault::FreezeAgent => frozen(service(host, AGENT).await?, lasts()).await?,
            Fault::FreezeCoordinator => {
                frozen(service(fleet.controller(), COORDINATOR).await?, lasts()).await?
            }
            Fault::PowerCut => {
                host.cut_power().await?;
                lasts().await;
                host.boot().await?;
            }
            Fault::FullDisk => {
                let folder = host.state_folder();
                fill_disk(host, &folder).await?;
                self.use_up(host, primary).await;
                lasts().await;
                empty_disk(host, &folder).await?;
            }
            Fault::Isolate
            | Fault::Deaf
            | Fault::Mute
            | Fault::FromCoordinator
            | Fault::FromMembers
            | Fault::LossAndDelay => {
                self.disturb_network(strike.fault, name).await?;
                lasts().await;
            }
            Fault::Switchover
            | Fault::SwitchoverAndKillCoordinator
            | Fault::SwitchoverAndKillAgents
            | Fault::TwoSwitchovers => self.disturb_switchover(strike, primary, &replicas).await?,
        }
        Ok(())
    }

    /// Has log written until it finds no room on this host: files that it had for that are there to be used up first.
    async fn use_up(&self, host: &Host, primary: &str) {
        const MIB_16: &str = "select count(pg_logical_emit_message(false, 'chaos', repeat('x', 1048576))) from generate_series(1, 16)";
        const FILES: usize = 12;
        for _ in 0..FILES {
            if self.stage.ask(primary, MIB_16).await.is_err() || cluster::server(host).is_err() {
                return;
            }
        }
    }

    async fn disturb_network(&self, fault: Fault, name: &str) -> anyhow::Result<()> {
        let fleet = &self.stage.fleet;
        let network = fleet.network();
        let host = fleet.node(name)?;
        let mut members = Vec::new();
        for other in NODES.into_iter().filter(|node| *node != name) {
            members.push(fleet.node(other)?);
        }
        let everybody: Vec<&Host> = members.iter().copied().chain([fleet.controller()]).collect();
        match fault {
            Fault::Deaf => {
                for from in everybody {
                    network.cut(from, host).await?;
                }
            }
            Fault::Mute => {
                for to in everybody {
                    network.cut(host, to).await?;
                }
            }
            Fault::FromCoordinator => network.partition(&[host], &[fleet.controller()]).await?,
            Fault::FromMembers => network.partition(&[host], &members).await?,
            Fault::LossAndDelay => network.storm(host).await?,
            _ => network.partition(&[host], &everybody).await?,
        }
        Ok(())
    }

    /// Whether the switchover comes about is not asked: only what holds afterwards.
    async fn disturb_switchover(
        &self,
        strike: Strike,
        primary: &str,
        replicas: &[&str],
    ) -> anyhow::Result<()> {
        let fleet = &self.stage.fleet;
        let promote = |target: &str| fleet.cli(["cluster", "promote", "orders", target]);
        let deadline = Duration::from_secs(120);
        let first = promote(replicas[0])?.deadline(deadline);
        let disturbed = async {
            // Somewhere in its course.
            sleep(Duration::from_secs_f64(strike.seconds / 8.0)).await;
            match strike.fault {
                Fault::SwitchoverAndKillCoordinator => crashed(fleet.controller(), COORDINATOR).await?,
                Fault::SwitchoverAndKillAgents => {
                    for name in [primary, replicas[0]] {
                        crashed(fleet.node(name)?, AGENT).await?;
                    }
                }
                Fault::TwoSwitchovers => {
                    let _refused_or_done = promote(replicas[1])?.deadline(deadline).run().await;
                }
                _ => {}
            }
            anyhow::Ok(())
        };
        let (_failed_or_done, disturbed) = futures::future::join(first.run(), disturbed).await;
        disturbed
    }
}

/// One that was killed by the fault before may not be noticed yet, and is waited for.
async fn server(host: &Host) -> anyhow::Result<Process> {
    wait_until("a server", WHOLE, || async { cluster::server(host) }).await
}

async fn kill_server(host: &Host) -> anyhow::Result<()> {
    server(host).await?.signal(Signal::SIGKILL)
}

async fn service(host: &Host, name: &str) -> anyhow::Result<Process> {
    wait_until(format!("{name} on {}", host.name()), WHOLE, || async {
        host.service(name)?.context("it does not run")
    })
    .await
}

async fn crashed(host: &Host, name: &str) -> anyhow::Result<()> {
    service(host, name).await?;
    host.crash(name).await.map(drop)
}

async fn stopped(host: &Host, name: &str, lasts: impl Future<Output = ()>) -> anyhow::Result<()> {
    service(host, name).await?;
    host.kill(name).await?;
    lasts.await;
    host.release(name).await.map(drop)
}

async fn frozen(process: Process, lasts: impl Future<Output = ()>) -> anyhow::Result<()> {
    process.signal(Signal::SIGSTOP)?;
    lasts.await;
    process.signal(Signal::SIGCONT)
}
