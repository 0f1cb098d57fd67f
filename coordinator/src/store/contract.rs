//! The one suite that every store has to pass: each rule of the interface by name, and random histories against a
//! plain model.
//!
//! A [`Subject`] gives fresh stores, and may close and open one again. All functions panic with what was wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a suite for tests, which panics with what was wrong")]

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures::future::BoxFuture;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Runtime;

use super::{
    Compare, Error, Event, Key, Kv, LeaseId, MAX_OPS, MAX_VALUE, Op, Range, Reply, Revision, Shared, Store,
    Txn, campaign,
};

/// An implementation to be tried.
pub trait Subject: Send + Sync {
    /// A new, empty store.
    fn fresh(&self) -> BoxFuture<'_, Shared>;

    /// The same data after the process has ended and begun again; `None` for what forgets.
    fn reopen(&self, store: Shared) -> BoxFuture<'_, Option<Shared>>;

    /// Lets time pass for leases. (While paused time waits for a thread it would run ahead to the next timer, so
    /// the suite has no timer waiting while it calls the store.)
    fn pass(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::advance(time))
    }
}

/// Runs all of it. Time must be paused (`start_paused`), unless the store lives in another process and
/// [`Subject::pass`] really waits.
pub async fn holds(subject: &dyn Subject) {
    a_record_has_its_history(subject).await;
    a_transaction_is_all_or_nothing(subject).await;
    compares_decide_the_branch(subject).await;
    only_one_rival_creates(subject).await;
    limits_are_refused_before_anything_is_done(subject).await;
    ranges_are_ordered_and_paged(subject).await;
    a_watch_misses_nothing(subject).await;
    a_revoked_or_ended_lease_takes_its_keys(subject).await;
    leadership_passes_on_and_fences(subject).await;
    what_was_answered_is_there_after_a_reopen(subject).await;
}

async fn a_record_has_its_history(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let key = Key::from("a/1");
    assert_eq!(store.get(&key).await.unwrap(), None);
    let first = put(&*store, "a/1", "x").await;
    let second = put(&*store, "a/1", "y").await;
    assert_eq!(second, first.next());
    let kv = store.get(&key).await.unwrap().unwrap();
    let expected = Kv {
        key: key.clone(),
        value: b"y".to_vec(),
        create_rev: first,
        mod_rev: second,
        version: 2,
        lease: None,
    };
    assert_eq!(kv, expected);
    let gone = store.txn(Txn::new().then(Op::delete(&key)).then(Op::delete("a/2"))).await.unwrap();
    assert_eq!(gone.replies, [Reply::Deleted(true), Reply::Deleted(false)]);
    assert_eq!(store.get(&key).await.unwrap(), None);
    let nothing = store.txn(Txn::new().then(Op::delete(&key)).then(Op::get(&key))).await.unwrap();
    assert_eq!(nothing.revision, gone.revision, "a transaction that changes nothing makes no revision");
    let again = put(&*store, "a/1", "z").await;
    let kv = store.get(&key).await.unwrap().unwrap();
    assert_eq!((kv.create_rev, kv.version), (again, 1), "a record made anew has a new history");
}

async fn a_transaction_is_all_or_nothing(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let txn =
        Txn::new().then(Op::put("a", "1")).then(Op::put("b", "2")).then(Op::get("a")).then(Op::get("c"));
    let outcome = store.txn(txn).await.unwrap();
    assert!(outcome.succeeded);
    assert_eq!(outcome.got(2).unwrap().value, b"1", "a read sees what was written before it");
    assert_eq!(outcome.replies[3], Reply::Got(None));
    let (a, b) =
        (store.get(&"a".into()).await.unwrap().unwrap(), store.get(&"b".into()).await.unwrap().unwrap());
    assert_eq!((a.mod_rev, b.mod_rev), (outcome.revision, outcome.revision), "one transaction, one revision");
    let before = store.status().await.unwrap();
    let leased = Txn::new().then(Op::put("d", "1")).then(Op::put_leased("e", "2", LeaseId(42)));
    assert!(matches!(store.txn(leased).await, Err(Error::LeaseOver { lease: LeaseId(42) })));
    assert_eq!(store.status().await.unwrap(), before, "nothing of a failed transaction stays");
}

