//! Operations that another one asks for and waits for: the seam between procedures and the engine that runs them.
//!
//! Each is an operation like any other: it holds its own cluster, is shown and cancelled by itself, and goes on after a restart.

use std::fmt;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use holdfast_common::error::{Failure, Reason, Retry};

use super::{Means, Procedures, resource};
use crate::cluster::Cluster;
use crate::operation::procedure::{Context, Error};
use crate::operation::{self, Handle, Operation, Request, State, StepState, Submit};
use crate::store::Compare;
use crate::store::record::Record;

/// What another operation asks for.
#[derive(Debug)]
pub struct Part<'a> {
    /// Unique within the operation that asks: a repeat of it gets the same.
    pub name: &'a str,
    /// As it was read: it does not begin if the record has changed since.
    pub cluster: &'a Record<Cluster>,
    pub procedure: Procedures,
}

/// Parts as procedures see them.
pub trait Parts: fmt::Debug + Send + Sync {
    /// Whether the part of this name was begun before.
    fn is_begun<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<bool, Error>>;

    /// Begins it. False: the cluster is busy, or was changed in this moment; nothing was begun.
    fn begin<'a>(&'a self, ctx: &'a Context<Means>, part: Part<'a>) -> BoxFuture<'a, Result<bool, Error>>;

    /// Waits for the end of one that was begun.
    ///
    /// # Errors
    /// Its failure, not to be tried again.
    fn wait<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Cancels it, if it was begun and still can be, and waits for its end, whatever that is.
    fn give_up<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}

impl Parts for Handle<Procedures> {
    fn is_begun<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move { Ok(find(self, ctx, name).await?.is_some()) })
    }

    fn begin<'a>(&'a self, ctx: &'a Context<Means>, part: Part<'a>) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move {
            let Part { name, cluster, procedure } = part;
            let submit = Submit::new(procedure, resource(&cluster.value.name), asker(ctx))
                .request(request(name)?)
                .when(Compare::unchanged(&cluster.key, cluster.revision));
            match self.submit(submit).await {
                Ok(_) => Ok(true),
                Err(operation::Error::InProgress { .. } | operation::Error::Conflict { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn wait<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let Some(begun) = find(self, ctx, name).await? else {
                return Err(Error::new(Failure::new(Reason::Internal, format!("{name} was never begun"))));
            };
            let mut snapshots = self.watch(begun.id).await?;
            // Cancel-safe: it only looks.
            while let Some(operation) = snapshots.next().await {
                if let Some(step) = operation.steps.iter().find(|step| step.state == StepState::Running) {
                    ctx.say(format!("{}: {} (operation {})", operation.resource, step.title, operation.id));
                }
            }
            ended(self.wait(begun.id).await?)
        })
    }

    fn give_up<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            // One that is blocked waits for a person.
            let begun = find(self, ctx, name).await?.filter(|begun| !begun.is_settled());
            let Some(begun) = begun else { return Ok(()) };
            // One that is past its point of no return goes on.
            if let Err(error) = self.cancel(begun.id).await
                && !matches!(error, operation::Error::NotCancellable { .. })
            {
                return Err(error.into());
            }
            self.wait(begun.id).await?;
            Ok(())
        })
    }
}

async fn find(
    handle: &Handle<Procedures>,
    ctx: &Context<Means>,
    name: &str,
) -> Result<Option<Operation>, Error> {
    Ok(handle.find_request(&asker(ctx), &request(name)?).await?)
}

/// As whom the operation asks for its parts.
fn asker(ctx: &Context<Means>) -> String {
    format!("operation/{}", ctx.operation())
}

fn request(name: &str) -> Result<Request, Error> {
    Request::new(name, name.as_bytes()).map_err(|error| Error::new(Failure::internal(&error)))
}

/// Its success, or its failure as that of the step that waits for it.
fn ended(operation: Operation) -> Result<(), Error> {
    let Operation { id, resource, state, failure, .. } = operation;
    if state == State::Succeeded {
        return Ok(());
    }
    let cancelled = || Failure::new(Reason::Cancelled, "it was cancelled");
    let failure = failure.unwrap_or_else(cancelled);
    let message = format!("{resource}, operation {id}: {}", failure.message);
    Err(Error::new(Failure { message, retry: Retry::Never, ..failure }))
}
