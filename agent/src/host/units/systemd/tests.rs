use std::path::PathBuf;

use super::*;
use crate::host::system::Owner;

fn service() -> Service {
    Service {
        name: ServiceName::new("holdfast-postgresql-shop").unwrap(),
        description: "PostgreSQL of cluster shop (Holdfast)".to_owned(),
        program: PathBuf::from("/usr/lib/postgresql/15/bin/postgres"),
        args: vec!["-D".into(), "/var/lib/holdfast/shop/data".into()],
        variables: vec![("PG_OOM_ADJUST_FILE".to_owned(), "/proc/self/oom_score_adj".to_owned())],
        owner: Some(Owner { uid: 105, gid: 113 }),
        directory: PathBuf::from("/"),
        log: PathBuf::from("/var/log/holdfast/shop.log"),
        shutdown: Stop { signal: Signal::Interrupt, deadline: Duration::from_secs(120) },
    }
}

fn unit(active: &str, main_pid: u32, code: i32, status: i32) -> Unit {
    Unit { active: active.to_owned(), main_pid, started_micros: 1_700_000_000_000_000, code, status }
}

#[test]
fn the_transient_unit_is_this_one() {
    let text: Vec<String> =
        properties(&service()).iter().map(|(name, value)| format!("{name}={value}")).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn a_unit_without_owner_names_no_user() {
    let properties = properties(&Service { owner: None, ..service() });
    assert!(properties.iter().all(|(name, _)| !matches!(*name, "User" | "Group")));
}

#[test]
fn what_systemd_says_is_not_embellished() {
    let since = Timestamp::from_second(1_700_000_000).unwrap();
    assert_eq!(unit("active", 42, 0, 0).status(), Status::Running { pid: 42, since });
    assert_eq!(unit("deactivating", 42, 0, 0).status(), Status::Running { pid: 42, since });
    assert_eq!(unit("inactive", 0, 1, 0).status(), Status::Exited);
    assert_eq!(unit("failed", 0, 1, 3).status(), Status::Failed { ending: Ending::Code(3) });
    assert_eq!(unit("failed", 0, 2, 9).status(), Status::Failed { ending: Ending::Signal(9) });
    assert!(matches!(unit("activating", 0, 0, 0).status(), Status::Unknown { .. }));
    assert!(matches!(unit("something-new", 0, 0, 0).status(), Status::Unknown { .. }));
}
