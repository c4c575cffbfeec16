//! What a KV cache in FP8 costs in quality: SmolLM2's distributions beside its own with a cache in bf16, teacher-forced.

use llamero_checkpoint::Topology;
use llamero_engine::KvDtype;

use super::bits::model;
use super::group::{Group, Way};
use super::reference::Fixture;
use crate::Kernel;

/// Mean KL divergence in nats, and how often the likeliest token is the same.
struct Distance {
    positions: usize,
    kl: f64,
    median: f64,
    worst: f64,
    same: usize,
}

/// Of the distributions of all positions of the fixture's prompts.
fn distance(name: &str) -> Distance {
    let fixture = Fixture::open("logits-bf16.safetensors");
    let tokens: Vec<u32> = fixture
        .integers("tokens")
        .iter()
        .map(|token| *token as u32)
        .collect();
    let mut group = Group::load(&model(name), Topology::tensor(1), 2, Kernel::detect().level());
    let mut rest = tokens.as_slice();
    let (mut all, mut same) = (Vec::new(), 0);
    for len in fixture.integers("prompt_lengths") {
        let (prompt, after) = rest.split_at(len);
        rest = after;
        let [bf16, fp8] = [KvDtype::Bf16, KvDtype::Fp8E4m3].map(|kv| {
            group.logits(
                prompt,
                Way {
                    kv,
                    ..Way::new(512, 0)
                },
            )
        });
        for (bf16, fp8) in bf16.iter().zip(&fp8) {
            all.push(divergence(bf16, fp8));
            same += usize::from(best(bf16) == best(fp8));
        }
    }
    all.sort_by(f64::total_cmp);
    Distance {
        positions: all.len(),
        kl: all.iter().sum::<f64>() / all.len() as f64,
        median: all[all.len() / 2],
        worst: all.iter().copied().fold(0.0, f64::max),
        same,
    }
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

/// KL divergence of `got` from `wanted`, over the whole vocabulary.
fn divergence(wanted: &[f32], got: &[f32]) -> f64 {
    let log_sum_exp = |logits: &[f32]| {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
        most + sum.ln()
    };
    let (wanted_sum, got_sum) = (log_sum_exp(wanted), log_sum_exp(got));
    let term = |(wanted, got): (&f32, &f32)| {
        let log_p = f64::from(*wanted) - wanted_sum;
        log_p.exp() * (log_p - (f64::from(*got) - got_sum))
    };
    wanted.iter().zip(got).map(term).sum()
}

/// The bounds are about twice what was measured; docs/performance.md has the figures.
#[test]
fn the_distributions_of_smollm2_stay_close() {
    for name in ["SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct-FP8"] {
        let Distance {
            positions,
            kl,
            median,
            worst,
            same,
        } = distance(name);
        println!(
            "{name}: {positions} positions; KL of FP8 KV from bf16 KV {kl:.2e} on average, {median:.2e} in the middle, {worst:.2e} at most; \
             top-1 the same at {same}"
        );
        assert!(positions >= 200);
        assert!(kl > 0.0 && kl <= 3e-2, "KL divergence {kl}");
        assert!(median <= 8e-3, "KL divergence {median} in the middle");
        assert!(
            same * 100 >= positions * 92,
            "top-1 the same at {same} of {positions}"
        );
    }
}
