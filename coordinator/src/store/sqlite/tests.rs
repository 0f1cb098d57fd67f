use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::store::{
    Op,
    contract::{self, Subject},
};

/// Databases in one folder.
struct Folder {
    folder: TempDir,
    next: AtomicU32,
    open: Mutex<PathBuf>,
}

impl Folder {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), next: AtomicU32::new(0), open: Mutex::default() }
    }
}

impl Subject for Folder {
    fn fresh(&self) -> BoxFuture<'_, Shared> {
        async {
            let name = format!("{}.db", self.next.fetch_add(1, Ordering::Relaxed));
            let path = self.folder.path().join(name);
            self.open.lock().unwrap().clone_from(&path);
            Sqlite::shared(&path).unwrap()
        }
        .boxed()
    }

    fn reopen(&self, store: Shared) -> BoxFuture<'_, Option<Shared>> {
        async move {
            drop(store);
            Some(Sqlite::shared(&*self.open.lock().unwrap()).unwrap())
        }
        .boxed()
    }
}

fn put(key: &str, value: impl Into<Vec<u8>>) -> Txn {
    Txn::new().then(Op::put(key, value))
}

#[tokio::test(start_paused = true)]
async fn the_contract_holds() {
    contract::holds(&Folder::new()).await;
}

#[test]
fn random_histories_agree_with_the_model_across_restarts() {
    contract::agrees_with_the_model(40, &Runtime::new().unwrap(), &Folder::new());
}

#[tokio::test]
async fn the_log_is_bounded_by_number_and_by_bytes() {
    let folder = TempDir::new().unwrap();
    let keep = Keep { events: 10, ..Keep::default() };
    let store = Sqlite::open_keeping(folder.path().join("n.db"), keep).unwrap();
    contract::the_log_is_bounded(&store, 10).await;
    let keep = Keep { bytes: 10_000, ..Keep::default() };
    let store = Sqlite::open_keeping(folder.path().join("b.db"), keep).unwrap();
    for _ in 0..30 {
        store.txn(put("big", vec![0; 1000])).await.unwrap();
    }
    let status = store.status().await.unwrap();
    assert!(status.events <= 10 && status.compacted > Revision(10), "{status:?}");
}

#[tokio::test]
async fn a_database_is_open_once_and_for_its_owner_only() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.db");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = Sqlite::open(&path).unwrap();
    store.txn(put("a", "1")).await.unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    assert!(matches!(Sqlite::open(&path), Err(Error::InUse { .. })));
    drop(store);
    assert!(Sqlite::open(&path).is_ok(), "the claim ends with the store");
}

#[tokio::test]
async fn a_watcher_does_not_keep_a_store_open() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.db");
    let store = Sqlite::open(&path).unwrap();
    let mut watch = store.watch("", Revision(1)).await.unwrap();
    drop(store);
    assert!(matches!(watch.next().await, Err(Error::Closed)));
    Sqlite::open(&path).unwrap();
}

#[test]
fn a_newer_or_foreign_database_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let newer = folder.path().join("newer.db");
    drop(Sqlite::open(&newer).unwrap());
    rusqlite::Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Sqlite::open(&newer), Err(Error::Schema { found: 99, .. })));
    let foreign = folder.path().join("foreign.db");
    std::fs::write(&foreign, "this is no database, whatever its name says. ".repeat(100)).unwrap();
    let before = std::fs::read(&foreign).unwrap();
    assert!(matches!(Sqlite::open(&foreign), Err(Error::Open { .. })));
    assert_eq!(std::fs::read(&foreign).unwrap(), before);
    let missing = folder.path().join("no/such/folder/state.db");
    assert!(matches!(Sqlite::open(missing), Err(Error::Open { .. })));
}

const CHILD: &str = "HOLDFAST_TEST_STORE";

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
#[ignore = "run by the test that kills it"]
async fn child_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = Sqlite::open(path).unwrap();
    for n in 0_u64.. {
        let txn = put("last", n.to_string()).then(Op::put(format!("n/{n:06}"), "v"));
        store.txn(txn).await.unwrap();
        println!("stored {n}");
    }
}

