//! `holdfast operation …`

use holdfast_proto::v1;
use serde_json::json;

use super::follow::{cancelled, outcome, rows};
use super::{Session, next_page};
use crate::args::Operation;
use crate::error::Error;
use crate::output::{self, json};

pub(super) async fn run(session: &mut Session, command: Operation) -> Result<(), Error> {
    match command {
        Operation::List { resource, unfinished, limit } => list(session, resource, unfinished, limit).await,
        Operation::Show { id } => show(session, id).await,
        Operation::Wait { id, patience } => wait(session, id, patience).await,
        Operation::Watch { id } => watch(session, id).await,
        Operation::Cancel { id } => cancel(session, id).await,
        Operation::Resume { id, detach } => resume(session, id, detach).await,
    }
}

async fn list(session: &mut Session, resource: String, unfinished: bool, limit: usize) -> Result<(), Error> {
    let client = session.client().await?;
    let mut operations = Vec::new();
    let mut page = Some(String::new());
    while let Some(page_token) = page.filter(|_| operations.len() < limit) {
        let page_size = i32::try_from((limit - operations.len()).min(1000)).unwrap_or(1000);
        let request =
            v1::ListOperationsRequest { page_size, page_token, resource: resource.clone(), unfinished };
        let answer = client.list_operations(request).await?;
        operations.extend(answer.operations);
        page = next_page(answer.next_page_token);
    }
    operations.truncate(limit);
    if session.out.is_json() {
        let all: Vec<_> = operations.iter().map(json::operation).collect();
        return Ok(session.out.json(&json!({"operations": all}))?);
    }
    let now = session.out.now;
    let each = operations.iter().map(|operation| {
        let done = operation.steps.iter().filter(|step| step.state() == v1::StepState::Done).count();
        vec![
            operation.id.clone(),
            operation.kind.clone(),
            operation.resource.clone(),
            output::word(operation.state().as_str_name(), "OPERATION_STATE_")
                .unwrap_or_else(|| "unknown".to_owned()),
            format!("{done}/{}", operation.steps.len()),
            output::distance(now, operation.create_time.as_ref()),
            operation.requested_by.clone(),
        ]
    });
    let rows = each.collect();
    Ok(session.out.table(&["ID", "KIND", "RESOURCE", "STATE", "STEPS", "AGE", "REQUESTED BY"], rows)?)
}

async fn get(session: &mut Session, id: String) -> Result<v1::Operation, Error> {
    let answer = session.client().await?.get_operation(v1::GetOperationRequest { id }).await?;
    answer.operation.ok_or(Error::Incomplete("operation"))
}

async fn show(session: &mut Session, id: String) -> Result<(), Error> {
    let operation = get(session, id).await?;
    if session.out.is_json() {
        return Ok(session.out.json(&json::operation(&operation))?);
    }
    let failure = match &operation.result {
        Some(v1::operation::Result::Failure(failure)) => {
            format!(
                "{}: {}",
                failure.reason().as_str_name().trim_start_matches("ERROR_REASON_"),
                failure.message
            )
        }
        Some(v1::operation::Result::Response(_)) | None => String::new(),
    };
    let now = session.out.now;
    session.out.facts(&[
        ("id", operation.id.clone()),
        ("kind", operation.kind.clone()),
        ("resource", operation.resource.clone()),
        (
            "state",
            output::word(operation.state().as_str_name(), "OPERATION_STATE_")
                .unwrap_or_else(|| "unknown".to_owned()),
        ),
        ("failure", failure),
        ("requested by", operation.requested_by.clone()),
        ("began", format!("{} ago", output::distance(now, operation.create_time.as_ref()))),
        ("can be cancelled", if operation.cancellable { "yes" } else { "no" }.to_owned()),
    ])?;
    session.out.line("")?;
    Ok(session.out.table(&["STEP", "STATE", "ATTEMPTS", "TOOK", "BYTES", "MESSAGE"], rows(&operation))?)
}

async fn watch(session: &mut Session, id: String) -> Result<(), Error> {
    let ended = session.watched(id).await?;
    if session.out.is_json() {
        session.out.json(&json::operation(&ended))?;
    }
    outcome(&ended)
}

async fn wait(session: &mut Session, id: String, patience: std::time::Duration) -> Result<(), Error> {
    match tokio::time::timeout(patience, watch(session, id.clone())).await {
        Ok(result) => result,
        Err(_) => Err(Error::StillRunning { id }),
    }
}

async fn cancel(session: &mut Session, id: String) -> Result<(), Error> {
    let answer =
        session.client().await?.cancel_operation(v1::CancelOperationRequest { id: id.clone() }).await?;
    let operation = answer.operation.ok_or(Error::Incomplete("operation"))?;
    if session.out.is_json() {
        return Ok(session.out.json(&cancelled(&operation))?);
    }
    session.note(&format!("It is on its way back; see how with: holdfast operation watch {id}"));
    Ok(())
}

async fn resume(session: &mut Session, id: String, detach: bool) -> Result<(), Error> {
    let answer =
        session.client().await?.resume_operation(v1::ResumeOperationRequest { id: id.clone() }).await?;
    if !detach {
        return watch(session, id).await;
    }
    let operation = answer.operation.ok_or(Error::Incomplete("operation"))?;
    if session.out.is_json() {
        return Ok(session.out.json(&json::operation(&operation))?);
    }
    Ok(session.out.line(&operation.id)?)
}
