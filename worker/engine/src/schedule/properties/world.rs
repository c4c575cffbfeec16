//! A scheduler, the group that it plans for and what is known of all requests.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::KEY;
use super::mirror::{Mirror, next_token};
use super::shared::FirstComputers;
use crate::schedule::{
    Batch, Drafted, LateToken, Limits, MOST_OVERTAKEN, PrefixHash, Scheduler, Sequence, SequenceId,
    Speculation,
};
use crate::step::{PlanRow, RowOutput};

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) mirror: Mirror,
    pub(super) alive: BTreeMap<SequenceId, (Vec<u32>, u32)>,
    pub(super) first_token: Vec<SequenceId>,
    pub(super) next_id: u64,
    pub(super) in_flight: VecDeque<Batch>,
    pub(super) depth: usize,
    /// What each name stands for: the tokens of its block.
    pub(super) named: HashMap<PrefixHash, Vec<u32>>,
    /// Positions of prompts that were scored so far, of those that want it.
    pub(super) scored: BTreeMap<SequenceId, (u32, u32)>,
    /// Drafts so far, and those that were right.
    pub(super) drafted: u32,
    pub(super) accepted: u32,
    pub(super) firsts: FirstComputers,
}

impl World {
    pub(super) fn new(limits: Limits, depth: usize) -> Self {
        Self::staged(limits, depth, 1)
    }

    pub(super) fn staged(limits: Limits, depth: usize, stages: u32) -> Self {
        Self {
            in_flight: VecDeque::new(),
            depth,
            scheduler: Scheduler::staged(limits, stages),
            mirror: Mirror::new(limits),
            alive: BTreeMap::new(),
            first_token: Vec::new(),
            next_id: 0,
            named: HashMap::new(),
            scored: BTreeMap::new(),
            drafted: 0,
            accepted: 0,
            firsts: FirstComputers::default(),
        }
    }

    /// The same, and every guess is drafted.
    pub(super) fn drafting(mut self, max_drafts: u32) -> Self {
        let speculation = (max_drafts > 0).then_some(Speculation {
            max_drafts,
            drafted: Drafted::All,
        });
        self.scheduler = self.scheduler.with_speculation(speculation);
        self
    }

    /// The same, and sequences wait for a batch when that spares them so many tokens.
    pub(super) fn waiting_for(mut self, tokens: u32) -> Self {
        self.scheduler = self.scheduler.with_worth_waiting(tokens);
        self.firsts.are_followed = tokens <= self.mirror.limits.block_size;
        self
    }