#[tokio::test]
async fn what_was_answered_survives_kill_minus_nine() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.db");
    let name = "store::sqlite::tests::child_writes_until_it_is_killed";
    let mut next = 0;
    for round in 1..=5 {
        let mut child = start_child(name, &path);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let stored = lines.filter_map(|line| line.split_once("stored ")?.1.parse::<u64>().ok());
        next = stored.take(20 * round).last().unwrap() + 1;
        // The pipe's end may be closed by now, which the child would see as a failed write; the kill is quicker.
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Sqlite::open(&path).unwrap();
        let found = store.range(Range::prefix("n/")).await.unwrap().records;
        assert!(found.len() as u64 >= next, "{} of {next} answered writes are there", found.len());
        let last: u64 = String::from_utf8(store.get(&"last".into()).await.unwrap().unwrap().value)
            .unwrap()
            .parse()
            .unwrap();
        assert!(found.iter().any(|kv| kv.key.as_str() == format!("n/{last:06}")), "half a transaction");
        drop(store);
    }
    assert!(next >= 100);
}

#[expect(clippy::disallowed_methods, reason = "this very program, once more")]
fn start_child(test: &str, database: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--ignored"])
        .env(CHILD, database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    /// Runs `work` with a file system of so many KiB of its own, in a mount namespace that ends with its thread.
    fn on_a_small_disk<F: Future<Output = ()>>(size: u32, work: impl FnOnce(PathBuf) -> F + Send + 'static) {
        use nix::mount::{MsFlags, mount};
        let folder = TempDir::new().unwrap();
        let at = folder.path().to_owned();
        let tried = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let options = format!("size={size}k,mode=0700");
            mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(at));
        });
        tried.join().unwrap();
    }

    #[test]
    fn a_full_disk_is_told_loses_nothing_and_is_recovered_from() {
        on_a_small_disk(600, async |at: PathBuf| {
            let store = Sqlite::open(at.join("state.db")).unwrap();
            let mut stored = 0;
            let error = loop {
                match store.txn(put(&format!("k/{stored:03}"), vec![1; 20_000])).await {
                    Ok(_) => stored += 1,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
            assert!(stored > 3);
            assert_eq!(store.status().await.unwrap().revision, Revision(stored), "what failed left no trace");
            for n in 0..stored {
                let kv = store.get(&format!("k/{n:03}").into()).await.unwrap().unwrap();
                assert_eq!(kv.value, vec![1; 20_000]);
            }
            let again = store.txn(put("k/again", vec![1; 20_000])).await;
            assert!(matches!(again, Err(Error::NoSpace { .. })), "{again:?}");
            let more = nix::mount::MsFlags::MS_REMOUNT;
            nix::mount::mount(None::<&str>, &at, None::<&str>, more, Some("size=4m")).unwrap();
            let outcome = store.txn(put("k/again", vec![1; 20_000])).await.unwrap();
            assert_eq!(
                outcome.revision,
                Revision(stored + 1),
                "the next call works as soon as there is room"
            );
            drop(store);
            let store = Sqlite::open(at.join("state.db")).unwrap();
            assert_eq!(store.status().await.unwrap().records, stored + 1);
        });
    }

    #[test]
    fn a_transaction_that_does_not_fit_takes_no_other_with_it() {
        on_a_small_disk(600, async |at: PathBuf| {
            let store = Sqlite::open(at.join("state.db")).unwrap();
            let small = (0..10).map(|n| store.txn(put(&format!("small/{n}"), "1")));
            let big = store.txn(put("big", vec![1; 700_000]));
            let (big, small) = futures::join!(big, futures::future::join_all(small));
            assert!(matches!(big, Err(Error::NoSpace { .. })), "{big:?}");
            assert_eq!(small.into_iter().filter(|stored| stored.is_ok()).count(), 10);
            assert_eq!(store.status().await.unwrap().records, 10);
        });
    }
}
