//! Conversations through two gateways at two groups: as the gateways send them, and as if they sent them to the group that has least to do, or to each in
//! turn. A session is kept at one group, so two sessions that are kept at different ones stand for the groups.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::edge::{FREE, MODEL, Secrets};

const CONVERSATIONS: usize = 9;
const TURNS: usize = 3;
/// Requests at once: as many as there are groups.
const AT_ONCE: usize = 2;
/// Sessions that are tried until one is kept at the other group.
const SESSIONS: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Affinity,
    LeastLoaded,
    Turns,
}

/// What came of the turns behind the first ones.
#[derive(Debug, Default)]
struct Figures {
    cached: u64,
    prompt: u64,
    seconds: f64,
    requests: u32,
}

impl Figures {
    fn hits(&self) -> f64 {
        self.cached as f64 / self.prompt as f64
    }

    /// Mean seconds to the first, and only, token.
    fn wait(&self) -> f64 {
        self.seconds / f64::from(self.requests)
    }
}

/// Compare the three by what was cached. How long they waited is told only: one stall of the machine would turn it round.
pub(crate) fn compare(secrets: &Secrets, ips: &[String]) -> Result<()> {
    let sessions = two_sessions(secrets, &ips[0])?;
    println!("sessions at different groups: {sessions:?}");
    let mut all = Vec::new();
    for policy in [Policy::Affinity, Policy::LeastLoaded, Policy::Turns] {
        let figures = replay(policy, &sessions, secrets, ips)?;
        println!(
            "{policy:?}: {:.0} % of the prompts' tokens were cached, {:.0} ms to the first token",
            figures.hits() * 100.0,
            figures.wait() * 1000.0
        );
        all.push(figures);
    }
    let [affinity, others @ ..] = &all[..] else {
        anyhow::bail!("nothing was compared")
    };
    ensure!(
        affinity.hits() > 0.8,
        "conversations do not find their caches: {all:?}"
    );
    for other in others {
        ensure!(
            affinity.hits() > other.hits() + 0.1,
            "affinity brings nothing: {all:?}"
        );
    }
    Ok(())
}

fn beginning(kind: &str, number: usize) -> Vec<Value> {
    let text = format!("{kind} {number}: {}", "A long story about a llama. ".repeat(60));
    vec![json!({"role": "user", "content": text})]
}

/// Ask for one token: cached and all tokens of the prompt, and the seconds that it took.
fn ask(secrets: &Secrets, ip: &str, session: &str, messages: &[Value]) -> Result<(u64, u64, f64)> {
    let body =
        json!({"model": MODEL, "temperature": 0, "max_tokens": 1, "ignore_eos": true, "messages": messages});
    let (code, answer, seconds) = secrets.ask(ip, FREE, session, &body)?;
    ensure!(code == 200, "HTTP {code}: {answer}");
    let usage = &answer["usage"];
    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
    let prompt = usage["prompt_tokens"].as_u64().context("no usage")?;
    Ok((cached.as_u64().unwrap_or_default(), prompt, seconds))
}

/// Two sessions at different groups: what the first one has asked is not cached where the second one asks it.
fn two_sessions(secrets: &Secrets, ip: &str) -> Result<[String; 2]> {
    let first = "session-0".to_owned();
    for number in 1..SESSIONS {
        let (other, messages) = (format!("session-{number}"), beginning("A session", number));
        ask(secrets, ip, &first, &messages)?;
        let (cached, prompt, _) = ask(secrets, ip, &other, &messages)?;
        if cached < prompt / 2 {
            return Ok([first, other]);
        }
    }
    anyhow::bail!("{SESSIONS} sessions are all kept at one group")
}

/// Which group the next request goes to, by what is under way there.
struct Groups {
    under_way: [usize; 2],
    next: usize,
}

impl Groups {
    fn choose(&mut self, policy: Policy) -> usize {
        let [a, b] = self.under_way;
        // Those that have equally much to do take turns too.
        let group = match policy {
            Policy::LeastLoaded if a != b => usize::from(b < a),
            _ => self.next,
        };
        self.next = 1 - group;
        self.under_way[group] += 1;
        group
    }
}

/// All conversations, turn by turn, in another order each time.
fn replay(policy: Policy, sessions: &[String; 2], secrets: &Secrets, ips: &[String]) -> Result<Figures> {
    let (groups, figures) = (
        Mutex::new(Groups {
            under_way: [0; 2],
            next: 0,
        }),
        Mutex::new(Figures::default()),
    );
    let one = |turn: usize, conversation: usize| -> Result<()> {
        let mut messages = beginning(&format!("{policy:?}"), conversation);
        for said in 0..turn {
            messages.push(json!({"role": "assistant", "content": format!("Then {said} llamas came.")}));
            messages.push(json!({"role": "user", "content": "And then?"}));
        }
        let group = groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .choose(policy);
        let session = match policy {
            Policy::Affinity => "",
            Policy::LeastLoaded | Policy::Turns => &sessions[group],
        };
        let asked = ask(
            secrets,
            &ips[(conversation + turn) % ips.len()],
            session,
            &messages,
        );
        groups.lock().unwrap_or_else(PoisonError::into_inner).under_way[group] -= 1;
        let (cached, prompt, seconds) = asked?;
        if turn > 0 {
            let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
            figures.cached += cached;
            figures.prompt += prompt;
            figures.seconds += seconds;
            figures.requests += 1;
        }
        Ok(())
    };
    for turn in 0..TURNS {
        // By steps that have no divisor in common with their number, so that no group has the same ones in each turn.
        let step = [1, 2, 4][turn % 3];
        let order: Vec<usize> = (0..CONVERSATIONS).map(|at| at * step % CONVERSATIONS).collect();
        let waiting = Mutex::new(order.into_iter());
        let client = || -> Result<()> {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(conversation) = next else { return Ok(()) };
                one(turn, conversation)?;
            }
        };
        thread::scope(|scope| -> Result<()> {
            let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(client)).collect();
            for client in clients {
                client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok(())
        })?;
    }
    figures
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a client panicked"))
}
