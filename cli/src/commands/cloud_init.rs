//! `holdfast node cloud-init`: user data, complete, for a machine that is to be made.

use std::time::Duration;

use holdfast_common::name::NodeName;
use holdfast_proto::v1;
use serde_json::json;

use super::{Session, wire_duration};
use crate::client::request_id;
use crate::error::Error;
use crate::output::json;

/// What people put in by hand; here it is put in by us.
const TEMPLATE: &str = include_str!("../../../deploy/cloud-init/join.yaml.in");

/// What is asked for.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) ttl: Duration,
    /// None: what the coordinator advertises.
    pub(super) coordinator: Vec<String>,
    pub(super) package_source: Option<String>,
}

/// What goes into the template.
struct Words<'a> {
    name: &'a NodeName,
    token: &'a str,
    coordinators: &'a [String],
    package_source: Option<&'a str>,
}

pub(super) async fn run(session: &mut Session, wanted: Wanted) -> Result<(), Error> {
    let Wanted { name, ttl, coordinator, package_source } = wanted;
    // Before there is a token that nobody would get to see.
    let name: NodeName = name.parse().map_err(|error| Error::Usage(format!("{error}")))?;
    for endpoint in &coordinator {
        check_endpoint(endpoint)?;
    }
    let request = v1::CreateJoinTokenRequest {
        ttl: Some(wire_duration(ttl)),
        uses: Some(1),
        description: "cloud-init".to_owned(),
        node_name: name.to_string(),
        rejoin: false,
        request_id: request_id(),
    };
    let answer = session.client().await?.create_join_token(request).await?;
    let token = answer.join_token.ok_or(Error::Incomplete("join_token"))?;
    let coordinators = if coordinator.is_empty() { answer.agent_endpoints } else { coordinator };
    if coordinators.is_empty() {
        let why =
            "the coordinator advertises no address; say with --coordinator where the machine reaches it";
        return Err(Error::Usage(why.to_owned()));
    }
    for endpoint in &coordinators {
        check_endpoint(endpoint)?;
    }
    let words = Words {
        name: &name,
        token: &answer.token,
        coordinators: &coordinators,
        package_source: package_source.as_deref(),
    };
    let user_data = words.put_in();
    if session.out.is_json() {
        return Ok(session.out.json(&json!({
            "user_data": user_data,
            "join_token": json::join_token(&token),
            "agent_endpoints": coordinators,
        }))?);
    }
    session.note(
        "It holds a join token, good for this name and one use: give it to nobody but the new machine.",
    );
    Ok(session.out.line(user_data.trim_end())?)
}

/// It becomes part of a YAML document and of an argument: what no address has, is refused.
fn check_endpoint(endpoint: &str) -> Result<(), Error> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || ".-:[]".contains(letter);
    let port =
        endpoint.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if port && endpoint.chars().all(allowed) {
        return Ok(());
    }
    Err(Error::Usage(format!("--coordinator: {endpoint:?} is no HOST:PORT")))
}

// === impl Words ===

impl Words<'_> {
    /// The template without its advice, which is for those who do this by hand.
    fn put_in(&self) -> String {
        let Self { name, token, coordinators, package_source } = self;
        let (first, rest) = TEMPLATE.split_once('\n').unwrap_or_default();
        let lines = rest.lines().filter(|line| !line.starts_with('#'));
        let mut text =
            format!("{first}\n# Makes this machine node `{name}`. Printed by `holdfast node cloud-init`.\n");
        for line in lines {
            let line = line.replace("@NAME@", name.as_str()).replace("@TOKEN@", token);
            text.push_str(&line.replace("@COORDINATOR@", &coordinators.join(",")));
            text.push('\n');
        }
        if let Some(source) = package_source {
            // A string of JSON is one of YAML. Without the first key cloud-init would write the image's own sources anew.
            let source = serde_json::Value::from(*source);
            text.push_str("apt:\n  preserve_sources_list: true\n  sources:\n    holdfast.list:\n");
            text.push_str(&format!("      source: {source}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_complete_and_without_advice() {
        let words = Words {
            name: &"n4".parse().unwrap(),
            token: "hf1.id.secret.pin",
            coordinators: &["c.example:7444".to_owned(), "[2001:db8::1]:7444".to_owned()],
            package_source: Some("deb [signed-by=/k] https://p.example/ ./ # \"x\": y"),
        };
        insta::assert_snapshot!(words.put_in());
    }

    #[test]
    fn what_would_break_the_document_is_refused() {
        for good in ["c.example:7444", "192.0.2.1:7444", "[2001:db8::1]:7444"] {
            check_endpoint(good).unwrap();
        }
        for bad in ["c.example", ":7444", "c:7444\"]\n  - [reboot]", "c:x", "c d:1", "c,d:99999"] {
            check_endpoint(bad).unwrap_err();
        }
    }
}
