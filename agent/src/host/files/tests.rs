use std::os::unix::fs::symlink;

use super::*;
use crate::host::fake::FakeTree;

/// A tree to try, with its root, and a way to plant a link in it.
struct Subject {
    tree: Box<dyn Tree>,
    root: PathBuf,
    plant_link: Box<dyn Fn(&Path)>,
    _folder: Option<tempfile::TempDir>,
}

/// The real disk and the fake: what holds for one holds for the other.
fn subjects() -> Vec<Subject> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let disk = Subject {
        tree: Box::new(Disk::new([root.clone()])),
        root,
        plant_link: Box::new(|path| symlink("/", path).unwrap()),
        _folder: Some(folder),
    };
    let root = PathBuf::from("/var/lib/holdfast");
    let fake = FakeTree::new([root.clone()]);
    let planted = fake.clone();
    let plant_link: Box<dyn Fn(&Path)> = Box::new(move |path| planted.put_link(path));
    vec![disk, Subject { tree: Box::new(fake), root, plant_link, _folder: None }]
}

fn own() -> Owner {
    Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
}

#[test]
fn what_was_written_is_read_back_with_its_mode() {
    for Subject { tree, root, .. } in &subjects() {
        let path = root.join("state.json");
        tree.write(&path, b"one", Access::PUBLIC).unwrap();
        tree.write(&path, b"two", Access::PRIVATE.owned_by(own())).unwrap();
        assert_eq!(tree.read(&path, 3).unwrap(), b"two");
        let stat = tree.stat(&path).unwrap().unwrap();
        assert_eq!(stat, Stat { kind: Kind::File, mode: 0o600, owner: own(), size_bytes: 3 });
        let names: Vec<Entry> = tree.list(root).unwrap();
        assert_eq!(names, [Entry { name: "state.json".into(), kind: Kind::File }], "nothing else is left");
    }
}

#[test]
fn a_read_is_bounded_and_absence_is_told_apart() {
    for Subject { tree, root, .. } in &subjects() {
        let path = root.join("big");
        tree.write(&path, b"12345", Access::PUBLIC).unwrap();
        assert!(matches!(tree.read(&path, 4), Err(Error::TooLarge { limit: 4, .. })));
        assert_eq!(tree.read_end(&path, 4).unwrap(), b"2345");
        assert_eq!(tree.read_end(&path, 400).unwrap(), b"12345");
        assert!(tree.read_end(&root.join("absent"), 4).unwrap_err().is_not_found());
        assert!(matches!(tree.read_end(root, 4), Err(Error::WrongKind { .. })));
        assert!(tree.read(&root.join("absent"), 4).unwrap_err().is_not_found());
        assert!(tree.write(&root.join("no/folder"), b"", Access::PUBLIC).unwrap_err().is_not_found());
        assert_eq!(tree.stat(&root.join("absent")).unwrap(), None);
        assert_eq!(tree.stat(&root.join("absent/deeper")).unwrap(), None);
        assert!(matches!(tree.read(root, 4), Err(Error::WrongKind { .. })));
    }
}

#[test]
fn folders_are_made_with_those_above_them_and_again_without_harm() {
    for Subject { tree, root, .. } in &subjects() {
        let path = root.join("a/b/data");
        tree.create_dir(&path, Access::PRIVATE_DIR).unwrap();
        tree.write(&path.join("file"), b"x", Access::PUBLIC).unwrap();
        tree.create_dir(&path, Access { mode: 0o750, owner: Some(own()) }).unwrap();
        let stat = tree.stat(&path).unwrap().unwrap();
        assert_eq!((stat.kind, stat.mode, stat.owner), (Kind::Directory, 0o750, own()));
        assert_eq!(tree.stat(&root.join("a")).unwrap().unwrap().mode, 0o755);
        assert_eq!(tree.read(&path.join("file"), 1).unwrap(), b"x");
        tree.set_access(&path.join("file"), Access { mode: 0o640, owner: None }).unwrap();
        assert_eq!(tree.stat(&path.join("file")).unwrap().unwrap().mode, 0o640);
    }
}

#[test]
fn nothing_is_changed_outside_of_the_roots() {
    for Subject { tree, root, .. } in &subjects() {
        for path in [Path::new("/etc/holdfast-test"), root.as_path(), root.parent().unwrap()] {
            let refused = tree.write(path, b"x", Access::PUBLIC).unwrap_err();
            assert!(matches!(refused, Error::Outside { .. }), "{refused}");
            assert!(matches!(tree.remove_tree(path), Err(Error::Outside { .. })));
        }
        for crooked in [root.join("../x"), root.join("a/./b"), PathBuf::from("relative")] {
            assert!(
                matches!(tree.write(&crooked, b"x", Access::PUBLIC), Err(Error::Path { .. })),
                "{crooked:?}"
            );
        }
        let inside = root.join("inside");
        tree.write(&inside, b"x", Access::PUBLIC).unwrap();
        assert!(matches!(tree.rename(&inside, Path::new("/etc/holdfast-test")), Err(Error::Outside { .. })));
    }
}

