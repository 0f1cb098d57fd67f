//! Reboots at times that were set before, by a clock that is set by hand.

use holdfast_common::clock::ManualClock;
use holdfast_common::pki::{Keyring, MasterKey};
use holdfast_common::report::Severity;
use jiff::Timestamp;

use super::drain::mark;
use super::*;
use crate::directory::{Node, node_name_key};
use crate::event::{self, Event};
use crate::operation::harness::{Stop, Stopping};
use crate::procedures::reboot::Service as Served;
use crate::procedures::reboot::schedule::{Came, Need, Schedule, When, schedule_key};
use crate::procedures::requests::Desk;
use crate::reconcile::Loop as _;
use crate::reconcile::reboots::Reboots;
use crate::store::record;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// So many rounds, and by how much the wall clock goes on in each.
type Rounds = (usize, Duration);
/// More than a reboot takes; than one takes that has to wait; than the hour in which it may be begun.
const SOON: Rounds = (16, ROUND);
const LATER: Rounds = (60, ROUND);
const HOUR: Rounds = (70, Duration::from_secs(60));

/// A cluster of three nodes, and a time that is due in its first minute.
struct Night {
    world: Arc<World>,
    clock: ManualClock,
    store: Shared,
}

fn due() -> Timestamp {
    "2026-11-29T03:00:00Z".parse().unwrap()
}

fn weekly(world: &World, index: usize) -> Schedule {
    let node = world.records().nth(index).unwrap();
    let set_at = "2026-11-23T00:00:00Z".parse().unwrap();
    let when = When::cron("0 3 * * SUN", "UTC", set_at).unwrap();
    Schedule {
        node: node.id,
        name: node.name,
        when,
        need: Need::Any,
        service: Served::GoesOn,
        reason: "new kernel".into(),
        by: "operator/alice".into(),
        set_at,
        due: Some(due()),
        tried: None,
        last: None,
    }
}

// === impl Night ===

impl Night {
    async fn new(schedules: impl Fn(&World) -> Vec<Schedule>) -> Self {
        let clock = ManualClock::at(due() - Duration::from_secs(12));
        let mut world = World::new(3);
        world.wall = clock.clock();
        let world = Arc::new(world);
        let cluster = world.active(3);
        world.populate(&cluster);
        let store = Memory::shared();
        let night = Self { world, clock, store };
        let mut writes = vec![
            put(&cluster_key(&cluster.name), &cluster).unwrap(),
            put(&reign_key(cluster.id), &agents::settled(&cluster).unwrap()).unwrap(),
        ];
        writes.extend(night.world.records().map(|node| put(&node_key(node.id), &node).unwrap()));
        let names = night.world.records().map(|node| put(&node_name_key(&node.name), &node.id).unwrap());
        writes.extend(names);
        for schedule in schedules(&night.world) {
            writes.push(put(&schedule_key(schedule.node), &schedule).unwrap());
        }
        let txn = writes.into_iter().fold(crate::store::Txn::new(), crate::store::Txn::then);
        assert!(night.store.txn(txn).await.unwrap().succeeded);
        night
    }

    /// A coordinator for so many rounds. Dropping it is its sudden end.
    async fn passes(&self, store: &Shared, (rounds, apart): Rounds) {
        let service = Service::<Procedures>::new(Arc::clone(store), self.world.means(store));
        let keyring = Arc::new(Keyring::new(MasterKey::generate(), Vec::new()));
        let desk = Desk { means: service.means(), operations: service.handle(), keyring };
        let mut reboots = Reboots::new(desk);
        let rounds = async {
            for _ in 0..rounds {
                reboots.round().await.unwrap();
                tokio::time::sleep(ROUND).await;
                self.clock.advance(apart);
            }
        };
        tokio::select! {
            () = rounds => {}
            () = service.run(CancellationToken::new()) => unreachable!(),
        }
    }

    async fn schedule(&self, index: usize) -> Option<Schedule> {
        let key = schedule_key(self.world.node(index));
        record::get::<Schedule>(&*self.store, &key).await.unwrap().map(|found| found.value)
    }

    /// What became of the time, once the next one is due.
    async fn came(&self, index: usize) -> Came {
        let schedule = self.schedule(index).await.unwrap();
        assert_eq!((schedule.due, schedule.tried), (Some(due() + Duration::from_secs(7 * 24 * 3600)), None));
        schedule.last.unwrap().came
    }

    async fn reboots(&self) -> [u32; 3] {
        [0, 1, 2].map(|index| self.world.reboots(self.world.node(index)))
    }

    async fn told(&self, reason: &str) -> Vec<Event> {
        let events = event::Handle::open(Arc::clone(&self.store)).await.unwrap();
        events.list(0, 1000, |event| event.what.reason == reason).await.unwrap().0
    }
}

fn missed(came: &Came) -> &str {
    let Came::Missed(why) = came else { panic!("{came:?}") };
    why
}

