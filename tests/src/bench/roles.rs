//! How long nobody can write when the primary changes: by plan, because its server was killed, its machine died, or it was cut
//! off. Beside it, in the same run and with the same client: a switchover made by hand, and Debian's Patroni with etcd.

mod by_hand;
mod holdfast;
mod patroni;

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::time::sleep;

pub(super) use self::holdfast::Holdfast;
use self::patroni::Patroni;
use super::measure::{Load, Rounds, verdict};
use super::{Report, Table};
use crate::client::Client;
use crate::cluster::{self, NODES};
use crate::host::Host;
use crate::network::Network;
use crate::scene::now;
use crate::unmanaged::Servers;
use crate::unmanaged::by_hand::ByHand;
use crate::wait::wait_until;

/// How often each change is made.
const ROUNDS: usize = 5;
/// Longer than anybody takes to have a primary and two replicas again.
const SOON: Duration = Duration::from_secs(300);
/// How long a server is left alone before it is killed: one that ends again and again is started with pauses.
const AT_REST: Duration = Duration::from_secs(12);
/// After this nobody is served by a server that was killed before.
const DEAD: f64 = 1.0;

/// Who the others are, and who has aims of its own.
const BY_HAND: &str = "by hand";
const PATRONI: &str = "Patroni";
const FAST: &str = "Holdfast, fast leases";

/// What the issue asks for: so many times the switchover by hand, and so many seconds.
const AIM_SWITCHOVER: f64 = 1.2;
const AIM_KILLED: f64 = 2.0;
const AIM_GONE: f64 = 7.5;
const AIM_GONE_FAST: f64 = 4.0;

/// A primary and two replicas on n1, n2 and n3, by whomever they are kept, and a client of all of them on n4.
pub(super) struct Site<'a> {
    network: &'a Network,
    controller: &'a Host,
    nodes: &'a [Host],
    client: &'a Client,
}

/// Who keeps them.
pub(super) trait Keeper {
    fn site(&self) -> Site<'_>;
    /// The primary, if two replicas stream from it.
    async fn whole(&self) -> anyhow::Result<String>;
    /// Makes another member the primary, by plan.
    async fn switch(&self, from: &str, to: &str) -> anyhow::Result<()>;
}

/// What befalls a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Switchover,
    KilledServer,
    DeadNode,
    Partition,
}

/// The longest times without an acknowledged write, in seconds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) who: &'static str,
    pub(super) event: Event,
    pub(super) gaps: Rounds,
}

/// Measures all of them.
///
/// # Errors
///
/// When somebody's cluster does not come to be, or not back, or two served at once.
pub(super) async fn measure() -> anyhow::Result<Report> {
    use Event::*;
    const ALL: [Event; 4] = [Switchover, KilledServer, DeadNode, Partition];
    let before = Load::now()?;
    let mut found = Vec::new();
    found.extend(rounds(BY_HAND, &ByHand::begin().await?, &[Switchover]).await?);
    found.extend(rounds("Holdfast", &Holdfast::begin(&[]).await?, &ALL).await?);
    let quorum = Holdfast::begin(&["--durability", "quorum"]).await?;
    found.extend(rounds("Holdfast, quorum", &quorum, &ALL).await?);
    drop(quorum);
    let fast = Holdfast::begin(&["--lease-profile", "fast"]).await?;
    found.extend(rounds(FAST, &fast, &[DeadNode, Partition]).await?);
    drop(fast);
    found.extend(rounds(PATRONI, &Patroni::begin().await?, &ALL).await?);
    Ok(report(&found, &[before, Load::now()?]))
}

pub(super) async fn rounds(
    who: &'static str,
    keeper: &impl Keeper,
    events: &[Event],
) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    for event in events {
        let mut gaps = Vec::new();
        for round in 1..=ROUNDS {
            let gap = one(keeper, *event).await;
            let gap = gap.with_context(|| format!("{who}: {event:?}, round {round}"))?;
            crate::say(&format!("{who}: {event:?} {round} of {ROUNDS}: {gap:.2} s"));
            gaps.push(gap);
        }
        found.push(Found { who, event: *event, gaps: Rounds::new(gaps)? });
    }
    Ok(found)
}

