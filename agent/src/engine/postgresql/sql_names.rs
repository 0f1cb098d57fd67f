//! Names that a database or a database user may not have.

use holdfast_common::command::DatabaseName;

use super::render::{REPLICATION_USER, SUPERUSER};
use crate::engine::Error;

pub(super) const DATABASES: &[&str] =
    &["postgres", "template0", "template1", "replication", "all", "sameuser", "samerole"];
pub(super) const USERS: &[&str] =
    &[SUPERUSER, REPLICATION_USER, "public", "none", "all", "current_user", "session_user"];

/// # Errors
/// `INVALID_FIELD` if the name is taken by the engine or by Holdfast.
pub(super) fn check(field: &'static str, name: &DatabaseName, taken: &[&str]) -> Result<(), Error> {
    let name = name.as_str();
    let reserved = taken.contains(&name) || name.starts_with("pg_") || name.starts_with("holdfast_");
    if !reserved {
        return Ok(());
    }
    let message =
        format!("cannot be `{name}`, which PostgreSQL or Holdfast uses itself; choose another name");
    Err(Error::Field { field: field.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_meaning_are_refused() {
        let name = |text: &str| DatabaseName::try_from(text.to_owned()).unwrap();
        check("user", &name("app"), USERS).unwrap();
        for bad in ["postgres", "holdfast_replication", "pg_monitor", "public"] {
            assert!(
                matches!(check("user", &name(bad), USERS), Err(Error::Field { field, .. }) if field == "user"),
                "{bad}"
            );
        }
        assert!(check("database", &name("template1"), DATABASES).is_err());
    }
}
