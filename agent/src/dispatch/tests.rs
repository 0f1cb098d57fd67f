//! At most once, whatever is repeated, reordered, refused or cut off at any write.

mod bench;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard};

use holdfast_common::clock::ManualClock;
use holdfast_common::command::{CheckMember, DestroyMember, InstallEngine, RebootNode, Success};
use holdfast_common::engine::Engine;
use holdfast_common::generation::Generation;
use holdfast_common::link::{FromAgent, Update};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::timeout;

use self::bench::{Agent, Counting, Fuse, Gone, Mutant, World, clock, destroy, now};
use super::*;
use crate::host::fake::FakeTree;
use crate::host::fake::mortal::{Fate, Mortal};
use crate::host::files::{self, Deed};

const STATE: &str = "/state";
const PATIENCE: Duration = Duration::from_secs(30);

/// Two commands, each five times, told, the first repeated after the second, an end, and both repeated.
async fn story(commands: &[Command; 2], agent: &Agent) -> Result<(), Gone> {
    for command in commands {
        for _ in 0..5 {
            agent.give(command).await;
        }
        let _ = agent.outcome(command.id).await?;
        agent.orders.give(Order::Acknowledged(command.id)).await;
    }
    for command in commands {
        agent.give(command).await;
        let _ = agent.outcome(command.id).await?;
    }
    Ok(())
}

/// The story, cut off at step `steps`, then told again from the beginning by an agent that lives. `false`: it was not cut.
async fn cut_story(steps: u32, mutant: Mutant) -> (World, [Command; 2], bool) {
    let (world, clock) = (World::new().await, clock().clock());
    let cluster = ClusterId::generate();
    let commands = [destroy(cluster, 1), destroy(cluster, 1)];
    let mut cut = true;
    if let Ok(agent) = Agent::start(&world, &clock, Some(steps), mutant).await {
        cut = story(&commands, &agent).await.is_err();
        agent.kill().await;
    }
    let agent = Agent::start(&world, &clock, None, mutant).await.unwrap();
    story(&commands, &agent).await.unwrap();
    agent.kill().await;
    (world, commands, cut)
}

/// Exactly one effect and one outcome for each command.
fn is_once(world: &World, commands: &[Command; 2]) -> bool {
    commands.iter().all(|command| world.count(command.id) == 1)
        && world.effects().told.values().all(|outcomes| matches!(outcomes[..], [Ok(_)]))
}

#[tokio::test]
async fn an_agent_that_ends_at_any_step_applies_each_command_once() {
    let mut steps = 0;
    loop {
        let (world, commands, cut) = cut_story(steps, Mutant::None).await;
        assert!(is_once(&world, &commands), "cut at step {steps}: {:?}", world.effects());
        if !cut {
            break;
        }
        steps += 1;
    }
    assert!(steps > 12, "only {steps} steps: the harness does not reach them");
}

#[tokio::test]
async fn a_journal_in_memory_only_is_found_out() {
    let mut twice = 0;
    for steps in 0..40 {
        let (world, commands, cut) = cut_story(steps, Mutant::ForgetfulJournal).await;
        twice += u32::from(commands.iter().any(|command| world.count(command.id) > 1));
        assert!(!is_once(&world, &commands) || cut, "the checker sees nothing");
        if !cut {
            break;
        }
    }
    assert!(twice > 0);
}

#[tokio::test]
async fn an_outcome_is_told_only_once_it_is_recorded() {
    for tells_first in [false, true] {
        let (world, clock) = (World::new().await, clock().clock());
        let command = destroy(ClusterId::generate(), 1);
        // Only the journal is on this fuse: the intent takes two steps, the third is the record of the outcome.
        let (release, hangs) = std::sync::mpsc::channel();
        let fuse = Fuse { hangs: Some(Arc::new(Mutex::new(hangs))), ..Fuse::after(Some(2)) };
        let files = Files::new(Arc::new(Mortal { disk: world.disk.clone(), fate: fuse.clone() }));
        let plain = Files::new(Arc::new(world.disk.clone()));
        let terms = Terms::open(plain, Path::new(STATE)).await.unwrap().0;
        let outbox = Outbox::default();
        let means = Means {
            execute: Arc::new(Counting { world: world.clone(), fuse: Fuse::after(None), gate: None }),
            terms: Arc::new(terms),
            outbox: outbox.clone(),
            clock,
        };
        let (mut service, orders, _) = Service::open(files, Path::new(STATE), means).await.unwrap();
        service.tells_first = tells_first;
        orders.give(Order::Run(Box::new(command.clone()))).await;
        let stop = CancellationToken::new();
        let run = service.run(stop.clone());
        tokio::pin!(run);
        tokio::select! {
            () = &mut run => panic!("ended"),
            () = fuse.noticed.notified() => {}
            () = tokio::time::sleep(PATIENCE) => panic!("the record was not tried"),
        }
        // The agent ends here, at the record.
        assert_eq!(outbox.unacknowledged() == 1, tells_first);
        assert_eq!(world.count(command.id), 1);
        drop(release);
    }
}

