//! Parameters that an operator may not set are refused on the node too, whatever the coordinator says; and what the server
//! itself refuses is told by the parameter's name.

use holdfast_common::engine::{Engine, Parameters};
use holdfast_common::error::Violation;

use crate::engine::Error;

/// # Errors
/// `INVALID_FIELD` with the first parameter that may not be set.
pub(super) fn check(parameters: &Parameters) -> Result<(), Error> {
    match Engine::Postgresql.violations(parameters).into_iter().next() {
        Some(Violation { name, message, .. }) => Err(Error::Field { field: name, message }),
        None => Ok(()),
    }
}

/// The first parameter that the server complains of, in its words.
pub(super) fn refused(parameters: &Parameters, words: &str) -> Option<Error> {
    // It spells some in its own way, such as `TimeZone`.
    let names = |line: &str, name: &str| line.to_ascii_lowercase().contains(&format!("\"{name}\""));
    let about = |line: &&str| parameters.iter().find(|(name, _)| names(line, name));
    let line = words.split("; ").find(|line| about(line).is_some())?;
    let (name, value) = about(&line)?;
    let said = line.split_once(":  ").map_or(line, |(_, said)| said);
    let said = said.split(" in file ").next().unwrap_or(said);
    let message = format!("is `{value}`, which the server refuses: {said}; set another, or leave it out");
    Some(Error::Field { field: format!("parameters[{name}]"), message })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_the_server_refuses_is_told_by_name_and_in_its_words() {
        let given = [("timezone", "Atlantis"), ("work_mem", "4MB")];
        let given: BTreeMap<_, _> =
            given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let words = "2026-01-01 00:00:00 GMT [7] LOG:  invalid value for parameter \"TimeZone\": \"Atlantis\" in file \"x\" \
                     line 9; 2026-01-01 00:00:00 GMT [7] FATAL:  configuration file \"x\" contains errors";
        let refused = refused(&given.try_into().unwrap(), words).unwrap();
        assert_eq!(
            refused.to_string(),
            "`parameters[timezone]` is `Atlantis`, which the server refuses: invalid value for parameter \"TimeZone\": \
             \"Atlantis\"; set another, or leave it out"
        );
        assert!(super::refused(&Parameters::default(), words).is_none());
    }
}
