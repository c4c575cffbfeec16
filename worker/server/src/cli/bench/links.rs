//! What it costs a group of two ranks that their frames over TCP are authenticated and encrypted.

use std::fmt;
use std::io;
use std::time::Duration;

use llamero_checkpoint::LlamaConfig;
use llamero_engine::mesh::seal_cost::{SealCost, measure};

/// Times each kind of exchange is measured, 64 in a row.
const ROUNDS: usize = 40;
/// What authenticated frames may cost of decode.
const MOST: f64 = 0.03;

/// The cost of a token of one sequence.
pub(super) struct Links {
    cost: SealCost,
    /// Exchanges of a token: the sums behind attention and feed-forward of every layer, and the candidates.
    exchanges: u32,
    /// A token at two ranks: half of the compute of one, and the exchanges.
    token: Duration,
}

impl Links {
    /// Measure, for a model that one rank decodes at so many tokens a second.
    ///
    /// # Errors
    /// No sockets can be had.
    pub(super) fn measure(config: &LlamaConfig, decode: f64) -> io::Result<Self> {
        let row = usize::try_from(config.hidden_size).unwrap_or(usize::MAX);
        let cost = measure(row.saturating_mul(size_of::<f32>()), ROUNDS)?;
        let exchanges = config.layers.saturating_mul(2).saturating_add(1);
        let compute = Duration::try_from_secs_f64(0.5 / decode).unwrap_or(Duration::MAX);
        Ok(Self {
            cost,
            exchanges,
            token: compute.saturating_add(cost.sealed.saturating_mul(exchanges)),
        })
    }

    /// The part of a token that goes into `with` beyond `without`.
    fn share(&self, with: Duration, without: Duration) -> f64 {
        let more = with.as_secs_f64() - without.as_secs_f64();
        more * f64::from(self.exchanges) / self.token.as_secs_f64()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let SealCost {
            bytes,
            plain,
            tagged,
            sealed,
        } = self.cost;
        serde_json::json!({
            "bytes": bytes, "exchangesPerToken": self.exchanges, "tokenMicros": micros(self.token),
            "plainMicros": micros(plain), "authenticatedMicros": micros(tagged), "sealedMicros": micros(sealed),
            "sealedShare": self.share(sealed, plain), "authenticatedShare": self.share(tagged, plain), "most": MOST,
        })
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SealCost {
            bytes,
            plain,
            tagged,
            sealed,
        } = self.cost;
        let percent = |with, without| 100.0 * self.share(with, without);
        write!(
            f,
            "links     2 ranks over TCP, {} exchanges of {bytes} bytes a token: {plain:.1?} as they are, {sealed:.1?} authenticated and encrypted = {:.1} % of \
             decode (at most {:.0} %); {tagged:.1?} with tags alone, so encryption costs {:+.1} %",
            self.exchanges,
            percent(sealed, plain),
            100.0 * MOST,
            percent(sealed, tagged),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_a_token_at_two_ranks() {
        let micros = Duration::from_micros;
        let links = Links {
            cost: SealCost {
                bytes: 2304,
                plain: micros(7),
                tagged: micros(10),
                sealed: micros(8),
            },
            exchanges: 61,
            token: micros(6100),
        };
        let json = links.json();
        assert!(
            (json["sealedShare"].as_f64().unwrap() - 0.01).abs() < 1e-9,
            "{json}"
        );
        let shown = links.to_string();
        assert!(
            shown.contains("= 1.0 % of decode (at most 3 %)") && shown.contains("encryption costs -2.0 %"),
            "{shown}"
        );
    }
}
