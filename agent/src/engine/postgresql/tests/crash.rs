//! One of the server's processes crashes.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::engine::Engines;

#[tokio::test]
async fn a_crash_inside_of_a_server_is_the_end_of_that_server_and_noticed_at_once() {
    let machine = Machine::new();
    let a = machine.node("a", 49).await;
    let mut news = Engines::new(vec![Arc::clone(&a.bench.engine)]).news();
    let cluster = primary(&a).await;
    news.mark_unchanged();
    let writer = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let writer = a.local(cluster.id, writer).await.parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(writer), nix::sys::signal::SIGKILL).unwrap();
    timeout(Duration::from_secs(5), news.changed()).await.unwrap().unwrap();
    a.bench.wait(cluster.id, "the end", |o| o.state == EngineState::Stopped).await;
    a.bench.run(&cluster.primary(&a.bench)).await;
    a.bench.stop(cluster.id).await;
}
