//! A run from its start to its findings.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::answer::Answer;
use super::fault::{Fault, Kind};
use super::inflict::{Nothing, inflict};
use super::leaks::Census;
use super::load::{Questions, Shared, all_once, load};
use super::schedule::schedule;
use super::table::{Ended, Verdict, judge};
use super::target::{NAME, SOON, Target};
use super::watch::{Sample, silences, watch};
use crate::poll;

/// Runs of this length or more try each kind so often that it hits.
const ALL_HIT: Duration = Duration::from_secs(600);
/// Wrong streams that are told one by one; the rest is counted.
const TOLD: usize = 20;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Gives the schedule.
    pub seed: u64,
    /// From the first to the last fault.
    pub length: Duration,
    /// Tokens of each answer.
    pub tokens: u32,
    /// The only kind of fault.
    pub only: Option<Kind>,
}

/// A fault as it went.
#[derive(Clone, Debug)]
pub struct Happened {
    /// As scheduled.
    pub fault: Fault,
    /// After the start of the run.
    pub from: Duration,
    /// After the start of the run.
    pub to: Duration,
    /// What was hit, or why nothing was.
    pub hit: Result<String, String>,
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub options: Options,
    /// The faults.
    pub faults: Vec<Happened>,
    /// The streams and what the table says about them.
    pub streams: Vec<(Ended, Verdict)>,
    /// What was seen meanwhile.
    pub samples: Vec<Sample>,
    /// What processes used at the end.
    pub uses: Vec<String>,
    /// What must not be; empty when everything held.
    pub findings: Vec<String>,
}

/// Makes a deployment on the running cluster, disturbs it, and looks at what is left.
///
/// # Errors
/// The run cannot be done. What it finds is part of the outcome.
pub fn run(options: Options) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let say = |what: &str| eprintln!("chaos: {what}");
    say("a deployment of two groups");
    let target = Target::create()?;
    let questions = Questions {
        model: NAME.to_owned(),
        tokens: options.tokens,
    };
    say("every stream once, undisturbed");
    let undisturbed = runtime.block_on(every_stream(&target, &questions))?;
    let before = Census::take(&target.cluster)?;

    say("faults");
    let shared = Arc::new(Shared::new());
    shared.gateways.send_replace(target.gateways()?);
    let streams = runtime.spawn(load(Arc::clone(&shared), questions.clone()));
    let stop = AtomicBool::new(false);
    let (faults, seen, mut findings) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&target.cluster, &shared, &stop));
        let (faults, findings) = disturb(&target, &shared, options);
        say("the last streams");
        shared.stop();
        let ended = runtime.block_on(streams).context("the load broke");
        stop.store(true, Ordering::Relaxed);
        let seen = watching.join().map_err(|_| anyhow!("the watch broke"))?;
        ended.map(|()| (faults, seen, findings))
    })?;
    findings.extend(silences(&seen.samples));
    findings.extend(seen.partial);

    say("everything whole again");
    findings.extend(healed(&runtime, &target, &questions, &undisturbed));
    let (uses, leaks) = leaked(&target, &before);
    findings.extend(leaks);
    let streams = judged(&shared, &undisturbed);
    findings.extend(wrong(&streams));
    Ok(Outcome {
        options,
        faults,
        streams,
        samples: seen.samples,
        uses,
        findings,
    })
}

/// Every stream once, through the gateways that there are now.
async fn every_stream(target: &Target, questions: &Questions) -> Result<Vec<Answer>> {
    let shared = Arc::new(Shared::new());
    shared.gateways.send_replace(target.gateways()?);
    all_once(shared, questions).await
}

/// Causes the scheduled faults and takes them back, whatever happens. Also says what could not be taken back.
fn disturb(target: &Target, shared: &Arc<Shared>, options: Options) -> (Vec<Happened>, Vec<String>) {
    let mut happened = Vec::new();
    let mut findings = Vec::new();
    for fault in schedule(options.seed, options.length, options.only) {
        poll::pause(fault.at.saturating_sub(shared.start.elapsed()));
        let from = shared.start.elapsed();
        let (hit, undo) = match inflict(&target.cluster, shared, &fault) {
            Ok(inflicted) => (Ok(inflicted.hit.clone()), Some(inflicted)),
            Err(error) => {
                let why = format!("{error:#}");
                if !error.is::<Nothing>() {
                    findings.push(format!("{} could not be caused: {why}", fault.kind.name()));
                }
                (Err(why), None)
            }
        };
        let shown = hit.as_ref().unwrap_or_else(|why| why);
        eprintln!(
            "chaos: {:6.1} s  {}: {shown}",
            from.as_secs_f64(),
            fault.kind.name()
        );
        if let Some(undo) = undo {
            poll::pause(fault.lasts);
            if let Err(error) = undo.take_back(&target.cluster) {
                findings.push(format!(
                    "{} could not be taken back: {error:#}",
                    fault.kind.name()
                ));
            }
        }
        let to = shared.start.elapsed();
        happened.push(Happened { fault, from, to, hit });
    }
    poll::pause(options.length.saturating_sub(shared.start.elapsed()));
    if happened.iter().filter(|one| one.hit.is_ok()).count() * 2 < happened.len() {
        findings.push("more than half of the faults found nothing to hit".to_owned());
    }
    if options.length >= ALL_HIT {
        findings.extend(never_hit(&happened));
    }
    (happened, findings)
}

