//! One rank of a large model with made-up weights.

use clap::Args;
use clap::builder::PossibleValuesParser;
use llamero_checkpoint::LlamaConfig;
use llamero_cpu::bench::{LayerSpeed, ShapeBench, ShapeReport, run_shape};

use super::BenchArgs;
use super::planner::Planner;

/// Which rank of which model.
#[derive(Debug, Clone, Args)]
pub(super) struct ShapeArgs {
    /// Measure a model of this size with made-up weights instead of a checkpoint
    #[arg(long, value_name = "SIZE", value_parser = PossibleValuesParser::new(LlamaConfig::known_shapes()))]
    shape: Option<String>,
    /// Ranks that share the model
    #[arg(long, value_name = "N", default_value_t = 1, requires = "shape", value_parser = clap::value_parser!(u32).range(1..))]
    tensor: u32,
    /// The rank that is measured
    #[arg(long, value_name = "R", default_value_t = 0, requires = "shape")]
    rank: u32,
    /// Layers that are computed; time, bytes and operations are told for one
    #[arg(long, value_name = "N", default_value_t = 2, requires = "shape", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    layers: u32,
    /// Type of the layers' matrices
    #[arg(long, value_name = "TYPE", default_value = "fp8", requires = "shape", value_parser = ["fp8", "bf16"])]
    weights: String,
    /// What a hop between two ranks takes in the model of the group, in microseconds
    #[arg(long, value_name = "N", default_value_t = 20.0, requires = "shape")]
    hop_micros: f64,
    /// What a rank can send in the model of the group, in GB/s
    #[arg(long, value_name = "N", default_value_t = 1.0, requires = "shape")]
    link: f64,
}

impl ShapeArgs {
    pub(super) fn run(&self, args: &BenchArgs) -> anyhow::Result<()> {
        let name = self.shape.as_deref().unwrap_or_default();
        let Some(config) = LlamaConfig::of_shape(name) else {
            anyhow::bail!("give the folder of a checkpoint, or --shape");
        };
        if !(self.hop_micros >= 0.0 && self.link > 0.0 && self.link.is_finite()) {
            anyhow::bail!("--hop-micros must not be negative, and --link must be above 0");
        }
        let bench = ShapeBench {
            config,
            layers: self.layers,
            tensor: self.tensor,
            rank: self.rank,
            fp8: self.weights == "fp8",
            kv_dtype: args.kv_cache_dtype.into(),
            threads: args.threads as usize,
            prefill: args.prefill,
            decode: args.decode,
            hop: self.hop_micros / 1e6,
            link: self.link * 1e9,
        };
        let report = run_shape(&bench)?;
        let planner = Planner::measure()?;
        if args.json {
            println!("{}", self.json(&report, &planner));
        } else {
            println!(
                "shape     {name} in {}, rank {} of {}\n{report}{planner}",
                self.weights, self.rank, self.tensor
            );
        }
        Ok(())
    }

    fn json(&self, report: &ShapeReport, planner: &Planner) -> serde_json::Value {
        let layer = |speed: LayerSpeed, ratio: f64| {
            serde_json::json!({
                "tokens": speed.tokens,
                "secondsPerLayer": speed.seconds,
                "bytesPerLayer": speed.bytes,
                "operationsPerLayer": speed.operations,
                "ratio": ratio,
                "headSeconds": speed.head,
                "exchangeSecondsPerLayer": speed.exchange,
                "groupTokensPerSecond": report.group(speed),
            })
        };
        serde_json::json!({
            "shape": self.shape,
            "weights": self.weights,
            "tensor": self.tensor,
            "rank": self.rank,
            "layers": report.layers.0,
            "threads": report.threads,
            "bandwidthBytesPerSecond": report.bandwidth,
            "flopsPerSecond": report.flops,
            "decode": layer(report.decode, report.decode_ratio()),
            "prefill": layer(report.prefill, report.prefill_ratio()),
            "planner": planner.json(),
        })
    }
}
