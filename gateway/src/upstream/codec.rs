//! Sends a request that its sender keeps, to send it again when a leader is lost: it is encoded from where it is, into a buffer of its size.

use std::sync::Arc;

use llamero_proto::v1::{CompletionChunk, CompletionRequest};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What gRPC puts before a message.
const HEADER: usize = 5;
/// Of a stream of messages; there is one.
const YIELD: usize = 32 << 10;

/// For the chunks of an answer before any has come: they are small, and answers under way are many.
const CHUNKS: usize = 1 << 10;

/// For one request of so many bytes and the chunks of its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompletionCodec {
    bytes: usize,
}

impl CompletionCodec {
    pub(super) fn of(request: &CompletionRequest) -> Self {
        Self {
            bytes: request.encoded_len(),
        }
    }
}

impl Codec for CompletionCodec {
    type Encode = Arc<CompletionRequest>;
    type Decode = CompletionChunk;
    type Encoder = Self;
    type Decoder = Chunks;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Chunks {
        Chunks
    }
}

impl Encoder for CompletionCodec {
    type Item = Arc<CompletionRequest>;
    type Error = Status;

    fn encode(&mut self, request: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = request.encode(buffer);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(self.bytes + HEADER, YIELD)
    }
}

/// Reads the chunks of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunks;

impl Decoder for Chunks {
    type Item = CompletionChunk;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<CompletionChunk>, Status> {
        let chunk = CompletionChunk::decode(buffer);
        chunk
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(CHUNKS, YIELD)
    }
}