#[tokio::test]
async fn what_must_not_run_is_refused_without_effect() {
    let (world, clock) = (World::new().await, clock().clock());
    let agent = Agent::start(&world, &clock, None, Mutant::None).await.unwrap();
    let cluster = ClusterId::generate();
    let accepted = destroy(cluster, 5);
    agent.give(&accepted).await;
    agent.outcome(accepted.id).await.unwrap().unwrap();

    let late = Command { deadline: now(), ..destroy(cluster, 5) };
    let stale = destroy(cluster, 4);
    let no_term = destroy(ClusterId::generate(), 0);
    let old_coordinator = Command { coordinator_generation: Generation::new(2), ..destroy(cluster, 6) };
    for (command, reason) in [
        (late, Reason::CommandTimedOut),
        (stale, Reason::StaleTerm),
        (old_coordinator, Reason::StaleTerm),
        (no_term, Reason::InvalidField),
    ] {
        for _ in 0..3 {
            agent.give(&command).await;
            let failure = agent.outcome(command.id).await.unwrap().unwrap_err();
            assert_eq!(failure.reason, reason);
        }
        assert_eq!(world.count(command.id), 0);
    }
    // Another cluster's terms are its own.
    let other = destroy(ClusterId::generate(), 1);
    agent.give(&other).await;
    agent.outcome(other.id).await.unwrap().unwrap();
    agent.kill().await;

    // The bounds hold after a restart.
    let agent = Agent::start(&world, &clock, None, Mutant::None).await.unwrap();
    let stale = destroy(cluster, 4);
    agent.give(&stale).await;
    assert_eq!(agent.outcome(stale.id).await.unwrap().unwrap_err().reason, Reason::StaleTerm);
    assert_eq!(world.effects().started, 2);
}

