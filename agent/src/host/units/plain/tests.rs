use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// Set for the copy of this test program that starts a service and is then killed.
const FOLDER_VARIABLE: &str = "HOLDFAST_TEST_FOLDER";

fn service(folder: &Path, script: &str) -> Service {
    Service {
        name: name(),
        description: "a test".to_owned(),
        program: PathBuf::from("/bin/sh"),
        args: vec!["-c".into(), script.into()],
        variables: Vec::new(),
        owner: None,
        directory: folder.to_owned(),
        log: folder.join("service.log"),
        shutdown: gently(),
    }
}

fn name() -> ServiceName {
    ServiceName::new("holdfast-test").unwrap()
}

fn gently() -> Stop {
    Stop { signal: Signal::Terminate, deadline: PATIENCE }
}

async fn wait_for<T>(mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let met = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            if let Some(met) = condition().await {
                return met;
            }
        }
    };
    tokio::time::timeout(PATIENCE, met).await.expect("the condition was not met in time")
}

async fn wait_for_file(path: &Path) -> String {
    wait_for(async || std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n')))
        .await
        .trim()
        .to_owned()
}

async fn running_pid(units: &Plain) -> u32 {
    match units.status(&name()).await {
        Status::Running { pid, .. } => pid,
        other => panic!("it does not run: {other:?}"),
    }
}

fn alive(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

fn change_record(folder: &Path, change: impl FnOnce(&mut Record)) {
    let path = folder.join("units/holdfast-test.json");
    let mut record: Record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

fn open(folder: &Path) -> Plain {
    Plain::open(&folder.join("units")).unwrap()
}

#[tokio::test]
async fn a_new_supervisor_finds_what_an_earlier_one_started() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    assert_eq!(units.status(&name()).await, Status::NotFound);
    let service = service(folder.path(), "exec sleep 1000");
    assert_eq!(units.start(&service).await.unwrap(), Started::Now);
    let pid = running_pid(&units).await;
    drop(units);
    let later = open(folder.path());
    assert_eq!(running_pid(&later).await, pid);
    assert_eq!(later.start(&service).await.unwrap(), Started::Already);
    assert!(matches!(later.forget(&name()).await, Err(Error::StillRunning { .. })));
    assert_eq!(later.stop(&name(), gently()).await.unwrap(), Stopped::Gently);
    assert_eq!(later.status(&name()).await, Status::Exited);
    assert_eq!(later.stop(&name(), gently()).await.unwrap(), Stopped::Already);
    assert!(matches!(later.signal(&name(), Signal::Hangup).await, Err(Error::NotRunning { .. })));
    later.forget(&name()).await.unwrap();
    assert_eq!(later.status(&name()).await, Status::NotFound);
}

/// Not a test of its own: what the next test kills.
#[tokio::test]
#[ignore = "run by the test that kills it"]
async fn starter_that_is_killed() {
    let folder = PathBuf::from(std::env::var(FOLDER_VARIABLE).unwrap());
    let script = "echo $$ > pid; exec sleep 1000";
    open(&folder).start(&service(&folder, script)).await.unwrap();
    std::fs::write(folder.join("started"), "yes\n").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_service_survives_the_kill_of_its_starter() {
    let folder = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a second agent, to be killed")]
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "host::units::plain::tests::starter_that_is_killed", "--ignored"])
        .env(FOLDER_VARIABLE, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_file(&folder.path().join("started")).await;
    let pid: u32 = wait_for_file(&folder.path().join("pid")).await.parse().unwrap();
    starter.kill().unwrap();
    starter.wait().unwrap();
    let units = open(folder.path());
    assert_eq!(running_pid(&units).await, pid);
    assert_eq!(units.stop(&name(), gently()).await.unwrap(), Stopped::Gently);
    assert!(!alive(pid.cast_signed()));
}

#[tokio::test]
async fn a_process_whose_start_was_not_recorded_is_found_by_its_mark() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    units.start(&service(folder.path(), "echo ready > ready; exec sleep 1000")).await.unwrap();
    wait_for_file(&folder.path().join("ready")).await;
    let pid = running_pid(&units).await;
    change_record(folder.path(), |record| record.state = State::Starting);
    let later = open(folder.path());
    assert_eq!(running_pid(&later).await, pid);
    assert_eq!(later.stop(&name(), gently()).await.unwrap(), Stopped::Gently);
}

#[tokio::test]
async fn a_record_that_names_another_process_is_not_taken_for_ours() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    units.start(&service(folder.path(), "exit 0")).await.unwrap();
    wait_for(async || (units.status(&name()).await == Status::Exited).then_some(())).await;
    // Our own pid with another start: as if the number had been given away again.
    let mut own = process::identity(std::process::id()).unwrap().unwrap();
    let text = serde_json::to_string(&own).unwrap();
    let ticks: u64 =
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["start_ticks"].as_u64().unwrap();
    own = serde_json::from_str(&text.replace(&ticks.to_string(), &(ticks - 1).to_string())).unwrap();
    let state = State::Started { process: own, asked_to_stop: false };
    change_record(folder.path(), |record| record.state = state);
    assert_eq!(units.status(&name()).await, Status::Failed { ending: Ending::Unseen });
    // Were it taken for ours, this would end the test itself.
    assert_eq!(units.stop(&name(), gently()).await.unwrap(), Stopped::Already);
}

