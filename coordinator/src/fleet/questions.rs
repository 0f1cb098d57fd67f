//! Questions to one node that somebody waits for: asked once, answered within the session, forgotten when nobody waits any more.
//!
//! Not for work ([`super::pending`]): nothing here changes anything on a node, so nothing is repeated and nothing is kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::error::Failure;
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::link::{Answer, Question};
use holdfast_common::question;
use tokio::sync::oneshot;

use super::Handle;
use super::error::CallError;
use super::node::Node;

/// How long a node may take for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// The most questions to one node at a time; an agent answers more at once.
const MAX_QUESTIONS: usize = 12;

type Said = Result<question::Answer, Failure>;

/// All questions to one node.
#[derive(Debug, Default)]
pub(super) struct Questions {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Said>>,
}

/// A place among them. Dropping it gives it up.
struct Asked {
    node: Arc<Node>,
    number: u64,
}

// === impl Questions ===

impl Questions {
    /// `None`: there are too many.
    fn enlist(&mut self) -> Option<(u64, oneshot::Receiver<Said>)> {
        if self.waiting.len() >= MAX_QUESTIONS {
            return None;
        }
        let (tell, told) = oneshot::channel();
        self.last += 1;
        self.waiting.insert(self.last, tell);
        Some((self.last, told))
    }

    /// An answer that nobody waits for is dropped.
    pub(super) fn answered(&mut self, answer: Answer) {
        let Answer { number, answer } = answer;
        if let Some(tell) = self.waiting.remove(&number) {
            // Whoever asked may be gone by now.
            let _unheard = tell.send(answer);
        }
    }

    /// The session that they were asked in is over.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

// === impl Handle ===

impl Handle {
    /// Asks a node something about one of its members, and waits for the answer: [`ANSWER_DEADLINE`] at most.
    ///
    /// # Cancel safety
    /// When dropped, the answer is thrown away.
    ///
    /// # Errors
    /// See [`CallError`]; an offline node is not waited for.
    pub async fn ask(
        &self,
        id: NodeId,
        cluster_id: ClusterId,
        about: impl Into<question::Question>,
    ) -> Result<question::Answer, CallError> {
        let not_sent = |node: String, why| CallError::NotSent { node, why };
        let node = self.find(id).ok_or_else(|| not_sent(id.to_string(), "it is not in the fleet"))?;
        let (name, number, told) = {
            let mut state = node.lock();
            let name = state.record.name.to_string();
            let Some(mailbox) = state.session.clone() else { return Err(not_sent(name, "it is offline")) };
            let enlisted = state.questions.enlist();
            let Some((number, told)) = enlisted else {
                return Err(not_sent(name, "too many questions wait for it"));
            };
            mailbox.ask(Question { number, cluster_id, about: about.into() });
            (name, number, told)
        };
        let _asked = Asked { node, number };
        match tokio::time::timeout(ANSWER_DEADLINE, told).await {
            Ok(Ok(answer)) => answer.map_err(CallError::Failed),
            // The session is over, or the node does not answer.
            Ok(Err(_)) | Err(_) => Err(CallError::Unanswered { node: name }),
        }
    }
}

// === impl Asked ===

impl Drop for Asked {
    fn drop(&mut self) {
        self.node.lock().questions.waiting.remove(&self.number);
    }
}
