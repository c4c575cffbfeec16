//! The share of the model that a rank has among those that are there.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use llamero_settings::memory::FEWEST_TOKENS;

use crate::backend::{Backend, BackendError, LoadProgress, LoadWatch, MemoryPlan};
use crate::form::{FormLimits, FormSpec};
use crate::mesh::{Members, MeshError};
use crate::runtime::config::RankConfig;
use crate::runtime::state::StateWatch;

/// The leader is told that reading goes on this often.
const TELL: Duration = Duration::from_secs(1);

/// Have the share of the model that belongs to this rank among `members`, and form by what is returned: the KV memory that is
/// left beside the share, and the context that it holds.
pub(super) fn take<B: Backend>(
    backend: &mut B,
    members: &Members,
    spec: FormSpec,
    (config, state): (&RankConfig, &StateWatch),
    report: &mut dyn FnMut(&str),
) -> Result<FormSpec, BackendError> {
    if backend.can_reshape().is_err() {
        return Ok(spec);
    }
    let plan = backend.memory_among(members, &spec)?;
    let spec = fit(&plan, members, spec, config)?;
    let watch = Watch {
        state,
        report: RefCell::new(report),
        told: Cell::new(None),
    };
    backend.reshape(members, &watch)?;
    Ok(spec)
}

/// What is left for KV blocks where this rank takes over a part of what others had. Nothing is changed yet, so that a rank with
/// too little memory goes on waiting for whoever is missing, with all its weights.
fn fit(
    plan: &MemoryPlan,
    members: &Members,
    spec: FormSpec,
    config: &RankConfig,
) -> Result<FormSpec, BackendError> {
    let Some(lost) = members.lost().last() else {
        return Ok(spec);
    };
    let fixed = plan.fixed().saturating_add(config.process_bytes);
    let left = config
        .memory_limit
        .map_or(u64::MAX, |limit| limit.saturating_sub(fixed));
    let kv_bytes = spec.kv_bytes.min(left);
    let held = u64::from(plan.blocks(kv_bytes)) * u64::from(spec.limits.block_size);
    let wanted = spec.limits.max_context;
    let max_context = u32::try_from(held).unwrap_or(u32::MAX).min(wanted);
    let fewest = FEWEST_TOKENS.min(wanted);
    if max_context < fewest {
        let reason = format!(
            "the others cannot do without it: rank {} would need {fixed} bytes beside keys and values and may use {} in all, which \
             leaves room for {held} tokens, and {fewest} are the fewest; give the pods more memory, or wait for another pod",
            config.rank,
            config
                .memory_limit
                .map_or_else(|| "any number".to_owned(), |limit| limit.to_string()),
        );
        return Err(MeshError::PeerLost { rank: *lost, reason }.into());
    }
    let limits = FormLimits {
        max_context,
        ..spec.limits
    };
    Ok(FormSpec {
        limits,
        kv_bytes,
        ..spec
    })
}

/// Shows how far reading is. It is not cancelled: a share that is there serves the next era.
struct Watch<'a> {
    state: &'a StateWatch,
    report: RefCell<&'a mut dyn FnMut(&str)>,
    told: Cell<Option<Instant>>,
}

impl LoadWatch for Watch<'_> {
    fn progress(&self, progress: LoadProgress) {
        self.state.loaded(progress);
        let now = Instant::now();
        if self.told.get().is_none_or(|told| now >= told + TELL) {
            self.told.set(Some(now));
            let LoadProgress { loaded, total, .. } = progress;
            let what = format!("takes over what others had: {loaded} of {total} bytes are there");
            (self.report.borrow_mut())(&what);
        }
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Topology;
    use crate::step::Era;

    /// One of three ranks that may use `limit` bytes, 9,000 of them for KV blocks; a context of 3,000 tokens.
    fn fitted(lost: &[u32], limit: Option<u64>, kv_block: u64) -> Result<FormSpec, BackendError> {
        let members = Members::new(Topology::tensor(3), lost).unwrap();
        let config = RankConfig {
            kv_bytes: 9_000,
            memory_limit: limit,
            process_bytes: 100,
            block_size: 10,
            ..RankConfig::new(0, Topology::tensor(3).into(), 3_000, "n", "c")
        };
        let plan = MemoryPlan {
            weights: 5_000,
            kv_block,
            ..MemoryPlan::default()
        };
        let spec = config.form_spec(Era::default(), config.form_limits());
        fit(&plan, &members, spec, &config)
    }

    #[test]
    fn the_context_shrinks_with_what_is_left_for_it() {
        let of = |lost: &[u32], limit, kv_block| {
            let spec = fitted(lost, limit, kv_block).unwrap();
            (spec.kv_bytes, spec.limits.max_context)
        };
        assert_eq!(
            of(&[], Some(1), 60),
            (9_000, 3_000),
            "a whole group is as it was sized"
        );
        assert_eq!(of(&[2], None, 30), (9_000, 3_000));
        // Larger blocks: 150 of them.
        assert_eq!(of(&[2], None, 60), (9_000, 1_500));
        // 5,100 bytes are taken, so that 6,000 are left.
        assert_eq!(of(&[2], Some(11_100), 60), (6_000, 1_000));
        assert_eq!(of(&[2, 1], Some(5_100 + 52 * 60), 60), (52 * 60, 520));
    }

    #[test]
    fn too_little_memory_is_said_with_numbers_and_ends_no_rank() {
        let error = fitted(&[2, 1], Some(5_100 + 51 * 60), 60).unwrap_err();
        assert!(
            matches!(error, BackendError::Lost(MeshError::PeerLost { rank: 1, .. })),
            "{error}"
        );
        let said = error.to_string();
        for part in [
            "rank 0 would need 5100 bytes",
            "may use 8160",
            "room for 510 tokens",
            "512 are the fewest",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
