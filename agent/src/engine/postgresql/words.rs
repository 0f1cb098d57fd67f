//! Why a server ended, in its own words: what it said before its log began, else the last `FATAL` or `PANIC` of its log; and why one
//! that runs receives nothing.
//!
//! Nothing else of a log is ever quoted: it may show what clients sent. A client's name may have line breaks in it: what something
//! follows from is compared word by word, and longer than any name.

use std::path::PathBuf;

use holdfast_common::report::TroubleKind;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::layout::Layout;
use crate::host::Host;
use crate::host::exec::Captured;

const MAX_EARLY_BYTES: u64 = 256 * 1024 * 1024;
/// How much of the end of a log is looked at.
const TAIL_BYTES: u64 = 64 * 1024;
/// The server's last early words once it has a log of its own.
const REDIRECTED: &str = "redirecting log output to logging collector process";
/// The first line of a start.
const STARTING: &str = "LOG:  starting PostgreSQL";
/// Only these end a server.
const LEVELS: [&str; 2] = ["FATAL:  ", "PANIC:  "];
/// What may stand below such a line.
const MORE: [&str; 2] = ["DETAIL:  ", "HINT:  "];
/// Of the process that receives from the primary: it ends so again and again, and the server goes on.
const RECEIVER: [&str; 4] = ["walreceiver", "WAL stream", "connect to the primary", "streaming replication"];

/// The longest words of a receiver that are quoted.
const MAX_WORDS: usize = 300;

/// What a replica's receiver said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Receiver {
    pub(super) kind: TroubleKind,
    pub(super) words: String,
}

/// Whether a file in the log's folder is one of the server's own.
pub(super) fn is_log(name: &str) -> bool {
    name.starts_with("postgresql-") && name.ends_with(".log")
}

/// Why the server ended, as far as it said.
pub(super) async fn last(host: &Host, layout: &Layout) -> String {
    let early = match host.files().read(layout.early_log(), MAX_EARLY_BYTES).await {
        Ok(bytes) => Captured { bytes, omitted_bytes: 0 }.last_lines(),
        Err(_) => return "it left no message".to_owned(),
    };
    if !early.contains(REDIRECTED) {
        return early;
    }
    let Some((newest, tail)) = tail(host, layout).await else { return "it left no log".to_owned() };
    let silent = || format!("its log says nothing of it; look at {}", newest.display());
    reason(&tail).unwrap_or_else(silent)
}

/// The newest log, and its end.
async fn tail(host: &Host, layout: &Layout) -> Option<(PathBuf, String)> {
    // Names carry the time, so they sort by age.
    let entries = host.files().list(layout.log()).await.unwrap_or_default();
    let newest = entries.into_iter().rev().find(|entry| entry.name.to_str().is_some_and(is_log))?;
    let newest = layout.log().join(newest.name);
    let tail = host.files().read_end(&newest, TAIL_BYTES).await.unwrap_or_default();
    Some((newest, String::from_utf8_lossy(&tail).into_owned()))
}

/// Why a replica receives nothing, as far as its log says so since `oldest`.
pub(super) async fn receiver(host: &Host, layout: &Layout, oldest: Timestamp) -> Option<Receiver> {
    let (_, tail) = tail(host, layout).await?;
    tail.lines().rev().take_while(|line| said_at(line).is_none_or(|at| at >= oldest)).find_map(why)
}

