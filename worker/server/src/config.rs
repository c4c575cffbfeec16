//! What the supervisor tells a rank's process when it starts it.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedI64ValueParser;
use llamero_checkpoint::identity::ContentIdentity;
use llamero_engine::KvDtype;
use llamero_engine::schedule::{Drafted, Speculation};
use llamero_settings::duration;
use llamero_settings::limits;
use serde::{Deserialize, Serialize};

/// Parses a number of the range, which the resource types have too.
#[must_use]
pub fn within(range: RangeInclusive<u32>) -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(*range.start())..=i64::from(*range.end()))
}

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The processors.
    #[default]
    Cpu,
    /// One NVIDIA GPU for each rank.
    Cuda,
}

/// Type of the KV cache. The names are those of vLLM's `--kv-cache-dtype`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// bf16, that of the model.
    #[default]
    Auto,
    /// E4M3 with one scale for each token and kv head: half the memory. CPUs only.
    Fp8,
}

impl From<KvCacheDtype> for KvDtype {
    fn from(dtype: KvCacheDtype) -> Self {
        match dtype {
            KvCacheDtype::Auto => Self::Bf16,
            KvCacheDtype::Fp8 => Self::Fp8E4m3,
        }
    }
}

/// How tokens are drafted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpeculationMethod {
    /// Not at all.
    #[default]
    None,
    /// What followed the last tokens when they stood in the prompt or the answer before; `ngram` in vLLM.
    PromptLookup,
}

/// The model and how it is served; the same on every rank of a group.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct EngineArgs {
    /// Folder of the checkpoint in Hugging Face's layout: config.json, tokenizer.json, *.safetensors
    #[arg(long, value_name = "DIR")]
    pub model_dir: PathBuf,
    /// Name that clients ask for; the folder's name when absent
    #[arg(long, value_name = "NAME", default_value = "")]
    pub model_name: String,
    /// What computes; there is no fallback: where it is missing, the worker ends and says what to install
    #[arg(long, value_enum, default_value_t = BackendKind::Cpu)]
    #[serde(default)]
    pub backend: BackendKind,
    /// Folder where compiled GPU kernels are kept; they are compiled at every start when absent
    #[arg(long, value_name = "DIR", env = "LLAMERO_KERNELS")]
    #[serde(default)]
    pub kernels: Option<PathBuf>,
    /// Number of ranks that share every layer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(limits::TENSOR))]
    pub tensor: u32,
    /// Number of pipeline stages, of which each has its own layers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(limits::PIPELINE))]
    pub pipeline: u32,
    /// Longest prompt and answer together, in tokens; the model's own limit when absent
    #[arg(long, value_name = "TOKENS", value_parser = within(limits::MAX_CONTEXT_LENGTH))]
    pub max_context_length: Option<u32>,
    /// Most tokens computed in one step
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = within(limits::MAX_BATCHED_TOKENS))]
    pub max_batched_tokens: u32,
    /// Most sequences at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = within(limits::MAX_SEQUENCES))]
    pub max_sequences: u32,
    /// Most requests that wait for a place; one more is told when to come again
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = within(limits::MAX_QUEUED_REQUESTS))]
    pub max_queued_requests: u32,
    /// Use KV blocks that were computed for the beginning of a prompt for later prompts that begin alike; tokens are the same with
    /// and without
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub prefix_cache: bool,
    /// Draft tokens and check them in one step, which makes answers faster that repeat what was said before; tokens are the same with and
    /// without
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = SpeculationMethod::None)]
    #[serde(default)]
    pub speculation: SpeculationMethod,
    /// Most tokens that are drafted for a sequence in one step; fewer are where more would not pay
    #[arg(long, value_name = "N", default_value_t = limits::USUAL_DRAFTS, value_parser = within(limits::MAX_DRAFTS))]
    #[serde(default = "usual_drafts")]
    pub max_drafts: u32,
    /// Ranks of one pod exchange through shared memory, which is faster; else over TCP, as with those of other pods. CPUs only
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub shared_memory: bool,
    /// Bytes of each rank's KV cache. When absent: room for four full-length sequences, at most 1 GiB; on GPUs, all that is left
    #[arg(long, value_name = "BYTES")]
    pub kv_memory: Option<u64>,
    /// Type in which keys and values are kept: the model's own (bf16), or fp8, which takes half the memory and changes answers a
    /// little. CPUs only; the same on every rank
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = KvCacheDtype::Auto)]
    #[serde(default)]
    pub kv_cache_dtype: KvCacheDtype,
    /// Most LoRA adapters that may be loaded at once; their memory is set aside at the start. 0: none. CPUs only
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = within(limits::MAX_ADAPTERS))]
    #[serde(default)]
    pub max_adapters: u32,
    /// The largest rank of an adapter
    #[arg(long, value_name = "R", default_value_t = 16, value_parser = within(limits::MAX_ADAPTER_RANK))]
    #[serde(default)]
    pub max_adapter_rank: u32,
    /// Folder below which adapters lie, each in a folder of its own as PEFT saves it; that of the model when absent
    #[arg(long, value_name = "DIR")]
    #[serde(default)]
    pub adapter_dir: Option<PathBuf>,
    /// An adapter to load at the start: the name that clients ask for, and its folder below that for adapters. May be repeated
    #[arg(long = "adapter", value_name = "NAME=PATH", requires = "max_adapters")]
    #[serde(default)]
    pub adapters: Vec<NamedAdapter>,
    /// Threads of each rank; the cores that this container may use, shared among its ranks, when absent
    #[arg(long, value_name = "N", value_parser = within(limits::THREADS))]
    pub threads: Option<u32>,
    /// What the weights are, when that is known: the digest of the image that they came in; else it is computed from samples
    #[arg(long, value_name = "SHA256")]
    pub content_identity: Option<ContentIdentity>,
    /// A group that completes no step for this long is not ready
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub stall_timeout: Duration,
    /// Take names of control tokens in chat messages for those tokens, as servers did before; else they are text
    #[arg(long)]
    pub parse_special_tokens_in_messages: bool,
    /// Time between "not ready" and "no new requests" while draining
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    pub drain_grace: Duration,
}

