//! An agent that ends at any change of a swap: neither the old data nor the new ones are ever lost, and the next goes on. And one whose
//! disk has no room.

use std::sync::atomic::{AtomicU32, Ordering};

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