/// Kinds that were tried and found nothing to hit, each time: the suite says nothing about them.
fn never_hit(happened: &[Happened]) -> Vec<String> {
    let kinds = |are_hit: bool| -> BTreeSet<&str> {
        let meant = happened.iter().filter(|one| one.hit.is_ok() || !are_hit);
        meant.map(|one| one.fault.kind.name()).collect()
    };
    let missed = |kind: &&str| format!("{kind} never found anything to hit");
    kinds(false).difference(&kinds(true)).map(missed).collect()
}

/// Whether all groups serve again and answer what they answered before.
fn healed(
    runtime: &tokio::runtime::Runtime,
    target: &Target,
    questions: &Questions,
    undisturbed: &[Answer],
) -> Vec<String> {
    if let Err(error) = target.wait_ready() {
        return vec![format!("something is stuck: {error:#}")];
    }
    match runtime.block_on(every_stream(target, questions)) {
        Err(error) => vec![format!("after the faults: {error:#}")],
        Ok(answers) if answers == undisturbed => Vec::new(),
        Ok(answers) => {
            let differ = answers
                .iter()
                .zip(undisturbed)
                .filter(|(now, then)| now != then)
                .count();
            vec![format!("after the faults {differ} streams answer differently")]
        }
    }
}

/// What processes use at the end, and what has leaked.
fn leaked(target: &Target, before: &Census) -> (Vec<String>, Vec<String>) {
    let mut last = (Vec::new(), vec!["what is left could not be looked at".to_owned()]);
    // Connections and caches take their time to go.
    let _ = poll::until("nothing leaked", SOON, || {
        let now = Census::take(&target.cluster)?;
        let leaks = Census::leaks(before, &now);
        let clean = leaks.is_empty();
        last = (now.lines(), leaks);
        Ok(clean.then_some(()))
    });
    last
}

fn judged(shared: &Shared, undisturbed: &[Answer]) -> Vec<(Ended, Verdict)> {
    let deaths = shared.deaths.borrow().clone();
    let judged = shared.take_ended().into_iter().map(|ended| {
        let verdict = match undisturbed.get(ended.stream) {
            Some(undisturbed) => judge(&ended, undisturbed, &deaths),
            None => Verdict::Wrong(format!("there is no stream {}", ended.stream)),
        };
        (ended, verdict)
    });
    judged.collect()
}

fn wrong(streams: &[(Ended, Verdict)]) -> Vec<String> {
    let mut told = Vec::new();
    let mut count = 0;
    for (ended, verdict) in streams {
        if let Verdict::Wrong(why) = verdict {
            count += 1;
            if count <= TOLD {
                let (from, to) = (ended.began.as_secs_f64(), ended.ended.as_secs_f64());
                told.push(format!(
                    "stream {} from {from:.1} s to {to:.1} s: {why}",
                    ended.stream
                ));
            }
        }
    }
    if count > TOLD {
        told.push(format!("and {} more wrong streams", count - TOLD));
    }
    if !streams.iter().any(|(_, verdict)| *verdict == Verdict::Whole) {
        told.push("not one stream came to its end".to_owned());
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_never_hit_is_a_finding() {
        let happened = |kind: Kind, hit: Result<&str, &str>| Happened {
            fault: Fault {
                at: Duration::ZERO,
                lasts: Duration::ZERO,
                kind,
                pick: 0,
            },
            from: Duration::ZERO,
            to: Duration::ZERO,
            hit: hit.map(str::to_owned).map_err(str::to_owned),
        };
        let (once, never) = (Kind::KillRank, Kind::KillGateway);
        let all = [
            happened(once, Err("no rank")),
            happened(once, Ok("a rank")),
            happened(never, Err("no gateway")),
            happened(never, Err("no gateway")),
        ];
        assert_eq!(
            never_hit(&all),
            [format!("{} never found anything to hit", never.name())]
        );
        assert!(never_hit(&all[..2]).is_empty());
    }
}
