//! `bench`: how fast the machine serves a checkpoint, beside what the machine could do.

mod guided;
mod links;
mod planner;
mod shape;
mod speculation;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use llamero_checkpoint::{LlamaConfig, Progress};
use llamero_cpu::bench::{self, BenchOptions, Report};
use llamero_cpu::{CpuBackend, CpuOptions, Kernel};
use llamero_engine::{Backend as _, LoadProgress, LoadWatch};
use llamero_settings::limits;

use super::progress::ProgressLine;
use crate::config::{KvCacheDtype, within};
use guided::Guided;
use links::Links;
use planner::Planner;
use shape::ShapeArgs;
use speculation::Speculation;

/// Measure decode and prefill speed beside the machine's own bounds
///
/// Decoding one sequence reads every weight once a token, so its bound is the memory bandwidth; a prompt is bound by
/// the peak of bf16 dot products. Both bounds are measured in the same run, and speeds are printed as parts of them.
/// With --shape, one rank of a large model is measured with made-up weights, on as many layers as fit. What the leader
/// of a large group does in a step is measured in either case.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Folder of the checkpoint
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    pub dir: Option<PathBuf>,
    /// Threads that compute
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(limits::THREADS))]
    pub threads: u32,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().decode, value_parser = clap::value_parser!(u32).range(1..))]
    pub decode: u32,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().prefill, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill: u32,
    /// Sequences decoded at once in the batched measurement
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().batch, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub batch: u32,
    /// Measure instead what a JSON schema costs: guided decoding beside free decoding, in 1 and in 16 streams
    #[arg(long, conflicts_with_all = ["shape", "context", "kv_cache_dtype"])]
    pub guided: bool,
    /// Measure instead what prompt look-up gains and costs: two workers in turn, with drafts and without, on answers that copy the prompt and
    /// on random words, in 1, 4 and 16 streams
    #[arg(long, conflicts_with_all = ["shape", "context", "kv_cache_dtype", "guided"])]
    pub speculation: bool,
    /// Decode one sequence once more behind so many tokens; 0: do not. With --shape, decoding is behind the prompt already
    #[arg(long, value_name = "TOKENS", default_value_t = 0, conflicts_with = "shape", value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub context: u32,
    /// Type of the KV cache
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = KvCacheDtype::Auto)]
    pub kv_cache_dtype: KvCacheDtype,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run `bench`.
///
/// # Errors
/// The checkpoint cannot be used, or there is too little memory.
pub fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.dir {
        Some(dir) if args.guided => guided(args, dir),
        Some(dir) if args.speculation => speculation(args, dir),
        Some(dir) => checkpoint(args, dir),
        None => args.shape.run(args),
    }
}

fn guided(args: &BenchArgs, dir: &Path) -> anyhow::Result<()> {
    let guided = Guided::measure(dir, args.threads, args.decode)?;
    if args.json {
        let json = serde_json::json!({"model": args.dir, "threads": args.threads, "guided": guided.json()});
        println!("{json}");
    } else {
        println!("model     {}\n{guided}", dir.display());
    }
    Ok(())
}

fn speculation(args: &BenchArgs, dir: &Path) -> anyhow::Result<()> {
    let speculation = Speculation::measure(dir, args.threads, args.decode)?;
    if args.json {
        let json = serde_json::json!({"model": args.dir, "threads": args.threads, "speculation": speculation.json()});
        println!("{json}");
    } else {
        println!("model     {}\n{speculation}", dir.display());
    }
    Ok(())
}

fn checkpoint(args: &BenchArgs, dir: &Path) -> anyhow::Result<()> {
    let threads = args.threads as usize;
    let kernel = Kernel::detect();
    let mut backend = CpuBackend::new(dir, CpuOptions::alone(threads, kernel))?;
    let line = ProgressLine::new(format!("loading {}", dir.display()));
    backend.load(&Watch(Mutex::new(line)))?;
    let numerics = backend.numerics_class(args.kv_cache_dtype.into(), 0);
    eprintln!("measuring with the kernels {numerics}");
    let options = BenchOptions {
        threads,
        decode: args.decode,
        prefill: args.prefill,
        batch: args.batch,
        context: args.context,
        kv_dtype: args.kv_cache_dtype.into(),
    };
    let report = bench::run(&mut backend, options)?;
    let planner = Planner::measure()?;
    let config = LlamaConfig::read(&dir.join("config.json"))?;
    let links = Links::measure(&config, report.decode)?;
    if args.json {
        let mut json = json(args, &numerics, &report);
        if let Some(fields) = json.as_object_mut() {
            fields.insert("planner".to_owned(), planner.json());
            fields.insert("links".to_owned(), links.json());
        }
        println!("{json}");
    } else {
        println!("model     {}\n{report}\n{planner}\n{links}", dir.display());
    }
    Ok(())
}

/// Shows how far loading is.
struct Watch(Mutex<ProgressLine>);

impl LoadWatch for Watch {
    fn progress(&self, now: LoadProgress) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.report(Progress {
            done: now.loaded,
            total: now.total,
        });
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

fn json(args: &BenchArgs, kernel: &str, report: &Report) -> serde_json::Value {
    serde_json::json!({
        "model": args.dir,
        "kernel": kernel,
        "threads": report.threads,
        "bandwidthBytesPerSecond": report.bandwidth,
        "flopsPerSecond": report.flops,
        "bytesPerToken": report.bytes_per_token,
        "operationsPerToken": report.operations_per_token,
        "decode": {"tokensPerSecond": report.decode, "ratioToBandwidth": report.decode_ratio()},
        "decodeBatch": {"sequences": report.batch, "tokensPerSecond": report.decode_batch},
        "prefill": {"tokens": args.prefill, "tokensPerSecond": report.prefill, "ratioToPeak": report.prefill_ratio()},
        "decodeLong": report.long.map(|long| serde_json::json!({
            "context": long.context, "cacheBytes": long.cache_bytes, "tokensPerSecond": long.decode,
        })),
    })
}
