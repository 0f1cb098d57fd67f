//! Requests about access rules to domain values: all bad entries at once, each under its index.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::access::{Cidr, Comment, Entry, MAX_ENTRIES, Mode, Rules, TRIAL};
use holdfast_common::error::{Failure, Violations};
use holdfast_proto::v1 as proto;
use uuid::Uuid;

use crate::cluster::access::Holding;

/// So many bad entries are told; a list with more is not read on.
const MAX_TOLD: usize = 50;

pub(super) fn rules(
    mode: i32,
    entries: Vec<proto::AccessEntry>,
    log_refused: bool,
    confirm_within: Option<prost_types::Duration>,
) -> Result<(Rules, Holding), Failure> {
    let mut violations = Violations::default();
    let mode = parse_mode(mode, &mut violations);
    let entries = parse_entries(entries, &mut violations);
    let holding = parse_holding(confirm_within, &mut violations);
    if let (Some(Mode::Closed), false) = (mode, entries.is_empty()) {
        violations.add("entries", "must be empty for a closed cluster; ask for `restricted`");
    }
    violations.check()?;
    let rules = Rules::new(mode.unwrap_or_default(), entries, log_refused);
    Ok((rules.map_err(|error| Failure::invalid_field("entries", error))?, holding))
}

pub(super) fn added(
    entries: Vec<proto::AccessEntry>,
    confirm_within: Option<prost_types::Duration>,
) -> Result<(Vec<Entry>, Holding), Failure> {
    let mut violations = Violations::default();
    if entries.is_empty() {
        violations.add("entries", "must not be empty");
    }
    let entries = parse_entries(entries, &mut violations);
    let holding = parse_holding(confirm_within, &mut violations);
    violations.check().map(|()| (entries, holding))
}

pub(super) fn removed(
    cidrs: &[String],
    confirm_within: Option<prost_types::Duration>,
) -> Result<(Vec<Cidr>, Holding), Failure> {
    let mut violations = Violations::default();
    if cidrs.is_empty() {
        violations.add("cidrs", "must not be empty");
    }
    if cidrs.len() > MAX_ENTRIES {
        return Err(too_many("cidrs", cidrs.len()));
    }
    let mut bad = 0;
    let mut parsed = Vec::with_capacity(cidrs.len());
    for (index, text) in cidrs.iter().enumerate() {
        match text.parse() {
            Ok(cidr) => parsed.push(cidr),
            Err(error) => {
                bad += 1;
                violations.add(format!("cidrs[{index}]"), error);
            }
        }
        if bad == MAX_TOLD {
            break;
        }
    }
    let holding = parse_holding(confirm_within, &mut violations);
    violations.check().map(|()| (parsed, holding))
}

pub(super) fn trial_id(text: &str) -> Result<Option<Uuid>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| Failure::invalid_field("trial_id", "is no id of a trial; `access show` tells it"))
}

fn parse_mode(mode: i32, violations: &mut Violations) -> Option<Mode> {
    match proto::AccessMode::try_from(mode) {
        Ok(proto::AccessMode::Closed) => Some(Mode::Closed),
        Ok(proto::AccessMode::Restricted) => Some(Mode::Restricted),
        Ok(proto::AccessMode::Open) => Some(Mode::Open),
        Ok(proto::AccessMode::Unspecified) | Err(_) => {
            violations.add("mode", "must be closed, restricted or open");
            None
        }
    }
}

