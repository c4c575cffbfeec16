//! Bounds on the requests that are being received.
//!
//! A message is counted by the length that stands before it (gRPC over HTTP/2, "Length-Prefixed-Message"), before more than a
//! few bytes of it are in memory, until it has been decoded: from then on [`super::TextWorkers`] counts it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use futures::StreamExt as _;
use futures::stream::try_unfold;
use llamero_settings::limits::MAX_MESSAGE_BYTES;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::service::Routes;

use crate::grpc;

/// Most bytes of all messages that are being received, in KiB: room for two of the longest.
const MAX_KIB: usize = 32 << 10;
const _: () = assert!(MAX_KIB >= 2 * MAX_MESSAGE_BYTES / 1024);
/// A message comes within this time, or its room goes to others.
const PATIENCE: Duration = Duration::from_secs(30);
/// When a client that found no room may come again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Services whose requests may be long.
const SERVICES: [&str; 2] = ["/vllm.Inference/", "/llamero.v1.Completion/"];

/// The room for messages that are being received. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Receiving {
    kib: Arc<Semaphore>,
}

impl Default for Receiving {
    fn default() -> Self {
        Self {
            kib: Arc::new(Semaphore::new(MAX_KIB)),
        }
    }
}

impl Receiving {
    /// Bound the requests of clients to `routes`.
    #[must_use]
    pub fn bound(self, routes: Routes) -> Routes {
        Routes::from(
            routes
                .into_axum_router()
                .layer(from_fn_with_state(self, count_request)),
        )
    }

    /// A body of one message that fails when there is no room for it, or when it does not come in time.
    fn count(&self, body: Body) -> Body {
        let message = Message {
            chunks: body.into_data_stream(),
            kib: Arc::clone(&self.kib),
            prefix: Vec::with_capacity(PREFIX),
            room: None,
            until: Instant::now() + PATIENCE,
        };
        Body::from_stream(try_unfold(message, Message::next))
    }
}

async fn count_request(State(receiving): State<Receiving>, request: Request, next: Next) -> Response {
    let counted = SERVICES
        .iter()
        .any(|service| request.uri().path().starts_with(service));
    let request = match counted {
        true => request.map(|body| receiving.count(body)),
        false => request,
    };
    next.run(request).await
}

/// A message under way. Its room is given back when whoever decodes it drops the body.
struct Message {
    chunks: BodyDataStream,
    kib: Arc<Semaphore>,
    /// The first bytes, until they tell the length.
    prefix: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
    until: Instant,
}

impl Message {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Status> {
        let chunk = timeout_at(self.until, self.chunks.next())
            .await
            .map_err(|_| late())?;
        let Some(chunk) = chunk
            .transpose()
            .map_err(|error| Status::from_error(error.into()))?
        else {
            return Ok(None);
        };
        self.admit(&chunk)?;
        Ok(Some((chunk, self)))
    }

    fn admit(&mut self, chunk: &[u8]) -> Result<(), Status> {
        if self.room.is_some() {
            return Ok(());
        }
        let missing = PREFIX - self.prefix.len();
        self.prefix.extend(chunk.iter().take(missing));
        let [_, length @ ..] = self.prefix.as_slice() else {
            return Ok(());
        };
        let Ok(length) = <[u8; 4]>::try_from(length) else {
            return Ok(());
        };
        // A longer one is refused by the decoder, which says what is allowed, as soon as it sees the length.
        let bytes = (u32::from_be_bytes(length) as usize).min(MAX_MESSAGE_BYTES);
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.kib).try_acquire_many_owned(kib);
        self.room = Some(room.map_err(|_| {
            grpc::exhausted(
                "too many long requests are being received; try again in 1 s",
                RETRY_AFTER,
            )
        })?);
        Ok(())
    }
}

