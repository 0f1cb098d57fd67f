//! `holdfast event …`

use holdfast_proto::v1;
use serde_json::json;

use super::{Session, interrupted, next_page};
use crate::args::{Event, EventFilter, Severity};
use crate::error::Error;
use crate::output::{self, json, plain};

pub(super) async fn run(session: &mut Session, command: Event) -> Result<(), Error> {
    match command {
        Event::List { filter, limit } => list(session, filter, limit).await,
        Event::Watch { filter, after } => watch(session, filter, after).await,
    }
}

fn severity(severity: Severity) -> v1::Severity {
    match severity {
        Severity::Info => v1::Severity::Info,
        Severity::Warning => v1::Severity::Warning,
        Severity::Error => v1::Severity::Error,
    }
}

async fn list(session: &mut Session, filter: EventFilter, limit: usize) -> Result<(), Error> {
    let client = session.client().await?;
    let mut events = Vec::new();
    let mut page = Some(String::new());
    while let Some(page_token) = page.filter(|_| events.len() < limit) {
        let page_size = i32::try_from((limit - events.len()).min(1000)).unwrap_or(1000);
        let request = v1::ListEventsRequest {
            page_size,
            page_token,
            node: filter.node.clone(),
            cluster: filter.cluster.clone(),
            severity: severity(filter.severity).into(),
        };
        let answer = client.list_events(request).await?;
        events.extend(answer.events);
        page = next_page(answer.next_page_token);
    }
    events.truncate(limit);
    if session.out.is_json() {
        let all: Vec<_> = events.iter().map(json::event).collect();
        return Ok(session.out.json(&json!({"events": all}))?);
    }
    let rows = events.iter().map(row).collect();
    Ok(session.out.table(&["TIME", "SEVERITY", "REASON", "ABOUT", "MESSAGE"], rows)?)
}

fn row(event: &v1::Event) -> Vec<String> {
    let about = [&event.cluster, &event.node]
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(String::as_str)
        .collect::<Vec<_>>();
    vec![
        output::or_dash(
            output::timestamp(event.time.as_ref())
                .map(|time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
        ),
        output::word(event.severity().as_str_name(), "SEVERITY_").unwrap_or_else(|| "unknown".to_owned()),
        event.reason.clone(),
        output::or_dash(Some(about.join("/"))),
        event.message.clone(),
    ]
}

async fn watch(session: &mut Session, filter: EventFilter, after: String) -> Result<(), Error> {
    let request = v1::WatchEventsRequest {
        after_id: after,
        node: filter.node,
        cluster: filter.cluster,
        severity: severity(filter.severity).into(),
    };
    let mut watch = session.client().await?.watch_events(request).await?;
    loop {
        // Both arms are cancel-safe.
        let next = tokio::select! {
            next = watch.next() => next?,
            () = interrupted() => return Ok(()),
        };
        let Some(event) = next.and_then(|answer| answer.event) else { return Ok(()) };
        // If the connection breaks off, it goes on behind this one.
        watch.request.after_id.clone_from(&event.id);
        if session.out.is_json() {
            session.out.json_line(&json::event(&event))?;
        } else {
            let cells: Vec<_> = row(&event).iter().map(|cell| plain(cell)).collect();
            session.out.line(cells.join("  "))?;
        }
    }
}
