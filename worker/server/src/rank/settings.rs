//! From the command line and the checkpoint to the engine's settings.

use llamero_checkpoint::identity::ContentIdentity;
use llamero_engine::{Backend as _, BackendError, Era, FormSpec, runtime};
use llamero_settings::limits;
use llamero_settings::memory;

use super::backend::AnyBackend;
use crate::config::{BackendKind, EngineArgs, RankConfig};

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
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] llamero_checkpoint::Error),
    /// The backend cannot compute it so.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The engine's settings.
///
/// # Errors
/// [`SettingsError`].
pub fn settings(config: &RankConfig, backend: &AnyBackend) -> Result<runtime::RankConfig, SettingsError> {
    let checkpoint = backend.checkpoint();
    let most = checkpoint.config().max_position_embeddings;
    let max_context = config
        .engine
        .max_context_length
        .unwrap_or_else(|| most.min(*limits::MAX_CONTEXT_LENGTH.end()));
    if max_context > most {
        return Err(SettingsError::Context {
            asked: max_context,
            most,
        });
    }
    let content = match config.engine.content_identity {
        Some(known) => known,
        // The supervisor could not read it, so this says why, or was luckier.
        None => ContentIdentity::of(checkpoint)?,
    };
    let stall_timeout = config.engine.stall_timeout;
    let usual = runtime::RankConfig::new(
        config.rank,
        backend.members().clone(),
        max_context,
        // Follows from the limits below.
        "",
        content.to_string(),
    );
    let settings = runtime::RankConfig {
        max_sequences: config.engine.max_sequences,
        max_batched_tokens: config.engine.max_batched_tokens,
        max_queued_requests: config.engine.max_queued_requests,
        block_size: limits::KV_BLOCK_TOKENS,
        kv_dtype: config.engine.kv_cache_dtype.into(),
        max_adapters: config.engine.max_adapters,
        max_adapter_rank: match config.engine.max_adapters {
            0 => 0,
            _ => config.engine.max_adapter_rank,
        },
        adapter_folder: config
            .engine
            .adapter_dir
            .clone()
            .unwrap_or_else(|| config.engine.model_dir.clone()),
        adapters: adapters(&config.engine),
        prefix_cache: config.engine.prefix_cache,
        speculation: config.engine.speculation(),
        // The pod's limit is about the memory of the host, and the plan of a GPU's rank about the GPU's.
        memory_limit: config
            .memory_limit
            .filter(|_| config.engine.backend == BackendKind::Cpu),
        process_bytes: memory::of_rank(checkpoint.tokenizer_bytes(), config.pod_ranks),
        stall_timeout,
        heartbeat: usual.heartbeat.min(stall_timeout / 4),
        dial_timeout: usual.dial_timeout.min(stall_timeout),
        ..usual
    };
    let kv_bytes = match config.engine.kv_memory {
        Some(bytes) => bytes,
        None => usual_kv_bytes(&settings, backend)?,
    };
    let numerics = backend.numerics_class(settings.kv_dtype, settings.max_adapters);
    Ok(runtime::RankConfig {
        kv_bytes,
        numerics,
        ..settings
    })
}

/// Adapters of the start.
fn adapters(engine: &EngineArgs) -> Vec<(String, String)> {
    let all = engine.adapters.iter();
    all.map(|adapter| (adapter.name.clone(), adapter.path.clone()))
        .collect()
}

/// KV memory when none is asked for, by what the backend says that a block costs.
fn usual_kv_bytes(settings: &runtime::RankConfig, backend: &AnyBackend) -> Result<u64, SettingsError> {
    let spec = FormSpec {
        era: Era::default(),
        limits: settings.form_limits(),
        kv_bytes: 0,
    };
    if let Some(bytes) = backend.device_kv_bytes(&spec)? {
        return Ok(bytes);
    }
    let memory = backend.memory(&spec)?;
    let blocks = settings.max_context.div_ceil(settings.block_size);
    let one = memory.kv_block.saturating_mul(u64::from(blocks));
    Ok(one
        .saturating_mul(DEFAULT_SEQUENCES)
        .min(DEFAULT_KV_BYTES)
        .max(one))
}