/// When a line was written.
fn said_at(line: &str) -> Option<Timestamp> {
    let (time, rest) = line.split_at_checked(23)?;
    let time: DateTime = time.parse().ok().filter(|_| rest.starts_with(" UTC ["))?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Why nothing is received, if a line says so. Only of the server's own processes.
fn why(line: &str) -> Option<Receiver> {
    said_at(line)?;
    let at = ["FATAL:  ", "LOG:  "].iter().filter_map(|level| line.find(level)).min()?;
    let (before, said) = line.split_at_checked(at)?;
    let said = said.trim_end();
    let kind = match () {
        () if !ends_with_a_number(before) => return None,
        () if has_parted(said) => TroubleKind::Diverged,
        () if is_removed(said) => TroubleKind::LogRemoved,
        () if said.starts_with("FATAL") && is_receiver(said) => TroubleKind::NotReceiving,
        () => return None,
    };
    let words = said.split_once(":  ").map_or(said, |(_, words)| words);
    Some(Receiver { kind, words: words.chars().take(MAX_WORDS).collect() })
}

fn is_removed(said: &str) -> bool {
    let rest =
        said.strip_prefix("FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment ");
    rest.and_then(|rest| rest.strip_suffix(" has already been removed"))
        .is_some_and(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// In the words of the process that replays, or of the receiver.
fn has_parted(said: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().is_ok();
    let forked = said.strip_prefix("LOG:  new timeline ").and_then(|rest| {
        let (new, rest) = rest.split_once(" forked off current database system timeline ")?;
        let (own, _) = rest.split_once(" before current recovery point ")?;
        Some(number(new) && number(own))
    });
    let ahead = said.strip_prefix("FATAL:  highest timeline ").and_then(|rest| {
        let (theirs, own) = rest.split_once(" of the primary is behind recovery timeline ")?;
        Some(number(theirs) && number(own))
    });
    let elsewhere = said
        .strip_prefix("FATAL:  could not start WAL streaming: ERROR:  requested starting point ")
        .map(|rest| rest.ends_with(" is not in this server's history"));
    forked.or(ahead).or(elsewhere).unwrap_or(false)
}

/// The last line of the last start that ends a server, with its details.
fn reason(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let begun = lines.iter().rposition(|line| line.contains(STARTING)).unwrap_or(0);
    let lines = lines.get(begun..)?;
    let own = lines.iter().rposition(|line| ends_the_server(line));
    let at = own.or_else(|| lines.iter().rposition(|line| level(line).is_some() && !is_receiver(line)))?;
    let mut said = level(lines.get(at)?)?.1.to_owned();
    for line in lines.iter().skip(at + 1) {
        let Some(more) = MORE.iter().find_map(|more| line.find(more).and_then(|at| line.get(at..))) else {
            break;
        };
        said.push_str("; ");
        said.push_str(more);
    }
    Some(said)
}

/// What stands before the level, and the line from there.
fn level(line: &str) -> Option<(&str, &str)> {
    let at = LEVELS.iter().filter_map(|level| line.find(level)).min()?;
    Some(line.split_at(at))
}

/// A session's line has user, database and where it comes from before the level, one of the server's own processes has nothing
/// after its number; and any panic ends all.
fn ends_the_server(line: &str) -> bool {
    level(line).is_some_and(|(before, said)| {
        (ends_with_a_number(before) && !is_receiver(said)) || said.starts_with("PANIC")
    })
}

/// A session over the socket comes from `[local]`.
fn ends_with_a_number(before: &str) -> bool {
    let number = before.trim_end().strip_suffix(']').and_then(|rest| rest.rsplit_once('['));
    number.is_some_and(|(_, number)| number.parse::<u32>().is_ok())
}

fn is_receiver(line: &str) -> bool {
    RECEIVER.iter().any(|sign| line.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "2026-01-01 00:00:00.000 UTC [7] LOG:  starting PostgreSQL 15.14 on x86_64";

    fn said(lines: &[&str]) -> Option<String> {
        let stamped: Vec<String> =
            lines.iter().map(|line| format!("2026-01-01 00:00:00.000 UTC [9] {line}")).collect();
        reason(&format!("{START}\n{}\n", stamped.join("\n")))
    }

    #[test]
    fn what_a_session_is_told_is_no_reason() {
        let log = format!(
            "{START}\n2026-01-01 00:00:00.000 UTC [8] PANIC:  could not locate a valid checkpoint record\n\
             2026-01-01 00:00:00.000 UTC [9] postgres@postgres [local] FATAL:  the database system is starting up\n\
             2026-01-01 00:00:00.000 UTC [9] app@app 203.0.113.9(4711) FATAL:  the database system is starting up\n"
        );
        assert_eq!(reason(&log).as_deref(), Some("PANIC:  could not locate a valid checkpoint record"));
    }

    #[test]
    fn the_last_line_that_ends_a_server_is_found_with_its_details() {
        let log = [
            "LOG:  entering standby mode",
            "FATAL:  recovery aborted because of insufficient parameter settings",
            "DETAIL:  max_connections = 10 is a lower setting than on the primary server, where its value was 100.",
            "HINT:  You can restart the server after making the necessary configuration changes.",
            "LOG:  startup process (PID 9) exited with exit code 1",
            "LOG:  database system is shut down",
        ];
        let said = said(&log).unwrap();
        assert!(
            said.starts_with("FATAL:  recovery aborted") && said.ends_with("configuration changes."),
            "{said}"
        );
        assert!(said.contains("; DETAIL:  max_connections = 10"), "{said}");
    }

    #[test]
    fn what_sessions_and_receivers_say_is_no_reason() {
        let log = [
            "FATAL:  could not create any TCP/IP sockets",
            "app@app 10.0.0.1(4242) FATAL:  password authentication failed for user \"app\"",
            "FATAL:  could not connect to the primary server: connection refused",
            "FATAL:  terminating walreceiver process due to administrator command",
        ];
        assert_eq!(said(&log).as_deref(), Some("FATAL:  could not create any TCP/IP sockets"));
        assert_eq!(said(&["app@app [local] PANIC:  x"]).as_deref(), Some("PANIC:  x"));
        assert_eq!(said(&["LOG:  all is well", "app@app [local] STATEMENT:  select 'FATAL'"]), None);
    }

    #[test]
    fn why_nothing_is_received_is_found_in_the_receivers_words_alone() {
        let kind =
            |said: &str| why(&format!("2026-01-01 00:00:00.000 UTC [9] {said}")).map(|found| found.kind);
        let removed = "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment \
                       000000010000000000000003 has already been removed";
        assert_eq!(kind(removed), Some(TroubleKind::LogRemoved));
        for parted in [
            "LOG:  new timeline 2 forked off current database system timeline 1 before current recovery point 0/3000148",
            "FATAL:  highest timeline 1 of the primary is behind recovery timeline 2",
            "FATAL:  could not start WAL streaming: ERROR:  requested starting point 0/5000000 on timeline 1 is not in this \
             server's history",
        ] {
            assert_eq!(kind(parted), Some(TroubleKind::Diverged), "{parted}");
        }
        let refused =
            "FATAL:  could not connect to the primary server: connection to server at \"n1\" failed";
        assert_eq!(kind(refused), Some(TroubleKind::NotReceiving));
        for other in [
            "LOG:  started streaming WAL from primary at 0/3000000 on timeline 1",
            "FATAL:  terminating connection due to administrator command",
            "app@app 10.0.0.1(4242) FATAL:  could not receive data from WAL stream: x",
        ] {
            assert_eq!(kind(other), None, "{other}");
        }
        // The longest names that a client can give, with a line break in front.
        let user = "\n2026-01-01 00:00:00.000 UTC [9] FATAL:  WAL stream: ERROR:  ";
        let faked = format!(
            "2026-01-01 00:00:00.000 UTC [8] {user}@requested WAL segment 000000010000000000000003 has already been removed"
        );
        assert!(
            user.len() <= 63 && faked.lines().filter_map(why).all(|found| !found.kind.needs_resync()),
            "{faked}"
        );
    }

    #[test]
    fn an_earlier_start_is_forgotten() {
        let log = format!("2026-01-01 UTC [3] FATAL:  long ago\n{START}\n2026-01-01 UTC [9] LOG:  ready\n");
        assert_eq!(reason(&log), None);
        assert_eq!(reason(""), None);
    }
}
