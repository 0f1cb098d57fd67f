//! That a primary hung is stored with the failover for it.

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::cluster::Hung;
use crate::cluster::suspicion::{FLAP, predecessor_hung};
use crate::directory::Directory;
use crate::operation;
use crate::procedures::records::Records;
use crate::procedures::{ClusterRef, resource};
use crate::reconcile::failover::noting;
use crate::store::Txn;

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_restarted_knows_that_the_primary_of_before_hung() {
    let case = failover_of_three();
    let world = Arc::new(case.world());
    let store = Memory::shared();
    let first = case.writes(&world).into_iter().fold(Txn::new(), Txn::then);
    assert!(store.txn(first).await.unwrap().succeeded);
    let cluster = world.cluster(&store).unwrap();
    let hung = Hung { node: world.node(0), at: Timestamp::from_second(1_000_000_000).unwrap() };
    let records = Records::new(Directory::new(Arc::clone(&store)));
    let submit = async || {
        let submit = Submit::new(case.procedure(&world), resource(&cluster.name), "coordinator");
        noting(&records, &cluster, hung, submit).await.unwrap()
    };
    let run = async |submit: Submit<Procedures>| {
        let service = Service::<Procedures>::new(Arc::clone(&store), world.means(&store));
        let handle = service.handle();
        let ended = async {
            let operation = handle.submit(submit).await?;
            handle.wait(operation.id).await
        };
        tokio::select! {
            ended = ended => ended,
            () = service.run(CancellationToken::new()) => unreachable!(),
        }
    };

    // Not over what somebody else changes meanwhile: neither the note nor the operation is stored.
    let outdated = submit().await;
    let change = |cluster| Ok(Cluster { max_lag_on_failover: 1, ..cluster });
    let named = ClusterRef { id: cluster.id, name: cluster.name.clone() };
    records.update(&named, change).await.unwrap();
    assert!(matches!(run(outdated).await, Err(operation::Error::Conflict { .. })));
    assert_eq!(world.cluster(&store).unwrap().hung, None);

    assert_eq!(run(submit().await).await.unwrap().state, State::Succeeded);
    let after = world.cluster(&store).unwrap();
    assert_eq!((after.hung, after.max_lag_on_failover), (Some(hung), 1));
    assert_ne!(after.primary, cluster.primary);
    let ago = |seconds| predecessor_hung(&after, hung.at + SignedDuration::from_secs(seconds));
    assert!(ago(599) < Some(FLAP) && ago(600) == Some(FLAP));
}
