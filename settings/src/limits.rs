//! Ranges of settings, the same in the resource types, in the operator and on the worker's command line; and sizes that gateway
//! and worker must agree on: what the one lets in, the other takes.

use std::ops::RangeInclusive;

/// Compute threads of a CPU rank (`engine.threads`, `--threads`).
pub const THREADS: RangeInclusive<u32> = 1..=1_024;
/// Sequences at once (`engine.maxSequences`, `--max-sequences`).
pub const MAX_SEQUENCES: RangeInclusive<u32> = 1..=65_536;
/// Tokens in one step (`engine.maxBatchedTokens`, `--max-batched-tokens`).
pub const MAX_BATCHED_TOKENS: RangeInclusive<u32> = 1..=1_048_576;
/// Requests that may wait (`engine.maxQueuedRequests`, `--max-queued-requests`).
pub const MAX_QUEUED_REQUESTS: RangeInclusive<u32> = 1..=65_536;
/// Longest context in tokens (`model.maxContextLength`, `--max-context-length`).
pub const MAX_CONTEXT_LENGTH: RangeInclusive<u32> = 16..=LONGEST_CONTEXT;
/// The largest of [`MAX_CONTEXT_LENGTH`].
const LONGEST_CONTEXT: u32 = 1 << 20;
/// Tensor-parallel ranks (`parallelism.tensor`, `--tensor`).
pub const TENSOR: RangeInclusive<u32> = 1..=256;
/// Pipeline stages (`parallelism.pipeline`, `--pipeline`).
pub const PIPELINE: RangeInclusive<u32> = 1..=64;
/// Ranks of one pod (`accelerator.perNode`, `--ranks-per-pod`).
pub const RANKS_PER_POD: RangeInclusive<u32> = 1..=MAX_RANKS_PER_POD;
/// The largest of [`RANKS_PER_POD`].
pub const MAX_RANKS_PER_POD: u32 = 64;

/// Adapters that may be loaded at once (`engine.lora.maxAdapters`, `--max-adapters`); 0: none are served.
pub const MAX_ADAPTERS: RangeInclusive<u32> = 0..=64;
/// The largest rank of an adapter (`engine.lora.maxRank`, `--max-adapter-rank`).
pub const MAX_ADAPTER_RANK: RangeInclusive<u32> = 1..=256;

/// Tokens that are drafted for a sequence in one step (`engine.speculation.maxDrafts`, `--max-drafts`).
pub const MAX_DRAFTS: RangeInclusive<u32> = 1..=16;
/// The same when nothing is said.
pub const USUAL_DRAFTS: u32 = 8;

/// Tokens of a KV block: memory for keys and values is given to sequences in whole ones.
pub const KV_BLOCK_TOKENS: u32 = 16;

/// Longest request of a client in bytes: the body of an HTTP request at the gateway.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Most texts of one request for embeddings, as OpenAI's API has it.
pub const MAX_EMBED_INPUTS: usize = 2_048;

/// Longest gRPC message that a worker takes in bytes. A gateway's message has the texts of a request, which are never longer than
/// their JSON, the tokens to resume, of which no context has more than [`MAX_CONTEXT_LENGTH`], and small fields, for which a mebibyte
/// is plenty.
pub const MAX_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + LONGEST_CONTEXT as usize * BYTES_A_TOKEN + (1 << 20);

/// Longest HTTP/2 frame that a worker takes in bytes: a long prompt comes in a few of them, each of which is one write.
pub const MAX_FRAME_BYTES: u32 = 256 << 10;

/// Longest gRPC message of an answer in bytes, as a gateway takes it: a text of [`MAX_TEXT_BYTES`], once more cut into tokens, and
/// their numbers.
pub const MAX_ANSWER_BYTES: usize = 2 * MAX_TEXT_BYTES + MAX_MESSAGE_BYTES;

/// Longest text in bytes that a worker spells out of tokens which it was given: 32 bytes for each of the longest context.
pub const MAX_TEXT_BYTES: usize = (LONGEST_CONTEXT as usize) << 5;

/// Most bytes that a token's number takes in a message: seven bits a byte.
const BYTES_A_TOKEN: usize = (u32::BITS as usize).div_ceil(7);
