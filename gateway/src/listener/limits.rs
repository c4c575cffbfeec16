//! Every bound of the listener.

use std::time::Duration;

/// How much of everything one client, and all together, may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more are answered with 503 and closed.
    pub connections: usize,
    /// Requests at once over all connections; more are answered with 503.
    pub requests: usize,
    /// Requests at once on one HTTP/2 connection; the client is told and waits.
    pub streams: u32,
    /// From the connection to its first request, TLS included.
    pub header_timeout: Duration,
    /// Without any request under way.
    pub idle_timeout: Duration,
    /// For one request body.
    pub body_timeout: Duration,
    /// For which a client may take nothing of an answer that is streamed to it, or that is long.
    pub stall_timeout: Duration,
    /// For which a long answer waits for room among those that are being sent.
    pub room_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            requests: 8192,
            streams: 256,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(60),
            room_timeout: Duration::from_secs(20),
        }
    }
}

/// Most bytes of a request's headers, and of an answer that one HTTP/1 connection holds while its client does not read.
pub const CONNECTION_BUFFER: usize = 64 << 10;
/// Bytes that a client may send on one HTTP/2 stream before they are read.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection: room for many, so that one whose body is not read does not hold up others.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of an answer that one HTTP/2 stream holds while its client does not read.
pub const STREAM_BUFFER: usize = 64 << 10;
/// Most bytes of headers on HTTP/2.
pub const HEADER_BYTES: u32 = 32 << 10;
/// Bytes of an answer, or of a piece of one, up to which it is sent at once and not counted.
pub const SHORT_ANSWER: usize = 64 << 10;
/// Bytes in which longer ones are sent: a frame of HTTP/2 as clients take it unless they say otherwise (RFC 9113, 6.5.2).
pub const SLICE: usize = 16 << 10;
/// Bytes a second at which a longer one is read at least, beside the time that a client may take nothing at all.
pub const SLOWEST: u64 = 64 << 10;