#[test]
fn no_symbolic_link_is_followed_below_a_root() {
    for Subject { tree, root, plant_link, .. } in &subjects() {
        plant_link(&root.join("link"));
        let through = root.join("link/tmp/holdfast-test");
        let refusals = [
            tree.write(&through, b"x", Access::PUBLIC).unwrap_err(),
            tree.write(&root.join("link"), b"x", Access::PUBLIC).unwrap_err(),
            tree.read(&through, 1).unwrap_err(),
            tree.create_dir(&through, Access::PUBLIC_DIR).unwrap_err(),
            tree.create_dir(&root.join("link"), Access::PUBLIC_DIR).unwrap_err(),
            tree.set_access(&root.join("link"), Access::PUBLIC_DIR).unwrap_err(),
            tree.remove_tree(&root.join("link")).unwrap_err(),
            tree.remove_tree(&root.join("link/tmp")).unwrap_err(),
            tree.remove_file(&through).unwrap_err(),
            tree.list(&root.join("link")).unwrap_err(),
            tree.stat(&through).unwrap_err(),
        ];
        for refused in refusals {
            assert!(
                matches!(&refused, Error::SymbolicLink { link, .. } if *link == root.join("link")),
                "{refused:?}"
            );
        }
        assert_eq!(tree.stat(&root.join("link")).unwrap().unwrap().kind, Kind::SymbolicLink);
        assert_eq!(tree.remove_file(&root.join("link")).unwrap(), Removed::Now);
    }
}

#[test]
fn removing_takes_everything_below_and_can_be_repeated() {
    for Subject { tree, root, plant_link, .. } in &subjects() {
        let data = root.join("data");
        tree.create_dir(&data.join("base/1"), Access::PRIVATE_DIR).unwrap();
        tree.write(&data.join("base/1/file"), b"x", Access::PRIVATE).unwrap();
        plant_link(&data.join("base/link"));
        tree.write(&root.join("data-of-another"), b"x", Access::PRIVATE).unwrap();
        assert!(matches!(tree.remove_file(&data), Err(Error::WrongKind { .. })));
        assert_eq!(tree.remove_tree(&data).unwrap(), Removed::Now);
        assert_eq!(tree.stat(&data).unwrap(), None);
        assert_eq!(tree.remove_tree(&data).unwrap(), Removed::WasAbsent);
        assert_eq!(tree.remove_tree(&data.join("deeper")).unwrap(), Removed::WasAbsent);
        assert_eq!(tree.remove_file(&root.join("data-of-another")).unwrap(), Removed::Now);
        assert_eq!(tree.remove_file(&root.join("data-of-another")).unwrap(), Removed::WasAbsent);
    }
}

#[test]
fn a_folder_is_moved_with_what_is_in_it() {
    for Subject { tree, root, .. } in &subjects() {
        tree.create_dir(&root.join("old/in"), Access::PRIVATE_DIR).unwrap();
        tree.write(&root.join("old/in/file"), b"x", Access::PRIVATE).unwrap();
        tree.rename(&root.join("old"), &root.join("new")).unwrap();
        assert_eq!(tree.read(&root.join("new/in/file"), 1).unwrap(), b"x");
        assert_eq!(tree.stat(&root.join("old")).unwrap(), None);
        assert!(tree.rename(&root.join("old"), &root.join("new2")).unwrap_err().is_not_found());
        tree.create_dir(&root.join("third"), Access::PRIVATE_DIR).unwrap();
        assert!(matches!(tree.rename(&root.join("third"), &root.join("new")), Err(Error::Io { .. })));
    }
}

#[test]
fn room_is_measured_where_a_path_will_be() {
    for Subject { tree, root, .. } in &subjects() {
        let space = tree.space(&root.join("not/yet/there")).unwrap();
        assert!(space.total_bytes >= space.available_bytes && space.available_bytes > 0);
    }
}

#[test]
fn what_is_below_a_folder_is_written_to_the_disk() {
    for Subject { tree, root, .. } in &subjects() {
        tree.write(&root.join("file"), b"x", Access::PRIVATE).unwrap();
        tree.sync_all(root).unwrap();
        assert!(tree.sync_all(&root.join("none")).unwrap_err().is_not_found());
        assert!(matches!(tree.sync_all(&root.join("file")), Err(Error::Io { .. })));
    }
}

