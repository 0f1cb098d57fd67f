//! Streams that are open, by the credential they began with, so that they end with it.
//!
//! One task follows the store: a removed operator, a revoked token, a removed node. Streams hold a [`Place`]; its token is
//! cancelled when the credential is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_common::error::Chain;
use holdfast_common::id::{NodeId, TokenId};
use holdfast_common::name::OperatorName;
use tokio_util::sync::CancellationToken;

use super::peer::{Caller, Method};
use crate::directory::{self, AccessToken, Directory, Node, Operator};
use crate::fleet;
use crate::store::{self, Event};

/// How long after a failure the store is followed again.
const PAUSE: Duration = Duration::from_secs(1);

/// All open streams of operators. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    open: Arc<Mutex<HashMap<Subject, Entry>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Operator(OperatorName),
    Token(TokenId),
}

#[derive(Debug, Default)]
struct Entry {
    ended: CancellationToken,
    places: usize,
}

/// A stream's place. Dropping it gives it up.
#[derive(Debug)]
pub struct Place {
    streams: Streams,
    subjects: Vec<(Subject, CancellationToken)>,
}

// === impl Streams ===

impl Streams {
    /// A place for a stream of this caller.
    pub fn place(&self, caller: &Caller) -> Place {
        let subjects = match caller {
            Caller::Operator(operator) => {
                let mut subjects = vec![Subject::Operator(operator.name.clone())];
                if let Method::Token(id) = operator.method {
                    subjects.push(Subject::Token(id));
                }
                subjects
            }
            // A node's session is ended by the fleet.
            Caller::Node { .. } | Caller::Anyone => Vec::new(),
        };
        let mut open = self.lock();
        let subjects = subjects.into_iter().map(|subject| {
            let entry = open.entry(subject.clone()).or_default();
            entry.places += 1;
            (subject, entry.ended.clone())
        });
        let subjects = subjects.collect();
        drop(open);
        Place { streams: self.clone(), subjects }
    }

    fn end(&self, subject: &Subject) {
        if let Some(entry) = self.lock().remove(subject) {
            entry.ended.cancel();
        }
    }

    fn subjects(&self) -> Vec<Subject> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the store until `shutdown`.
    pub async fn follow(self, directory: Directory, fleet: fleet::Handle, shutdown: CancellationToken) {
        loop {
            let followed = tokio::select! {
                () = shutdown.cancelled() => return,
                followed = self.follow_once(&directory, &fleet) => followed,
            };
            let Err(error) = followed;
            if !matches!(error, directory::Error::Store(store::Error::Compacted { .. })) {
                tracing::warn!(error = %Chain(&error), "following revocations failed; looking at all again");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow_once(
        &self,
        directory: &Directory,
        fleet: &fleet::Handle,
    ) -> Result<std::convert::Infallible, directory::Error> {
        // The watch begins first, so that nothing falls between.
        let from = directory.store().status().await?.revision.next();
        self.look_at_all(directory, fleet).await?;
        let mut watches = [
            directory.store().watch(directory::OPERATORS, from).await?,
            directory.store().watch(directory::ACCESS_TOKENS, from).await?,
            directory.store().watch(directory::NODES, from).await?,
        ];
        let [operators, tokens, nodes] = &mut watches;
        loop {
            // All arms are cancel-safe.
            let batch = tokio::select! {
                batch = operators.next() => batch?,
                batch = tokens.next() => batch?,
                batch = nodes.next() => batch?,
            };
            for event in batch.events {
                self.apply(&event, fleet);
            }
        }
    }

    fn apply(&self, event: &Event, fleet: &fleet::Handle) {
        let key = event.key().as_str();
        let gone = match event {
            Event::Deleted { .. } => true,
            Event::Put(kv) => store::record::decode::<AccessToken>(kv).is_ok_and(|token| token.value.revoked),
        };
        if let Some(name) = key.strip_prefix(directory::OPERATORS) {
            if gone && let Ok(name) = name.parse() {
                self.end(&Subject::Operator(name));
            }
        } else if let Some(id) = key.strip_prefix(directory::ACCESS_TOKENS) {
            if gone && let Ok(id) = id.parse() {
                self.end(&Subject::Token(id));
            }
        } else if let Some(id) = key.strip_prefix(directory::NODES) {
            match event {
                Event::Deleted { .. } => {
                    if let Ok(id) = id.parse::<NodeId>() {
                        fleet.remove(id);
                    }
                }
                Event::Put(kv) => match store::record::decode::<Node>(kv) {
                    // Only what is known: a write that was overtaken by the removal must not bring it back.
                    Ok(node) => fleet.refresh(node.value),
                    Err(error) => tracing::error!(error = %Chain(&error), "a node's record cannot be read"),
                },
            }
        }
    }

    async fn look_at_all(
        &self,
        directory: &Directory,
        fleet: &fleet::Handle,
    ) -> Result<(), directory::Error> {
        for subject in self.subjects() {
            let gone = match &subject {
                Subject::Operator(name) => {
                    directory.get::<Operator>(&directory::operator_key(name)).await?.is_none()
                }
                Subject::Token(id) => directory
                    .get::<AccessToken>(&directory::access_token_key(*id))
                    .await?
                    .is_none_or(|token| token.value.revoked),
            };
            if gone {
                self.end(&subject);
            }
        }
        for node in fleet.nodes() {
            if directory.get::<Node>(&directory::node_key(node.id())).await?.is_none() {
                fleet.remove(node.id());
            }
        }
        Ok(())
    }
}

// === impl Place ===

impl Place {
    /// Waits until the credential is gone.
    pub async fn ended(&self) {
        match &self.subjects[..] {
            [] => std::future::pending().await,
            [(_, only)] => only.cancelled().await,
            [(_, first), (_, second), ..] => {
                tokio::select! {
                    () = first.cancelled() => {}
                    () = second.cancelled() => {}
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        for (subject, token) in &self.subjects {
            // One that has ended is not there any more, or is another one of the same name.
            let Some(entry) = open.get_mut(subject) else { continue };
            if token.is_cancelled() {
                continue;
            }
            entry.places -= 1;
            if entry.places == 0 {
                open.remove(subject);
            }
        }
    }
}
