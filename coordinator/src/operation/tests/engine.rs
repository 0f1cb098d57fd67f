//! What the engine promises, each by name, with paused time.

mod full;

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::StreamExt;
use holdfast_common::{
    error::{Classify, Failure, Reason, Retry},
    id::OperationId,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::toy::{Build, Means, Mutant, World, broken};
use crate::{
    operation::{Error, Filter, Handle, Operation, Request, Service, State, StepState, Submit, lock},
    store::{self, Compare, Op, Shared, memory::Memory},
};

/// A coordinator under test, over a store and a world that outlive it.
struct Running {
    handle: Handle<Build>,
    shutdown: CancellationToken,
    service: JoinHandle<()>,
}

struct Bench {
    world: Arc<World>,
    store: Shared,
}

impl Bench {
    fn new() -> Self {
        Self { world: Arc::default(), store: Memory::shared() }
    }

    fn service(&self) -> Service<Build> {
        Service::new(Arc::clone(&self.store), Arc::new(Means::new(&self.world, Mutant::None)))
    }

    fn start(&self) -> Running {
        let service = self.service();
        let (handle, shutdown) = (service.handle(), CancellationToken::new());
        Running { handle, shutdown: shutdown.clone(), service: tokio::spawn(service.run(shutdown)) }
    }
}

impl Running {
    async fn submit(&self) -> OperationId {
        self.handle.submit(submit()).await.unwrap().id
    }

    async fn until(&self, id: OperationId, holds: impl Fn(&Operation) -> bool) -> Operation {
        let mut snapshots = self.handle.watch(id).await.unwrap();
        let found = async {
            while let Some(snapshot) = snapshots.next().await {
                if holds(&snapshot) {
                    return (*snapshot).clone();
                }
            }
            panic!("the operation ended before: {:?}", self.handle.get(id).await);
        };
        tokio::time::timeout(Duration::from_secs(3600), found).await.expect("it never held")
    }

    async fn at(&self, id: OperationId, step: &str) -> Operation {
        self.until(id, |operation| operation.running_step().is_some_and(|running| running.name == step)).await
    }

    async fn wait(&self, id: OperationId) -> Operation {
        tokio::time::timeout(Duration::from_secs(24 * 3600), self.handle.wait(id)).await.unwrap().unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.service).await.unwrap().unwrap();
    }
}

fn submit() -> Submit<Build> {
    Submit::new(Build::Reserve, "cluster/main", "operator/alice")
}

fn message(operation: &Operation) -> &str {
    operation.failure.as_ref().map_or("", |failure| failure.message.as_str())
}

