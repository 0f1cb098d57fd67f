//! An agent that ends at any change of a swap, or while PostgreSQL's own program is in the middle of a rewind or a copy: neither the old
//! data nor the new ones are ever lost, and the next goes on. And one whose disk has no room.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::*;
use crate::host::exec::Processes;
use crate::host::fake::mortal::{Fate, Mortal};
use crate::host::files::{self, Deed as FileDeed, Disk, Files};
use crate::host::system::Machine as RealMachine;

/// Of an agent that ends before or after its nth change of what a resync is about.
#[derive(Debug)]
struct Cut {
    left: AtomicU32,
    /// What is left of the disk, where it is not asked.
    room: Option<u64>,
}

impl Cut {
    fn step(&self, path: &Path) -> Result<(), files::Error> {
        let counts = ["member.json", "data", "data.new", "data.old"];
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            let source = std::io::Error::other("gone");
            return Err(files::Error::Io { deed: FileDeed::Write, path: path.to_owned(), source });
        }
        if counts.contains(&name) {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Fate for Cut {
    fn before(&self, path: &Path) -> Result<(), files::Error> {
        self.step(path)
    }

    fn after(&self, path: &Path) -> Result<(), files::Error> {
        self.step(path)
    }

    fn room(&self) -> Option<u64> {
        self.room
    }
}

/// The driver of an agent that ends after so many changes.
async fn mortal(node: &TestNode, left: u32) -> Postgresql {
    on_disk(node, left, None).await
}

async fn on_disk(node: &TestNode, left: u32, room: Option<u64>) -> Postgresql {
    let disk = Disk::new([node.home.clone()]);
    let fate = Cut { left: AtomicU32::new(left), room };
    let files = Files::new(Arc::new(Mortal { disk, fate }));
    let units = Supervisor::Plain.open(&node.home.join("units")).await.unwrap();
    let netlink = crate::host::netlink::open();
    let host = Host::from_parts(Arc::new(Processes), files, units, Arc::new(RealMachine), netlink);
    Postgresql::new(
        node.driver.inner.settings.clone(),
        host,
        node.credentials.subscribe(),
        node.room.subscribe(),
    )
}

#[tokio::test]
async fn whoever_is_cut_at_any_step_of_a_swap_is_gone_on_with() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 73).await;
    let Pair { a, b, cluster } = &pair;
    let replica = cluster.replica(&b.bench, &a.bench);
    let request = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Full);
    let mut whole = false;
    for left in 0..40 {
        let command = work_in(1);
        match mortal(b, left).await.resync(&request, &command).await {
            Ok(_) => {
                whole = true;
                break;
            }
            Err(error) => assert!(format!("{error:?}").contains("gone"), "{left}: {error:?}"),
        }
        let kept = ["data", "data.old"].map(|name| beside(b, cluster.id, name).join("PG_VERSION").exists());
        assert!(kept[0] || kept[1], "{left}: neither the old data nor the new ones are there");
        let marker = std::fs::read_to_string(beside(b, cluster.id, "member.json")).unwrap();
        let removal_begun = !beside(b, cluster.id, "data.old").exists();
        assert!(!(marker.contains("proving") && removal_begun), "{left}: it would be gone back to");
        // Now and then by another command.
        let next = if left % 3 == 2 { work_in(1) } else { command };
        let done = b.bench.engine.resync(&request, &next).await;
        assert_eq!(done.map(|done| done.how).ok(), Some(ResyncedBy::Copied), "{left}");
        pair.follows(b, &replica).await;
        for left_over in ["data.new", "data.old"] {
            assert!(!beside(b, cluster.id, left_over).exists(), "{left}: {left_over} is left");
        }
    }
    assert!(whole, "it never came to its end");
    pair.stop().await;
}

