//! What a submitted step still waits for, and what of it came: the same for every backend.

use std::collections::{BTreeMap, BTreeSet};

use crate::step::{Late, Place, Plan, PlanRow};

/// Biases and masks of a step, by answered position: see [`Late::Sampling`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adjustments {
    /// Tokens and what is added to their logits.
    pub biases: Vec<(Place, Vec<(u32, f32)>)>,
    /// One bit a token of the vocabulary, the lowest of each byte first; logits of the others become −∞.
    pub masks: Vec<(Place, Vec<u8>)>,
    /// Factors, and the tokens whose logits they make worse before biases are added.
    pub repetitions: Vec<(Place, f32, Vec<u32>)>,
}

impl Adjustments {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.biases.is_empty() && self.masks.is_empty() && self.repetitions.is_empty()
    }

    /// What is added to logits of a position, by token. Several biases of one token add up in the order given, so that the sum does
    /// not depend on the sharding.
    #[must_use]
    pub fn bias_sums(&self, place: Place) -> BTreeMap<u32, f32> {
        let mut sums: BTreeMap<u32, f32> = BTreeMap::new();
        let of_place = self.biases.iter().filter(|(of, _)| *of == place);
        for (token, bias) in of_place.flat_map(|(_, biases)| biases) {
            *sums.entry(*token).or_default() += bias;
        }
        sums
    }

    /// The repetition penalties of a position, each with its tokens; to be applied before the biases.
    pub fn repetitions(&self, place: Place) -> impl Iterator<Item = (f32, &[u32])> {
        let of_place = self.repetitions.iter().filter(move |(of, ..)| *of == place);
        of_place.map(|(_, penalty, tokens)| (*penalty, tokens.as_slice()))
    }

    /// The masks of a position; a token must be in all of them.
    pub fn masks(&self, place: Place) -> impl Iterator<Item = &[u8]> {
        let of_place = self.masks.iter().filter(move |(of, _)| *of == place);
        of_place.map(|(_, mask)| mask.as_slice())
    }
}

/// The late values of one step.
#[derive(Debug)]
pub struct LateValues {
    tokens: Option<Vec<u32>>,
    adjustments: Option<Adjustments>,
    /// Rows that nobody wants any more.
    cancelled: BTreeSet<u32>,
}

impl LateValues {
    /// What `plan` announces is awaited; what it does not announce is there, and empty.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            tokens: (plan.late_tokens == 0).then(Vec::new),
            adjustments: (!plan.late_sampling).then(Adjustments::default),
            cancelled: BTreeSet::new(),
        }
    }

    /// Take what came for `plan`.
    ///
    /// # Errors
    /// Why it does not fit, with nothing changed.
    pub fn take(&mut self, plan: &Plan, late: &Late, vocab_size: usize) -> Result<(), String> {
        check(plan, late, vocab_size)?;
        match late {
            Late::Tokens(_) if self.tokens.is_some() => {
                Err("late tokens were given already, or not announced".into())
            }
            Late::Tokens(tokens) => {
                self.tokens = Some(tokens.clone());
                Ok(())
            }
            Late::Sampling { .. } if self.adjustments.is_some() => {
                Err("biases and masks were given already, or not announced".into())
            }
            Late::Sampling {
                biases,
                masks,
                repetitions,
            } => {
                self.adjustments = Some(Adjustments {
                    biases: biases.clone(),
                    masks: masks.clone(),
                    repetitions: repetitions.clone(),
                });
                Ok(())
            }
            // It may come too late: who sends it cannot know how far the step is.
            Late::Cancel(rows) => {
                self.cancelled.extend(rows);
                Ok(())
            }
        }
    }

    /// The late tokens, once they are known.
    #[must_use]
    pub fn tokens(&self) -> Option<&[u32]> {
        self.tokens.as_deref()
    }

    /// The biases and masks, once they are known.
    #[must_use]
    pub fn adjustments(&self) -> Option<&Adjustments> {
        self.adjustments.as_ref()
    }

    /// Whether nobody wants the row any more.
    #[must_use]
    pub fn is_cancelled(&self, row: u32) -> bool {
        self.cancelled.contains(&row)
    }
}

