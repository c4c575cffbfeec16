//! From the command line and the checkpoint to the engine's settings.

use std::time::Duration;

use llamero_checkpoint::summary::kv_bytes_per_token;
use llamero_checkpoint::{Checkpoint, LlamaConfig, ShardPlan, Topology};
use llamero_engine::runtime;
use sha2::{Digest, Sha256};

use crate::config::RankConfig;

/// KV cache without `--kv-memory`: room for this many full-length sequences, …
const DEFAULT_SEQUENCES: u64 = 4;
/// … but no more than this, unless a single sequence needs it.
const DEFAULT_KV_BYTES: u64 = 1 << 30;

/// Why the settings do not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// More context than the model was trained for.
    #[error(
        "--max-context-length {asked} is more than the {most} tokens that the model was trained for; lower it"
    )]
    Context {
        /// What was asked for.
        asked: u32,
        /// The model's limit.
        most: u32,
    },
    /// The model cannot be split so.
    #[error(transparent)]
    Checkpoint(#[from] llamero_checkpoint::Error),
}

/// The engine's settings.
///
/// # Errors
/// [`SettingsError`].
pub fn settings(
    config: &RankConfig,
    checkpoint: &Checkpoint,
    numerics: &str,
) -> Result<runtime::RankConfig, SettingsError> {
    let model = checkpoint.config();
    let most = model.max_position_embeddings;
    let max_context = config.engine.max_context_length.unwrap_or(most);
    if max_context > most {
        return Err(SettingsError::Context {
            asked: max_context,
            most,
        });
    }
    let stall_timeout = config.engine.stall_timeout;
    let usual = runtime::RankConfig::new(config.rank, max_context, numerics, fingerprint(checkpoint));
    Ok(runtime::RankConfig {
        max_sequences: config.engine.max_sequences,
        max_batched_tokens: config.engine.max_batched_tokens,
        kv_bytes: match config.engine.kv_memory {
            Some(bytes) => bytes,
            None => kv_bytes(config, model, max_context.next_multiple_of(usual.block_size))?,
        },
        stall_timeout,
        heartbeat: usual.heartbeat.min(stall_timeout / 4),
        dial_timeout: usual.dial_timeout.min(stall_timeout),
        spin: if config.oversubscribed {
            Duration::ZERO
        } else {
            usual.spin
        },
        ..usual
    })
}

fn kv_bytes(config: &RankConfig, model: &LlamaConfig, longest: u32) -> Result<u64, SettingsError> {
    let plan = ShardPlan::new(model, Topology::tensor(config.engine.tensor))
        .map_err(llamero_checkpoint::Error::from)?;
    let shard = plan
        .member(config.rank)
        .map_err(llamero_checkpoint::Error::from)?;
    let per_token = kv_bytes_per_token(model, shard);
    let one = per_token * u64::from(longest);
    Ok((one * DEFAULT_SEQUENCES).min(DEFAULT_KV_BYTES).max(one))
}

/// Tells models apart in the handshake between ranks: configuration, names, types and shapes of all tensors. Not where
/// the files lie or when they were written, which may differ between nodes.
fn fingerprint(checkpoint: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", checkpoint.config()));
    for (name, tensor) in checkpoint.tensors() {
        hash.update(format!("{name} {:?} {:?}\n", tensor.dtype, tensor.shape));
    }
    let digest = hash.finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