/// The driver of an agent on whose machine a program of PostgreSQL is this script, which finds the true one's name in `$real`.
fn with_program(node: &TestNode, name: &str, script: &str) -> Postgresql {
    let own = tempfile::Builder::new().prefix("programs").tempdir_in(&node.home).unwrap().keep();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (programs, all) = (own.join("15/bin"), Path::new(DEBIAN_PROGRAMS).join("15/bin"));
    std::fs::create_dir_all(&programs).unwrap();
    for program in std::fs::read_dir(&all).unwrap().flatten() {
        if program.file_name() != name {
            symlink(program.path(), programs.join(program.file_name())).unwrap();
        }
    }
    let text = format!("#!/bin/sh\nreal={}\n{script}\n", all.join(name).display());
    std::fs::write(programs.join(name), text).unwrap();
    std::fs::set_permissions(programs.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    let settings = Settings { programs: own, ..node.driver.inner.settings.clone() };
    let (credentials, room) = (node.credentials.subscribe(), node.room.subscribe());
    Postgresql::new(settings, node.host.clone(), credentials, room)
}

/// It ends as soon as a file that it writes has 4 MiB: in the middle of a file of the log.
const CUT: &str = "ulimit -c 0\nulimit -f 8192\nexec $real \"$@\"";
/// The same, and then it stays until it is let go, and does not end with its agent: that was killed alone.
const CUT_AND_STAYS: &str = "ulimit -c 0\nulimit -f 8192\nexport real\n\
    setsid sh -c '$real \"$@\"; for i in $(seq 600); do [ -e ../go ] && break; sleep 0.1; done; sleep 0.5' it \"$@\" >/dev/null 2>&1 &\nwait";

fn is_waiting(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

#[tokio::test]
async fn data_that_were_being_rewound_are_never_started_and_copied_by_the_next() {
    let machine = Machine::new();
    let pair = Pair::parted(&machine, 67).await;
    let Pair { a, b, cluster } = &pair;
    let engine = &a.bench.engine;
    let data = a.data(cluster.id);
    let request = cluster.resync(&a.bench, &b.bench, 2, ResyncMode::Auto);
    let command = work_in(2);
    // Killed while pg_rewind was at work, which broke half-way and stays for a while.
    let killed = with_program(a, "pg_rewind", CUT_AND_STAYS);
    let at_work = async {
        while !process::scan(&data).unwrap().into_iter().any(is_waiting) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        seen = timeout(Duration::from_secs(60), at_work) => seen.expect("what is at work on the data is not seen"),
        ended = killed.resync(&request, &command) => panic!("{ended:?}"),
    }
    let observed = engine.observe(cluster.id).await;
    assert!(observed.needs_resync && observed.state == EngineState::Stopped, "{observed:?}");
    assert_eq!(reason(engine.start(&pair.following(2)).await), Reason::MemberNotFound);
    assert_eq!(reason(engine.follow(&pair.following(2)).await), Reason::MemberNotFound);
    assert!(!process::scan(&data).unwrap().is_empty(), "what is still at work is not seen");
    // Nothing is begun before nobody is at work on them, and half rewound data are not rewound.
    std::fs::write(beside(a, cluster.id, "go"), "").unwrap();
    let rewind = cluster.resync(&a.bench, &b.bench, 2, ResyncMode::Rewind);
    assert_eq!(reason(engine.resync(&rewind, &work_in(2)).await), Reason::PreconditionFailed);
    assert!(process::scan(&data).unwrap().is_empty());
    let half = contents(&data.join("pg_wal"));
    assert!(half.values().any(|bytes| bytes.len() == 4 << 20), "nothing was cut: {:?}", half.keys());
    // Nor does a copy that breaks make them better, or worse.
    let broken = with_program(a, "pg_basebackup", CUT);
    assert_eq!(reason(broken.resync(&request, &command).await), Reason::EngineFailed);
    assert!(contents(&data.join("pg_wal")) == half && engine.observe(cluster.id).await.needs_resync);
    assert!(!beside(a, cluster.id, "data.new").exists());

    let resynced = engine.resync(&request, &command).await.unwrap();
    assert_eq!(resynced.how, ResyncedBy::Copied);
    assert!(resynced.set_aside_bytes > 0, "it was set aside before");
    assert_eq!(engine.resync(&request, &command).await.unwrap(), resynced);
    assert!(!engine.observe(cluster.id).await.needs_resync);
    assert_eq!(a.local(cluster.id, "select string_agg(word, ',') from said").await, "kept");
    pair.stop().await;
}

#[tokio::test]
async fn a_disk_without_room_is_told_before_anything_is_touched() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 79).await;
    let Pair { a, b, cluster } = &pair;
    let full =
        |in_place| ResyncMember { in_place, ..cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Full) };
    let before = (inode(&b.data(cluster.id)), b.bench.engine.observe(cluster.id).await.started_at);
    let narrow = on_disk(b, u32::MAX, Some(1 << 20)).await;
    let refused = narrow.resync(&full(false), &work_in(1)).await.unwrap_err();
    assert!(matches!(refused, Error::Unmet { check: "room_for_a_copy", .. }), "{refused}");
    assert!(refused.to_string().contains("--in-place"), "{refused}");
    let after = (inode(&b.data(cluster.id)), b.bench.engine.observe(cluster.id).await.started_at);
    assert_eq!(after, before);
    // One that does not stream may have log of its own, for which there is no room either.
    b.bench.stop(cluster.id).await;
    let refused = narrow.resync(&full(true), &work_in(1)).await.unwrap_err();
    assert!(matches!(refused, Error::Unmet { check: "room_to_set_aside", .. }), "{refused}");
    assert_eq!(inode(&b.data(cluster.id)), before.0);
    pair.follows(b, &cluster.replica(&b.bench, &a.bench)).await;
    // One that streams has none, and is copied in place.
    let done = narrow.resync(&full(true), &work_in(1)).await.unwrap();
    assert_eq!((done.how, done.set_aside_bytes), (ResyncedBy::Copied, 0));
    pair.stop().await;
}
