//! Steps that were refused by quota, Pod Security, admission, or a name that is taken: the decisions take them as input, and say when to
//! try again. Kept in memory only: a new operator asks again, and is refused again.

use std::collections::BTreeMap;

use llamero_core::{observed::Refusal, refusals, time::Millis};

use super::{Outcome, Subject, error::Remedy};

/// A refusal is forgotten when its step was not asked for in this time after it was due: nobody wants it any more.
const PATIENCE: Millis = 5_000;

/// Refused steps by what they are about.
#[derive(Clone, Debug, Default)]
pub struct Refusals(BTreeMap<Subject, Vec<Refusal>>);

impl Refusals {
    /// Takes in what became of steps.
    pub fn record(&mut self, outcome: &Outcome, now: Millis) {
        for (subject, target) in &outcome.applied {
            if let Some(refusals) = self.0.get_mut(subject) {
                refusals.retain(|refusal| refusal.target != *target);
            }
        }
        for failure in outcome.failures.iter().filter(|f| f.remedy == Remedy::User) {
            let refusals = self.0.entry(failure.subject.clone()).or_default();
            let known = refusals
                .iter_mut()
                .find(|refusal| refusal.target == failure.target);
            match known {
                Some(refusal) => {
                    refusal.message.clone_from(&failure.message);
                    refusal.at = now;
                    refusal.times = refusal.times.saturating_add(1);
                }
                None => refusals.push(Refusal {
                    target: failure.target.clone(),
                    message: failure.message.clone(),
                    at: now,
                    times: 1,
                }),
            }
        }
        self.0.retain(|_, refusals| !refusals.is_empty());
    }

    /// Forgets those that nobody asked for any more. What they were about. One that was noted by a clock that was ahead counts as of now.
    pub fn expire(&mut self, now: Millis) -> Vec<Subject> {
        let mut about = Vec::new();
        self.0.retain(|subject, refusals| {
            let before = refusals.len();
            for refusal in refusals.iter_mut().filter(|refusal| refusal.at > now) {
                refusal.at = now;
                about.push(subject.clone());
            }
            refusals.retain(|refusal| now <= refusals::retry_at(refusal) + PATIENCE);
            if refusals.len() != before {
                about.push(subject.clone());
            }
            !refusals.is_empty()
        });
        about
    }

    /// Steps about this object that were refused.
    #[must_use]
    pub fn of(&self, subject: &Subject) -> Vec<Refusal> {
        self.0.get(subject).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use llamero_core::Key;

    use super::*;
    use crate::apply::Failure;

    const TARGET: &str = "CreatePod d-0-0-0";

    fn subject() -> Subject {
        Subject::Group(Key {
            namespace: "n".into(),
            name: "d-0".into(),
        })
    }

    fn failed(remedy: Remedy) -> Outcome {
        let failure = Failure {
            subject: subject(),
            action: "CreatePod",
            target: TARGET.into(),
            message: "exceeded quota".into(),
            remedy,
        };
        Outcome {
            failures: vec![failure],
            ..Outcome::default()
        }
    }

    #[test]
    fn refusals_are_counted_until_the_step_succeeds_or_nobody_asks() {
        let mut refusals = Refusals::default();
        refusals.record(&failed(Remedy::Retry), 1_000);
        assert!(refusals.of(&subject()).is_empty());
        refusals.record(&failed(Remedy::User), 1_000);
        refusals.record(&failed(Remedy::User), 3_000);
        let told = refusals.of(&subject());
        assert_eq!((told.len(), told[0].times, told[0].at), (1, 2, 3_000));

        let mut others = refusals.clone();
        let done = Outcome {
            applied: vec![(subject(), TARGET.to_owned())],
            ..Outcome::default()
        };
        others.record(&done, 4_000);
        assert!(others.of(&subject()).is_empty());

        assert_eq!(
            (refusals.expire(5_000), refusals.of(&subject()).len()),
            (vec![], 1)
        );
        assert_eq!(refusals.expire(20_000), [subject()]);
        assert!(refusals.of(&subject()).is_empty());

        // The clock was a day ahead when it was refused, and is right again: the wait is as long as any.
        refusals.record(&failed(Remedy::User), 86_400_000);
        assert_eq!(refusals.expire(20_000), [subject()]);
        assert_eq!(refusals.of(&subject())[0].at, 20_000);
        assert!(refusals.expire(21_000).is_empty());
        assert_eq!(refusals.expire(40_000), [subject()]);
    }
}
