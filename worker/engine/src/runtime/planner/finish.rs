//! The end of a step: its answers are merged; late values for the next, then events for clients.

use std::time::Instant;

use super::Planner;
use super::choice::{Answered, Choice, Chosen};
use super::merge::Merging;
use super::requests::Publication;
use super::row::PlannedRow;
use super::step::PlannedStep;
use crate::mesh::MeshError;
use crate::runtime::executor::Executor;
use crate::runtime::request::TokenScore;
use crate::sampling::Scored;
use crate::schedule::SequenceId;

impl Planner {
    /// Merge the oldest step in flight as far as its answers are there. Returns its number when it has ended.
    pub(super) fn merge_next(
        &mut self,
        executor: &mut Executor,
        now: &impl Fn() -> Instant,
    ) -> Result<Option<u64>, MeshError> {
        let Some(step) = self.steps.front_mut() else {
            return Ok(None);
        };
        let PlannedStep {
            number,
            rows,
            merging,
            ..
        } = step;
        let (number, ranks) = (*number, executor.heads());
        let merging = merging.get_or_insert_with(|| Merging::new(rows, ranks));
        for (rank, output) in executor.outputs(number) {
            merging.add(rank, output, number, rows)?;
        }
        if !executor.all_answered(number) {
            return Ok(None);
        }
        if merging.choices.is_none() {
            merging.choose(rows, &self.requests);
            for (row, offset) in merging.wanted() {
                executor.fetch(number, row, offset, now())?;
            }
        }
        let shards = |(row, offset)| executor.shards(number, row, offset);
        for (row, offset) in merging.take_rows(shards, rows, &self.requests) {
            executor.fetch(number, row, offset, now())?;
        }
        if merging.wanted().next().is_some() {
            return Ok(None);
        }
        self.finish(executor, now)?;
        Ok(Some(number))
    }

    /// The oldest step is merged: record its tokens, let the next step begin, then tell the clients.
    fn finish(&mut self, executor: &mut Executor, now: &impl Fn() -> Instant) -> Result<(), MeshError> {
        let Some(mut step) = self.steps.pop_front() else {
            return Ok(());
        };
        let mut merging = step.merging.take();
        let choices = merging.as_mut().and_then(|merging| merging.choices.take());
        let choices = choices.unwrap_or_default();
        let mut news = Vec::with_capacity(choices.len());
        for (row, choice) in step.rows.iter().zip(choices) {
            news.extend(self.record(row, choice));
        }
        let finished: Vec<SequenceId> = news
            .iter()
            .filter(|news| news.ends())
            .map(Publication::sequence)
            .collect();
        for id in &finished {
            self.scheduler.remove(*id);
        }
        executor.release(step.number);
        // Tokens are in the histories now: they are published even when the era ends here.
        let mut sent = self.let_begin(executor, &finished, now);
        // Thousands of small allocations, which nobody waits for.
        drop(merging);
        let ended = now();
        self.measure(&step, ended);
        if sent.is_ok() && self.steps.is_empty() {
            // Nobody computes: the next step goes before the news.
            sent = self.plan_ahead(executor, ended);
        }
        self.show();
        let gone = self.requests.publish(news, now());
        sent?;
        for id in gone {
            self.cancel(id, Some(executor), now())?;
        }
        Ok(())
    }

    /// Append what a row sampled to its history. What its client is to hear.
    fn record(&mut self, row: &PlannedRow, choice: Option<Choice>) -> Vec<Publication> {
        let id = row.sequence;
        let choice = choice.filter(|_| !row.cancelled);
        let mut tokens: Vec<u32> = match &choice {
            Some(Ok(Answered::Tokens(chosen))) => chosen.iter().map(|chosen| chosen.sampled.token).collect(),
            _ => Vec::new(),
        };
        tokens.truncate(self.requests.taken(id, &tokens));
        let length = self.scheduler.row_done(id, &tokens);
        if length.is_some_and(|length| self.requests.is_cleared(id, length)) {
            self.scheduler.suspect(id, false);
        }
        match (choice, length) {
            (Some(Ok(Answered::Tokens(mut chosen))), Some(length)) => {
                chosen.truncate(tokens.len());
                self.note_drafts(row, chosen.len());
                self.sampled(id, chosen, length)
            }
            (Some(Ok(Answered::Scores(scores))), _) => self.scored(row, scores).into_iter().collect(),
            (Some(Ok(Answered::Hidden(values))), _) => {
                let place = row.hidden;
                let pooled = place.and_then(|place| self.requests.pooled(id, place, values));
                pooled.into_iter().collect()
            }
            (Some(Err(error)), _) => vec![Publication::broken(id, error.to_string())],
            (Some(Ok(Answered::Tokens(_))), None) | (None, _) => Vec::new(),
        }
    }

