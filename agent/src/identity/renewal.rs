//! Renews the certificate at two thirds of its life, over a connection of its own: the session goes on.

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::backoff::Backoff;
use holdfast_common::clock::Clock;
use holdfast_common::error::{Chain, Classify, Reason};
use holdfast_common::pki::{NodeKey, RequestError};
use holdfast_common::report::Severity;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Error, Identity, Record};
use crate::link::client::{CallError, Coordinators, renew};
use crate::outbox::{Outbox, node_event};

/// The wall clock is looked at this often: it may be set, and the machine may have slept.
const LOOK: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Renews until it is stopped.
#[derive(Debug)]
pub struct Renewal {
    pub identity: Arc<Identity>,
    pub coordinators: Coordinators,
    pub clock: Clock,
    pub outbox: Outbox,
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("make a new key")]
    Key(#[from] RequestError),
    #[error("ask for a fresh certificate")]
    Call(#[from] CallError),
    #[error("take the fresh certificate over")]
    Keep(#[from] Error),
}

// === impl Renewal ===

impl Renewal {
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let record = self.identity.record();
            let now = self.clock.now();
            let wait = if now < record.renew_at() {
                until(now, record.renew_at()).min(LOOK)
            } else {
                // Nothing of a renewal that is dropped half-way matters: the certificate in use stays.
                let renewed = tokio::select! {
                    () = stop.cancelled() => return,
                    renewed = self.renew(&record) => renewed,
                };
                match renewed {
                    Ok(()) => {
                        backoff.reset();
                        Duration::ZERO
                    }
                    Err(error) => {
                        self.tell(&record, now, &error, backoff.tries());
                        // Never later than what is left of its life allows.
                        let left = until(now, record.not_after) / 4;
                        backoff.next_wait().min(left.max(FIRST_PAUSE))
                    }
                }
            };
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// A new key each time: a key that leaked is of no use for longer than a certificate lives.
    async fn renew(&self, record: &Record) -> Result<(), RenewError> {
        let key = NodeKey::generate()?;
        let request = key.signing_request()?;
        let renewed = renew(&self.identity.tls(), self.coordinators.next(), request).await?;
        let record = Record {
            certificate_chain: renewed.certificate_chain,
            trust_bundle: renewed.trust_bundle,
            issued_at: self.clock.now(),
            not_after: renewed.not_after,
            key: key.to_pem(),
            ..record.clone()
        };
        let not_after = record.not_after;
        self.identity.replace(record).await?;
        tracing::info!(%not_after, "certificate renewed");
        Ok(())
    }

    fn tell(&self, record: &Record, now: Timestamp, error: &RenewError, tries: u32) {
        let message = Chain(error).to_string();
        tracing::warn!(error = %message, not_after = %record.not_after, "the certificate is not renewed");
        // Once for a while without a coordinator, and once it is too late.
        let expired = now >= record.not_after;
        if tries == 3 || (expired && tries.is_multiple_of(10)) {
            let severity = if expired { Severity::Error } else { Severity::Warning };
            let text =
                format!("the node's certificate ends {} and was not renewed: {message}", record.not_after);
            self.outbox.event(node_event(&self.clock, severity, "CERTIFICATE_NOT_RENEWED", text));
        }
    }
}

impl Classify for RenewError {
    fn reason(&self) -> Reason {
        match self {
            Self::Key(error) => error.reason(),
            Self::Call(error) => error.reason(),
            Self::Keep(error) => error.reason(),
        }
    }
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}