async fn compares_decide_the_branch(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let made = put(&*store, "k", "1").await;
    let now = put(&*store, "k", "2").await;
    let table = [
        (Compare::absent("k"), false),
        (Compare::absent("none"), true),
        (Compare::unchanged("k", now), true),
        (Compare::unchanged("k", made), false),
        (Compare::ModRev("none".into(), Revision::ZERO), true),
        (Compare::CreateRev("k".into(), made), true),
        (Compare::CreateRev("k".into(), now), false),
        (Compare::Value("k".into(), b"2".to_vec()), true),
        (Compare::Value("k".into(), b"1".to_vec()), false),
        (Compare::Value("none".into(), Vec::new()), false),
    ];
    for (compare, expected) in table {
        let txn = Txn::new().when(compare.clone()).then(Op::get("k")).or_else(Op::get("none"));
        let outcome = store.txn(txn).await.unwrap();
        assert_eq!(outcome.succeeded, expected, "{compare:?}");
        assert_eq!(outcome.got(0).is_some(), expected, "{compare:?} has run the other branch");
    }
    let both = Txn::new().when(Compare::unchanged("k", now)).when(Compare::absent("k")).then(Op::delete("k"));
    assert!(!store.txn(both).await.unwrap().succeeded, "all compares must hold");
    assert!(store.txn(Txn::new()).await.unwrap().succeeded, "no condition always holds");
}

async fn only_one_rival_creates(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let rivals = (0..100).map(|n| {
        let store = store.clone();
        async move {
            let txn = Txn::new().when(Compare::absent("lock")).then(Op::put("lock", n.to_string()));
            store.txn(txn).await.unwrap().succeeded
        }
    });
    let won = futures::future::join_all(rivals).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    assert_eq!(store.status().await.unwrap().revision, Revision(1));
}

async fn limits_are_refused_before_anything_is_done(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let puts = |n: usize| (0..n).fold(Txn::new(), |txn, i| txn.then(Op::put(format!("k/{i:03}"), "v")));
    let compares = (0..=MAX_OPS).fold(Txn::new(), |txn, i| txn.when(Compare::absent(format!("k/{i}"))));
    let refused = [
        puts(MAX_OPS + 1),
        compares,
        Txn::new().then(Op::put("big", vec![0; MAX_VALUE + 1])),
        Txn::new().then(Op::put("", "v")),
        Txn::new().then(Op::put("with space", "v")),
        Txn::new().then(Op::put("ünicode", "v")),
        Txn::new().then(Op::put("k".repeat(513), "v")),
        Txn::new().then(Op::put("k", "v")).then(Op::delete("k")),
        Txn::new().or_else(Op::put("k", "v")).or_else(Op::put("k", "w")),
    ];
    for txn in refused {
        let result = store.txn(txn).await;
        assert!(matches!(result, Err(Error::Refused { .. })), "{result:?}");
    }
    assert!(matches!(store.get(&"a b".into()).await, Err(Error::Refused { .. })));
    assert!(matches!(store.range(Range::prefix("").limit(0)).await, Err(Error::Refused { .. })));
    assert!(matches!(store.range(Range::prefix("").limit(1001)).await, Err(Error::Refused { .. })));
    assert_eq!(store.status().await.unwrap().revision, Revision::ZERO);
    assert!(store.txn(puts(MAX_OPS)).await.unwrap().succeeded);
    let big = Txn::new().then(Op::put("big", vec![7; MAX_VALUE]));
    assert!(store.txn(big).await.unwrap().succeeded);
    assert_eq!(store.get(&"big".into()).await.unwrap().unwrap().value, vec![7; MAX_VALUE]);
}

async fn ranges_are_ordered_and_paged(subject: &dyn Subject) {
    let store = subject.fresh().await;
    for key in ["b/2", "a/1", "b/10", "b/1", "b0", "b", "c"] {
        put(&*store, key, "v").await;
    }
    let keys = async |range: Range| {
        let listing = store.range(range).await.unwrap();
        assert_eq!(listing.revision, Revision(7));
        let keys: Vec<_> = listing.records.iter().map(|kv| kv.key.to_string()).collect();
        (keys.join(" "), listing.more)
    };
    assert_eq!(keys(Range::prefix("b/")).await, ("b/1 b/10 b/2".into(), false));
    assert_eq!(keys(Range::prefix("b/").descending()).await, ("b/2 b/10 b/1".into(), false));
    assert_eq!(keys(Range::prefix("b/").limit(2)).await, ("b/1 b/10".into(), true));
    assert_eq!(keys(Range::prefix("b/").limit(2).after("b/10")).await, ("b/2".into(), false));
    assert_eq!(keys(Range::prefix("b/").descending().after("b/2").limit(1)).await, ("b/10".into(), true));
    assert_eq!(keys(Range::prefix("")).await.0, "a/1 b b/1 b/10 b/2 b0 c");
    assert!(!keys(Range::prefix("").limit(7)).await.1, "exactly all");
    assert_eq!(keys(Range::prefix("b/").after("a")).await.0, "b/1 b/10 b/2", "after a key before the prefix");
    assert_eq!(keys(Range::prefix("b/").after("z")).await.0, "", "after a key behind the prefix");
    assert_eq!(keys(Range::prefix("b/").descending().after("z")).await.0, "b/2 b/10 b/1");
    assert_eq!(keys(Range::prefix("b/").descending().after("a")).await.0, "");
    assert_eq!(keys(Range::prefix("none/")).await, (String::new(), false));
}