/// Whether late values fit the plan.
///
/// # Errors
/// What is wrong with them.
fn check(plan: &Plan, late: &Late, vocab_size: usize) -> Result<(), String> {
    let row_exists = |row: &u32| {
        if (*row as usize) < plan.rows.len() {
            return Ok(());
        }
        Err(format!("row {row} does not exist: there are {}", plan.rows.len()))
    };
    let is_answered = |(row, offset): &Place| {
        row_exists(row)?;
        let answered = plan.rows.get(*row as usize).map_or(0, PlanRow::answered);
        if (*offset as usize) < answered {
            return Ok(());
        }
        Err(format!(
            "row {row} answers {answered} positions, and number {offset} was meant"
        ))
    };
    match late {
        Late::Tokens(tokens) => {
            if tokens.len() != plan.late_tokens as usize {
                return Err(format!(
                    "{} late tokens were given and {} announced",
                    tokens.len(),
                    plan.late_tokens
                ));
            }
            match tokens.iter().find(|token| **token as usize >= vocab_size) {
                Some(token) => Err(format!("token {token} is past the vocabulary of {vocab_size}")),
                None => Ok(()),
            }
        }
        Late::Sampling {
            biases,
            masks,
            repetitions,
        } => {
            for (place, penalty, tokens) in repetitions {
                is_answered(place)?;
                let (row, _) = place;
                if !(*penalty > 0.0 && penalty.is_finite()) {
                    return Err(format!(
                        "the repetition penalty {penalty} of row {row} is not above 0"
                    ));
                }
                if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
                    return Err(format!(
                        "the repeated token {token} is past the vocabulary of {vocab_size}"
                    ));
                }
            }
            for (place, biases) in biases {
                is_answered(place)?;
                if let Some((token, _)) = biases.iter().find(|(token, _)| *token as usize >= vocab_size) {
                    return Err(format!(
                        "the bias of token {token} is past the vocabulary of {vocab_size}"
                    ));
                }
            }
            let wanted = vocab_size.div_ceil(8);
            for (place, mask) in masks {
                is_answered(place)?;
                let (row, _) = place;
                if mask.len() != wanted {
                    return Err(format!(
                        "the mask of row {row} has {} bytes instead of {wanted}",
                        mask.len()
                    ));
                }
            }
            Ok(())
        }
        Late::Cancel(rows) => rows.iter().try_for_each(row_exists),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::{BlockDeltas, Era, RowOutput, SampleKey, TokenRef};

    fn plan() -> Plan {
        Plan {
            era: Era {
                generation: 1,
                epoch: 1,
            },
            step: 1,
            rows: vec![PlanRow {
                slot: 0,
                start: 0,
                tokens: vec![TokenRef::Late(0), TokenRef::Known(2)],
                adapter: None,
                output: RowOutput::Sample {
                    last: 2,
                    key: SampleKey {
                        seed: 0,
                        temperature: 0.0,
                        top: 1,
                        mass: false,
                        logprobs: false,
                    },
                },
            }],
            blocks: BlockDeltas::default(),
            late_tokens: 1,
            late_sampling: true,
            state_hash: 0,
        }
    }

    #[test]
    fn late_values_must_fit() {
        let plan = plan();
        let check = |late| check(&plan, &late, 100);
        assert_eq!(check(Late::Tokens(vec![7])), Ok(()));
        assert!(check(Late::Tokens(vec![])).is_err());
        assert!(check(Late::Tokens(vec![100])).is_err());
        let bias = |row, token| Late::Sampling {
            biases: vec![((row, 1), vec![(token, 1.0)])],
            masks: vec![],
            repetitions: vec![],
        };
        assert_eq!(check(bias(0, 99)), Ok(()));
        assert!(check(bias(1, 99)).is_err());
        assert!(check(bias(0, 100)).is_err());
        let mask = |place, bytes| Late::Sampling {
            biases: vec![],
            masks: vec![(place, vec![0; bytes])],
            repetitions: vec![],
        };
        assert_eq!(check(mask((0, 1), 13)), Ok(()));
        assert!(check(mask((0, 0), 12)).is_err());
        assert!(check(mask((1, 0), 13)).is_err());
        assert!(
            check(mask((0, 2), 13)).is_err(),
            "a position that is not answered"
        );
        assert_eq!(check(Late::Cancel(vec![0])), Ok(()));
        assert!(check(Late::Cancel(vec![1])).is_err());
    }

    #[test]
    fn what_was_announced_is_awaited_and_taken_once() {
        let plan = plan();
        let mut late = LateValues::of(&plan);
        assert_eq!((late.tokens(), late.adjustments()), (None, None));
        let tokens = Late::Tokens(vec![7]);
        assert_eq!(late.take(&plan, &tokens, 100), Ok(()));
        assert_eq!(late.tokens(), Some(&[7][..]));
        assert!(late.take(&plan, &tokens, 100).is_err());
        let sampling = Late::Sampling {
            biases: vec![((0, 1), vec![(3, 0.5), (3, 0.25)])],
            masks: vec![((0, 0), vec![0xff; 13])],
            repetitions: vec![],
        };
        assert_eq!(late.take(&plan, &sampling, 100), Ok(()));
        assert!(late.take(&plan, &sampling, 100).is_err());
        let adjustments = late.adjustments().unwrap();
        assert_eq!(adjustments.bias_sums((0, 1)), [(3, 0.75)].into());
        assert!(adjustments.bias_sums((0, 0)).is_empty());
        assert_eq!(
            (
                adjustments.masks((0, 0)).count(),
                adjustments.masks((0, 1)).count()
            ),
            (1, 0)
        );
        assert_eq!(late.take(&plan, &Late::Cancel(vec![0]), 100), Ok(()));
        assert!(late.is_cancelled(0));
    }
}
