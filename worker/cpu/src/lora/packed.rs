//! An adapter's factors on one rank, packed as weights are.

use llamero_checkpoint::adapter::{Adapter, AdapterError, Factors};
use llamero_checkpoint::{LlamaConfig, RankShard, Runs, TensorId, TensorKind};

use crate::kernel::pack::{Element, pack_rows};
use crate::layout::{Role, sizes};
use crate::leaves::LeafProgram;
use crate::load::kind_of;
use crate::matmul::Matrix;
use crate::shape::Shape;

/// Bytes of an element of a factor.
const ELEMENT: usize = size_of::<u16>();

/// Products of the same inputs, whose `A` are stacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    Attention,
    Output,
    FeedForward,
    Down,
}

impl Site {
    pub(crate) const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::FeedForward, Self::Down];

    pub(crate) fn roles(self) -> &'static [Role] {
        match self {
            Self::Attention => &[Role::Q, Role::K, Role::V],
            Self::Output => &[Role::O],
            Self::FeedForward => &[Role::Gate, Role::Up],
            Self::Down => &[Role::Down],
        }
    }

    /// Whether its inputs are split over ranks.
    fn is_split(self) -> bool {
        matches!(self, Self::Output | Self::Down)
    }
}

/// The factors of every layer of this rank's stage.
pub(crate) struct PackedAdapter {
    layers: Vec<[Option<SiteFactors>; 4]>,
}

/// The factors of one site of a layer.
pub(crate) struct SiteFactors {
    /// Of all roles, one under the other.
    pub(crate) a: Factor,
    pub(crate) parts: Vec<RoleFactor>,
}

/// The second factor of one role.
pub(crate) struct RoleFactor {
    pub(crate) role: Role,
    /// Its first row in the stacked `A`; even.
    pub(crate) at: usize,
    pub(crate) b: Factor,
    /// One chain over the rank.
    pub(crate) leaves: LeafProgram,
}

/// A packed matrix in bf16.
pub(crate) struct Factor {
    n: usize,
    k: usize,
    weights: Vec<u8>,
    /// The adapter's scale for each output.
    scale: Vec<f32>,
}

impl Factor {
    /// Of `n · k` values, row by row.
    fn pack(n: usize, k: usize, rows: &[u8], scale: f32) -> Self {
        let mut weights = Vec::new();
        pack_rows(Element::Bf16, k, rows, &mut weights);
        weights.shrink_to_fit();
        Self {
            n,
            k,
            weights,
            scale: vec![scale; n],
        }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.n
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix {
            element: Element::Bf16,
            n: self.n,
            k: self.k,
            weights: &self.weights,
            scale: &self.scale,
        }
    }
}

impl PackedAdapter {
    /// This rank's part of an adapter.
    ///
    /// # Errors
    /// It cannot be read, or holds what is no finite number.
    pub(crate) fn read(
        adapter: &Adapter,
        config: &LlamaConfig,
        shape: &Shape,
        shard: &RankShard,
    ) -> Result<Self, AdapterError> {
        let reader = Reader {
            adapter,
            config,
            shape,
            shard,
        };
        let layers = shard.layers.clone().map(|layer| {
            let mut sites = [None, None, None, None];
            for (place, site) in sites.iter_mut().zip(Site::ALL) {
                *place = reader.site(layer, site)?;
            }
            Ok(sites)
        });
        let layers = layers.collect::<Result<_, AdapterError>>()?;
        Ok(Self { layers })
    }

    /// What it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let of_factor = |factor: &Factor| factor.weights.len() + size_of_val(factor.scale.as_slice());
        let of_site = |site: &SiteFactors| {
            of_factor(&site.a) + site.parts.iter().map(|part| of_factor(&part.b)).sum::<usize>()
        };
        self.layers.iter().flatten().flatten().map(of_site).sum()
    }

    /// What the adapter has at a site of a layer of the stage.
    pub(crate) fn at(&self, layer: usize, site: Site) -> Option<&SiteFactors> {
        self.layers.get(layer)?.get(site as usize)?.as_ref()
    }
}

struct Reader<'a> {
    adapter: &'a Adapter,
    config: &'a LlamaConfig,
    shape: &'a Shape,
    shard: &'a RankShard,
}