async fn a_watch_misses_nothing(subject: &dyn Subject) {
    let store = subject.fresh().await;
    put(&*store, "w/1", "a").await;
    put(&*store, "other", "b").await;
    let mut early = store.watch("w/", Revision(1)).await.unwrap();
    let mut late = store.watch("w/", Revision(3)).await.unwrap();
    let outcome = store.txn(Txn::new().then(Op::put("w/2", "c")).then(Op::delete("w/1"))).await.unwrap();
    let first = early.next().await.unwrap();
    assert_eq!((first.revision, first.events.len()), (Revision(1), 1));
    for watch in [&mut early, &mut late] {
        let batch = watch.next().await.unwrap();
        assert_eq!(batch.revision, outcome.revision);
        assert!(matches!(&batch.events[0], Event::Put(kv) if kv.key.as_str() == "w/2" && kv.value == b"c"));
        let deleted = Event::Deleted { key: "w/1".into(), mod_rev: outcome.revision };
        assert_eq!(batch.events[1], deleted, "one batch for each transaction");
    }
    // Far more than one page, from another task, while the watch is waiting.
    let total = 500;
    let writer = async {
        for n in 0..total {
            put(&*store, "w/n", &n.to_string()).await;
        }
    };
    let reader = async {
        for n in 0..total {
            let batch = early.next().await.unwrap();
            assert!(matches!(&batch.events[..], [Event::Put(kv)] if kv.value == n.to_string().as_bytes()));
        }
    };
    futures::join!(writer, reader);
}

async fn a_revoked_or_ended_lease_takes_its_keys(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let ttl = Duration::from_secs(3);
    let (kept, ended) = (store.lease_grant(ttl).await.unwrap(), store.lease_grant(ttl).await.unwrap());
    put(&*store, "stays", "v").await;
    let txn = Txn::new()
        .then(Op::put_leased("l/ended", "v", ended))
        .then(Op::put_leased("l/kept", "v", kept))
        .then(Op::put_leased("l/freed", "v", ended));
    let at = store.txn(txn).await.unwrap().revision;
    assert_eq!(store.get(&"l/kept".into()).await.unwrap().unwrap().lease, Some(kept));
    let freed = put(&*store, "l/freed", "written without the lease").await;
    assert_eq!(freed, at.next());
    let mut watch = store.watch("l/", freed.next()).await.unwrap();
    subject.pass(Duration::from_secs(2)).await;
    store.lease_keep_alive(kept).await.unwrap();
    let gone = watch.next().await;
    let expected = [Event::Deleted { key: "l/ended".into(), mod_rev: freed.next() }];
    assert_eq!(gone.unwrap().events, expected, "its watchers learn it without anybody's call");
    assert!(matches!(store.lease_keep_alive(ended).await, Err(Error::LeaseOver { .. })));
    assert!(store.get(&"l/kept".into()).await.unwrap().is_some());
    store.lease_revoke(kept).await.unwrap();
    let left = store.range(Range::prefix("")).await.unwrap().records;
    assert_eq!(left.iter().map(|kv| kv.key.as_str()).collect::<Vec<_>>(), ["l/freed", "stays"]);
    assert!(matches!(store.lease_revoke(kept).await, Err(Error::LeaseOver { .. })));
}

async fn leadership_passes_on_and_fences(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let ttl = Duration::from_secs(2);
    let first = campaign(&*store, "main", "one", ttl).await.unwrap();
    let guarded = |who: &super::Leadership| Txn::new().when(who.guard()).then(Op::put("x", "1"));
    assert!(store.txn(guarded(&first)).await.unwrap().succeeded);
    // Nobody keeps the first one alive, so the second one follows when its lease is over.
    let second = campaign(&*store, "main", "two", ttl).await.unwrap();
    assert!(second.fence > first.fence);
    assert!(!store.txn(guarded(&first)).await.unwrap().succeeded, "the old leader still writes");
    assert!(matches!(first.keep(&*store).await, Err(Error::LeaseOver { .. })));
    second.keep(&*store).await.unwrap();
    assert!(store.txn(guarded(&second)).await.unwrap().succeeded);
    second.resign(&*store).await.unwrap();
    assert_eq!(store.get(&"leader/main".into()).await.unwrap(), None);
}

