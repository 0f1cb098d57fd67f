//! What is put into SQL, configuration and connection strings stays the value that it was, however hostile it is.
//!
//! The readers here follow PostgreSQL's own rules (`guc-file.l`, `conninfo_parse` of libpq, `scan.l`), and know nothing of how
//! we quote. Each check is also run against the *mutant* that pastes values in as they are, and must catch it.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::super::render::{Lines, identifier, literal, quoted_in_conninfo};

/// Reads `name='value' …` as libpq does; `None` where it would refuse.
fn read_conninfo(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Some(pairs);
        }
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            name.push(c);
        }
        rest.next_if_eq(&'=')?;
        let mut value = String::new();
        if rest.next_if_eq(&'\'').is_some() {
            loop {
                match rest.next()? {
                    '\'' => break,
                    '\\' => value.push(rest.next()?),
                    c => value.push(c),
                }
            }
        } else {
            while let Some(c) = rest.next_if(|c| !c.is_ascii_whitespace()) {
                value.push(if c == '\\' { rest.next()? } else { c });
            }
        }
        pairs.push((name, value));
    }
}

/// Reads `name = 'value'` lines as the server does; `None` where it would refuse the file.
fn read_configuration(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(" = ")?;
        let mut rest = value.strip_prefix('\'')?.chars().peekable();
        let mut read = String::new();
        loop {
            match rest.next()? {
                '\'' if rest.next_if_eq(&'\'').is_some() => read.push('\''),
                '\'' => break,
                '\\' => read.push(rest.next()?),
                c => read.push(c),
            }
        }
        rest.next().is_none().then_some(())?;
        pairs.push((name.to_owned(), read));
    }
    Some(pairs)
}

/// Reads one constant or quoted name of SQL that must be all there is.
fn read_quoted(text: &str, quote: char) -> Option<String> {
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut read = String::new();
    let mut rest = inner.chars().peekable();
    while let Some(c) = rest.next() {
        if c == quote {
            rest.next_if_eq(&quote)?;
        }
        read.push(c);
    }
    Some(read)
}

/// A value, and what a way of writing makes of it once it is read again.
type Way = fn(&str) -> Option<String>;

fn only(pairs: Vec<(String, String)>) -> Option<String> {
    <[_; 1]>::try_from(pairs).ok().map(|[(_, value)]| value)
}

const WAYS: [(&str, Way, Way); 4] = [
    (
        "connection string",
        |value| only(read_conninfo(&format!("host={}", quoted_in_conninfo(value)))?),
        |value| only(read_conninfo(&format!("host='{value}'"))?),
    ),
    (
        "configuration",
        |value| {
            let mut lines = Lines(String::new());
            lines.text("name", value);
            only(read_configuration(&lines.0)?)
        },
        |value| only(read_configuration(&format!("name = '{value}'\n"))?),
    ),
    (
        "constant",
        |value| read_quoted(&literal(value), '\''),
        |value| read_quoted(&format!("'{value}'"), '\''),
    ),
    ("name", |value| read_quoted(&identifier(value), '"'), |value| read_quoted(&format!("\"{value}\""), '"')),
];

/// No line ends: those are refused before anything is rendered.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "'",
        "''",
        "\\",
        "\\'",
        "\"",
        "\"\"",
        ";",
        "--",
        "$(x)",
        "%s",
        " ",
        "=",
        "' host='evil",
        "'; drop table t; --",
        "a",
        "é",
        "\u{202e}",
        "#",
        "{",
        "\t",
    ]);
    prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
}

fn holds(way: Way) -> bool {
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    runner
        .run(&hostile(), |value| {
            prop_assert_eq!(way(&value), Some(value));
            Ok(())
        })
        .is_ok()
}

#[test]
fn a_hostile_value_stays_a_value() {
    for (what, ours, _) in WAYS {
        assert!(holds(ours), "{what}");
    }
}

#[test]
fn pasting_values_in_would_be_found_out() {
    for (what, _, pasted) in WAYS {
        assert!(!holds(pasted), "{what}");
    }
}
