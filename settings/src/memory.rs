//! Memory of the host that a rank's process takes beside weights, KV cache and workspace: what the operator grants, and what the worker
//! checks when it starts. On a GPU's host the same.

/// A group does without a rank only where it holds a sequence of at least so many tokens, or of the full length where that is
/// shorter: less would be of no use to most who ask.
pub const FEWEST_TOKENS: u32 = 512;
/// What every rank takes: the program, threads, connections.
pub const PROCESS: u64 = 48 << 20;
/// What rank 0 takes for requests: those that are being received (32 MiB), those that wait to be tokenised (32 MiB), and those that are
/// rendered and encoded, one long one at a time ([`ENCODING`], and copies of a text).
pub const REQUESTS: u64 = 176 << 20;
/// What encoding takes, all requests together, however long they are.
pub const ENCODING: u64 = 72 << 20;
/// Bytes in memory for each byte of `tokenizer.json` while it is loaded: 31 for Llama 3's. Afterwards 22 are used, but the allocator
/// does not always give the rest back.
const TOKENIZER: u64 = 32;
/// Size of `tokenizer.json` where nobody has said it: a little more than Llama 3's.
const USUAL_TOKENIZER: u64 = 9 << 20;

/// What a tokenizer takes whose `tokenizer.json` has so many bytes.
#[must_use]
pub fn tokenizer(json_bytes: u64) -> u64 {
    json_bytes.saturating_mul(TOKENIZER)
}

/// What a rank takes where so many share a pod. One of them may be rank 0, which alone has a tokenizer and requests; all of
/// them bear a part of that.
#[must_use]
pub fn of_rank(tokenizer_json_bytes: Option<u64>, ranks_of_pod: u32) -> u64 {
    let json_bytes = tokenizer_json_bytes.unwrap_or(USUAL_TOKENIZER);
    let leader = REQUESTS.saturating_add(tokenizer(json_bytes));
    PROCESS.saturating_add(leader.div_ceil(u64::from(ranks_of_pod.max(1))))
}

/// The widths of one rank's part of a model that adapters have factors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterWidths {
    /// Of the residual stream.
    pub hidden: u64,
    /// Of the rank's queries.
    pub q: u64,
    /// Of its keys, and of its values.
    pub kv: u64,
    /// Of its part of the feed-forward layer.
    pub ffn: u64,
    /// Layers of its stage.
    pub layers: u64,
}

/// Bytes of the factors of one adapter on a CPU rank, with ranks of `rank` in every module. They are packed as weights are: outputs
/// in blocks of 32, inputs by twos, in bf16, with an f32 scale for each output.
#[must_use]
pub fn adapter(widths: AdapterWidths, rank: u64) -> u64 {
    let AdapterWidths {
        hidden,
        q,
        kv,
        ffn,
        layers,
    } = widths;
    let padded = |width: u64, to: u64| width.checked_next_multiple_of(to).unwrap_or(u64::MAX);
    let rank = padded(rank, 2);
    let factor = |outputs: u64, inputs: u64| {
        let packed = padded(outputs, 32).saturating_mul(padded(inputs, 2));
        packed.saturating_mul(2).saturating_add(outputs.saturating_mul(4))
    };
    // Those that read the same have the first factors stacked.
    let sites = [
        [
            factor(rank.saturating_mul(3), hidden),
            factor(q, rank),
            factor(kv, rank),
            factor(kv, rank),
        ],
        [factor(rank, q), factor(hidden, rank), 0, 0],
        [
            factor(rank.saturating_mul(2), hidden),
            factor(ffn, rank),
            factor(ffn, rank),
            0,
        ],
        [factor(rank, ffn), factor(hidden, rank), 0, 0],
    ];
    let layer = sites
        .iter()
        .flatten()
        .fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    layer.saturating_mul(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_pod_bear_the_leader_s_part_together() {
        let alone = of_rank(Some(8 << 20), 1);
        assert_eq!(alone, PROCESS + REQUESTS + (256 << 20));
        assert_eq!(of_rank(Some(8 << 20), 0), alone);
        let one_of_eight = of_rank(Some(8 << 20), 8);
        assert!(8 * one_of_eight >= 8 * PROCESS + REQUESTS + (256 << 20));
        assert!(one_of_eight < alone / 4);
        assert!(of_rank(None, 1) > alone);
    }

    #[test]
    fn adapters_of_any_width_have_a_size() {
        let most = AdapterWidths {
            hidden: u64::MAX,
            q: u64::MAX - 1,
            kv: u64::MAX - 31,
            ffn: u64::MAX,
            layers: u64::MAX,
        };
        assert_eq!(adapter(most, u64::MAX), u64::MAX);
        assert_eq!(adapter(AdapterWidths { layers: 0, ..most }, 1), 0);
    }
}
