//! What agents say of leases, beside their session.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use holdfast_common::link::Leased;
use holdfast_common::protocol::{ToCoordinator, ToMember};
use holdfast_proto::link::v1 as proto;
use holdfast_proto::link::v1::lease_service_server::LeaseService;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::convert::refuse;
use super::peer::Caller;
use crate::lease::Leases;

/// Of one node, what waits for the store at the same time.
const MAX_STORING: usize = 64;

/// The agents' second service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub leases: Leases,
    /// Owns the streams' reading ends.
    pub tasks: TaskTracker,
}

#[tonic::async_trait]
impl LeaseService for Exchange {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<proto::ExchangeResponse, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let (node, _) = Caller::of(&request).node().map_err(refuse)?;
        let mut inbound = request.into_inner();
        let (attached, messages) = self.leases.attach(node);
        let leases = self.leases.clone();
        let (ended, mut over) = oneshot::channel();
        let (tasks, storing) = (self.tasks.clone(), Arc::new(Semaphore::new(MAX_STORING)));
        self.tasks.spawn(async move {
            let _attached = attached;
            loop {
                // Both arms are cancel-safe.
                let message = tokio::select! {
                    _ended = &mut over => return,
                    message = inbound.next() => message,
                };
                let Some(Ok(message)) = message else { return };
                let said = match Leased::<ToCoordinator>::try_from(message) {
                    Ok(said) => said,
                    Err(error) => {
                        tracing::warn!(%node, %error, "a message about a lease is refused");
                        continue;
                    }
                };
                if let Some(work) = leases.hear(node, said) {
                    let Ok(permit) = Arc::clone(&storing).try_acquire_owned() else {
                        tracing::debug!(%node, "the store is slow: what cannot wait is said again");
                        continue;
                    };
                    tasks.spawn(async move {
                        let _permit = permit;
                        work.await;
                    });
                }
            }
        });
        let held = Held { messages, _ended: ended };
        let answers = stream::unfold(held, |mut held| async move {
            let message = held.messages.recv().await?;
            Some((Ok(proto::ExchangeResponse::from(&message)), held))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The answering end: with it the reading end ends.
struct Held {
    messages: mpsc::Receiver<Leased<ToMember>>,
    _ended: oneshot::Sender<()>,
}
