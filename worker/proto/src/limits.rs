//! Sizes that gateway and worker must agree on: what the one lets in, the other takes.

/// Longest request of a client in bytes: the body of an HTTP request at the gateway.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Longest gRPC message that a worker takes in bytes. A gateway's message has the texts of a request, which are never longer than
/// their JSON, and the tokens to resume: at most five bytes each, and no context has more than a million.
pub const MAX_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + (6 << 20);