#[tokio::test]
async fn commands_on_one_cluster_run_one_at_a_time_and_too_many_are_refused() {
    let (world, clock) = (World::new().await, clock().clock());
    let gate = Arc::new(Notify::new());
    let agent =
        Agent::start_gated(&world, &clock, None, Mutant::None, Some(Arc::clone(&gate))).await.unwrap();
    let cluster = ClusterId::generate();
    let commands: Vec<Command> = (0..MAX_WAITING + 2).map(|_| destroy(cluster, 1)).collect();
    for command in &commands {
        agent.give(command).await;
    }
    let refused = commands.last().unwrap();
    let failure = agent.outcome(refused.id).await.unwrap().unwrap_err();
    assert_eq!(failure.reason, Reason::QueueFull);
    assert_eq!(world.effects().started, 1);
    // Cancelled, waiting or running, they have no effect.
    agent.orders.give(Order::Cancel(commands[1].id)).await;
    assert_eq!(agent.outcome(commands[1].id).await.unwrap().unwrap_err().reason, Reason::Cancelled);
    agent.orders.give(Order::Cancel(commands[0].id)).await;
    assert_eq!(agent.outcome(commands[0].id).await.unwrap().unwrap_err().reason, Reason::Cancelled);
    // In order, one after the other.
    for (finished, command) in commands[2..commands.len() - 1].iter().enumerate() {
        gate.notify_one();
        agent.outcome(command.id).await.unwrap().unwrap();
        assert_eq!(world.effects().count.len(), finished + 1);
    }
    agent.stop.cancel();
    timeout(PATIENCE, agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_command_is_cancelled_at_its_deadline() {
    let (world, clock) = (World::new().await, clock().clock());
    let gate = Some(Arc::new(Notify::new()));
    let agent = Agent::start_gated(&world, &clock, None, Mutant::None, gate).await.unwrap();
    let command =
        Command { deadline: now() + Duration::from_millis(30), ..destroy(ClusterId::generate(), 1) };
    agent.give(&command).await;
    let failure = agent.outcome(command.id).await.unwrap().unwrap_err();
    assert_eq!(failure.reason, Reason::CommandTimedOut);
    assert_eq!(world.count(command.id), 0);
}

#[tokio::test]
async fn a_term_that_contradicts_its_payload_is_refused() {
    let (world, clock) = (World::new().await, clock().clock());
    let agent = Agent::start(&world, &clock, None, Mutant::None).await.unwrap();
    let harmless = [
        Payload::CheckMember(CheckMember {
            replication_port: None,
            cluster_id: ClusterId::generate(),
            engine: Engine::Postgresql,
            engine_version: None,
            port: 5432,
            extensions: vec![],
        }),
        Payload::InstallEngine(InstallEngine {
            engine: Engine::Postgresql,
            engine_version: "15".parse().unwrap(),
            extensions: vec![],
        }),
    ];
    for payload in harmless {
        let command = Command { term: Term::NONE, payload, ..destroy(ClusterId::generate(), 1) };
        agent.give(&command).await;
        agent.outcome(command.id).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_damaged_record_is_set_aside_and_its_command_never_run_again() {
    let (world, clock) = (World::new().await, clock().clock());
    let command = destroy(ClusterId::generate(), 1);
    let agent = Agent::start(&world, &clock, None, Mutant::None).await.unwrap();
    agent.give(&command).await;
    agent.outcome(command.id).await.unwrap().unwrap();
    agent.kill().await;

    let path = PathBuf::from(STATE).join("commands").join(command.id.to_string());
    let good = world.disk.contents(&path).unwrap();
    let flipped = |position: usize| {
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        bad
    };
    let cuts = (0..good.len()).step_by(7).map(|end| good[..end].to_vec());
    let flips = (0..good.len()).step_by(7).map(flipped);
    for bad in cuts.chain(flips) {
        world.disk.put(&path, bad.clone());
        let files = Files::new(Arc::new(world.disk.clone()));
        let opened = Journal::open(files, Path::new(STATE), clock.clone()).await;
        let (journal, found) = opened.unwrap();
        assert_eq!(found.findings.len(), 1);
        assert!(matches!(journal.state(command.id), Some(State::Ended { .. })));
        let outcome = found.unacknowledged[0].outcome.as_ref();
        assert_eq!(outcome.unwrap_err().reason, Reason::StateDamaged);
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        assert_eq!(world.disk.contents(PathBuf::from(aside)), Some(bad));
    }
    assert_eq!(world.count(command.id), 1);
}

#[tokio::test]
async fn acknowledged_outcomes_are_forgotten_after_a_week() {
    let (world, time) = (World::new().await, clock());
    let clock = time.clock();
    let command = destroy(ClusterId::generate(), 1);
    let files = Files::new(Arc::new(world.disk.clone()));
    let (mut journal, _) = Journal::open(files.clone(), Path::new(STATE), clock.clone()).await.unwrap();
    journal.begin(Begun { command: command.clone(), runs: 1 }).await.unwrap();
    let outcome = Ok(Success::SetPassword);
    let ended = Ended { command_id: command.id, sequence: 9, outcome, acknowledged: None };
    journal.end(ended.clone()).await.unwrap();
    time.advance(journal::KEEP * 2);
    let (mut journal, found) = Journal::open(files.clone(), Path::new(STATE), clock.clone()).await.unwrap();
    assert_eq!(found.unacknowledged, [ended], "kept as long as the coordinator does not have it");
    journal.acknowledge(command.id).await.unwrap();
    time.advance(journal::KEEP - Duration::from_secs(1));
    let (journal, _) = Journal::open(files.clone(), Path::new(STATE), clock.clone()).await.unwrap();
    assert!(journal.state(command.id).is_some());
    time.advance(Duration::from_secs(2));
    let (journal, _) = Journal::open(files, Path::new(STATE), clock).await.unwrap();
    assert!(journal.state(command.id).is_none());
}

/// A reboot that has been told to the machine when the agent ends.
async fn rebooting(world: &World, clock: &Clock) -> Command {
    let payload = Payload::RebootNode(RebootNode { boot_id: "one".into(), with_primaries: false });
    let command = Command { term: Term::NONE, payload, ..destroy(ClusterId::generate(), 1) };
    let gate = Some(Arc::new(Notify::new()));
    let agent = Agent::start_gated(world, clock, None, Mutant::None, gate).await.unwrap();
    agent.give(&command).await;
    let starts = async {
        while world.effects().started == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, starts).await.unwrap();
    agent.kill().await;
    command
}

#[tokio::test]
async fn a_reboot_that_came_about_is_done_even_after_its_deadline() {
    let (world, time) = (World::new().await, clock());
    let command = rebooting(&world, &time.clock()).await;
    world.effects().booted = true;
    time.advance(Duration::from_secs(3600));
    let agent = Agent::start(&world, &time.clock(), None, Mutant::None).await.unwrap();
    let done = Success::RebootNode { boot_id: "another".into() };
    assert_eq!(agent.outcome(command.id).await.unwrap(), Ok(done));
    assert_eq!(world.effects().started, 1);
}

#[tokio::test]
async fn a_machine_whose_boot_id_stays_the_same_is_told_to_reboot_twice_and_no_more() {
    let (world, clock) = (World::new().await, clock().clock());
    let command = rebooting(&world, &clock).await;
    let gate = Some(Arc::new(Notify::new()));
    let agent = Agent::start_gated(&world, &clock, None, Mutant::None, gate).await.unwrap();
    let again = async {
        while world.effects().started < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    agent.kill().await;
    let agent = Agent::start(&world, &clock, None, Mutant::None).await.unwrap();
    let failure = agent.outcome(command.id).await.unwrap().unwrap_err();
    assert_eq!((failure.reason, world.effects().started), (Reason::PreconditionFailed, 2), "{failure}");
}
