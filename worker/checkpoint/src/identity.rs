//! Which weights these are, at little cost.
//!
//! Hashed are: what of the configuration arithmetic depends on; name, element type and shape of every tensor, and three
//! samples of 4 KiB of each at places that follow from name and size; the tokenizer's files; which tokens end an answer, and
//! how one is sampled where the client says nothing. Not hashed are names, number and dates of files, so that the same model has the same identity on every node and however it is cut into files. Two
//! trainings of one model differ in every matrix, so samples tell them apart; a few flipped bits elsewhere do not show. A
//! checkpoint that comes as an OCI image is named by the image's digest instead.
//!
//! Costs 25 MB of reads for a 405B (2,010 tensors), and as many as 16 reads at a time, so that slow disks answer side by
//! side.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::error::Result;
use crate::io_error::read_if_there;
use crate::narrow::to_usize;
use crate::samples::samples;

/// Samples of a tensor.
const SAMPLES: u64 = 3;
/// Reads at a time.
const READERS: usize = 16;
/// Files beside the weights that decide what an answer is.
const FILES: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// A SHA-256 that stands for a checkpoint's or an adapter's content, or for the OCI image that a checkpoint came in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentIdentity([u8; 32]);

/// The text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no content identity: 64 hexadecimal digits are, with or without `sha256:` before them")]
pub struct NoIdentity(String);

impl ContentIdentity {
    /// The identity of an open checkpoint. Reads some kilobytes of every tensor.
    ///
    /// # Errors
    /// A read fails.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let mut hash = Sha256::new();
        hash.update(arithmetic(checkpoint.config()).to_string());
        for digest in sample_digests(checkpoint)? {
            hash.update(digest);
        }
        for name in FILES {
            let path = checkpoint.folder().join(name);
            if let Some(bytes) = read_if_there(&path)? {
                hash.update(format!("\n{name} {}\n", bytes.len()));
                hash.update(bytes);
            }
        }
        Ok(Self(hash.finalize().into()))
    }

    /// A SHA-256 of something's content.
    pub(crate) fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The first 12 digits: for logs and people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

/// Of the configuration what logits and the end of an answer depend on.
fn arithmetic(config: &LlamaConfig) -> serde_json::Value {
    let rope = config.rope_scaling.as_ref().map(|scaling| format!("{scaling:?}"));
    json!({
        "hidden": config.hidden_size, "layers": config.layers, "q_heads": config.q_heads, "kv_heads": config.kv_heads,
        "head_dim": config.head_dim, "ffn": config.ffn_size, "vocab": config.vocab_size, "epsilon": config.rms_norm_eps,
        "theta": config.rope_theta, "rope": rope, "tied": config.tie_word_embeddings,
        "eos": config.eos_token_ids,
    })
}

/// The digest of every tensor's header and samples, in the order of names. A folder with one file a rank has those of the
/// checkpoint that it was made from.
pub(crate) fn sample_digests(checkpoint: &Checkpoint) -> Result<Vec<[u8; 32]>> {
    if let Some(made) = checkpoint.presharded() {
        return Ok(made.samples.iter().map(|digest| digest.0).collect());
    }
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    let next = AtomicUsize::new(0);
    let reader = || -> Result<Vec<(usize, [u8; 32])>> {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(number) else {
                return Ok(done);
            };
            done.push((number, tensor(checkpoint, name)?));
        }
    };
    let mut digests = vec![[0; 32]; names.len()];
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 1..READERS {
            // Fewer threads take longer, no more.
            readers.extend(std::thread::Builder::new().spawn_scoped(scope, reader));
        }
        let mut results = vec![reader()];
        results.extend(readers.into_iter().map(|reader| match reader.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        for result in results {
            for (number, digest) in result? {
                if let Some(place) = digests.get_mut(number) {
                    *place = digest;
                }
            }
        }
        Ok(digests)
    })
}

fn tensor(checkpoint: &Checkpoint, name: &str) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let Some(info) = checkpoint.tensor(name) else {
        return Ok([0; 32]);
    };
    hash.update(format!("{name} {} {:?}\n", info.dtype, info.shape));
    let mut buffer = Vec::new();
    for range in samples(name, info.bytes(), SAMPLES) {
        buffer.resize(to_usize(range.end - range.start), 0);
        checkpoint.read_at(name, range.start, &mut buffer)?;
        hash.update(&buffer);
    }
    Ok(hash.finalize().into())
}

impl fmt::Display for ContentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentIdentity({self})")
    }
}

/// Reads what `Display` writes, and the digest of an OCI image.
impl FromStr for ContentIdentity {
    type Err = NoIdentity;

    fn from_str(text: &str) -> Result<Self, NoIdentity> {
        let refused = || NoIdentity(text.chars().take(80).collect());
        let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        if digits.len() != 64 {
            return Err(refused());
        }
        let mut identity = [0; 32];
        let digit = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        for (byte, [high, low]) in identity.iter_mut().zip(digits.as_chunks().0) {
            let (high, low) = digit(*high).zip(digit(*low)).ok_or_else(refused)?;
            *byte = high << 4 | low;
        }
        Ok(Self(identity))
    }
}

impl From<[u8; 32]> for ContentIdentity {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl TryFrom<String> for ContentIdentity {
    type Error = NoIdentity;

    fn try_from(text: String) -> Result<Self, NoIdentity> {
        text.parse()
    }
}

impl From<ContentIdentity> for String {
    fn from(identity: ContentIdentity) -> Self {
        identity.to_string()
    }
}
