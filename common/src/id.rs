//! Identifiers: distinct types over UUIDs, so that one kind is never taken for another.
//!
//! New ids are version 7 (they sort by time); a command's id is version 5, made from the operation and step that send it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind} id: expected a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057")]
pub struct ParseError {
    kind: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, later in order than all that this machine made before.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                // Only the hyphenated lower-case form: one id has one spelling.
                match Uuid::try_parse(text) {
                    Ok(uuid) if uuid.hyphenated().to_string() == text && !uuid.is_nil() => Ok(Self(uuid)),
                    Ok(_) | Err(_) => Err(ParseError { kind: $kind, text: text.chars().take(64).collect() }),
                }
            }
        }
    };
}

id!(
    /// All nodes of one coordinator.
    FleetId, "fleet"
);
id!(
    /// A machine with an agent.
    NodeId, "node"
);
id!(
    /// One replicated database.
    ClusterId, "cluster"
);
id!(
    /// A change that an operator or the coordinator asked for.
    OperationId, "operation"
);
id!(
    /// An order to one agent.
    CommandId, "command"
);
id!(
    /// Something that happened.
    EventId, "event"
);
id!(
    /// A join token or access token.
    TokenId, "token"
);
id!(
    /// One live agent stream.
    SessionId, "session"
);
id!(
    /// One run of an agent's process.
    InstanceId, "instance"
);

// === impl CommandId ===

impl CommandId {
    /// The id of the command that `operation` sends at `label`: the same however often the step is repeated.
    pub fn of_step(operation: OperationId, label: &str) -> Self {
        Self(Uuid::new_v5(operation.as_uuid(), label.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_has_one_spelling() {
        let id = NodeId::generate();
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        for wrong in [
            "",
            "x",
            "../etc",
            &id.to_string().to_uppercase(),
            &format!("{{{id}}}"),
            &id.as_uuid().simple().to_string(),
        ] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong}");
        }
        Uuid::nil().to_string().parse::<NodeId>().unwrap_err();
    }

    #[test]
    fn a_repeated_step_has_the_same_command() {
        let operation = OperationId::generate();
        assert_eq!(CommandId::of_step(operation, "clone/a"), CommandId::of_step(operation, "clone/a"));
        assert_ne!(CommandId::of_step(operation, "clone/a"), CommandId::of_step(operation, "clone/b"));
        assert_ne!(
            CommandId::of_step(operation, "clone/a"),
            CommandId::of_step(OperationId::generate(), "clone/a")
        );
    }
}