fn late() -> Status {
    Status::deadline_exceeded(format!(
        "the request did not come within {} s; send it again",
        PATIENCE.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::FutureExt as _;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;
    use tonic::Code;

    use super::*;

    type Sender = mpsc::UnboundedSender<Result<Bytes, Infallible>>;

    fn message(receiving: &Receiving) -> (Sender, BodyDataStream) {
        let (sender, chunks) = mpsc::unbounded_channel();
        let body = Body::from_stream(UnboundedReceiverStream::new(chunks));
        (sender, receiving.count(body).into_data_stream())
    }

    fn send(sender: &Sender, bytes: &[u8]) {
        sender.send(Ok(Bytes::copy_from_slice(bytes))).unwrap();
    }

    fn prefix(bytes: usize) -> [u8; PREFIX] {
        let [a, b, c, d] = u32::try_from(bytes).unwrap().to_be_bytes();
        [0, a, b, c, d]
    }

    async fn refusal(body: &mut BodyDataStream) -> Status {
        // As the decoder reads it.
        Status::from_error(body.next().await.unwrap().unwrap_err().into())
    }

    #[tokio::test]
    async fn messages_are_counted_before_they_are_in_memory() {
        let receiving = Receiving::default();
        let mut bodies = Vec::new();
        for _ in 0..2 {
            let (sender, mut body) = message(&receiving);
            // The length may come in parts.
            let prefix = prefix(MAX_MESSAGE_BYTES);
            for part in [&prefix[..1], &prefix[1..4], &prefix[4..]] {
                send(&sender, part);
                body.next().await.unwrap().unwrap();
            }
            bodies.push((sender, body));
        }
        let (sender, mut third) = message(&receiving);
        send(&sender, &prefix(MAX_MESSAGE_BYTES));
        let status = refusal(&mut third).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert_eq!(status.metadata().get("retry-after-ms").unwrap(), "1000");

        // A short one finds room, and none is left when all are gone.
        let (sender, mut short) = message(&receiving);
        send(&sender, &[&prefix(3)[..], b"abc"].concat());
        drop(sender);
        assert_eq!(
            short.next().await.unwrap().unwrap(),
            &[0, 0, 0, 0, 3, b'a', b'b', b'c'][..]
        );
        assert!(short.next().await.is_none());
        drop((bodies, short));
        assert_eq!(receiving.kib.available_permits(), MAX_KIB);
    }

    #[tokio::test]
    async fn what_the_decoder_refuses_takes_no_more_than_the_longest() {
        let receiving = Receiving::default();
        let (sender, mut body) = message(&receiving);
        send(&sender, &[0, 255, 255, 255, 255]);
        body.next().await.unwrap().unwrap();
        assert_eq!(
            receiving.kib.available_permits(),
            MAX_KIB - MAX_MESSAGE_BYTES.div_ceil(1024)
        );
    }

    #[tokio::test]
    async fn a_message_that_does_not_come_gives_its_room_back() {
        let receiving = Receiving::default();
        let (sender, chunks) = mpsc::unbounded_channel::<Result<Bytes, Infallible>>();
        let message = Message {
            chunks: Body::from_stream(UnboundedReceiverStream::new(chunks)).into_data_stream(),
            kib: Arc::clone(&receiving.kib),
            prefix: Vec::new(),
            room: None,
            until: Instant::now() + PATIENCE,
        };
        send(&sender, &prefix(MAX_MESSAGE_BYTES));
        let (_, message) = message.next().await.unwrap().unwrap();
        assert!(receiving.kib.available_permits() < MAX_KIB);
        let mut waiting = Box::pin(message.next());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);

        let (_sender, chunks) = mpsc::unbounded_channel::<Result<Bytes, Infallible>>();
        let overdue = Message {
            chunks: Body::from_stream(UnboundedReceiverStream::new(chunks)).into_data_stream(),
            kib: Arc::clone(&receiving.kib),
            prefix: Vec::new(),
            room: None,
            until: Instant::now(),
        };
        let status = overdue.next().await.err().unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        assert_eq!(receiving.kib.available_permits(), MAX_KIB);
    }
}
