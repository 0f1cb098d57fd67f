use std::sync::{Arc, Mutex};

use super::*;
use crate::host::units::Plain;

async fn run(program: Program) -> Result<Output, Error> {
    Processes.run(program, None, &CancellationToken::new()).await
}

fn shell(script: &str) -> Program {
    Program::new("/bin/sh").arg("-c").arg(script)
}

/// Whether a process runs; a zombie does not.
fn alive(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

async fn wait_until_gone(pid: i32) {
    let gone = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while alive(pid) {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the process is still there");
}

type Lines = Arc<Mutex<Vec<(Stream, String)>>>;

/// A sink, and the lines that it got.
fn recorder() -> (LineSink, Lines) {
    let lines = Lines::default();
    let written = Arc::clone(&lines);
    (Box::new(move |stream, line| written.lock().unwrap().push((stream, line.to_owned()))), lines)
}

#[tokio::test]
async fn arguments_reach_the_program_as_they_are() {
    let output = run(Program::new("echo").arg("$HOME; `ls` *")).await.unwrap();
    assert_eq!(output.stdout.text(), "$HOME; `ls` *\n");
}

#[tokio::test]
async fn the_environment_is_only_what_was_given() {
    let output = run(Program::new("env").variable("PGAPPNAME", "holdfast")).await.unwrap();
    let text = output.stdout.text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "LC_ALL=C",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PGAPPNAME=holdfast"
        ]
    );
}

#[tokio::test]
async fn a_loader_variable_is_refused_by_name() {
    let refused = run(Program::new("true").variable("LD_PRELOAD", "/tmp/x.so")).await.unwrap_err();
    assert!(matches!(&refused, Error::Variable { variable, .. } if variable == "LD_PRELOAD"), "{refused}");
}

#[tokio::test]
async fn a_failure_names_the_program_the_code_and_the_last_words() {
    let failed = run(shell("for n in 1 2 3 4 5 6 7; do echo line $n >&2; done; exit 3")).await.unwrap_err();
    assert_eq!(failed.to_string(), "sh exited with code 3: line 3; line 4; line 5; line 6; line 7");
}

#[tokio::test]
async fn an_accepted_code_is_an_answer() {
    assert_eq!(run(shell("exit 3").accept(3)).await.unwrap().code, 3);
}

#[tokio::test]
async fn a_signal_is_named() {
    let failed = run(shell("kill -SEGV $$")).await.unwrap_err();
    assert!(matches!(failed, Error::Signal { signal: 11, .. }), "{failed}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_missing_and_not_merely_failed() {
    let missing = run(Program::new("holdfast-no-such-program")).await.unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    let other = run(Program::new("true").directory("/no/such/folder")).await.unwrap_err();
    assert!(matches!(other, Error::Start { .. }), "{other}");
}

#[tokio::test]
async fn a_deadline_ends_the_whole_group_even_if_it_ignores_the_gentle_signal() {
    let (sink, lines) = recorder();
    let program =
        shell("trap '' TERM; sh -c 'trap \"\" TERM; while :; do sleep 0.05; done' & echo $!; wait; wait")
            .deadline(Duration::from_millis(300));
    let failed = Processes.run(program, Some(sink), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(failed, Error::Deadline { .. }), "{failed}");
    let grandchild = lines.lock().unwrap()[0].1.parse().unwrap();
    wait_until_gone(grandchild).await;
}

#[tokio::test]
async fn cancelling_ends_the_program() {
    let cancel = CancellationToken::new();
    let (sink, lines) = recorder();
    let program = shell("echo $$; exec sleep 1000");
    let running = Processes.run(program, Some(sink), &cancel);
    let started = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while lines.lock().unwrap().is_empty() {
            ticks.tick().await;
        }
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(running, started);
    assert!(matches!(ended, Err(Error::Cancelled { .. })));
    assert!(!alive(lines.lock().unwrap()[0].1.parse().unwrap()));
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let (sink, lines) = recorder();
    let cancel = CancellationToken::new();
    let mut running = Processes.run(shell("sleep 1000 & echo $!; wait"), Some(sink), &cancel);
    let started = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while lines.lock().unwrap().is_empty() {
            ticks.tick().await;
        }
    };
    tokio::select! {
        ended = &mut running => panic!("it ended: {ended:?}"),
        () = started => {}
    }
    drop(running);
    let child = lines.lock().unwrap()[0].1.parse().unwrap();
    wait_until_gone(child).await;
}

#[tokio::test]
async fn a_daemon_left_behind_does_not_hold_the_caller() {
    let running = run(shell("sleep 30 & echo $!"));
    let output = tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
    let daemon = output.stdout.text().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn progress_lines_end_with_a_carriage_return_too() {
    let (sink, lines) = recorder();
    let program = shell("printf '10%%\\r20%%\\r30%%\\nlast' >&2; echo out");
    Processes.run(program, Some(sink), &CancellationToken::new()).await.unwrap();
    let lines = lines.lock().unwrap();
    let stderr: Vec<&str> = lines.iter().filter(|l| l.0 == Stream::Stderr).map(|l| l.1.as_str()).collect();
    assert_eq!(stderr, ["10%", "20%", "30%", "last"]);
    assert!(lines.contains(&(Stream::Stdout, "out".to_owned())));
}

#[tokio::test]
async fn only_the_end_of_long_output_is_kept() {
    let output = run(Program::new("seq").arg("100000").output_bytes(100)).await.unwrap();
    assert_eq!(output.stdout.bytes.len(), 100);
    assert!(output.stdout.text().ends_with("99999\n100000\n"));
    assert_eq!(output.stdout.omitted_bytes, 588_895 - 100);
}

#[tokio::test]
async fn stdin_reaches_the_program_and_shows_nowhere() {
    let program = Program::new("cat").stdin("the secret").variable("PGPASSWORD", "the secret");
    assert!(!format!("{program:?}").contains("secret"));
    assert_eq!(run(program).await.unwrap().stdout.text(), "the secret");
    // A megabyte into a program that reads nothing must not hang.
    run(Program::new("true").stdin(vec![0; 1 << 20])).await.unwrap();
}

#[test]
fn the_parts_of_the_door_can_cross_threads() {
    fn crosses<T: Send + Sync + 'static>() {}
    crosses::<crate::host::Host>();
    crosses::<Plain>();
}

/// Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn another_user_has_no_group_of_root() {
        let output = run(Program::new("id").owner(Owner { uid: 65534, gid: 65534 })).await.unwrap();
        let text = output.stdout.text();
        assert!(text.contains("uid=65534") && !text.contains("(root)"), "{text}");
    }
}
