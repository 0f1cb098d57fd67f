//! What it says of access rules: it has one entry, 203.0.113.7, and reads others as a coordinator does.

use std::collections::BTreeMap;

use holdfast_common::access::Cidr;
use holdfast_common::error::{Violation, Violations};
use holdfast_proto::v1::access_service_server as access;

use super::*;

const ENTRY: &str = "203.0.113.7";

#[tonic::async_trait]
impl access::AccessService for Fake {
    async fn get_access(
        &self,
        _: Request<v1::GetAccessRequest>,
    ) -> Result<Response<v1::GetAccessResponse>, Status> {
        let entries = vec![v1::AccessEntry { cidr: ENTRY.into(), comment: "office".into() }];
        let access = Some(rules(1));
        Ok(Response::new(v1::GetAccessResponse { access, entries, next_page_token: String::new() }))
    }

    async fn set_access(
        &self,
        request: Request<v1::SetAccessRequest>,
    ) -> Result<Response<v1::SetAccessResponse>, Status> {
        let cidrs = request.into_inner().entries.into_iter().map(|entry| entry.cidr);
        let added = read(cidrs, |index| format!("entries[{index}].cidr"), |_| None)?;
        Ok(Response::new(v1::SetAccessResponse { change: Some(change(added, 1)) }))
    }

    async fn add_access_entries(
        &self,
        request: Request<v1::AddAccessEntriesRequest>,
    ) -> Result<Response<v1::AddAccessEntriesResponse>, Status> {
        let cidrs = request.into_inner().entries.into_iter().map(|entry| entry.cidr);
        let present = |cidr: &str| (cidr == ENTRY).then(|| format!("{cidr} is in the list already"));
        let added = read(cidrs, |index| format!("entries[{index}].cidr"), present)?;
        Ok(Response::new(v1::AddAccessEntriesResponse { change: Some(change(added, 0)) }))
    }

    async fn remove_access_entries(
        &self,
        request: Request<v1::RemoveAccessEntriesRequest>,
    ) -> Result<Response<v1::RemoveAccessEntriesResponse>, Status> {
        let cidrs = request.into_inner().cidrs.into_iter();
        let absent = |cidr: &str| (cidr != ENTRY).then(|| format!("{cidr} is not in the list"));
        let removed = read(cidrs, |index| format!("cidrs[{index}]"), absent)?;
        Ok(Response::new(v1::RemoveAccessEntriesResponse { change: Some(change(0, removed)) }))
    }

    async fn confirm_access(
        &self,
        _: Request<v1::ConfirmAccessRequest>,
    ) -> Result<Response<v1::ConfirmAccessResponse>, Status> {
        let violation = Violation {
            name: "trial_under_way".into(),
            subject: "clusters/demo".into(),
            message: "nothing is on trial".into(),
        };
        let failure = Failure::new(Reason::PreconditionFailed, "nothing is on trial");
        Err(from_failure(&Failure { violations: vec![violation], ..failure }))
    }
}

fn rules(entry_count: u32) -> v1::Access {
    v1::Access {
        cluster: "demo".into(),
        mode: v1::AccessMode::Restricted.into(),
        entry_count,
        trial: Some(v1::AccessTrial {
            mode: v1::AccessMode::Open.into(),
            entry_count: 1,
            end_time: time(90),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn change(networks_added: u32, networks_removed: u32) -> v1::AccessChange {
    v1::AccessChange { access: Some(rules(1)), networks_added, networks_removed, notes: Vec::new() }
}

/// How many there are, if all are good.
fn read(
    cidrs: impl Iterator<Item = String>,
    field: impl Fn(usize) -> String,
    misfit: impl Fn(&str) -> Option<String>,
) -> Result<u32, Status> {
    let mut violations = Violations::default();
    let mut first = BTreeMap::new();
    let mut count = 0;
    for (index, text) in cidrs.enumerate() {
        count += 1;
        let Some(cidr) = violations.take(&field(index), text.parse::<Cidr>()) else { continue };
        let before = *first.entry(cidr).or_insert(index);
        if before != index {
            violations.add(field(index), format!("is {cidr} again, as {}", field(before)));
        }
        if let Some(misfit) = misfit(&cidr.to_string()) {
            violations.add(field(index), misfit);
        }
    }
    violations.check().map(|()| count).map_err(|failure| from_failure(&failure))
}
