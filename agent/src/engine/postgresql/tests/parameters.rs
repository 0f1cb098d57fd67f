//! Parameters of servers that run: which of them wait for a restart, and what a replica cannot be without.

use holdfast_common::engine::TakesEffect;

use super::*;

#[tokio::test]
async fn what_waits_for_a_restart_is_what_the_server_says() {
    let machine = Machine::new();
    let a = machine.node("a", 64).await;
    let cluster = primary(&a).await;
    let query = "select string_agg(lower(name) || ' ' || context, ',') from pg_settings
                  where name not like '%.%' and context <> 'internal'";
    let said = a.local(cluster.id, query).await;
    let version = "15".parse().unwrap();
    for line in said.split(',') {
        let (name, context) = line.split_once(' ').unwrap();
        // Nobody may set what Holdfast sets itself.
        if !Kind::Postgresql.violations(&parameters_of(name, "replica")).is_empty() {
            continue;
        }
        let at_start = Kind::Postgresql.takes_effect(name, &version) == TakesEffect::AtStart;
        assert_eq!(at_start, context == "postmaster", "{name} is {context}");
    }
    a.bench.stop(cluster.id).await;
}

#[tokio::test]
async fn a_replica_starts_with_less_only_once_its_primary_has_less() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 65).await, machine.node("b", 66).await);
    let cluster = Cluster::new(&[&a.bench, &b.bench]);
    let with = |member: MemberAssignment, value| MemberAssignment {
        parameters: parameters_of("max_connections", value),
        ..member
    };
    let cluster_of =
        |value| (with(cluster.primary(&a.bench), value), with(cluster.replica(&b.bench, &a.bench), value));
    let (primary, replica) = cluster_of("150");
    let initialise = InitialiseMember { member: primary.clone(), ..cluster.initialise(&a.bench) };
    a.bench.engine.initialise(&initialise, &work()).await.unwrap();
    a.bench.run(&primary).await;
    a.bench.settle(&primary).await;
    let clone = CloneMember { member: replica.clone(), source: a.bench.peer.clone() };
    b.bench.engine.copy_from(&clone, &work()).await.unwrap();

    // Less is declared; its primary still has more: it runs with as much, and says that it is not what is declared.
    let (primary, replica) = cluster_of("60");
    b.bench.run(&replica).await;
    assert_eq!(b.local(cluster.id, "show max_connections").await, "150");
    b.bench.wait(cluster.id, "a pending restart", |o| o.pending_restart == ["max_connections"]).await;

    a.bench.stop(cluster.id).await;
    a.bench.run(&primary).await;
    assert_eq!(a.local(cluster.id, "show max_connections").await, "60");
    let position = a.bench.engine.observe(cluster.id).await.position;
    b.bench.wait(cluster.id, "what its primary wrote", |o| o.replayed >= position).await;
    b.bench.stop(cluster.id).await;
    b.bench.run(&replica).await;
    assert_eq!(b.local(cluster.id, "show max_connections").await, "60");
    b.bench
        .wait(cluster.id, "nothing that waits", |o| o.streaming == Some(true) && o.pending_restart.is_empty())
        .await;
    b.bench.stop(cluster.id).await;
    a.bench.stop(cluster.id).await;
}