#[tokio::test]
async fn how_it_ended_is_told_and_kept() {
    for (script, expected) in [
        ("exit 0", Status::Exited),
        ("exit 3", Status::Failed { ending: Ending::Code(3) }),
        ("kill -KILL $$", Status::Failed { ending: Ending::Signal(9) }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let units = open(folder.path());
        units.start(&service(folder.path(), script)).await.unwrap();
        let ended =
            wait_for(async || Some(units.status(&name()).await).filter(|status| !status.is_running())).await;
        assert_eq!(ended, expected);
        assert_eq!(open(folder.path()).status(&name()).await, expected, "also for the next agent");
    }
}

#[tokio::test]
async fn a_stubborn_service_is_killed_with_children_of_other_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.05; done' & \
                  while :; do sleep 0.05; done";
    units.start(&service(folder.path(), script)).await.unwrap();
    let child: i32 = wait_for_file(&folder.path().join("child")).await.parse().unwrap();
    let how = Stop { signal: Signal::Terminate, deadline: Duration::from_millis(200) };
    assert_eq!(units.stop(&name(), how).await.unwrap(), Stopped::Killed);
    assert!(!alive(child));
    assert_eq!(units.status(&name()).await, Status::Exited);
}

#[tokio::test]
async fn stopping_waits_for_the_children_that_the_main_process_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    let script =
        "setsid sh -c 'echo $$ > child; exec sleep 1000' & trap 'exit 0' TERM; while :; do sleep 0.05; done";
    units.start(&service(folder.path(), script)).await.unwrap();
    let child: i32 = wait_for_file(&folder.path().join("child")).await.parse().unwrap();
    let how = Stop { signal: Signal::Terminate, deadline: Duration::from_millis(500) };
    assert_eq!(units.stop(&name(), how).await.unwrap(), Stopped::Killed);
    assert!(!alive(child));
}

#[tokio::test]
async fn the_chosen_signal_reaches_the_main_process() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    let script = "trap 'echo hup > got' HUP; trap 'echo int > got; exit 0' INT; echo ready > ready; \
                  while :; do sleep 0.05; done";
    units.start(&service(folder.path(), script)).await.unwrap();
    wait_for_file(&folder.path().join("ready")).await;
    units.signal(&name(), Signal::Hangup).await.unwrap();
    assert_eq!(wait_for_file(&folder.path().join("got")).await, "hup");
    let how = Stop { signal: Signal::Interrupt, deadline: PATIENCE };
    assert_eq!(units.stop(&name(), how).await.unwrap(), Stopped::Gently);
    assert_eq!(wait_for_file(&folder.path().join("got")).await, "int");
}

#[tokio::test]
async fn after_a_restart_of_the_machine_nothing_is_taken_for_ours() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    units.start(&service(folder.path(), "exec sleep 1000")).await.unwrap();
    let ours = running_pid(&units).await;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    change_record(folder.path(), |record| record.boot = "another".to_owned());
    // The agent was restarted too, and remembers nothing.
    assert_eq!(open(folder.path()).status(&name()).await, Status::Exited);
    change_record(folder.path(), |record| record.boot = boot);
    let units = open(folder.path());
    assert_eq!(running_pid(&units).await, ours);
    units.stop(&name(), gently()).await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_unknown_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    std::fs::write(folder.path().join("units/holdfast-test.json"), "{").unwrap();
    assert!(matches!(units.status(&name()).await, Status::Unknown { .. }));
    let refused = units.start(&service(folder.path(), "echo started > started")).await;
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    assert!(!folder.path().join("started").exists());
}

#[tokio::test]
async fn a_program_that_is_not_there_cannot_be_started() {
    let folder = tempfile::tempdir().unwrap();
    let units = open(folder.path());
    let missing = Service { program: PathBuf::from("/no/such/program"), ..service(folder.path(), "") };
    assert!(matches!(units.start(&missing).await, Err(Error::Io { .. })));
    assert_eq!(units.status(&name()).await, Status::NotFound);
}

#[test]
fn names_are_checked() {
    for good in ["a", "holdfast-postgresql-shop", "x9"] {
        assert_eq!(ServiceName::new(good).unwrap().as_str(), good);
    }
    for bad in ["", "-a", "a-", "A", "a/b", "a.service", "ä", &"a".repeat(97)] {
        assert!(matches!(ServiceName::new(bad), Err(Error::Name(_))), "{bad:?}");
    }
}
