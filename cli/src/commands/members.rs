//! The members of a cluster, as a table.

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;

use super::budget;
use crate::output::{self, or_dash};

/// Header and rows.
pub(super) fn table(
    cluster: &v1::Cluster,
    wide: bool,
    now: jiff::Timestamp,
) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut header =
        vec!["NODE", "ADDRESS", "ROLE", "STATE", "TERM", "POSITION", "LAG", "LAG TIME", "SYNC", "MESSAGE"];
    if wide {
        header.extend(["VERSION", "SEEN", "NODE ID"]);
    }
    let rows = cluster.members.iter().map(|member| {
        let primary = member.role() == nouns::Role::Primary;
        let mut row = vec![
            member.node.clone(),
            or_dash(Some(member.address.clone())),
            or_dash(output::word(member.role().as_str_name(), "ROLE_")),
            output::word(member.state().as_str_name(), "MEMBER_STATE_")
                .unwrap_or_else(|| "unknown".to_owned()),
            if member.term == 0 { "unknown".to_owned() } else { member.term.to_string() },
            member.position.as_ref().map_or_else(|| "unknown".to_owned(), output::position),
            lag(primary, member.lag_bytes.map(output::bytes)),
            lag(primary, member.lag_seconds.map(|seconds| format!("{seconds:.1} s"))),
            if member.synchronous { "yes" } else { "-" }.to_owned(),
            message(member),
        ];
        if wide {
            row.extend([
                or_dash(Some(member.engine_version.clone())),
                output::distance(now, member.observe_time.as_ref()),
                member.node_id.clone(),
            ]);
        }
        row
    });
    (header, rows.collect())
}

/// A primary is behind nobody; of a replica, what is not known is unknown.
fn lag(primary: bool, known: Option<String>) -> String {
    match known {
        _ if primary => "-".to_owned(),
        Some(lag) => lag,
        None => "unknown".to_owned(),
    }
}

/// What is to be said of a member.
fn message(member: &v1::Member) -> String {
    let said = Some(member.message.clone()).filter(|said| !said.is_empty());
    let resized = member.tuning.as_ref().and_then(budget::resized);
    said.into_iter().chain(builds(member)).chain(resized).collect::<Vec<_>>().join("; ")
}

/// Such as `runs 15.13, 15.14 installed: restart needed`.
fn builds(member: &v1::Member) -> Option<String> {
    let (runs, installed) = (member.server_build.as_str(), member.installed_build.as_str());
    if runs.is_empty() || installed.is_empty() || runs == installed {
        return None;
    }
    let short = |build: &str| build.split_whitespace().next().unwrap_or_default().to_owned();
    // Another build of the same version is told in full.
    let (runs, installed) = match (short(runs), short(installed)) {
        (one, other) if one == other => (runs.to_owned(), installed.to_owned()),
        both => both,
    };
    Some(format!("runs {runs}, {installed} installed: restart needed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_older_than_its_program_is_told() {
        let told = |runs: &str, installed: &str| {
            let (server_build, installed_build) = (runs.to_owned(), installed.to_owned());
            builds(&v1::Member { server_build, installed_build, ..v1::Member::default() }).unwrap_or_default()
        };
        assert_eq!(
            told("15.13 (Debian 15.13-0)", "15.14 (Debian 15.14-0)"),
            "runs 15.13, 15.14 installed: restart needed"
        );
        assert_eq!(
            told("15.14 (Debian 15.14-0)", "15.14 (Debian 15.14-1)"),
            "runs 15.14 (Debian 15.14-0), 15.14 (Debian 15.14-1) installed: restart needed"
        );
        assert_eq!(told("15.14", "15.14"), "");
        assert_eq!(told("", "15.14"), "");
    }
}
