//! The swarm: many simulated nodes in this process, each with an identity of its own that it got by joining, and each
//! holding its session by the agent's own code.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_agent::app::state_files;
use holdfast_agent::identity::{Again, Identity, Join, join};
use holdfast_agent::link::client::Address;
use holdfast_agent::link::{Coordinators, Link, Patience, Status};
use holdfast_common::clock::Clock;
use holdfast_common::id::SessionId;
use holdfast_common::pki::JoinToken;
use holdfast_common::shutdown::Tasks;
use holdfast_common::tls::ClientTls;
use tokio::sync::watch;
use tokio::time::timeout;

use super::coordinator::Coordinator;
use super::simulated::Simulated;

/// How many join at a time.
const ABREAST: usize = 16;
/// How long all may take to have a session.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the links have to end.
const GRACE: Duration = Duration::from_secs(5);

/// Nodes that have joined.
#[derive(Debug)]
pub(in crate::bench) struct Joined {
    identities: Vec<Identity>,
    coordinator: Address,
}

/// Nodes at work.
#[derive(Debug)]
pub(in crate::bench) struct Swarm {
    tasks: Tasks,
    statuses: Vec<watch::Receiver<Status>>,
}

// === impl Joined ===

impl Joined {
    /// Joins so many nodes of this coordinator.
    pub(super) async fn new(coordinator: &Coordinator, count: usize) -> anyhow::Result<Self> {
        let said = coordinator.json(["node", "token", "create", "--uses", &count.to_string()]).await?;
        let token = said["token"].as_str().with_context(|| format!("no token in {said}"))?;
        let address = coordinator.agents().to_string().parse()?;
        Self::by(token, &address, &coordinator.folder().join("nodes"), 0..count).await
    }

    /// Joins nodes of these numbers by this token, as `holdfast-agent join` does; each has a folder of its own below this one.
    pub(in crate::bench) async fn by(
        token: &str,
        address: &Address,
        folder: &Path,
        numbers: Range<usize>,
    ) -> anyhow::Result<Self> {
        let nodes = stream::iter(numbers).map(|number| {
            let state = folder.join(number.to_string());
            async move { joined(token, address.clone(), number, state).await }
        });
        let identities = nodes.buffered(ABREAST).try_collect().await?;
        Ok(Self { identities, coordinator: address.clone() })
    }

    /// How each proves who it is.
    pub(super) fn tls(&self) -> impl Iterator<Item = Arc<ClientTls>> {
        self.identities.iter().map(Identity::tls)
    }

    /// Has all of them hold sessions until they are ended.
    pub(in crate::bench) fn start(&self) -> anyhow::Result<Swarm> {
        let mut swarm = Swarm { tasks: Tasks::new(), statuses: Vec::new() };
        for (seed, identity) in (1..).zip(&self.identities) {
            let below = Arc::new(Simulated::new(identity.record().name.to_string(), seed));
            let coordinators = Coordinators::new(vec![self.coordinator.clone()])?;
            let link = Link::new(below, identity.tls(), coordinators, Patience::default());
            swarm.statuses.push(link.status());
            swarm.tasks.spawn("link", link.run(swarm.tasks.token()));
        }
        Ok(swarm)
    }
}

async fn joined(token: &str, address: Address, number: usize, state: PathBuf) -> anyhow::Result<Identity> {
    let [high, low] = u16::try_from(number).context("too many nodes")?.to_be_bytes();
    let wanted = Join {
        token: token.parse::<JoinToken>().context("the join token")?,
        coordinators: Coordinators::new(vec![address])?,
        name: format!("s{number}").parse().context("a node's name")?,
        address: Some(IpAddr::V4(Ipv4Addr::new(198, 18, high, low))),
        data_dir: state.join("data"),
        again: Again::IfEnded,
        patience: PATIENCE,
    };
    std::fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
    let files = state_files(&state);
    join(&files, &state, &Clock::system(), wanted).await.with_context(|| format!("join node {number}"))?;
    Ok(Identity::open(files, &state).await?)
}

// === impl Swarm ===

impl Swarm {
    /// The session of every node. A node that has none is waited for.
    pub(in crate::bench) async fn sessions(&self) -> anyhow::Result<Vec<SessionId>> {
        self.sessions_after(&[]).await
    }

    /// The session of every node, each another one than before.
    pub(super) async fn sessions_after(&self, before: &[SessionId]) -> anyhow::Result<Vec<SessionId>> {
        let sessions = self.statuses.iter().enumerate().map(|(number, status)| {
            let (mut status, old) = (status.clone(), before.get(number));
            async move {
                let is_new = |status: &Status| open(status).is_some_and(|session| Some(&session) != old);
                status.wait_for(is_new).await.ok().and_then(|status| open(&status))
            }
        });
        let sessions = timeout(PATIENCE, join_all(sessions)).await.with_context(|| {
            let (open, problem) = self.stand();
            let count = self.statuses.len();
            format!("{open} of {count} nodes have a session after {PATIENCE:?}; one says: {problem:?}")
        })?;
        sessions.into_iter().collect::<Option<_>>().context("a link ended")
    }

    /// How many nodes have now another session than that one, or none.
    pub(in crate::bench) fn changed_since(&self, before: &[SessionId]) -> usize {
        let now = self.statuses.iter().map(|status| open(&status.borrow()));
        now.zip(before).filter(|(now, before)| *now != Some(**before)).count()
    }

    /// Ends all of them.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let drained = self.tasks.drain(GRACE).await;
        ensure!(drained.panicked.is_empty(), "a link panicked");
        Ok(())
    }

    fn stand(&self) -> (usize, Option<String>) {
        let all: Vec<Status> = self.statuses.iter().map(|status| status.borrow().clone()).collect();
        let problem = all.iter().find_map(|status| match status {
            Status::Connecting { problem, .. } => problem.clone(),
            Status::Open { .. } => None,
        });
        (all.iter().filter(|status| open(status).is_some()).count(), problem)
    }
}

fn open(status: &Status) -> Option<SessionId> {
    match status {
        Status::Open { session, .. } => Some(*session),
        Status::Connecting { .. } => None,
    }
}