async fn what_was_answered_is_there_after_a_reopen(subject: &dyn Subject) {
    let store = subject.fresh().await;
    put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    let lease = store.lease_grant(Duration::from_secs(3600)).await.unwrap();
    store.txn(Txn::new().then(Op::put_leased("leader/x", "me", lease))).await.unwrap();
    let before = store.get(&"a".into()).await.unwrap();
    let Some(store) = subject.reopen(store).await else { return };
    assert_eq!(store.get(&"a".into()).await.unwrap(), before);
    assert_eq!(store.get(&"leader/x".into()).await.unwrap(), None, "its holder is gone for sure");
    assert!(matches!(store.lease_keep_alive(lease).await, Err(Error::LeaseOver { .. })));
    let mut watch = store.watch("a", Revision(1)).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(1), "changes are replayed after a restart");
    assert_eq!(watch.next().await.unwrap().revision, Revision(2));
    assert!(put(&*store, "a", "3").await > Revision(3), "revisions go on where they were");
}

/// A store that keeps at most `keep` changes drops the older ones, and tells those who ask for them.
pub async fn the_log_is_bounded(store: &dyn Store, keep: u64) {
    let mut slow = store.watch("k", Revision(1)).await.unwrap();
    for n in 0..keep * 3 {
        put(store, "k", &n.to_string()).await;
    }
    let status = store.status().await.unwrap();
    assert!(status.events <= keep, "{status:?}");
    assert!(status.compacted > Revision::ZERO);
    assert!(matches!(slow.next().await, Err(Error::Compacted { at }) if at == status.compacted));
    assert!(matches!(store.watch("k", status.compacted).await, Err(Error::Compacted { .. })));
    let mut kept = store.watch("k", status.compacted.next()).await.unwrap();
    assert_eq!(kept.next().await.unwrap().revision, status.compacted.next());
    assert_eq!(store.get(&"k".into()).await.unwrap().unwrap().version, keep * 3);
}

/// A step of a random history.
#[derive(Debug, Clone)]
enum Move {
    Txn(Txn),
    List(Range),
    Reopen,
}

/// What a store should be, as plainly as can be said.
#[derive(Debug, Default)]
struct Model {
    revision: u64,
    records: BTreeMap<Key, Kv>,
    history: Vec<(u64, Key, Option<Vec<u8>>)>,
}

/// Random histories agree with a plain model: every answer, every listing, and in the end the whole watch.
///
/// # Panics
/// With the shortest history found that does not.
pub fn agrees_with_the_model(cases: u32, runtime: &Runtime, subject: &dyn Subject) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let histories = proptest::collection::vec(a_move(), 1..60);
    let tried = TestRunner::new(config).run(&histories, |history| runtime.block_on(agrees(subject, history)));
    assert!(tried.is_ok(), "{}", tried.unwrap_err());
}

async fn agrees(subject: &dyn Subject, history: Vec<Move>) -> Result<(), TestCaseError> {
    let mut store = subject.fresh().await;
    let mut model = Model::default();
    for step in history {
        match step {
            Move::Txn(txn) => {
                let outcome = store.txn(txn.clone()).await.map_err(fail)?;
                let (succeeded, replies) = model.txn(&txn);
                prop_assert_eq!(outcome.succeeded, succeeded);
                prop_assert_eq!(outcome.replies, replies);
                prop_assert_eq!(outcome.revision, Revision(model.revision));
            }
            Move::List(range) => {
                let listing = store.range(range.clone()).await.map_err(fail)?;
                let mut expected = model.list(&range);
                prop_assert_eq!(listing.more, expected.len() > range.limit);
                expected.truncate(range.limit);
                prop_assert_eq!(listing.records, expected);
            }
            Move::Reopen => match subject.reopen(store).await {
                Some(opened) => store = opened,
                None => return Ok(()),
            },
        }
    }
    let mut watch = store.watch("", Revision(1)).await.map_err(fail)?;
    let mut seen = Vec::new();
    while seen.len() < model.history.len() {
        let batch = watch.next().await.map_err(fail)?;
        seen.extend(batch.events.into_iter().map(|event| match event {
            Event::Put(kv) => (batch.revision.0, kv.key, Some(kv.value)),
            Event::Deleted { key, .. } => (batch.revision.0, key, None),
        }));
    }
    prop_assert_eq!(seen, model.history);
    Ok(())
}

