//! Requests about access rules to domain values: all bad entries at once, each under its index.

use std::collections::{BTreeMap, btree_map};
use std::time::Duration;

use holdfast_common::access::{Cidr, Comment, Entry, MAX_ENTRIES, Mode, Rules, TRIAL};
use holdfast_common::clock::span;
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
    let mut first = BTreeMap::new();
    let mut parsed = Vec::with_capacity(cidrs.len());
    for (index, text) in cidrs.iter().enumerate() {
        let field = format!("cidrs[{index}]");
        parsed.extend(parse_cidr(text, &field, &mut first, &mut violations));
        if is_enough(&violations) {
            break;
        }
    }
    let holding = parse_holding(confirm_within, &mut violations);
    violations.check().map(|()| (parsed, holding))
}

/// # Errors
/// `InvalidField`, with those that the rules have already.
pub(super) fn none_in(rules: &Rules, entries: &[Entry]) -> Result<(), Failure> {
    let mut violations = Violations::default();
    let present = entries.iter().enumerate().filter(|(_, entry)| rules.contains(entry.cidr));
    for (index, Entry { cidr, .. }) in present.take(MAX_TOLD) {
        violations.add(format!("entries[{index}].cidr"), format!("{cidr} is in the list already"));
    }
    violations.check()
}

/// # Errors
/// `InvalidField`, with those that the rules do not have.
pub(super) fn all_in(rules: &Rules, cidrs: &[Cidr]) -> Result<(), Failure> {
    let mut violations = Violations::default();
    let absent = cidrs.iter().enumerate().filter(|(_, cidr)| !rules.contains(**cidr));
    for (index, cidr) in absent.take(MAX_TOLD) {
        violations.add(format!("cidrs[{index}]"), format!("{cidr} is not in the list"));
    }
    violations.check()
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
    let mut first = BTreeMap::new();
    let mut parsed = Vec::with_capacity(entries.len());
    for (index, proto::AccessEntry { cidr, comment }) in entries.into_iter().enumerate() {
        let field = format!("entries[{index}]");
        let cidr = parse_cidr(&cidr, &format!("{field}.cidr"), &mut first, violations);
        let comment = violations.take(&format!("{field}.comment"), Comment::try_from(comment));
        parsed.extend(cidr.zip(comment).map(|(cidr, comment)| Entry { cidr, comment }));
        if is_enough(violations) {
            break;
        }
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
            let (least, most) = (span(*TRIAL.start()), span(*TRIAL.end()));
            violations.add("confirm_within", format!("must be from {least} to {most}"));
            Holding::ForGood
        }
    }
}

/// A network that was not named before. A message about one that was ends with the field where that was, alone: the command line
/// tells in its stead where that was written.
fn parse_cidr(
    text: &str,
    field: &str,
    first: &mut BTreeMap<Cidr, String>,
    violations: &mut Violations,
) -> Option<Cidr> {
    let cidr = violations.take(field, text.parse())?;
    match first.entry(cidr) {
        btree_map::Entry::Vacant(place) => {
            place.insert(field.to_owned());
            Some(cidr)
        }
        btree_map::Entry::Occupied(before) => {
            violations.add(field, format!("is {cidr} again, as {}", before.get()));
            None
        }
    }
}

fn is_enough(violations: &Violations) -> bool {
    violations.fields().count() >= MAX_TOLD
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
        let same = vec![entry("10.0.0.1", ""); 1000];
        assert_eq!(told(rules(RESTRICTED, same, false, None)).len(), MAX_TOLD);
        let many = vec![entry("x", ""); MAX_ENTRIES + 1];
        assert_eq!(told(rules(RESTRICTED, many, false, None)), ["entries"]);
    }

    #[test]
    fn which_entries_there_are_already_and_which_there_are_not_is_told_by_index() {
        let texts = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"];
        let (entries, _) = added(texts.iter().map(|text| entry(text, "")).collect(), None).unwrap();
        let cidrs: Vec<Cidr> = entries.iter().map(|entry| entry.cidr).collect();
        let told = |result: Result<(), Failure>| {
            let violations = result.unwrap_err().violations.into_iter();
            violations.map(|it| format!("{}: {}", it.name, it.message)).collect::<Vec<_>>()
        };
        let rules = Rules::new(Mode::Restricted, vec![entries[1].clone()], false).unwrap();
        assert_eq!(told(none_in(&rules, &entries)), ["entries[1].cidr: 192.0.2.7 is in the list already"]);
        assert_eq!(
            told(all_in(&rules, &cidrs)),
            ["cidrs[0]: 10.0.0.0/8 is not in the list", "cidrs[2]: 2001:db8::/32 is not in the list"]
        );
        none_in(&rules, &entries[2..]).unwrap();
        all_in(&rules, &cidrs[1..2]).unwrap();
        assert_eq!(told(all_in(&Rules::default(), &vec![cidrs[0]; 1000])).len(), MAX_TOLD);
    }

    #[test]
    fn an_entry_that_is_there_twice_is_told_with_the_other_one() {
        let told = |failure: Failure| failure.violations.into_iter().map(|it| (it.name, it.message)).next();
        let twice = vec![entry("10.0.0.1", ""), entry("10.0.0.1/32", "")];
        let again = |field: &str, at: &str| Some((field.to_owned(), format!("is 10.0.0.1 again, as {at}")));
        assert_eq!(told(added(twice, None).unwrap_err()), again("entries[1].cidr", "entries[0].cidr"));
        let twice = ["10.0.0.1", "10.0.0.1/32"].map(str::to_owned);
        assert_eq!(told(removed(&twice, None).unwrap_err()), again("cidrs[1]", "cidrs[0]"));
    }

    #[test]
    fn how_long_a_trial_may_be_is_told_as_it_is_written() {
        let two_hours = prost_types::Duration { seconds: 7200, nanos: 0 };
        let failure = rules(RESTRICTED, vec![], false, Some(two_hours)).unwrap_err();
        assert_eq!(failure.violations[0].message, "must be from 5s to 1h");
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
