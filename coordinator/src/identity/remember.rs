//! Answers of calls that bear a request id: a repeat of the same call gets the first answer, also if that had a secret in it.

use holdfast_common::error::{Failure, Reason};
use holdfast_common::pki::Fingerprint;
use jiff::Timestamp;

use super::{Identity, REMEMBER_FOR, contended};
use crate::directory::{self, Remembered};
use crate::store::{Compare, Key, Txn};

/// The longest request id.
const MAX_BYTES: usize = 128;

/// A request id, bound to its caller, the call, and what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    text: String,
    key: Key,
    body: Fingerprint,
}

// === impl RequestId ===

impl RequestId {
    /// `None` if `text` is empty: the call is not to be remembered. `body` is what a repeat must agree in.
    ///
    /// # Errors
    /// `InvalidField` about `request_id`.
    pub fn new(text: &str, caller: &str, method: &str, body: &[u8]) -> Result<Option<Self>, Failure> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem =
                format!("must have at most {MAX_BYTES} visible ASCII characters, best those of a new UUID");
            return Err(Failure::invalid_field("request_id", problem));
        }
        let hash = Fingerprint::of(format!("{caller}\n{method}\n{text}").as_bytes());
        let key = Key::from(format!("{}{hash}", directory::REQUESTS));
        Ok(Some(Self { text: text.to_owned(), key, body: Fingerprint::of(body) }))
    }

    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Identity {
    /// The first answer to this request, if there was one.
    ///
    /// # Errors
    /// `RequestIdReused`: the id was used for something else. Those of the store.
    pub async fn recall(&self, request: Option<&RequestId>) -> Result<Option<Vec<u8>>, Failure> {
        let Some(request) = request else { return Ok(None) };
        let Some(found) = self.inner.directory.get::<Remembered>(&request.key).await? else {
            return Ok(None);
        };
        if found.value.keep_until < Timestamp::now() {
            return Ok(None);
        }
        if found.value.body != request.body {
            let message = "the request id was used before, for another request; draw a new one";
            return Err(Failure::new(Reason::RequestIdReused, message).with("requestId", &request.text));
        }
        let opened = self.inner.keyring.open(request.key.as_str(), &found.value.answer);
        opened.map(|answer| Some(answer.to_vec())).map_err(|error| Failure::internal(&error))
    }

    /// Writes what a call has changed and, in the same transaction, its answer for repeats.
    ///
    /// # Errors
    /// `VersionConflict` if the transaction's compares do not hold, and it was not a repeat; those of the store.
    pub async fn commit(
        &self,
        mut txn: Txn,
        request: Option<&RequestId>,
        answer: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let replaced = match request {
            None => None,
            Some(request) => self.inner.directory.store().get(request.key()).await?,
        };
        if let Some(request) = request {
            let remembered = self.remembered(request, &answer)?;
            // One that is over may still lie there.
            let free = replaced.as_ref().map_or_else(
                || Compare::absent(request.key()),
                |old| Compare::unchanged(request.key(), old.mod_rev),
            );
            txn = txn.when(free).then(directory::put(request.key(), &remembered)?);
        }
        if self.inner.directory.store().txn(txn).await?.succeeded {
            return Ok(answer);
        }
        // A rival with the same request id was first: its answer is ours.
        self.recall(request).await?.ok_or_else(contended)
    }

    /// What to store of an answer, together with what the call has changed.
    ///
    /// # Errors
    /// `Internal`.
    fn remembered(&self, request: &RequestId, answer: &[u8]) -> Result<Remembered, Failure> {
        let answer = self.inner.keyring.seal(request.key.as_str(), answer);
        let keep_until = Timestamp::now().saturating_add(REMEMBER_FOR).unwrap_or(Timestamp::MAX);
        Ok(Remembered {
            body: request.body,
            answer: answer.map_err(|error| Failure::internal(&error))?,
            keep_until,
        })
    }
}
