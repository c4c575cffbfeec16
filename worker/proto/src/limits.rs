//! Limits that client and server of a contract must agree on, each in this one place.

/// Largest encoded request message in bytes, for the gateway (which refuses more at once) and for the worker (which
/// decodes no more). A whole context of 131,072 tokens is about 0.5 MiB of English text.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;