    pub(super) fn arrive(
        &mut self,
        (family, prompt, output): (u32, u32, u32),
        shares: bool,
        priority: i32,
        scores: bool,
    ) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens: Vec<u32> = (0..prompt).map(|i| i * 3 + family).collect();
        learn(&mut self.named, &tokens, self.mirror.limits.block_size);
        let longest = prompt + output;
        let fits = longest <= self.mirror.limits.longest();
        let taken = self.scheduler.add(
            Sequence::new(id, tokens.clone(), longest, KEY)
                .with_root(shares.then(root))
                .with_priority(priority)
                .with_scores(scores.then_some(1), prompt),
        );
        assert_eq!(taken.is_ok(), fits, "exactly what can never fit is refused");
        if fits {
            if scores {
                self.scored.insert(id, (0, prompt - 1));
            }
            if shares {
                self.firsts.may_share(id, !scores);
            }
            self.alive.insert(id, (tokens, longest));
        }
    }

    /// Send one batch, if one more may be in flight; false when there is none.
    pub(super) fn plan(&mut self) -> bool {
        let planned = self.in_flight.len();
        // As the planner does it.
        let ahead = planned == 0 || !self.scheduler.awaits_tokens() || planned < self.scheduler.stages();
        if planned >= self.depth || !ahead {
            return false;
        }
        let Some(batch) = self.scheduler.batch(u32::MAX) else {
            // Some may have been preempted, which no batch tells.
            self.firsts.preempted();
            return false;
        };
        assert!(!batch.rows.is_empty());
        self.mirror.submit(&batch);
        self.firsts
            .note(&batch, &self.alive, self.mirror.limits.block_size);
        let mut all = self.scheduler.sequences();
        assert!(
            all.all(|sequence| sequence.overtaken <= MOST_OVERTAKEN),
            "somebody starves"
        );
        for (row, id) in batch.rows.iter().zip(&batch.sequences) {
            let (history, longest) = &self.alive[id];
            let end = row.start + u32::try_from(row.tokens.len()).unwrap();
            assert!(end < *longest, "what surely ended by its length is not planned");
            match row.output {
                RowOutput::Sample { last, .. } if last > 1 => {
                    self.drafted += u32::from(last) - 1;
                    assert_eq!(end as usize, history.len() + usize::from(last) - 1);
                    let others = self.in_flight.iter().flat_map(|batch| &batch.sequences);
                    assert_eq!(others.filter(|other| *other == id).count(), 0, "it has one row");
                }
                _ => assert!(end as usize <= history.len() + self.in_flight.len()),
            }
        }
        self.in_flight.push_back(batch);
        true
    }

    pub(super) fn done(&mut self) -> bool {
        let Some(batch) = self.in_flight.pop_front() else {
            return false;
        };
        // Whoever has ended gets a row that nobody looks at.
        let value = |late: &LateToken| self.scheduler.token(late.sequence, late.position);
        let late: Vec<u32> = batch.late.iter().map(|late| value(late).unwrap_or(0)).collect();
        for late in &batch.late {
            if let Some((history, _)) = self.alive.get(&late.sequence) {
                assert!(
                    (late.position as usize) < history.len(),
                    "sampled by an earlier batch"
                );
            }
        }
        let sampled = self.mirror.run(&batch, &late);
        for ((id, sampled), row) in batch.sequences.iter().zip(sampled).zip(&batch.rows) {
            self.score(*id, row);
            let length = self.scheduler.row_done(*id, &sampled);
            let Some((history, longest)) = self.alive.get_mut(id) else {
                assert_eq!(length, None);
                continue;
            };
            if sampled.is_empty() {
                continue;
            }
            if let Some((scored, all)) = self.scored.get(id) {
                assert_eq!(scored, all, "a prompt is scored before its answer begins");
            }
            if !self.first_token.contains(id) {
                self.first_token.push(*id);
            }
            self.accepted += sampled.len() as u32 - 1;
            for token in sampled {
                assert_eq!(token, next_token(history), "the KV is the history");
                history.push(token);
            }
            learn(&mut self.named, history, self.mirror.limits.block_size);
            assert_eq!(length.unwrap() as usize, history.len());
            assert_eq!(self.scheduler.is_full(*id), length == Some(*longest));
            if length == Some(*longest) {
                let done = self.scheduler.remove(*id).unwrap();
                assert_eq!(done, *history, "no token lost or repeated");
                self.alive.remove(id);
            }
        }
        self.check_names();
        if self.in_flight.is_empty() && !self.scheduler.has_frees() {
            let (used, total) = self.scheduler.kv_blocks();
            assert_eq!(used as usize, self.mirror.users.len(), "blocks are conserved");
            for (block, users) in &self.mirror.users {
                assert_eq!(
                    self.scheduler.pool().users(*block),
                    *users,
                    "users of block {block}"
                );
            }
            assert_eq!(total, self.mirror.limits.blocks);
        }
        true
    }

    /// A row's scores are those that come next.
    pub(super) fn score(&mut self, id: SequenceId, row: &PlanRow) {
        let RowOutput::Score { ids, top: 1 } = &row.output else {
            assert!(!matches!(row.output, RowOutput::Score { .. }));
            return;
        };
        let Some((history, _)) = self.alive.get(&id) else {
            return;
        };
        let (scored, all) = self.scored.get_mut(&id).unwrap();
        let end = row.start + u32::try_from(row.tokens.len()).unwrap();
        assert_eq!(
            end - u32::try_from(ids.len()).unwrap(),
            *scored,
            "each is scored once and in order"
        );
        assert_eq!(ids[..], history[*scored as usize + 1..=end as usize]);
        assert!(end <= *all);
        *scored = end;
    }

    /// Every block that can be found holds what its name stands for.
    pub(super) fn check_names(&self) {
        for (block, name) in self.scheduler.pool().names() {
            let held: Vec<u32> = (0..self.mirror.limits.block_size)
                .map(|offset| self.mirror.kv[&(block, offset)])
                .collect();
            assert_eq!(held, self.named[&name], "block {block}");
        }
    }

    /// Plan as much as may be, and finish one batch.
    pub(super) fn step(&mut self) -> bool {
        while self.plan() {}
        self.done()
    }

    pub(super) fn cancel(&mut self, pick: usize) {
        if self.alive.is_empty() {
            return;
        }
        let id = *self.alive.keys().nth(pick % self.alive.len()).unwrap();
        assert!(self.scheduler.remove(id).is_some());
        assert!(self.scheduler.remove(id).is_none());
        self.alive.remove(&id);
    }

    pub(super) fn era(&mut self, kept: bool, blocks: Option<u32>) {
        let histories = |world: &Self| -> Vec<(SequenceId, Vec<u32>)> {
            let sequences = world.scheduler.sequences();
            sequences
                .map(|sequence| (sequence.id, sequence.tokens.clone()))
                .collect()
        };
        let mut before = histories(self);
        let limits = Limits {
            blocks: blocks.unwrap_or(self.mirror.limits.blocks),
            ..self.mirror.limits
        };
        for (refused, _) in self.scheduler.requeue_all(limits, kept) {
            let (_, longest) = self.alive.remove(&refused.id).unwrap();
            assert!(
                longest > limits.longest(),
                "exactly what can never fit is refused"
            );
            before.retain(|(id, _)| *id != refused.id);
        }
        self.firsts.forget();
        let after = histories(self);
        assert!(after.is_sorted_by_key(|(id, _)| *id), "first come, first served");
        before.sort();
        assert_eq!(before, after);
        assert_eq!((self.scheduler.running(), self.scheduler.kv_blocks().0), (0, 0));
        // Ranks may have computed some of what was in flight, with whatever came late.
        for batch in std::mem::take(&mut self.in_flight) {
            self.mirror.run(&batch, &vec![999; batch.late.len()]);
        }
        let kv = std::mem::take(&mut self.mirror.kv);
        self.mirror = Mirror::new(limits);
        if kept {
            self.mirror.kv = kv;
        }
        self.check_names();
    }
}

/// Note what the names of a history's blocks stand for.
pub(super) fn learn(named: &mut HashMap<PrefixHash, Vec<u32>>, history: &[u32], block_size: u32) {
    let mut name = root();
    for block in history.chunks_exact(block_size as usize) {
        name = name.followed_by(block);
        named.insert(name, block.to_vec());
    }
}

pub(super) fn root() -> PrefixHash {
    PrefixHash::of_group("weights", "numerics", 0)
}
