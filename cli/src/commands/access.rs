//! `holdfast access …`

mod given;

use std::time::Duration;

use holdfast_common::clock::span;
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;
use serde_json::{Value, json};

use super::{Session, next_page, wire_duration};
use crate::args::{Access, AccessMode, Entries};
use crate::client::request_id;
use crate::error::Error;
use crate::output::{self, bytes, counted, json as shown, or_dash, plain};

/// So many entries are shown to a person; programs get all.
const MAX_SHOWN: usize = 1000;
const MISSING: &str = "give addresses or networks, or --file FILE";

pub(super) async fn run(session: &mut Session, command: Access) -> Result<(), Error> {
    match command {
        Access::Show { cluster, trial } => show(session, cluster, trial).await,
        Access::Set { cluster, mode, entries, log_refused, confirm_within, plan } => {
            let (entries, places) = given::read(entries)?;
            let mode = mode.unwrap_or(AccessMode::Restricted);
            if mode != AccessMode::Restricted && !entries.is_empty() {
                return Err(Error::Usage(format!("`{}` takes no addresses", mode.name())));
            }
            if mode == AccessMode::Restricted {
                places.check_some(
                    "give addresses or networks, --file FILE, --mode closed or --mode open",
                    ", or let nobody in with --mode closed",
                )?;
            }
            let request = v1::SetAccessRequest {
                cluster,
                mode: mode.to_wire().into(),
                entries,
                log_refused,
                confirm_within: confirm_within.map(wire_duration),
                request_id: request_id(),
                validate_only: plan.plan,
            };
            let answer = session.client().await?.set_access(request).await;
            let answer = answer.map_err(|error| places.located(error))?;
            changed(session, answer.change, plan.plan, confirm_within)
        }
        Access::Add { cluster, entries, confirm_within, plan } => {
            let (entries, places) = given::read(entries)?;
            places.check_some(MISSING, "")?;
            let request = v1::AddAccessEntriesRequest {
                cluster,
                entries,
                confirm_within: confirm_within.map(wire_duration),
                request_id: request_id(),
                validate_only: plan.plan,
            };
            let answer = session.client().await?.add_access_entries(request).await;
            let answer = answer.map_err(|error| places.located(error))?;
            changed(session, answer.change, plan.plan, confirm_within)
        }
        Access::Remove { cluster, cidrs, file, confirm_within, plan } => {
            let (entries, places) = given::read(Entries { cidrs, file, comment: String::new() })?;
            places.check_some(MISSING, "")?;
            let request = v1::RemoveAccessEntriesRequest {
                cluster,
                cidrs: entries.into_iter().map(|entry| entry.cidr).collect(),
                confirm_within: confirm_within.map(wire_duration),
                request_id: request_id(),
                validate_only: plan.plan,
            };
            let answer = session.client().await?.remove_access_entries(request).await;
            let answer = answer.map_err(|error| places.located(error))?;
            changed(session, answer.change, plan.plan, confirm_within)
        }
        Access::Confirm { cluster, trial, revert } => {
            let request =
                v1::ConfirmAccessRequest { cluster, trial_id: trial, revert, request_id: request_id() };
            let answer = session.client().await?.confirm_access(request).await?;
            changed(session, answer.change, false, None)
        }
    }
}

async fn show(session: &mut Session, cluster: String, trial: bool) -> Result<(), Error> {
    let client = session.client().await?;
    let mut entries = Vec::new();
    let mut access = None;
    let mut page = Some(String::new());
    while let Some(page_token) = page {
        let request = v1::GetAccessRequest { cluster: cluster.clone(), page_size: 1000, page_token, trial };
        let answer = client.get_access(request).await?;
        entries.extend(answer.entries);
        access = answer.access.or(access);
        let enough = entries.len() >= MAX_SHOWN && !session.out.is_json();
        page = next_page(answer.next_page_token).filter(|_| !enough);
    }
    let access = access.ok_or(Error::Incomplete("access"))?;
    if session.out.is_json() {
        let list: Vec<Value> =
            entries.iter().map(|entry| json!({"cidr": entry.cidr, "comment": entry.comment})).collect();
        let mut all = shown::access(&access);
        all["entries"] = list.into();
        return Ok(session.out.json(&all)?);
    }
    stands(session, &access)?;
    if entries.is_empty() {
        return Ok(());
    }
    session.out.line("")?;
    let total = entries.len();
    let rows = entries.into_iter().map(|entry| vec![entry.cidr, or_dash(Some(entry.comment))]);
    session.out.table(&["NETWORK", "COMMENT"], rows.collect())?;
    let known = access.entry_count.max(access.trial.as_ref().map_or(0, |trial| trial.entry_count));
    if usize::try_from(known).is_ok_and(|known| total >= MAX_SHOWN && known > total) {
        session.out.line("… the list is longer; see all of it with --output json")?;
    }
    Ok(())
}

