//! A coordinator that sends a command to every node when it is asked to. Nobody outside can do that: operators ask for
//! operations, and these have at most fifteen nodes each. So the measurement needs the coordinator's own fleet handle; all
//! else is the coordinator as its program puts it together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use holdfast_common::command::{CheckMember, Command, Payload};
use holdfast_common::engine::Engine;
use holdfast_common::id::{ClusterId, CommandId, NodeId};
use holdfast_common::shutdown::Tasks;
use holdfast_common::term::Term;
use holdfast_common::tls;
use holdfast_coordinator::app::{App, Sockets};
use holdfast_coordinator::config::{Config, StateDir};
use holdfast_coordinator::fleet;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::Instant;

/// How this program is told to be such a coordinator.
pub(in crate::bench) const COORDINATE: &str = "coordinate";
/// How long a node may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Serves the fleet of a state directory, and orders on a socket: who connects gets the outcome of one round, in JSON.
///
/// # Errors
///
/// When the coordinator does not start.
pub(in crate::bench) fn coordinate(state: &Path, socket: &Path) -> anyhow::Result<()> {
    tls::install_provider();
    let state = StateDir::new(state);
    let config = Config::load(&state)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let sockets = Sockets::open(&config, None).await?;
        let tasks = Tasks::new();
        tasks.stop_on_signals().context("listen for signals")?;
        let app = App::build(state, config).await?;
        tasks.spawn("orders", orders(app.parts().fleet.clone(), socket.to_owned()));
        app.run(sockets, tasks, || ()).await?;
        Ok(())
    })
}

async fn orders(fleet: fleet::Handle, socket: PathBuf) {
    // A driver that finds no socket says so; there is nobody else to tell.
    let Ok(listener) = UnixListener::bind(&socket) else { return };
    while let Ok((mut stream, _)) = listener.accept().await {
        let outcome = order_all(&fleet).await.to_string();
        // A driver that went away wants no answer.
        stream.write_all(outcome.as_bytes()).await.ok();
    }
}

/// One command to every node, and all outcomes.
async fn order_all(fleet: &fleet::Handle) -> Value {
    let nodes: Vec<NodeId> = fleet.nodes().iter().map(fleet::NodeView::id).collect();
    let begun = Instant::now();
    let calls = nodes.iter().map(|node| async {
        let outcome = fleet.call(*node, check(fleet), |_| ()).await;
        (outcome.map_err(|error| error.to_string()), begun.elapsed())
    });
    let outcomes = join_all(calls).await;
    let all = begun.elapsed();
    let problem = outcomes.iter().find_map(|(outcome, _)| outcome.as_ref().err());
    json!({ "nodes": outcomes.len(), "seconds": all.as_secs_f64(), "problem": problem })
}

/// Changes nothing on a node.
fn check(fleet: &fleet::Handle) -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: fleet.coordinator_generation(),
        term: Term::NONE,
        deadline: Timestamp::now() + DEADLINE,
        payload: Payload::CheckMember(CheckMember {
            replication_port: None,
            cluster_id: ClusterId::generate(),
            engine: Engine::Postgresql,
            engine_version: None,
            port: 5432,
            extensions: Vec::new(),
        }),
    }
}