#[tokio::test(start_paused = true)]
async fn a_time_leads_to_one_reboot_wherever_the_coordinator_is_killed() {
    let one = |world: &World| vec![weekly(world, 1)];
    let calm = Night::new(one).await;
    let counting = Arc::new(Stopping::new(Arc::clone(&calm.store), None));
    calm.passes(&(Arc::clone(&counting) as Shared), SOON).await;
    assert_eq!((calm.reboots().await, calm.came(1).await), ([0, 1, 0], Came::Rebooted));
    let whose = calm.told("NODE_REBOOTED").await.pop().unwrap();
    assert_eq!(whose.what.actor, "operator/alice");
    let writes = counting.writes();
    assert!(writes > 8, "{writes}");
    for write in 1..=writes {
        for stop in [Stop::Before(write), Stop::After(write)] {
            let night = Night::new(one).await;
            let stopping = Arc::new(Stopping::new(Arc::clone(&night.store), Some(stop)));
            let shared: Shared = Arc::clone(&stopping) as Shared;
            tokio::select! {
                biased;
                () = night.passes(&shared, SOON) => panic!("{stop:?}: it lives on"),
                () = stopping.stopped().cancelled() => {}
            }
            night.passes(&night.store, SOON).await;
            assert_eq!((night.reboots().await, night.came(1).await), ([0, 1, 0], Came::Rebooted), "{stop:?}");
            night.world.at_most_once().unwrap_or_else(|twice| panic!("{stop:?}: {twice}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_that_nobody_was_there_for_is_kept_within_the_hour_and_told_after_it() {
    for (late, reboots) in [(3_500, [0, 1, 0]), (3_700, [0; 3])] {
        let night = Night::new(|world| vec![weekly(world, 1)]).await;
        night.clock.advance(Duration::from_secs(late));
        night.passes(&night.store, SOON).await;
        assert_eq!(night.reboots().await, reboots, "{late} s late");
        let told = night.told("SCHEDULED_REBOOT_MISSED").await;
        assert_eq!(told.len(), usize::from(reboots == [0; 3]));
        if let Some(event) = told.first() {
            assert!(missed(&night.came(1).await).contains("was not running"));
            assert_eq!(event.what.severity, Severity::Warning);
            let message = &event.what.message;
            assert!(message.contains("2026-11-29 03:00 UTC") && message.contains("not running"), "{message}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_of_one_cluster_that_are_due_at_once_go_one_after_the_other() {
    let night = Night::new(|world| vec![weekly(world, 1), weekly(world, 2)]).await;
    night.passes(&night.store, LATER).await;
    assert_eq!(night.reboots().await, [0, 1, 1]);
    let begun = night.told("NODE_REBOOTED").await;
    assert_eq!(begun.len(), 2);
    assert_eq!(night.told("SCHEDULED_REBOOT_MISSED").await, []);
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_another_until_its_hour_is_over_is_told_with_why() {
    let night = Night::new(|world| vec![weekly(world, 1), weekly(world, 2)]).await;
    night.world.lose_whoever_reboots();
    night.passes(&night.store, HOUR).await;
    assert_eq!(night.reboots().await.iter().sum::<u32>(), 1);
    let lost = if night.reboots().await[1] == 1 { 1 } else { 2 };
    let came = night.came(3 - lost).await;
    assert!(missed(&came).contains("another member of demo"), "{came:?}");
    assert_eq!(night.told("SCHEDULED_REBOOT_MISSED").await.len(), 1);
    // That machine was told, and is waited for.
    let stays = night.schedule(lost).await.unwrap();
    assert!(stays.due == Some(due()) && stays.tried.is_some(), "{stays:?}");
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_fails_before_the_machine_is_told_is_followed_by_another() {
    let night = Night::new(|world| vec![weekly(world, 1)]).await;
    let (other, cluster) = (night.world.records().nth(2).unwrap(), night.world.active(3));
    let claim = serde_json::json!({
        "node": other.id, "name": other.name, "operation": holdfast_common::id::OperationId::generate(),
    });
    let drained = Node { drained: Some(mark()), ..other };
    let directory = crate::directory::Directory::new(Arc::clone(&night.store));
    directory.put(&format!("cluster-reboots/{}", cluster.id).into(), &claim).await.unwrap();
    directory.put(&node_key(drained.id), &drained).await.unwrap();
    night.passes(&night.store, LATER).await;
    assert_eq!(night.reboots().await, [0; 3]);
    let first = night.schedule(1).await.unwrap().tried;
    assert!(first.is_some());
    directory.put(&node_key(drained.id), &Node { drained: None, ..drained }).await.unwrap();
    night.passes(&night.store, LATER).await;
    assert_eq!((night.reboots().await, night.came(1).await), ([0, 1, 0], Came::Rebooted));
    assert_ne!(night.schedule(1).await.unwrap().last.unwrap().operation, first);
}

#[tokio::test(start_paused = true)]
async fn only_a_node_that_says_that_it_needs_a_reboot_gets_one_where_that_is_asked_for() {
    for (needs, reboots) in [(Some(true), [0, 1, 0]), (Some(false), [0; 3]), (None, [0; 3])] {
        let as_told = |world: &World| vec![Schedule { need: Need::AsToldByNode, ..weekly(world, 1) }];
        let night = Night::new(as_told).await;
        if let Some(needs) = needs {
            night.world.say_whether_it_needs_a_reboot(night.world.node(1), needs);
        }
        night.passes(&night.store, HOUR).await;
        assert_eq!(night.reboots().await, reboots, "{needs:?}");
        let came = night.came(1).await;
        match needs {
            Some(true) => assert_eq!(came, Came::Rebooted),
            Some(false) => assert_eq!(came, Came::NotNeeded),
            None => assert!(missed(&came).contains("does not tell whether"), "{came:?}"),
        }
        assert_eq!(night.told("SCHEDULED_REBOOT_MISSED").await.len(), usize::from(needs.is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_time_is_forgotten_once_it_is_over() {
    let once = |world: &World| vec![Schedule { when: When::Once { at: due() }, ..weekly(world, 1) }];
    let night = Night::new(once).await;
    night.passes(&night.store, SOON).await;
    assert_eq!((night.reboots().await, night.schedule(1).await), ([0, 1, 0], None));
}
