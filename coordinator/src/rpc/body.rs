//! Bodies: what comes in is measured before it is held, what goes out ends with its credential.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use holdfast_common::error::status;
use holdfast_common::error::{Failure, Reason, Violation};
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Code, Status};

use super::oversize::{Fields, Found, Search};

/// A request's body that refuses a message by its length prefix, before any of it is held.
struct Measured<B> {
    inner: B,
    /// What a message of this call has.
    fields: Option<&'static Fields>,
    /// A message is too large; this looks for the field that makes it so.
    search: Option<(u32, Search)>,
    /// The prefix so far: compression flag and length.
    prefix: [u8; 5],
    prefix_len: usize,
    /// Bytes of the message that are still to come.
    left: u32,
    /// The most that a message may have.
    limit: u32,
}

/// How an answer's stream may be ended from outside.
pub(super) type Ended = Pin<Box<dyn Future<Output = Status> + Send>>;

/// An answer's body: tells its end to `recorder`, and ends early when `ended` says so.
pub(super) struct Answer<R: Recorder> {
    inner: Body,
    ended: Option<Ended>,
    recorder: Option<R>,
}

/// Hears how a call ended, once.
pub(super) trait Recorder: Send + Unpin + 'static {
    fn ended(self, code: Code);
}

/// The request with its body measured; `fields` are those of its messages, for the refusal.
pub(super) fn measured<B>(request: Request<B>, fields: Option<&'static Fields>, limit: u32) -> Request<Body>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    request.map(|inner| {
        Body::new(Measured { inner, fields, search: None, prefix: [0; 5], prefix_len: 0, left: 0, limit })
    })
}

/// The response with its end told and, if need be, brought about.
pub(super) fn answer<R: Recorder>(
    response: Response<Body>,
    ended: Option<Ended>,
    recorder: R,
) -> Response<Body> {
    // Without a body the status is among the headers.
    if let Some(code) = code_of(response.headers()) {
        recorder.ended(code);
        return response;
    }
    response.map(|inner| Body::new(Answer { inner, ended, recorder: Some(recorder) }))
}

/// The status that is among the headers, or the trailers.
pub(super) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()))
}

// === impl Measured ===

impl<B> Measured<B> {
    /// Follows the messages' prefixes through `data`.
    fn measure(&mut self, data: &Bytes) -> Result<(), Status> {
        let mut rest = &data[..];
        while !rest.is_empty() {
            if let Some((bytes, search)) = &mut self.search {
                return match search.look(rest) {
                    Found::NotYet => Ok(()),
                    found => Err(too_large(*bytes, self.limit, &found)),
                };
            }
            if self.left > 0 {
                let here = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                rest.advance(here);
                self.left -= u32::try_from(here).unwrap_or(self.left);
                continue;
            }
            let here = rest.len().min(self.prefix.len() - self.prefix_len);
            self.prefix[self.prefix_len..self.prefix_len + here].copy_from_slice(&rest[..here]);
            self.prefix_len += here;
            rest.advance(here);
            if self.prefix_len == self.prefix.len() {
                self.prefix_len = 0;
                let [compressed, a, b, c, d] = self.prefix;
                self.left = u32::from_be_bytes([a, b, c, d]);
                if self.left > self.limit {
                    if compressed != 0 || self.fields.is_none() {
                        return Err(too_large(self.left, self.limit, &Found::Nothing));
                    }
                    self.search = Some((self.left, Search::new(self.fields, self.limit)));
                }
            }
        }
        Ok(())
    }
}

fn too_large(bytes: u32, limit: u32, culprit: &Found) -> Status {
    let mut message = format!("the message has {bytes} bytes; at most {limit} are allowed");
    let mut violations = Vec::new();
    if let Found::Field { name, bytes } = culprit {
        let problem = if *bytes > u64::from(limit) {
            format!("has {bytes} bytes, more than a whole message may have; shorten it")
        } else {
            "does not fit in it any more; send less".to_owned()
        };
        message = format!("{message}: `{name}` {problem}");
        violations.push(Violation { name: name.clone(), subject: String::new(), message: problem });
    }
    let failure = Failure { violations, ..Failure::new(Reason::MessageTooLarge, message) };
    status::from_failure(&failure.with("bytes", bytes).with("limit", limit))
}

impl<B> HttpBody for Measured<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let measured = frame.data_ref().map_or(Ok(()), |data| self.measure(data));
        let frame = if self.search.is_some() {
            // Not passed on: nobody is to hold what will be refused.
            frame.map_data(|_| Bytes::new())
        } else {
            frame
        };
        Poll::Ready(Some(measured.map(|()| frame).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Answer ===

impl<R: Recorder> Answer<R> {
    fn end(&mut self, code: Code) {
        if let Some(recorder) = self.recorder.take() {
            recorder.ended(code);
        }
    }
}

impl<R: Recorder> HttpBody for Answer<R> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.recorder.is_none() {
            return Poll::Ready(None);
        }
        if let Some(ended) = &mut self.ended
            && let Poll::Ready(status) = ended.as_mut().poll(cx)
        {
            self.end(status.code());
            // Drops what still streams.
            self.inner = Body::empty();
            let mut trailers = HeaderMap::new();
            return Poll::Ready(match status.add_header(&mut trailers) {
                Ok(()) => Some(Ok(Frame::trailers(trailers))),
                Err(error) => Some(Err(axum::Error::new(error))),
            });
        }
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            None => self.end(Code::Unknown),
            Some(Err(_)) => self.end(Code::Internal),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = code_of(trailers).unwrap_or(Code::Unknown);
                    self.end(code);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.recorder.is_none()
    }
}

impl<R: Recorder> Drop for Answer<R> {
    fn drop(&mut self) {
        // The other end went away.
        self.end(Code::Cancelled);
    }
}

impl<R: Recorder> fmt::Debug for Answer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;

    use super::super::rules::MESSAGE_BYTES;
    use super::*;

    async fn all(body: Body) -> Result<Bytes, axum::Error> {
        body.collect().await.map(|collected| collected.to_bytes())
    }

    fn body(chunks: Vec<Bytes>) -> Request<Body> {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
        measured(Request::new(StreamBody::new(stream::iter(frames))), None, MESSAGE_BYTES)
    }

    fn message(len: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 7);
        bytes
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_by_its_prefix_alone() {
        let mut prefix = vec![0];
        prefix.extend_from_slice(&(MESSAGE_BYTES + 1).to_be_bytes());
        let refused = all(body(vec![Bytes::from(prefix)]).into_body()).await.unwrap_err();
        let source = std::error::Error::source(&refused).unwrap();
        let status = source.downcast_ref::<Status>().unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let failure = status::to_failure(status);
        assert_eq!(failure.reason, Reason::MessageTooLarge);
        assert!(failure.message.contains("1048576"), "{}", failure.message);
    }

    proptest! {
        #[test]
        fn however_the_messages_are_cut_all_bytes_pass(
            lengths in prop::collection::vec(0_u32..200, 0..10),
            cuts in prop::collection::vec(1_usize..50, 1..40),
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|len| message(*len)).collect();
            let mut rest = Bytes::from(bytes.clone());
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                chunks.push(rest.split_to(rest.len().min(*cut)));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let passed = runtime.block_on(all(body(chunks).into_body())).unwrap();
            prop_assert_eq!(&passed[..], &bytes[..]);
        }
    }
}