fn parse_entries(entries: Vec<proto::AccessEntry>, violations: &mut Violations) -> Vec<Entry> {
    if entries.len() > MAX_ENTRIES {
        violations.add("entries", format!("has {}; a cluster has at most {MAX_ENTRIES}", entries.len()));
        return Vec::new();
    }
    let mut bad = 0;
    let mut first: BTreeMap<Cidr, usize> = BTreeMap::new();
    let mut parsed = Vec::with_capacity(entries.len());
    for (index, proto::AccessEntry { cidr, comment }) in entries.into_iter().enumerate() {
        let cidr = violations.take(&format!("entries[{index}].cidr"), cidr.parse::<Cidr>());
        let comment = violations.take(&format!("entries[{index}].comment"), Comment::try_from(comment));
        let (Some(cidr), Some(comment)) = (cidr, comment) else {
            bad += 1;
            if bad == MAX_TOLD {
                break;
            }
            continue;
        };
        if let Some(before) = first.insert(cidr, index) {
            violations
                .add(format!("entries[{index}].cidr"), format!("is {cidr} again, as entries[{before}]"));
            bad += 1;
        }
        parsed.push(Entry { cidr, comment });
    }
    parsed
}

fn parse_holding(confirm_within: Option<prost_types::Duration>, violations: &mut Violations) -> Holding {
    let Some(within) = confirm_within else { return Holding::ForGood };
    let parsed = match (u64::try_from(within.seconds), u32::try_from(within.nanos)) {
        (Ok(seconds), Ok(nanos @ 0..=999_999_999)) => Some(Duration::new(seconds, nanos)),
        _ => None,
    };
    match parsed.filter(|within| TRIAL.contains(within)) {
        Some(within) => Holding::OnTrial(within),
        None => {
            let (least, most) = (TRIAL.start().as_secs(), TRIAL.end().as_secs());
            violations.add("confirm_within", format!("must be from {least} s to {most} s"));
            Holding::ForGood
        }
    }
}

fn too_many(field: &str, count: usize) -> Failure {
    Failure::invalid_field(field, format!("has {count}; a cluster has at most {MAX_ENTRIES}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cidr: &str, comment: &str) -> proto::AccessEntry {
        proto::AccessEntry { cidr: cidr.to_owned(), comment: comment.to_owned() }
    }

    fn told(result: Result<(Rules, Holding), Failure>) -> Vec<String> {
        result.unwrap_err().violations.into_iter().map(|violation| violation.name).collect()
    }

    const RESTRICTED: i32 = proto::AccessMode::Restricted as i32;

    #[test]
    fn all_bad_fields_are_told_at_once_and_by_index() {
        let entries = vec![
            entry("10.0.0.0/8", ""),
            entry("10.0.0.1/8", ""),
            entry("10.0.0.1", "a\nb"),
            entry("10.0.0.0/8", "again"),
        ];
        let year = prost_types::Duration { seconds: 31_536_000, nanos: 0 };
        assert_eq!(
            told(rules(0, entries, false, Some(year))),
            ["mode", "entries[1].cidr", "entries[2].comment", "entries[3].cidr", "confirm_within"]
        );
        let zero = prost_types::Duration::default();
        assert_eq!(told(rules(RESTRICTED, vec![], false, Some(zero))), ["confirm_within"]);
        let closed = proto::AccessMode::Closed as i32;
        assert_eq!(told(rules(closed, vec![entry("10.0.0.0/8", "")], false, None)), ["entries"]);
    }

    #[test]
    fn a_list_that_is_all_wrong_is_not_told_without_end() {
        let entries = vec![entry("x", ""); 1000];
        assert_eq!(told(rules(RESTRICTED, entries, false, None)).len(), MAX_TOLD);
        let many = vec![entry("x", ""); MAX_ENTRIES + 1];
        assert_eq!(told(rules(RESTRICTED, many, false, None)), ["entries"]);
    }

    #[test]
    fn what_is_to_be_removed_is_read_however_it_is_spelt() {
        let (cidrs, holding) = removed(&["10.0.0.1/32".to_owned(), "::/0".to_owned()], None).unwrap();
        assert_eq!(cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "::/0"]);
        assert_eq!(holding, Holding::ForGood);
        removed(&[], None).unwrap_err();
        trial_id("../x").unwrap_err();
        assert_eq!(trial_id("").unwrap(), None);
    }
}