fn states(operation: &Operation) -> Vec<(&str, StepState)> {
    operation.steps.iter().map(|step| (step.name.as_str(), step.state)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_operation_runs_its_steps_in_order_and_shows_them() {
    let bench = Bench::new();
    let engine = bench.start();
    let gate = bench.world.hold("copy/2");
    let id = engine.submit().await;
    let seen = engine.at(id, "copy/2").await;
    assert_eq!(seen.state, State::Running);
    use StepState::{Pending, Running, Succeeded};
    let expected = [
        ("reserve", Succeeded),
        ("copy/1", Succeeded),
        ("copy/2", Running),
        ("publish", Pending),
        ("announce", Pending),
    ];
    assert_eq!(states(&seen), expected);
    let seen = engine.until(id, |operation| operation.steps[2].message == "at copy/2").await;
    assert_eq!(seen.steps[2].progress.map(|progress| (progress.done, progress.total)), Some((1, Some(2))));
    assert_eq!(engine.handle.get(id).await.unwrap(), seen, "whoever asks sees the progress too");
    gate.add_permits(1);
    let ended = engine.wait(id).await;
    assert_eq!(ended.state, State::Succeeded);
    assert_eq!(ended.result, Some(serde_json::json!({ "port": 5000 })));
    assert!(ended.steps.iter().all(|step| step.state == Succeeded && step.attempts == 1));
    assert!(ended.steps.iter().all(|step| step.started.is_some() && step.ended >= step.started));
    assert!(ended.steps.iter().all(|step| step.message.is_empty()), "they still say what they waited for");
    assert_eq!(bench.store.get(&lock::key("cluster/main")).await.unwrap(), None);
    let last: Vec<_> = engine.handle.watch(id).await.unwrap().collect().await;
    assert_eq!(last.len(), 1, "a finished one has one last snapshot");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_is_the_same_operation() {
    let bench = Bench::new();
    let engine = bench.start();
    let with = |caller: &str, id: &str, body: &[u8]| {
        Submit::new(Build::Reserve, "cluster/main", caller).request(Request::new(id, body).unwrap())
    };
    let (one, two) = tokio::join!(
        engine.handle.submit(with("a", "r1", b"x")),
        engine.handle.submit(with("a", "r1", b"x"))
    );
    let id = one.unwrap().id;
    assert_eq!(two.unwrap().id, id, "rivals with one request");
    engine.wait(id).await;
    assert_eq!(engine.handle.submit(with("a", "r1", b"x")).await.unwrap().id, id, "after its end");
    assert_eq!(bench.world.lock().announced, 1);
    let reused = engine.handle.submit(with("a", "r1", b"y")).await.unwrap_err();
    assert!(matches!(&reused, Error::RequestIdReused { operation, .. } if *operation == id), "{reused}");
    let other = engine.handle.submit(with("b", "r1", b"y")).await.unwrap();
    assert_ne!(other.id, id, "another caller's ids are his own");
    for wrong in ["", "a b", "ä", &"x".repeat(129)] {
        assert!(Request::new(wrong, b"").is_err(), "{wrong:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_resource_names_its_holder() {
    let bench = Bench::new();
    let engine = bench.start();
    let gate = bench.world.hold("copy/1");
    let id = engine.submit().await;
    let refused = engine.handle.submit(submit().then(Op::put("x", "1"))).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::OperationInProgress);
    assert_eq!(refused.metadata()["operation"], id.to_string());
    assert!(refused.to_string().contains("cluster/main is held by operation"), "{refused}");
    assert_eq!(bench.store.get(&"x".into()).await.unwrap(), None, "nothing of a refused one is stored");
    gate.add_permits(1);
    engine.wait(id).await;
    let conflict = submit().when(Compare::unchanged("x", store::Revision(99)));
    let refused = engine.handle.submit(conflict).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::VersionConflict);
    let taken = engine.handle.submit(submit().then(Op::put("x", "1"))).await.unwrap();
    assert!(bench.store.get(&"x".into()).await.unwrap().is_some(), "stored together with the operation");
    engine.wait(taken.id).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_be_retried_is_retried_with_the_same_command() {
    let bench = Bench::new();
    bench.world.trouble("copy/1", Failure { retry: Retry::Later(None), ..broken("not now") }, 3);
    let engine = bench.start();
    let ended = {
        let id = engine.submit().await;
        engine.until(id, |operation| operation.steps[1].message == "try 2 failed: not now").await;
        engine.wait(id).await
    };
    assert_eq!((ended.state, ended.steps[1].attempts), (State::Succeeded, 4));
    let commands = |step: &str| -> Vec<_> {
        bench.world.lock().used.iter().filter(|(at, _)| at == step).map(|(_, id)| *id).collect()
    };
    assert_eq!(commands("copy/1").len(), 4);
    assert_eq!(commands("copy/1").into_iter().collect::<HashSet<_>>().len(), 1);
    assert_ne!(commands("copy/1")[0], commands("copy/2")[0]);
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_commands_have_ended_sends_new_ones() {
    let bench = Bench::new();
    let failure = Failure { retry: Retry::Later(None), ..broken("not now") };
    bench.world.lock().trouble.insert("copy/1".to_owned(), (failure, 2, true));
    let engine = bench.start();
    let id = engine.submit().await;
    assert_eq!(engine.wait(id).await.state, State::Succeeded);
    let used = bench.world.lock().used.clone();
    let distinct: HashSet<_> = used.iter().filter(|(at, _)| at == "copy/1").map(|(_, id)| *id).collect();
    assert_eq!(distinct.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_for_good_or_too_often_or_too_long_goes_back() {
    let again = Failure { retry: Retry::Later(None), ..broken("not now") };
    let table = [
        (broken("never"), 1, "never"),
        (again, 99, "not now"),
        (broken("x").retry_after(Duration::from_secs(3600)), 99, "x"),
    ];
    for (failure, times, expected) in table {
        let bench = Bench::new();
        bench.world.trouble("copy/2", failure, times);
        let engine = bench.start();
        let id = engine.submit().await;
        let ended = engine.wait(id).await;
        assert_eq!((ended.state, message(&ended)), (State::Failed, expected));
        assert!(ended.steps[2].attempts <= 4);
        use StepState::{Failed, Skipped, Succeeded};
        let expected = [Succeeded, Succeeded, Failed, Skipped, Skipped, Succeeded];
        assert_eq!(ended.steps.iter().map(|step| step.state).collect::<Vec<_>>(), expected);
        assert!(bench.world.lock().copies.is_empty() && bench.world.lock().ports.is_empty());
    }
    let bench = Bench::new();
    bench.world.hold("copy/1");
    let engine = bench.start();
    let begun = tokio::time::Instant::now();
    let id = engine.submit().await;
    let ended = engine.wait(id).await;
    assert_eq!(ended.failure.unwrap().reason, Reason::CommandTimedOut);
    assert!((120..125).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn past_the_point_of_no_return_it_waits_for_a_person() {
    let bench = Bench::new();
    bench.world.trouble("announce", broken("no voice"), 2);
    let engine = bench.start();
    let id = engine.submit().await;
    let blocked = engine.wait(id).await;
    assert_eq!(blocked.state, State::Blocked);
    assert!(message(&blocked).contains("no voice") && message(&blocked).contains("resume"), "{blocked:?}");
    assert_eq!(engine.handle.submit(submit()).await.unwrap_err().reason(), Reason::OperationInProgress);
    engine.stop().await;
    let engine = bench.start();
    engine.handle.resume(id).await.unwrap();
    assert_eq!(engine.wait(id).await.state, State::Blocked, "the second failure");
    engine.handle.resume(id).await.unwrap();
    let ended = engine.wait(id).await;
    assert_eq!((ended.state, ended.failure.clone()), (State::Succeeded, None));
    assert_eq!(engine.handle.resume(id).await.unwrap_err().reason(), Reason::PreconditionFailed);

    bench.world.trouble("publish", broken("no paper"), 1);
    let id = engine.submit().await;
    assert_eq!(engine.wait(id).await.state, State::Blocked);
    let given_up = engine.handle.cancel(id).await.unwrap();
    assert_eq!((given_up.state, message(&given_up).contains("no paper")), (State::Failed, true));
    assert_eq!(
        bench.store.get(&lock::key("cluster/main")).await.unwrap(),
        None,
        "the resource is free again"
    );
}

#[tokio::test(start_paused = true)]
async fn cancelling_before_the_point_of_no_return_leaves_nothing_behind() {
    let bench = Bench::new();
    bench.world.hold("copy/2");
    let engine = bench.start();
    let id = engine.submit().await;
    assert!(engine.at(id, "copy/2").await.cancellable);
    let asked = engine.handle.cancel(id).await.unwrap();
    assert!(asked.cancel_requested);
    engine.handle.cancel(id).await.unwrap();
    let ended = engine.wait(id).await;
    assert_eq!(ended.state, State::Cancelled);
    assert_eq!(bench.world.lock().heeded, 1, "the step under way was told");
    assert!(bench.world.lock().copies.is_empty() && bench.world.lock().ports.is_empty());
    assert_eq!(ended.failure.unwrap().reason, Reason::Cancelled);
    assert_eq!(engine.handle.cancel(id).await.unwrap_err().reason(), Reason::NotCancellable);
    assert_eq!(
        engine.handle.cancel(OperationId::generate()).await.unwrap_err().reason(),
        Reason::OperationNotFound
    );
}

#[tokio::test(start_paused = true)]
async fn cancelling_past_the_point_of_no_return_is_refused() {
    let bench = Bench::new();
    let gate = bench.world.hold("publish");
    let engine = bench.start();
    let id = engine.submit().await;
    assert!(!engine.at(id, "publish").await.cancellable);
    let refused = engine.handle.cancel(id).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotCancellable);
    gate.add_permits(1);
    assert_eq!(engine.wait(id).await.state, State::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_not_begun_can_be_cancelled() {
    let bench = Bench::new();
    let service = bench.service();
    let handle = service.handle();
    let id = handle.submit(submit()).await.unwrap().id;
    handle.cancel(id).await.unwrap();
    let run = tokio::spawn(service.run(CancellationToken::new()));
    assert_eq!(handle.wait(id).await.unwrap().state, State::Cancelled);
    assert!(
        bench.world.lock().used.iter().all(|(step, _)| step == "remove"),
        "nothing but the way back has run"
    );
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_goes_on_after_a_restart() {
    let bench = Bench::new();
    let gate = bench.world.hold("copy/2");
    let engine = bench.start();
    let id = engine.submit().await;
    engine.at(id, "copy/2").await;
    let mut watching = engine.handle.watch(id).await.unwrap();
    let waiting = tokio::spawn({
        let handle = engine.handle.clone();
        async move { handle.wait(id).await }
    });
    tokio::task::yield_now().await;
    engine.stop().await;
    while watching.next().await.is_some() {}
    assert_eq!(waiting.await.unwrap().unwrap_err().reason(), Reason::ShuttingDown);
    gate.add_permits(1);
    let engine = bench.start();
    let ended = engine.wait(id).await;
    assert_eq!((ended.state, ended.steps[2].attempts, ended.steps[1].attempts), (State::Succeeded, 2, 1));
    let used = bench.world.lock().used.clone();
    let commands: HashSet<_> = used.iter().filter(|(at, _)| at == "copy/2").map(|(_, id)| *id).collect();
    assert_eq!(commands.len(), 1, "the same command after the restart");
}

#[tokio::test(start_paused = true)]
async fn operations_on_different_resources_run_at_the_same_time() {
    let bench = Bench::new();
    let engine = bench.start();
    let gate = bench.world.hold("reserve");
    let mut ids = Vec::new();
    for n in 0..100 {
        let submit = Submit::new(Build::Reserve, format!("cluster/c{n}"), "a");
        ids.push(engine.handle.submit(submit).await.unwrap().id);
    }
    for id in &ids[..64] {
        engine.at(*id, "reserve").await;
    }
    assert_eq!(engine.handle.get(ids[64]).await.unwrap().state, State::Pending, "only so many at a time");
    gate.add_permits(1);
    for id in ids {
        assert_eq!(engine.wait(id).await.state, State::Succeeded);
    }
}

#[tokio::test(start_paused = true)]
async fn finished_operations_are_listed_newest_first_and_forgotten_in_the_end() {
    let bench = Bench::new();
    let service = bench.service().keeping(5);
    let handle = service.handle();
    let run = tokio::spawn(service.run(CancellationToken::new()));
    let mut ids = Vec::new();
    for n in 0..8 {
        let request = Request::new(format!("r{n}"), b"").unwrap();
        let id = handle.submit(submit().request(request)).await.unwrap().id;
        handle.wait(id).await.unwrap();
        ids.insert(0, id);
    }
    let last = Submit::new(Build::Reserve, "cluster/other", "a");
    let last = handle.submit(last).await.unwrap().id;
    handle.wait(last).await.unwrap();
    // What is left is removed after the last one has been seen to end.
    let kept = async {
        loop {
            let page = handle.list(&Filter::default(), None, 50).await.unwrap();
            if page.operations.len() == 5 {
                return page.operations;
            }
            tokio::task::yield_now().await;
        }
    };
    let kept = tokio::time::timeout(Duration::from_secs(60), kept).await.unwrap();
    assert_eq!(kept.iter().map(|o| o.id).collect::<Vec<_>>(), [&[last], &ids[..4]].concat());
    assert_eq!(handle.get(ids[7]).await.unwrap_err().reason(), Reason::OperationNotFound);
    assert_eq!(
        bench.store.status().await.unwrap().records,
        5 * 2 + 4,
        "records, index, requests: nothing else"
    );

    let page = handle.list(&Filter::default(), None, 2).await.unwrap();
    assert_eq!(page.next, Some(ids[0]));
    let page = handle.list(&Filter::default(), page.next, 2).await.unwrap();
    assert_eq!(page.operations.iter().map(|o| o.id).collect::<Vec<_>>(), ids[1..3]);
    let page = handle.list(&Filter::default(), page.next, 2).await.unwrap();
    assert_eq!((page.operations.len(), page.next), (1, None));
    let other = Filter { resource: Some("cluster/other".to_owned()), ..Filter::default() };
    assert_eq!(handle.list(&other, None, 50).await.unwrap().operations[0].id, last);
    let none = Filter { states: vec![State::Running], ..Filter::default() };
    assert!(handle.list(&none, None, 50).await.unwrap().operations.is_empty());
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_version_blocks_and_stops_nobody_else() {
    let bench = Bench::new();
    let service = bench.service();
    let handle = service.handle();
    let id = handle.submit(submit()).await.unwrap().id;
    let key = store::Key::from(format!("operation/record/{id}"));
    let mut found = store::record::get::<Operation>(&*bench.store, &key).await.unwrap().unwrap().value;
    found.procedure = serde_json::json!({ "teleport": {} });
    let stored = store::record::encode(&key, &found).unwrap();
    bench.store.txn(store::Txn::new().then(Op::put(&key, stored))).await.unwrap();
    drop(service);
    let engine = bench.start();
    let blocked = engine.wait(id).await;
    assert_eq!(blocked.state, State::Blocked);
    assert!(message(&blocked).contains("cannot be read by this version"), "{blocked:?}");
    let other = engine.handle.submit(Submit::new(Build::Reserve, "cluster/other", "a")).await.unwrap();
    assert_eq!(engine.wait(other.id).await.state, State::Succeeded);
}
