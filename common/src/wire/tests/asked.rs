//! Good questions and answers.

use super::samples::{at, budget};
use super::*;

pub(super) fn answers() -> Vec<Result<question::Answer, Failure>> {
    let log = set_aside::Log {
        id: set_aside::Id::new(at(10), 2),
        taken_at: at(10),
        timeline: 2,
        from: 1 << 24,
        to: 3 << 24,
        fork: Some(Position { era: 1, offset: 0x0100_0060 }),
        checkpoint: None,
        bytes: 2 << 24,
        files: 4,
        cut: true,
        keep_until: at(11),
        remove_after: at(12),
    };
    let file = set_aside::File { name: "00000002.history".parse().unwrap(), bytes: 41 };
    vec![
        Ok(set_aside::Answer::Logs(vec![log]).into()),
        Ok(set_aside::Answer::Files(vec![file]).into()),
        Ok(set_aside::Answer::Part(set_aside::Part::new(vec![1, 2, 3])).into()),
        Ok(question::Answer::Upgrades(Upgrades {
            installed_build: "15.14 (Debian 15.14-0+deb12u1)".into(),
            packages: vec![PackageUpgrade {
                name: "postgresql-15".into(),
                installed: "15.14-0+deb12u1".into(),
                offered: "15.15-0+deb12u1".into(),
            }],
            may_install: true,
        })),
        Ok(question::Answer::Retuning(Retuning {
            kept: budget(1),
            possible: budget(2),
            changes: vec![SettingChange { name: "work_mem".into(), from: "1MB".into(), to: "2MB".into() }],
        })),
        Err(Failure::new(Reason::SetAsideNotFound, "gone")),
    ]
}

pub(super) fn questions() -> Vec<FromCoordinator> {
    let id = set_aside::Id::new(at(10), 2);
    let part = set_aside::Question::Part {
        id: id.clone(),
        file: "summary.json".parse().unwrap(),
        offset: 7,
        bytes: set_aside::MAX_PART_BYTES,
    };
    let about = [set_aside::Question::Logs, set_aside::Question::Files { id }, part];
    let others = [question::Question::Upgrades, question::Question::Retuning];
    let about = about.map(question::Question::from).into_iter().chain(others);
    let asked = |about| Question { number: 6, cluster_id: ClusterId::generate(), about };
    about.map(|about| FromCoordinator::Question(Box::new(asked(about)))).collect()
}