#[test]
fn a_temporary_file_left_by_a_crash_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    std::fs::write(root.join(".state.new"), "half").unwrap();
    Disk::new([root.clone()]).write(&root.join("state"), b"whole", Access::PRIVATE).unwrap();
    assert_eq!(std::fs::read(root.join("state")).unwrap(), b"whole");
    assert!(!root.join(".state.new").exists());
}

#[test]
fn a_pipe_in_the_place_of_a_file_does_not_hang_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = Disk::new([root.clone()]).read(&root.join("pipe"), 10).unwrap_err();
    assert!(matches!(refused, Error::WrongKind { .. }), "{refused}");
}

#[test]
fn a_tree_with_something_mounted_in_it_is_left_whole() {
    let fake = FakeTree::new([PathBuf::from("/data")]);
    fake.put("/data/cluster/file", "x");
    fake.mount("/data/cluster/wal");
    let refused = fake.remove_tree(Path::new("/data/cluster")).unwrap_err();
    assert!(matches!(&refused, Error::Mounted { mount, .. } if mount == Path::new("/data/cluster/wal")));
    assert!(fake.contents("/data/cluster/file").is_some());
}

#[test]
fn the_fake_fails_when_told_and_only_then() {
    let fake = FakeTree::new([PathBuf::from("/data")]);
    let path = Path::new("/data/file");
    fake.fail_next(Deed::Write, path, io::ErrorKind::StorageFull);
    assert!(fake.write(path, b"x", Access::PUBLIC).unwrap_err().is_full());
    assert_eq!(fake.contents(path), None);
    fake.write(path, b"x", Access::PUBLIC).unwrap();
}

#[test]
fn a_folder_that_everybody_writes_to_is_not_taken_for_ones_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let refused = Disk::new([root.clone()]).create_dir(&root, Access::PRIVATE_DIR).unwrap_err();
    assert!(matches!(refused, Error::Shared { .. }), "{refused:?}");
    assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o1777);
}

/// Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    /// Bind mounts share the device number, so only the mount table tells.
    #[test]
    fn a_bind_mount_below_a_tree_is_not_crossed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (inner, precious) = (root.join("cluster/bound"), root.join("precious"));
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("file"), "x").unwrap();
        // Namespaces belong to threads: this one's ends with it.
        let tried = std::thread::spawn(move || {
            use nix::mount::{MsFlags, mount};
            let none = None::<&str>;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&precious), &inner, none, MsFlags::MS_BIND, none).unwrap();
            let refused = Disk::new([root.clone()]).remove_tree(&root.join("cluster"));
            (refused, precious.join("file").exists())
        });
        let (refused, kept) = tried.join().unwrap();
        // /proc/self is the whole process, whose other threads do not see the mount: then the kernel's EBUSY or the
        // device number refuses; here both are the same, so the table of the thread must be read.
        assert!(matches!(refused, Err(Error::Mounted { .. })), "{refused:?}");
        assert!(kept);
    }
}

/// What a power cut may take back is what was not synced: contents before the name by which they are found, names at once.
#[test]
fn whatever_is_changed_is_on_the_disk_before_the_next_step() {
    use super::disk::sync::seen::{Synced, take};

    let held = tempfile::tempdir().unwrap();
    let root = held.path().canonicalize().unwrap();
    let disk = Disk::new([root.clone()]);
    let file = |name: &str, mode, bytes| Synced::File { path: root.join(name), mode, bytes };
    let folder = |name: &str, names: &[&str]| Synced::Folder {
        path: root.join(name).components().collect(),
        names: names.iter().map(ToString::to_string).collect(),
    };
    let _before = take();

    disk.create_dir(&root.join("a/b"), Access::PRIVATE_DIR).unwrap();
    assert_eq!(take(), [folder("", &["a"]), folder("a", &["b"])]);
    disk.write(&root.join("a/m"), b"one", Access { mode: 0o640, owner: None }).unwrap();
    assert_eq!(take(), [file("a/.m.new", 0o640, 3), folder("a", &["b", "m"])]);
    disk.copy(&root.join("a/m"), &root.join("a/b/n"), Access { mode: 0o640, owner: None }).unwrap();
    assert_eq!(take(), [file("a/b/n", 0o640, 3), folder("a/b", &["n"])]);
    disk.rename(&root.join("a/b"), &root.join("c")).unwrap();
    assert_eq!(take(), [folder("", &["a", "c"]), folder("a", &["m"])]);
    disk.remove_file(&root.join("a/m")).unwrap();
    assert_eq!(take(), [folder("a", &[])]);
    disk.remove_tree(&root.join("c")).unwrap();
    assert_eq!(take(), [folder("", &["a"])]);
}
