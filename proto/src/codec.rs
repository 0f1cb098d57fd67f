//! How messages are put on the wire: as Protocol Buffers, with buffers that begin small. A coordinator holds a stream for
//! every node, and what an idle one holds it holds a thousand times; a large message lets its buffer grow.

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a buffer begins with, and grows by: more than a heartbeat needs.
const BUFFER_BYTES: usize = 1024;
/// Waiting messages are sent together up to so much.
const TOGETHER_BYTES: usize = 16 * 1024;

/// The codec of every call.
#[derive(Debug)]
pub struct Frugal<T, U>(ProstCodec<T, U>);

// === impl Frugal ===

impl<T, U> Default for Frugal<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for Frugal<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, TOGETHER_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, TOGETHER_BYTES))
    }
}