impl Reader<'_> {
    fn site(&self, layer: u32, site: Site) -> Result<Option<SiteFactors>, AdapterError> {
        let first = site.roles().first();
        let inputs = first.map_or(0, |role| sizes(self.shape, *role).1);
        let mut stacked = Vec::new();
        let mut parts = Vec::new();
        let mut at = 0;
        for role in site.roles() {
            let kind = kind_of(*role);
            let Some(factors) = self.factors(layer, kind) else {
                continue;
            };
            // An odd rank gets a row of zeros, since products take inputs by twos.
            let rank = (factors.rank as usize).next_multiple_of(2);
            stacked.extend(self.a(factors, kind, site)?);
            if stacked.len() != (at + factors.rank as usize) * inputs * ELEMENT {
                return Err(AdapterError::Outside(factors.a.clone()));
            }
            at += rank;
            stacked.resize(at * inputs * ELEMENT, 0);
            parts.push(RoleFactor {
                role: *role,
                at: at - rank,
                b: self.b(factors, kind, rank)?,
                leaves: LeafProgram::chain(rank),
            });
        }
        Ok((at > 0).then(|| SiteFactors {
            a: Factor::pack(at, inputs, &stacked, 1.0),
            parts,
        }))
    }

    fn factors(&self, layer: u32, kind: TensorKind) -> Option<&Factors> {
        let id = TensorId {
            layer: Some(layer),
            kind,
        };
        let modules = self.adapter.modules();
        let found = modules.binary_search_by_key(&id, |(module, _)| *module).ok()?;
        modules.get(found).map(|(_, factors)| factors)
    }

    /// The columns of `A` that belong to this rank's inputs.
    fn a(&self, factors: &Factors, kind: TensorKind, site: Site) -> Result<Vec<u8>, AdapterError> {
        let whole = self.adapter.bf16(&factors.a)?;
        if !site.is_split() {
            return Ok(whole);
        }
        let (_, inputs) = kind.shape(self.config);
        let width = usize::try_from(inputs).unwrap_or(usize::MAX).max(1);
        let own = self.own(kind);
        let mut columns = Vec::new();
        for row in whole.chunks_exact(width.saturating_mul(ELEMENT)) {
            let outside = || AdapterError::Outside(factors.a.clone());
            columns.extend(take(row, &own, ELEMENT).ok_or_else(outside)?);
        }
        Ok(columns)
    }

    /// The rows of `B` that are this rank's outputs, each with `rank` values.
    fn b(&self, factors: &Factors, kind: TensorKind, rank: usize) -> Result<Factor, AdapterError> {
        let whole = self.adapter.bf16(&factors.b)?;
        let row_bytes = factors.rank as usize * ELEMENT;
        let rows = match kind {
            TensorKind::O | TensorKind::Down => whole,
            kind => take(&whole, &self.own(kind), row_bytes)
                .ok_or_else(|| AdapterError::Outside(factors.b.clone()))?,
        };
        let mut padded = Vec::with_capacity(rows.len() / row_bytes * rank * ELEMENT);
        for row in rows.chunks_exact(row_bytes) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + rank * ELEMENT - row_bytes, 0);
        }
        let outputs = rows.len() / row_bytes;
        Ok(Factor::pack(outputs, rank, &padded, factors.scale))
    }

    /// What of the split side of a matrix is this rank's.
    fn own(&self, kind: TensorKind) -> Runs {
        let heads = |heads: &Runs| heads.scaled(self.config.head_dim, u32::MAX);
        match kind {
            TensorKind::K | TensorKind::V => heads(&self.shard.kv_heads),
            TensorKind::Q | TensorKind::O => heads(&self.shard.q_heads),
            _ => self.shard.ffn(),
        }
    }
}

/// The elements of `bytes` whose numbers are in `own`, each of `size` bytes; none where one of them lies behind the end.
fn take(bytes: &[u8], own: &Runs, size: usize) -> Option<Vec<u8>> {
    let mut taken = Vec::new();
    for run in own.as_slice() {
        let part = (run.start as usize).checked_mul(size)?..(run.end as usize).checked_mul(size)?;
        taken.extend_from_slice(bytes.get(part)?);
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_the_end_is_not_left_out() {
        let own = |ranges: [std::ops::Range<u32>; 2]| Runs::new(ranges);
        assert_eq!(
            take(&[0, 1, 2, 3, 4, 5], &own([0..1, 2..3]), 2),
            Some(vec![0, 1, 4, 5])
        );
        assert_eq!(take(&[0, 1, 2, 3, 4, 5], &own([0..1, 2..4]), 2), None);
    }
}
