//! The end of a step: its answers are merged; late values for the next, then events for clients.

use std::time::Instant;

use super::Planner;
use super::choice::{Answered, Choice};
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
            for row in merging.wanted() {
                executor.fetch(number, row, 0, now())?;
            }
        }
        merging.take_rows(|row| executor.shards(number, row, 0), rows, &self.requests);
        if merging.wanted().next().is_some() {
            return Ok(None);
        }
        self.finish(executor, now)?;
        Ok(Some(number))
    }

    /// The oldest step is merged: record its tokens, let the next step begin, then tell the clients.
    fn finish(&mut self, executor: &mut Executor, now: &impl Fn() -> Instant) -> Result<(), MeshError> {
        let Some(step) = self.steps.pop_front() else {
            return Ok(());
        };
        let mut merging = step.merging;
        let choices = merging.as_mut().and_then(|merging| merging.choices.take());
        let choices = choices.unwrap_or_default();
        let mut news = Vec::with_capacity(choices.len());
        for (row, choice) in step.rows.iter().zip(choices) {
            news.extend(self.record(row, choice));
        }
        let ended: Vec<SequenceId> = news
            .iter()
            .filter(|news| news.ends())
            .map(Publication::sequence)
            .collect();
        for id in &ended {
            self.scheduler.remove(*id);
        }
        executor.release(step.number);
        // Tokens are in the histories now: they are published even when the era ends here.
        let sent = self.let_begin(executor, &ended, now);
        // Thousands of small allocations, which nobody waits for.
        drop(merging);
        self.measure(step.tokens, step.began, now());
        self.show();
        let gone = self.requests.publish(news, now());
        sent?;
        for id in gone {
            self.cancel(id, Some(executor), now())?;
        }
        Ok(())
    }

    /// Append what a row sampled to its history.
    fn record(&mut self, row: &PlannedRow, choice: Option<Choice>) -> Option<Publication> {
        let id = row.sequence;
        let choice = choice.filter(|_| !row.cancelled);
        let token = match &choice {
            Some(Ok(Answered::Token(chosen))) => Some(chosen.sampled.token),
            _ => None,
        };
        let length = self.scheduler.row_done(id, token);
        if length.is_some_and(|length| self.requests.is_cleared(id, length)) {
            self.scheduler.suspect(id, false);
        }
        match choice? {
            Ok(Answered::Scores(scores)) => self.scored(row, scores),
            Ok(Answered::Hidden(values)) => self.requests.pooled(id, row.hidden?, values),
            Ok(Answered::Token(chosen)) => {
                let full = self.scheduler.is_full(id);
                self.requests.sampled(id, chosen, length?, full)
            }
            Err(error) => Some(Publication::broken(id, error.to_string())),
        }
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
    fn measure(&mut self, tokens: u32, began: Instant, now: Instant) {
        let began = self.ended_at.map_or(began, |ended| ended.max(began));
        let duration = now.saturating_duration_since(began);
        self.budget.measured(tokens, duration);
        self.queue.measured(tokens, duration);
        self.ended_at = Some(now);
        self.load.update(|figures| {
            figures.steps += 1;
            figures.last_step_at = Some(now);
        });
    }
}
