//! `holdfast context …`: the context file itself; no coordinator is called.

use holdfast_common::pki::{Credentials, TrustBundle};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::Session;
use crate::args::Context;
use crate::error::Error;
use crate::output;

pub(super) fn run(session: &mut Session, command: Context) -> Result<(), Error> {
    let mut file = session.context_file()?;
    match command {
        Context::List => {
            if session.out.is_json() {
                let all: Vec<_> = file
                    .contexts
                    .iter()
                    .map(|(name, context)| describe(name, context, name == &file.current))
                    .collect();
                return Ok(session.out.json(&json!({"contexts": all}))?);
            }
            let rows = file.contexts.iter().map(|(name, context)| {
                let used = if *name == file.current { "*" } else { "" };
                vec![used.to_owned(), name.clone(), context.server.clone()]
            });
            Ok(session.out.table(&["IN USE", "NAME", "SERVER"], rows.collect())?)
        }
        Context::Use { name } => {
            file.context(Some(&name))?;
            file.current = name;
            file.save(&session.config()?)?;
            if session.out.is_json() {
                Ok(session.out.json(&json!({"current": file.current}))?)
            } else {
                Ok(())
            }
        }
        Context::Show { name } => {
            let name =
                name.or_else(|| session.global.context.clone()).unwrap_or_else(|| file.current.clone());
            let shown = describe(&name, file.context(Some(&name))?, name == file.current);
            if session.out.is_json() {
                return Ok(session.out.json(&shown)?);
            }
            let text = |key: &str| match &shown[key] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let file = session.config()?.display().to_string();
            Ok(session.out.facts(&[
                ("name", text("name")),
                ("file", file),
                ("server", text("server")),
                ("identity", text("identity")),
                ("certificate ends", text("certificate_expire_time")),
                ("fleet", text("fleet_id")),
            ])?)
        }
    }
}

/// All but the key.
fn describe(name: &str, context: &holdfast_common::context::Context, current: bool) -> Value {
    let pair = context.certificate.as_ref().zip(context.key.as_ref());
    let identity = pair.and_then(|(certificate, key)| {
        Credentials::from_pem(certificate, key.expose_secret()).ok()?.identity().ok()
    });
    let fleet = TrustBundle::from_pem(&context.trust_bundle).ok().and_then(|bundle| bundle.fleet().ok());
    json!({
        "name": name,
        "current": current,
        "server": output::text_or_null(&context.server),
        "identity": identity.as_ref().map(|identity| identity.kind.to_string()),
        "certificate_expire_time": identity.map(|identity| identity.not_after.to_string()),
        "fleet_id": fleet.map(|fleet| fleet.to_string()),
    })
}
