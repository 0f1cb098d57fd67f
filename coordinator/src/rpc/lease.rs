//! What agents say of leases, beside their session.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use holdfast_common::link::Leased;
use holdfast_common::protocol::{ToCoordinator, ToMember};
use holdfast_proto::link::v1 as proto;
use holdfast_proto::link::v1::lease_service_server::LeaseService;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::convert::refuse;
use super::peer::Caller;
use crate::lease::Leases;

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
        self.tasks.spawn(async move {
            let _attached = attached;
            loop {
                // Both arms are cancel-safe.
                let message = tokio::select! {
                    _ended = &mut over => return,
                    message = inbound.next() => message,
                };
                let Some(Ok(message)) = message else { return };
                match Leased::<ToCoordinator>::try_from(message) {
                    Ok(said) => leases.hear(node, said).await,
                    Err(error) => tracing::warn!(%node, %error, "a message about a lease is refused"),
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
