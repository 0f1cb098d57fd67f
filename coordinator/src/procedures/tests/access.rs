//! Access rules in the store, and in what the nodes are told.

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::access::{Comment, Entry, MAX_ENTRIES, Mode, Rules};
use holdfast_common::error::{Classify as _, Reason};

use super::world::World;
use crate::cluster::access::{Declared, Holding};
use crate::cluster::assignment::members_of;
use crate::directory::put;
use crate::procedures::Records;
use crate::procedures::access::AllStored;
use crate::procedures::records::cluster_key;
use crate::store::memory::Memory;
use crate::store::{Op, Range, Shared, Txn};

fn rules(count: usize) -> Rules {
    let comment = Comment::try_from("x".repeat(100)).unwrap();
    let entry = |number: u32| Entry {
        cidr: std::net::IpAddr::V4((0x0a00_0000 + number).into()).into(),
        comment: comment.clone(),
    };
    let count = u32::try_from(count).unwrap();
    Rules::new(Mode::Restricted, (0..count).map(entry).collect(), false).unwrap()
}

async fn change(store: &Shared, records: &Records, to: impl Fn(Declared) -> Declared) {
    let cluster = records.all().await.unwrap().remove(0);
    let stored = records.access(cluster.id).await.unwrap();
    let (compare, ops) = stored.replaced_by(&to(stored.declared.clone())).unwrap();
    let txn = ops.into_iter().fold(Txn::new().when(compare), Txn::then);
    assert!(store.txn(txn).await.unwrap().succeeded);
}

async fn pieces(store: &Shared) -> usize {
    store.range(Range::prefix("cluster-entries/")).await.unwrap().records.len()
}

#[tokio::test]
async fn a_long_list_is_stored_in_pieces_and_goes_with_its_cluster() {
    let world = Arc::new(World::new(2));
    let store = Memory::shared();
    let cluster = world.active(2);
    store.txn(Txn::new().then(put(&cluster_key(&cluster.name), &cluster).unwrap())).await.unwrap();
    let records = world.means(&store).records.clone();
    assert_eq!(records.access(cluster.id).await.unwrap().declared, Declared::closed(cluster.id));

    let long = rules(MAX_ENTRIES);
    change(&store, &records, |it| Declared { rules: long.clone(), ..it }).await;
    assert_eq!(records.access(cluster.id).await.unwrap().declared.rules, long);
    assert_eq!(pieces(&store).await, 25);

    // A trial beside it leaves the long list where it is, and each member is told both.
    let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let on_trial = Holding::OnTrial(Duration::from_secs(60));
    change(&store, &records, |it| it.with(rules(1), on_trial, now).unwrap()).await;
    assert_eq!(pieces(&store).await, 26);
    let mut all = AllStored::new();
    records.read_access(&mut all).await.unwrap();
    for node in [world.node(0), world.node(1)] {
        let told = members_of([&cluster], |id| all.get(&id).map(|it| &it.declared), node).remove(0).access;
        assert_eq!((told.kept.len(), told.trial.map(|trial| trial.reach.len())), (MAX_ENTRIES, Some(1)));
    }
    change(&store, &records, |it| it.expired(now + Duration::from_secs(60))).await;
    assert_eq!((pieces(&store).await, records.access(cluster.id).await.unwrap().declared.rules), (25, long));
    // What was known before follows what has changed.
    records.read_access(&mut all).await.unwrap();
    assert_eq!(all[&cluster.id].declared, records.access(cluster.id).await.unwrap().declared);

    records
        .remove(&crate::procedures::ClusterRef { id: cluster.id, name: cluster.name.clone() })
        .await
        .unwrap();
    assert_eq!(pieces(&store).await, 0);
    records.read_access(&mut all).await.unwrap();
    assert!(all.is_empty());
}

#[tokio::test]
async fn a_list_that_lacks_a_piece_is_never_taken_for_a_shorter_one() {
    let world = Arc::new(World::new(1));
    let store = Memory::shared();
    let cluster = world.active(1);
    store.txn(Txn::new().then(put(&cluster_key(&cluster.name), &cluster).unwrap())).await.unwrap();
    let records = world.means(&store).records.clone();
    change(&store, &records, |it| Declared { rules: rules(5000), ..it }).await;
    let pieces = store.range(Range::prefix("cluster-entries/")).await.unwrap().records;
    for piece in &pieces {
        store.txn(Txn::new().then(Op::delete(&piece.key))).await.unwrap();
        let refused = records.access(cluster.id).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::StateDamaged, "{refused}");
        records.read_access(&mut AllStored::new()).await.unwrap_err();
        store.txn(Txn::new().then(Op::put(&piece.key, piece.value.clone()))).await.unwrap();
    }
    assert_eq!(records.access(cluster.id).await.unwrap().declared.rules, rules(5000));
}

#[tokio::test]
async fn a_trial_is_over_at_its_end_and_not_before() {
    let world = Arc::new(World::new(1));
    let store = Memory::shared();
    let cluster = world.active(1);
    store.txn(Txn::new().then(put(&cluster_key(&cluster.name), &cluster).unwrap())).await.unwrap();
    let records = world.means(&store).records.clone();
    let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let minute = Duration::from_secs(60);
    change(&store, &records, |it| it.with(rules(1), Holding::OnTrial(minute), now).unwrap()).await;
    assert!(records.trials_over(now + minute - Duration::from_secs(1)).await.unwrap().is_empty());
    assert_eq!(records.trials_over(now + minute).await.unwrap(), [cluster.id]);
}