fn usual_drafts() -> u32 {
    limits::USUAL_DRAFTS
}

/// An adapter of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedAdapter {
    /// The name that clients ask for.
    pub name: String,
    /// Its folder below that for adapters.
    pub path: String,
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(Self {
                name: name.to_owned(),
                path: path.to_owned(),
            }),
            _ => Err(format!("{text:?} is not NAME=PATH, for example sql=adapters/sql")),
        }
    }
}

/// Reads nothing but [`EngineArgs`].
#[derive(clap::Parser)]
struct EngineOnly {
    #[command(flatten)]
    engine: EngineArgs,
}

impl EngineArgs {
    /// The checkpoint of a folder with the defaults of the command line.
    ///
    /// # Errors
    /// Only if an argument has no default.
    pub fn of(model_dir: PathBuf) -> Result<Self, clap::Error> {
        let parsed: EngineOnly = clap::Parser::try_parse_from(["engine", "--model-dir", "."])?;
        Ok(Self {
            model_dir,
            ..parsed.engine
        })
    }

    /// How sequences are drafted; none: they are not.
    #[must_use]
    pub fn speculation(&self) -> Option<Speculation> {
        match self.speculation {
            SpeculationMethod::None => None,
            SpeculationMethod::PromptLookup => Some(Speculation {
                max_drafts: self.max_drafts,
                drafted: Drafted::WhatPays,
            }),
        }
    }

    /// The name under which the model is served.
    #[must_use]
    pub fn served_name(&self) -> String {
        if !self.model_name.is_empty() {
            return self.model_name.clone();
        }
        self.model_dir
            .file_name()
            .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

/// Everything a rank's process needs; the first line on its link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankConfig {
    /// The model.
    pub engine: EngineArgs,
    /// This rank, `0 .. tensor × pipeline`.
    pub rank: u32,
    /// Ranks that the group does without as this process starts, in the order in which it lost them: the memory may hold the share
    /// that this rank has then.
    #[serde(default)]
    pub lost: Vec<u32>,
    /// First rank of the pod.
    pub first_rank: u32,
    /// Ranks of the pod.
    pub pod_ranks: u32,
    /// Compute threads.
    pub threads: u32,
    /// This rank's share of the memory that its pod may use, in bytes; none: there is no limit.
    #[serde(default)]
    pub memory_limit: Option<u64>,
    /// Address to listen on.
    pub listen: IpAddr,
    /// Port for the other ranks; 0 lets the kernel choose.
    pub rank_port: u16,
    /// Port for clients on rank 0; 0 lets the kernel choose.
    pub inference_port: u16,
    /// The ranks of this pod have more compute threads than it may use processors, so waiting must not spin.
    pub oversubscribed: bool,
    /// Namespace of the operator and the gateways that may call, with certificates; none: clients are served in plain text.
    #[serde(default)]
    pub installation: Option<String>,
    /// Certificates of authorities whose clients may call too.
    #[serde(default)]
    pub client_roots: Option<PathBuf>,
    /// Common names of clients that may load adapters.
    #[serde(default)]
    pub adapter_clients: Vec<String>,
    /// It belongs to no group of an operator, so that whoever reaches it in plain text may do everything.
    #[serde(default)]
    pub stands_alone: bool,
    /// Names this server towards clients.
    pub instance_id: String,
}