fn a_key() -> impl Strategy<Value = Key> {
    prop::sample::select(vec!["a", "a/1", "a/2", "b", "b/1", "b/1/x"]).prop_map(Key::from)
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (a_key(), 0..4_u8).prop_map(|(key, n)| Op::put(key, vec![n])),
        2 => a_key().prop_map(Op::delete),
        1 => a_key().prop_map(Op::get),
    ]
}

fn a_compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        a_key().prop_map(Compare::absent),
        (a_key(), 0..20_u64).prop_map(|(key, rev)| Compare::ModRev(key, Revision(rev))),
        (a_key(), 0..20_u64).prop_map(|(key, rev)| Compare::CreateRev(key, Revision(rev))),
        (a_key(), 0..4_u8).prop_map(|(key, n)| Compare::Value(key, vec![n])),
    ]
}

fn a_move() -> impl Strategy<Value = Move> {
    // Only the first write of each key: two are refused, which has its own test.
    let branch = || {
        proptest::collection::vec(an_op(), 0..4).prop_map(|ops| {
            let mut written = HashSet::new();
            ops.into_iter().filter(|op| !op.writes() || written.insert(op.key().clone())).collect::<Vec<_>>()
        })
    };
    let txn = (proptest::collection::vec(a_compare(), 0..2), branch(), branch())
        .prop_map(|(compares, then, or_else)| Move::Txn(Txn { compares, then, or_else }));
    let list = (
        prop::sample::select(vec!["", "a", "a/", "b/1", "z"]),
        1..4_usize,
        prop::option::of(a_key()),
        any::<bool>(),
    )
        .prop_map(|(prefix, limit, after, descending)| {
            Move::List(Range { prefix: prefix.to_owned(), after, limit, descending })
        });
    prop_oneof![8 => txn, 3 => list, 1 => Just(Move::Reopen)]
}

fn fail(error: Error) -> TestCaseError {
    TestCaseError::fail(format!("{error:?}"))
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let outcome = store.txn(Txn::new().then(Op::put(key, value))).await.unwrap();
    assert!(outcome.succeeded);
    outcome.revision
}

// === impl Model ===

impl Model {
    fn txn(&mut self, txn: &Txn) -> (bool, Vec<Reply>) {
        let holds = |compare: &Compare| {
            let kv = self.records.get(compare.key());
            match compare {
                Compare::ModRev(_, rev) => kv.map_or(0, |kv| kv.mod_rev.0) == rev.0,
                Compare::CreateRev(_, rev) => kv.map_or(0, |kv| kv.create_rev.0) == rev.0,
                Compare::Value(_, value) => kv.is_some_and(|kv| kv.value == *value),
            }
        };
        let succeeded = txn.compares.iter().all(holds);
        let (revision, before) = (self.revision + 1, self.history.len());
        let ops = if succeeded { txn.then.clone() } else { txn.or_else.clone() };
        let replies = ops.into_iter().map(|op| self.apply(op, revision)).collect();
        if self.history.len() > before {
            self.revision = revision;
        }
        (succeeded, replies)
    }

    fn apply(&mut self, op: Op, revision: u64) -> Reply {
        match op {
            Op::Put { key, value, lease } => {
                self.history.push((revision, key.clone(), Some(value.clone())));
                let old = self.records.remove(&key);
                let create_rev = old.as_ref().map_or(Revision(revision), |kv| kv.create_rev);
                let version = old.map_or(1, |kv| kv.version + 1);
                let kv =
                    Kv { key: key.clone(), value, create_rev, mod_rev: Revision(revision), version, lease };
                self.records.insert(key, kv);
                Reply::Put
            }
            Op::Delete { key } => {
                let found = self.records.remove(&key).is_some();
                if found {
                    self.history.push((revision, key, None));
                }
                Reply::Deleted(found)
            }
            Op::Get { key } => Reply::Got(self.records.get(&key).cloned()),
        }
    }

    fn list(&self, range: &Range) -> Vec<Kv> {
        let Range { prefix, after, descending, limit: _ } = range;
        let mut all: Vec<Kv> =
            self.records.values().filter(|kv| kv.key.as_str().starts_with(prefix)).cloned().collect();
        if *descending {
            all.reverse();
        }
        all.retain(|kv| after.as_ref().is_none_or(|a| if *descending { kv.key < *a } else { kv.key > *a }));
        // One more than asked for shows that there is more.
        all.truncate(range.limit + 1);
        all
    }
}