/// The rules without their entries, and how they stand on each member.
fn stands(session: &mut Session, access: &v1::Access) -> Result<(), Error> {
    let who = |mode: v1::AccessMode, entries: u32| match mode {
        v1::AccessMode::Restricted => {
            format!("restricted to {}", counted(entries, "entry", "entries"))
        }
        v1::AccessMode::Open if entries > 0 => {
            format!("open to everybody ({} kept for later)", counted(entries, "entry", "entries"))
        }
        v1::AccessMode::Open => "open to everybody".to_owned(),
        v1::AccessMode::Closed | v1::AccessMode::Unspecified => {
            "closed to all but the members and the coordinator".to_owned()
        }
    };
    let mut facts = vec![
        ("cluster", access.cluster.clone()),
        ("access", who(access.mode(), access.entry_count)),
        ("refused packets", if access.log_refused { "some are logged" } else { "are not logged" }.to_owned()),
    ];
    if let Some(trial) = &access.trial {
        let end = output::distance(session.out.now, trial.end_time.as_ref());
        facts.push(("on trial", format!("{}, for {end} yet", who(trial.mode(), trial.entry_count))));
        facts.push(("confirm with", format!("holdfast access confirm {}", access.cluster)));
    }
    session.out.facts(&facts)?;
    session.out.line("")?;
    let rows = access.members.iter().map(|member| {
        let traffic = |traffic: &Option<nouns::Traffic>| match traffic {
            Some(traffic) => format!("{} ({})", traffic.packets, bytes(traffic.bytes)),
            None => "-".to_owned(),
        };
        vec![
            member.node.clone(),
            output::word(member.state().as_str_name(), "ACCESS_STATE_")
                .unwrap_or_else(|| "unknown".to_owned()),
            or_dash(member.trial_left.as_ref().map(|left| format!("{} s", left.seconds))),
            traffic(&member.accepted),
            traffic(&member.refused),
            plain(&member.message),
        ]
    });
    let rows = rows.collect();
    Ok(session.out.table(&["NODE", "RULES", "TRIAL", "LET IN", "REFUSED", "MESSAGE"], rows)?)
}

fn changed(
    session: &mut Session,
    change: Option<v1::AccessChange>,
    plan: bool,
    confirm_within: Option<Duration>,
) -> Result<(), Error> {
    let change = change.ok_or(Error::Incomplete("change"))?;
    let access = change.access.as_ref().ok_or(Error::Incomplete("access"))?;
    if session.out.is_json() {
        return Ok(session.out.json(&json!({
            "plan": plan,
            "access": shown::access(access),
            "networks_added": change.networks_added,
            "networks_removed": change.networks_removed,
            "notes": change.notes,
        }))?);
    }
    let would = if plan { "Would let in" } else { "Lets in" };
    session.out.line(format!(
        "{would} {} more and {} fewer.",
        counted(change.networks_added, "network", "networks"),
        change.networks_removed
    ))?;
    for note in &change.notes {
        session.out.line(format!("Note: {}", plain(note)))?;
    }
    if let (false, Some(within)) = (plan, confirm_within) {
        session.out.line(format!(
            "On trial: unless `holdfast access confirm {}` follows within {}, every node goes back by itself.",
            access.cluster,
            span(within)
        ))?;
    }
    if plan {
        Ok(())
    } else {
        Ok(session.out.line(format!("See it with: holdfast access show {}", access.cluster))?)
    }
}

// === impl AccessMode ===

impl AccessMode {
    fn to_wire(self) -> v1::AccessMode {
        match self {
            Self::Closed => v1::AccessMode::Closed,
            Self::Restricted => v1::AccessMode::Restricted,
            Self::Open => v1::AccessMode::Open,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Restricted => "restricted",
            Self::Open => "open",
        }
    }
}