/// From a whole cluster to a whole cluster.
async fn one(keeper: &impl Keeper, event: Event) -> anyhow::Result<f64> {
    let primary = wait_until("a whole cluster", SOON, || keeper.whole()).await?;
    let Site { network, controller, nodes, client } = keeper.site();
    let host = nodes.iter().find(|host| host.name() == primary).context("no such node")?;
    if event == Event::KilledServer {
        sleep(AT_REST).await;
    }
    client.is_served_by(&primary, now(), SOON).await?;
    let begun = now();
    match event {
        Event::Switchover => {
            let target = NODES.into_iter().find(|node| *node != primary).context("nobody else")?;
            keeper.switch(&primary, target).await?;
            client.is_served_by(target, begun, SOON).await?;
        }
        Event::KilledServer => {
            cluster::server(host)?.signal(Signal::SIGKILL)?;
            client.is_served(|ack| ack.sent > begun + DEAD, SOON).await?;
        }
        Event::DeadNode => {
            host.cut_power().await?;
            client.is_served(|ack| ack.sent > begun && ack.node != primary, SOON).await?;
        }
        Event::Partition => {
            let others = nodes.iter().filter(|host| host.name() != primary);
            let all: Vec<&Host> = others.chain([controller]).collect();
            network.partition(&[host], &all).await?;
            client.is_served(|ack| ack.sent > begun && ack.node != primary, SOON).await?;
        }
    }
    let gap = client.longest_gap_since(begun);
    match event {
        Event::DeadNode => host.boot().await?,
        Event::Partition => network.heal().await?,
        Event::Switchover | Event::KilledServer => {}
    }
    wait_until("a whole cluster again", SOON, || keeper.whole()).await?;
    Ok(gap)
}

fn report(found: &[Found], load: &[Load; 2]) -> Report {
    let [before, after] = load;
    let about = format!(
        "Release build. Hosts of the testbed: three members with real PostgreSQL, a client on a fourth that has a connection to \
         each member at once and inserts a row every 5 ms into whichever takes it. The longest time between two acknowledged \
         rows, in seconds: medians of {ROUNDS}, with the smallest and largest in parentheses. Whoever is under test has a whole \
         cluster before each round. *Switchover*: asked for by a person (`holdfast cluster promote`, `patronictl switchover`; by hand: \
         checkpoint, `pg_ctl stop`, `pg_promote`, in one script, with whatever follows afterwards left out, of servers with as much \
         memory as Holdfast's: a quarter of the machine's, whose release takes a stop its time). *Killed server*: SIGKILL of \
         the postmaster, each time after {} s at rest. *Dead node*: its power is cut. *Partition*: it is cut off from everybody, the client too. All with \
         their defaults (asynchronous), but for what is named; Patroni is Debian's, with one etcd on a host of its own. Load average \
         of the machine {before} before, {after} after.",
        AT_REST.as_secs()
    );
    let by_hand = found.iter().find(|one| one.who == BY_HAND).map(|one| one.gaps.median());
    let columns = ["who", "what", "gap in seconds", "aim"].map(String::from).to_vec();
    let rows = found.iter().map(|one| {
        vec![one.who.to_owned(), one.event.told().to_owned(), format!("{:.2}", one.gaps), one.aim(by_hand)]
    });
    let tables = vec![Table { columns, rows: rows.collect() }];
    Report { title: "When the primary changes".into(), about, tables }
}

// === impl Site ===

impl<'a> Site<'a> {
    fn unmanaged(servers: &'a Servers, client: &'a Client) -> Self {
        let Servers { network, controller, nodes } = servers;
        Self { network, controller, nodes, client }
    }
}

// === impl Event ===

impl Event {
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::KilledServer => "killed server",
            Self::DeadNode => "dead node",
            Self::Partition => "partition",
        }
    }
}

// === impl Found ===

impl Found {
    /// The aim for it, and whether it was met; nothing for those that are there to compare with.
    pub(super) fn aim(&self, by_hand: Option<f64>) -> String {
        if matches!(self.who, BY_HAND | PATRONI) {
            return String::new();
        }
        let gap = self.gaps.median();
        let within = |bound: f64| format!("at most {bound:.1}: {}", verdict(gap <= bound));
        match (self.event, by_hand) {
            (Event::Switchover, Some(by_hand)) => {
                let times = gap / by_hand;
                format!("{AIM_SWITCHOVER} times by hand: {times:.2}, {}", verdict(times <= AIM_SWITCHOVER))
            }
            (Event::Switchover, None) => String::new(),
            (Event::KilledServer, _) => within(AIM_KILLED),
            (Event::DeadNode | Event::Partition, _) if self.who == FAST => within(AIM_GONE_FAST),
            (Event::DeadNode | Event::Partition, _) => within(AIM_GONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_for_holdfast_and_a_switchover_is_held_against_one_by_hand() -> anyhow::Result<()> {
        let found = |who, event, gap| anyhow::Ok(Found { who, event, gaps: Rounds::new([gap])? });
        let all = [
            found(BY_HAND, Event::Switchover, 0.5)?,
            found("Holdfast", Event::Switchover, 0.7)?,
            found("Holdfast", Event::DeadNode, 7.0)?,
            found(FAST, Event::DeadNode, 7.0)?,
            found(PATRONI, Event::DeadNode, 26.0)?,
        ];
        let rows = report(&all, &[Load::now()?, Load::now()?]).tables.remove(0).rows;
        let verdicts: Vec<_> = rows.iter().map(|row| row[3].as_str()).collect();
        assert_eq!(
            verdicts,
            ["", "1.2 times by hand: 1.40, missed", "at most 7.5: met", "at most 4.0: missed", ""]
        );
        Ok(())
    }
}
