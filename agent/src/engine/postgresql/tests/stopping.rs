//! A server that stops while somebody wants something of it.

use std::time::Duration;

use futures::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::*;

/// A server waits a minute for whoever connects while it stops and then says nothing, and tells nobody.
#[tokio::test]
async fn a_connection_over_which_nothing_is_said_does_not_hold_a_stop_up() {
    let machine = Machine::new();
    let a = machine.node("a", 101).await;
    let cluster = primary(&a).await;
    let (id, engine) = (cluster.id, &a.bench.engine);
    let (data, peer) = (a.data(id), &a.bench.peer);
    let stop = || engine.stop(id).boxed();
    let rest = || engine.rest(id).map(|rested| rested.map(drop)).boxed();
    for stop in [&stop as &dyn Fn() -> _, &rest] {
        // One that is held lets somebody come just then.
        let question = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
        let checkpointer = Pid::from_raw(a.local(id, question).await.parse().unwrap());
        kill(checkpointer, Signal::SIGSTOP).unwrap();
        let come = async {
            while !std::fs::read_to_string(data.join("postmaster.pid")).unwrap().contains("stopping") {
                sleep(Duration::from_millis(10)).await;
            }
            let before = process::scan(&data).unwrap();
            let silent = TcpStream::connect((peer.address, peer.port)).await.unwrap();
            let served = |pid: &i32| !before.contains(pid);
            while !process::scan(&data).unwrap().iter().any(served) {
                sleep(Duration::from_millis(10)).await;
            }
            kill(checkpointer, Signal::SIGCONT).unwrap();
            silent
        };
        let stopped = timeout(Duration::from_secs(30), async { tokio::join!(stop(), come) }).await;
        let (stopped, _silent) = stopped.expect("it stops although somebody is silent");
        stopped.unwrap();
        a.bench.run(&cluster.primary(&a.bench)).await;
    }
    a.bench.stop(id).await;
}
