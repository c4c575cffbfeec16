//! Log-probabilities of an answer's tokens, in the two forms of the API.

use std::collections::BTreeMap;

use llamero_proto::v1::TokenLogprob;
use serde::Serialize;
use serde_json::{Map, Value};

use super::route::Route;

/// Of a piece of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub enum Logprobs {
    Chat {
        content: Vec<Entry>,
        refusal: Option<()>,
    },
    Text {
        text_offset: Vec<usize>,
        /// None for a token that begins the prompt.
        token_logprobs: Vec<Option<f32>>,
        tokens: Vec<String>,
        top_logprobs: Vec<Option<Map<String, Value>>>,
    },
}

/// A token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Entry {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<Top>,
}

/// One of the likeliest tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Top {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// None where there are none. `offset` is the number of characters of the answer's tokens so far; it is carried on.
#[must_use]
pub fn logprobs(route: Route, tokens: &[TokenLogprob], offset: &mut usize) -> Option<Logprobs> {
    if tokens.is_empty() {
        return None;
    }
    Some(match route {
        Route::Text => text(tokens, offset),
        _ => Logprobs::Chat {
            content: entries(tokens),
            refusal: None,
        },
    })
}

/// Each token with the likeliest ones.
#[must_use]
pub fn entries(tokens: &[TokenLogprob]) -> Vec<Entry> {
    tokens.iter().map(entry).collect()
}

/// vLLM's `prompt_logprobs`: for each token of the prompt those of itself and of the likeliest ones by id, none for the first.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptEntry>>>;

/// A token in the place of one of the prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct PromptEntry {
    pub logprob: f32,
    /// From 1; null when it is not among the likeliest that were asked for.
    pub rank: Option<usize>,
    pub decoded_token: String,
}

/// As vLLM's server sends them.
#[must_use]
pub fn prompt_logprobs(tokens: &[TokenLogprob]) -> PromptLogprobs {
    let entry = |token: &TokenLogprob, rank| PromptEntry {
        logprob: token.logprob,
        rank,
        decoded_token: shown(token),
    };
    let of = |token: &TokenLogprob| {
        let mut all = BTreeMap::from([(token.token_id, entry(token, None))]);
        let top = (1..).zip(&token.top);
        all.extend(top.map(|(rank, top)| (top.token_id, entry(top, Some(rank)))));
        (!token.begins).then_some(all)
    };
    tokens.iter().map(of).collect()
}

/// Of pieces that follow one another.
pub fn join(all: &mut Option<Logprobs>, more: Option<Logprobs>) {
    match (all, more) {
        (Some(Logprobs::Chat { content, .. }), Some(Logprobs::Chat { content: more, .. })) => {
            content.extend(more)
        }
        (
            Some(Logprobs::Text {
                text_offset,
                token_logprobs,
                tokens,
                top_logprobs,
            }),
            Some(Logprobs::Text {
                text_offset: a,
                token_logprobs: b,
                tokens: c,
                top_logprobs: d,
            }),
        ) => {
            text_offset.extend(a);
            token_logprobs.extend(b);
            tokens.extend(c);
            top_logprobs.extend(d);
        }
        (all, more) => {
            if more.is_some() {
                *all = more;
            }
        }
    }
}

/// A part of a character is shown as U+FFFD; `bytes` has what it is.
fn shown(token: &TokenLogprob) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}

fn entry(token: &TokenLogprob) -> Entry {
    let top = token.top.iter().map(|top| Top {
        token: shown(top),
        logprob: top.logprob,
        bytes: top.bytes.clone(),
    });
    Entry {
        token: shown(token),
        logprob: token.logprob,
        bytes: token.bytes.clone(),
        top_logprobs: top.collect(),
    }
}

fn text(tokens: &[TokenLogprob], offset: &mut usize) -> Logprobs {
    let mut offsets = Vec::with_capacity(tokens.len());
    let mut top = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(*offset);
        *offset += shown(token).chars().count();
        // The token itself is always among them.
        let all = token.top.iter().chain([token]);
        let all = all.map(|token| (shown(token), token.logprob.into())).collect();
        top.push((!token.begins).then_some(all));
    }
    Logprobs::Text {
        text_offset: offsets,
        token_logprobs: tokens
            .iter()
            .map(|token| (!token.begins).then_some(token.logprob))
            .collect(),
        tokens: tokens.iter().map(shown).collect(),
        top_logprobs: top,
    }
}