    /// What the client of a sequence hears of its next tokens, of which `length` is the length of its history with them.
    fn sampled(&mut self, id: SequenceId, chosen: Vec<Chosen>, length: u32) -> Vec<Publication> {
        let full = self.scheduler.is_full(id);
        let mut news = Vec::with_capacity(chosen.len());
        let mut behind = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
        for chosen in chosen {
            behind -= 1;
            let publication = self
                .requests
                .sampled(id, chosen, length - behind, full && behind == 0);
            let ends = publication.as_ref().is_some_and(Publication::ends);
            news.extend(publication);
            if ends {
                break;
            }
        }
        news
    }

    /// Count the drafts of a row of which so many tokens came.
    fn note_drafts(&self, row: &PlannedRow, tokens: usize) {
        if row.drafts.is_empty() {
            return;
        }
        self.load.update(|figures| {
            figures.drafts += 1;
            figures.draft_tokens += row.drafts.len() as u64;
            figures.accepted_tokens += tokens.saturating_sub(1) as u64;
        });
    }

    /// What the client hears of a row that scored tokens of its prompt.
    fn scored(&self, row: &PlannedRow, scores: Vec<Scored>) -> Option<Publication> {
        let tokens = self.scheduler.tokens(row.sequence, row.position, scores.len())?;
        let scored = tokens.iter().zip(scores).map(|(id, scored)| TokenScore {
            id: *id,
            logprob: scored.logprob,
            top: scored.top,
        });
        self.requests.scored(row.sequence, scored.collect())
    }

    /// Send the steps in flight what they wait for, as far as it is there: tokens and cancelled rows first, since a step cannot
    /// begin without, then what it needs before sampling. In a pipeline more than the next one may wait for what was just
    /// sampled, and the next one for nothing.
    fn let_begin(
        &mut self,
        executor: &mut Executor,
        ended: &[SequenceId],
        now: &impl Fn() -> Instant,
    ) -> Result<(), MeshError> {
        let mut values = if ended.is_empty() {
            Vec::new()
        } else {
            self.cancel_rows(ended)
        };
        let mut begun = Vec::new();
        for step in &mut self.steps {
            if step.is_due(&self.scheduler) {
                values.extend(step.late_values(&self.scheduler).map(|late| (step.number, late)));
                begun.push(step.number);
            }
        }
        executor.late(values, now())?;
        let mut sampling = Vec::new();
        for step in self.steps.iter_mut().filter(|step| begun.contains(&step.number)) {
            step.began = now();
            sampling.extend(step.sampling(&mut self.requests).map(|late| (step.number, late)));
        }
        executor.late(sampling, now())
    }

    /// A step ended. What it took is counted from the end of the one before: until then the members had that one to compute.
    fn measure(&mut self, step: &PlannedStep, now: Instant) {
        let began = self.ended_at.map_or(step.began, |ended| ended.max(step.began));
        let duration = now.saturating_duration_since(began);
        self.budget.measured(step.tokens, duration);
        self.queue.measured(step.tokens, duration);
        if let Some((rows, drafts)) = step.decoding {
            self.scheduler.measured(rows, drafts, duration.as_secs_f32());
        }
        self.ended_at = Some(now);
        self.load.update(|figures| {
            figures.steps += 1;
            figures.last_step_at = Some(now);
        });
    }
}
