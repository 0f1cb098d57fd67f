//! What `nft -j -t list table` says, without what changes by itself: handles and counted packets. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// The structure of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) chains: BTreeMap<String, Value>,
    pub(super) sets: BTreeMap<String, Value>,
    pub(super) counters: BTreeSet<String>,
    /// In the order in which they stand.
    pub(super) rules: Vec<Rule>,
    /// Kinds of things that we never make.
    pub(super) foreign: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) expression: Vec<Value>,
}

/// A text that is no listing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("what nft lists is no JSON")]
    Json(#[from] serde_json::Error),
    #[error("what nft lists has no {0}")]
    Missing(&'static str),
}

/// Reads a listing. Names and handles of the table itself are left out.
///
/// # Errors
/// [`Error`].
pub(super) fn parse(text: &[u8]) -> Result<Listing, Error> {
    let document: Value = serde_json::from_slice(text)?;
    let items = document.get("nftables").and_then(Value::as_array).ok_or(Error::Missing("nftables"))?;
    let mut listing = Listing::default();
    for item in items.iter().filter_map(Value::as_object) {
        for (kind, about) in item {
            let about = about.as_object().ok_or(Error::Missing("contents"))?;
            listing.take(kind, about)?;
        }
    }
    Ok(listing)
}

// === impl Listing ===

impl Listing {
    pub(super) fn rule(&mut self, chain: &str, expression: Vec<Value>) {
        self.rules.push(Rule { chain: chain.to_owned(), expression });
    }

    /// Whether both are the same. Rules of different chains stand in no order to each other.
    pub(super) fn same(&self, other: &Self) -> bool {
        let Self { chains, sets, counters, rules: _, foreign } = self;
        *chains == other.chains
            && *sets == other.sets
            && *counters == other.counters
            && *foreign == other.foreign
            && self.by_chain() == other.by_chain()
    }

    fn by_chain(&self) -> BTreeMap<&str, Vec<&[Value]>> {
        let mut chains: BTreeMap<&str, Vec<&[Value]>> = BTreeMap::new();
        for Rule { chain, expression } in &self.rules {
            chains.entry(chain).or_default().push(expression);
        }
        chains
    }

    fn take(&mut self, kind: &str, about: &Map<String, Value>) -> Result<(), Error> {
        let name =
            || about.get("name").and_then(Value::as_str).map(str::to_owned).ok_or(Error::Missing("name"));
        let rest = || {
            let own = |key: &&String| !["family", "table", "name", "handle"].contains(&key.as_str());
            let rest =
                about.iter().filter(|(key, _)| own(key)).map(|(key, value)| (key.clone(), value.clone()));
            Value::Object(rest.collect())
        };
        match kind {
            "metainfo" => {}
            // A dormant table filters nothing.
            "table" if about.contains_key("flags") => drop(self.foreign.insert("table flags".to_owned())),
            "table" => {}
            "chain" => drop(self.chains.insert(name()?, rest())),
            "set" => drop(self.sets.insert(name()?, rest())),
            "counter" => drop(self.counters.insert(name()?)),
            "rule" => {
                let chain = about.get("chain").and_then(Value::as_str).ok_or(Error::Missing("chain"))?;
                let expression = about.get("expr").and_then(Value::as_array).ok_or(Error::Missing("expr"))?;
                self.rule(chain, expression.clone());
            }
            other => drop(self.foreign.insert(other.to_owned())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "holdfast", "handle": 1}},
        {"counter": {"family": "inet", "name": "p5432_refused", "table": "holdfast", "handle": 3, "packets": 9, "bytes": 540}},
        {"set": {"family": "inet", "name": "trial", "table": "holdfast", "type": "inet_service", "handle": 1, "flags": ["timeout"]}},
        {"chain": {"family": "inet", "table": "holdfast", "name": "p5432_in", "handle": 6}},
        {"rule": {"family": "inet", "table": "holdfast", "chain": "p5432_in", "handle": 9, "expr": [{"accept": null}]}}]}"#;

    #[test]
    fn what_changes_by_itself_is_left_out() {
        let later =
            LISTED.replace("\"packets\": 9", "\"packets\": 10").replace("\"handle\": 9", "\"handle\": 12");
        let (one, two) = (parse(LISTED.as_bytes()).unwrap(), parse(later.as_bytes()).unwrap());
        assert!(one.same(&two));
        assert_eq!(one.sets["trial"], serde_json::json!({"type": "inet_service", "flags": ["timeout"]}));
    }

    #[test]
    fn each_change_by_somebody_else_is_seen() {
        let ours = parse(LISTED.as_bytes()).unwrap();
        for (from, to) in [
            (r#"[{"accept": null}]"#, r#"[{"drop": null}]"#),
            (r#""flags": ["timeout"]"#, r#""flags": ["interval"]"#),
            ("p5432_in\", \"handle\": 6", "other\", \"handle\": 6"),
            (r#""handle": 1}}"#, r#""handle": 1, "flags": "dormant"}}"#),
            (
                r#"{"metainfo""#,
                r#"{"flowtable": {"family": "inet", "name": "f", "table": "holdfast"}}, {"metainfo""#,
            ),
        ] {
            assert!(LISTED.contains(from), "{from}");
            assert!(!ours.same(&parse(LISTED.replace(from, to).as_bytes()).unwrap()), "{to}");
        }
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        for text in ["", "{}", r#"{"nftables": [{"rule": {}}]}"#, r#"{"nftables": [{"set": 1}]}"#] {
            parse(text.as_bytes()).expect_err(text);
        }
    }
}
