//! A `GenerateRequest` becomes a request of the engine. What is not served is refused by name: a field that is
//! silently ignored gives answers that look right and are not.

use llamero_engine::runtime::Sharing;
use llamero_engine::structured::Form;
use llamero_engine::text::RequestDraft;
use tonic::Status;
use vllm_proto::candidate_tokens::Select;
use vllm_proto::decoding_parameters::StructuredOutput;
use vllm_proto::generate_request::Prompt;
use vllm_proto::{
    CandidateTokens, GenerateRequest, KvCacheParameters, RandomSampling, ResponseOptions, StoppingCriteria,
};

use crate::inference::model::Model;

/// `max_new_tokens` when it is 0, as the contract documents it.
pub const DEFAULT_NEW_TOKENS: u32 = 20;
/// Most answers to a prompt, as over HTTP.
const MAX_SEQUENCES: u32 = 128;
/// Most of them beside which tokens of a list are told: each token of such an answer takes the logits of the whole vocabulary from all ranks, and all other
/// answers of its batch wait for them.
const MAX_LISTED_SEQUENCES: u32 = 4;

/// What the answer is to contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputSelection {
    /// Log-probabilities of output tokens.
    pub logprobs: bool,
    /// Candidates beside them.
    pub candidates: bool,
    /// These are tokens of a list, whose ranks are not known.
    pub by_id: bool,
    /// Log-probabilities of the prompt's tokens.
    pub prompt_logprobs: bool,
    /// Candidates beside them.
    pub prompt_candidates: bool,
    /// The text.
    pub text: bool,
    /// The ids of output tokens.
    pub token_ids: bool,
    /// The ids of the prompt's tokens.
    pub prompt_token_ids: bool,
}

/// Split a request into what the engine needs and what the answer is to contain.
///
/// # Errors
/// UNIMPLEMENTED for a field that is not served, INVALID_ARGUMENT for one that makes no sense.
pub fn draft(model: &Model, mut request: GenerateRequest) -> Result<Asked, Status> {
    refuse_unserved(&request)?;
    let sequences = sequences(request.sampling.as_ref())?;
    let keep = request.truncate_prompt_tokens as usize;
    let prompt = prompt(model, request.prompt.take(), keep)?;
    let sampling = request.sampling.unwrap_or_default();
    let mut decoding = request.decoding.take().unwrap_or_default();
    let form = form(decoding.structured_output.take())?;
    let stopping = request.stopping.unwrap_or_default();
    let response = request.response.unwrap_or_default();
    let (logprobs, listed_tokens) = beside(
        response.output_logprobs,
        response.output_candidates.as_ref(),
        "response.output_candidates",
    )?;
    check_listed(sequences, &listed_tokens)?;
    let (prompt_logprobs, listed) = beside(
        response.prompt_logprobs,
        response.prompt_candidates.as_ref(),
        "response.prompt_candidates",
    )?;
    if !listed.is_empty() {
        let message = "response.prompt_candidates by token_ids is not served; ask for top_n, at most 20";
        return Err(Status::unimplemented(message));
    }
    let left = model
        .context_now()
        .saturating_sub(u32::try_from(prompt.len()).unwrap_or(u32::MAX));
    let draft = RequestDraft {
        max_tokens: Some(match stopping.max_new_tokens {
            0 => DEFAULT_NEW_TOKENS.min(left.max(1)),
            most => most,
        }),
        prompt,
        // "Model-specific default or 0".
        temperature: Some(
            request
                .temperature
                .or(model.defaults.usual_temperature())
                .unwrap_or(0.0),
        ),
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        presence_penalty: Some(decoding.presence_penalty),
        frequency_penalty: Some(decoding.frequency_penalty),
        // 0 is the contract's "absent".
        repetition_penalty: Some(decoding.repetition_penalty).filter(|penalty| *penalty != 0.0),
        bad_words: decoding
            .bad_words_token_ids
            .into_iter()
            .map(|word| word.ids)
            .collect(),
        allowed_tokens: decoding.allowed_token_ids,
        min_tokens: stopping.min_new_tokens,
        include_stop_string: stopping.include_stop_strings,
        show_special_tokens: response.skip_special_tokens == Some(false),
        logprobs,
        listed_tokens,
        prompt_logprobs,
        priority: request.priority,
        logit_bias: decoding.logit_bias.into_iter().collect(),
        seed: sampling.seed.map(i64::cast_unsigned),
        stop: stopping.stop_strings,
        stop_tokens: stopping.stop_token_ids,
        ignore_eos: stopping.ignore_eos,
        ..RequestDraft::default()
    };
    Ok(Asked {
        draft,
        sequences,
        selection: selection(&response),
        form,
    })
}

/// Answers that are asked for.
fn sequences(sampling: Option<&RandomSampling>) -> Result<u32, Status> {
    match sampling.map_or(0, |sampling| sampling.num_sequences) {
        0 => Ok(1),
        count @ 1..=MAX_SEQUENCES => Ok(count),
        count => Err(Status::invalid_argument(format!(
            "sampling.num_sequences is {count}; ask for at most {MAX_SEQUENCES}"
        ))),
    }
}

/// Whether there are so few answers that tokens of a list can be told beside them.
fn check_listed(sequences: u32, listed_tokens: &[u32]) -> Result<(), Status> {
    if listed_tokens.is_empty() || sequences <= MAX_LISTED_SEQUENCES {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "sampling.num_sequences is {sequences}; beside response.output_candidates.token_ids ask for at most {MAX_LISTED_SEQUENCES}, or for top_n"
    )))
}

/// The prompt's tokens: all, or the last `keep` where that is not 0.
fn prompt(model: &Model, prompt: Option<Prompt>, keep: usize) -> Result<Vec<u32>, Status> {
    let mut prompt = match prompt {
        Some(Prompt::Text(text)) if keep == 0 => model.tokens_of_text(&text, true)?,
        // A text that is cut may be of any length.
        Some(Prompt::Text(text)) => model.last_tokens_of_text(keep, &text, true)?,
        Some(Prompt::TokenIds(tokens)) => tokens.ids,
        None => {
            return Err(Status::invalid_argument(
                "there is no prompt; send text or token_ids",
            ));
        }
    };
    if keep > 0 && prompt.len() > keep {
        // The end of a prompt matters most; this is what the contract's own server keeps.
        prompt.drain(..prompt.len() - keep);
    }
    Ok(prompt)
}

fn selection(response: &ResponseOptions) -> OutputSelection {
    OutputSelection {
        logprobs: response.output_logprobs,
        candidates: response.output_candidates.is_some(),
        by_id: response
            .output_candidates
            .as_ref()
            .is_some_and(|candidates| matches!(candidates.select, Some(Select::TokenIds(_)))),
        prompt_logprobs: response.prompt_logprobs,
        prompt_candidates: response.prompt_candidates.is_some(),
        text: response.output_text.unwrap_or(true),
        token_ids: response.output_token_ids,
        prompt_token_ids: response.prompt_token_ids,
    }
}

/// How many of the likeliest tokens are wanted beside each, if log-probabilities are wanted at all, or which tokens.
fn beside(
    wanted: bool,
    candidates: Option<&CandidateTokens>,
    name: &str,
) -> Result<(Option<u32>, Vec<u32>), Status> {
    Ok(
        match candidates.and_then(|candidates| candidates.select.as_ref()) {
            None => (wanted.then_some(0), Vec::new()),
            Some(Select::TopN(most)) => (Some(*most), Vec::new()),
            Some(Select::TokenIds(tokens)) if tokens.ids.is_empty() => {
                let message = format!("{name}.token_ids is empty; name tokens, or leave it out");
                return Err(Status::invalid_argument(message));
            }
            Some(Select::TokenIds(tokens)) => (Some(0), tokens.ids.clone()),
            Some(Select::All(_)) => {
                return Err(Status::unimplemented(format!(
                    "{name} of all tokens is not served; ask for top_n, at most 20, or token_ids"
                )));
            }
        },
    )
}

/// The form of the answer.
fn form(structure: Option<StructuredOutput>) -> Result<Option<Form>, Status> {
    Ok(Some(match structure {
        None | Some(StructuredOutput::JsonObject(false)) => return Ok(None),
        Some(StructuredOutput::JsonObject(true)) => Form::Json(r#"{"type": "object"}"#.to_owned()),
        Some(StructuredOutput::Json(schema)) => Form::Json(schema),
        Some(StructuredOutput::Regex(regex)) => Form::Regex(regex),
        Some(StructuredOutput::Choice(choices)) => Form::Choice(choices.choices),
        Some(StructuredOutput::Grammar(grammar)) => Form::Lark(grammar),
        Some(StructuredOutput::StructuralTag(_)) => {
            let message = "decoding.structural_tag is not served; use json, regex, choice or grammar";
            return Err(Status::unimplemented(message));
        }
    }))
}

/// What a request comes down to.
#[derive(Debug)]
pub struct Asked {
    /// For the engine.
    pub draft: RequestDraft,
    /// How many answers are wanted, at least 1.
    pub sequences: u32,
    /// What the answer is to contain.
    pub selection: OutputSelection,
    /// What it must look like.
    pub form: Option<Form>,
}

/// With whom a request shares what is computed for its prompt.
#[must_use]
pub fn sharing(request: &mut GenerateRequest) -> Sharing {
    let kv = request.kv.as_mut();
    match kv.map(|kv| (kv.bypass_prefix_cache, std::mem::take(&mut kv.cache_salt))) {
        Some((true, _)) => Sharing::Nobody,
        Some((false, salt)) => Sharing::With(salt),
        None => Sharing::default(),
    }
}

/// Names the first field that is set and not served. Fields whose only effect is on something this server does not
/// have (a watermark to switch off) are served by doing nothing.
fn refuse_unserved(request: &GenerateRequest) -> Result<(), Status> {
    let stopping = request.stopping.iter().flat_map(unserved_stopping);
    let kv = request.kv.iter().flat_map(unserved_kv);
    let own = [
        ("media", !request.media.is_empty()),
        ("kv_hints", request.kv_hints.is_some()),
        ("engine_reasoning_gate", request.engine_reasoning_gate.is_some()),
    ];
    let mut all = own.into_iter().chain(stopping).chain(kv);
    match all.find(|(_, set)| *set) {
        Some((field, _)) => Err(Status::unimplemented(format!(
            "{field} is not served yet; leave it out"
        ))),
        None => Ok(()),
    }
}

type Field = (&'static str, bool);

fn unserved_stopping(stopping: &StoppingCriteria) -> [Field; 1] {
    [(
        "stopping.thinking_token_budget",
        stopping.thinking_token_budget.is_some_and(|budget| budget != -1),
    )]
}

fn unserved_kv(kv: &KvCacheParameters) -> [Field; 2] {
    [
        ("kv.kv_transfer_params", kv.kv_transfer_params.is_some()),
        ("kv.ec_transfer_params", kv.ec_transfer_params.is_some()),
    ]
}

#[cfg(test)]
mod tests {
    use vllm_proto::DecodingParameters;

    use super::*;

    fn refusal(request: GenerateRequest) -> Option<String> {
        refuse_unserved(&request).err().map(|status| {
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            status.message().to_owned()
        })
    }

    #[test]
    fn what_is_not_served_is_named() {
        let said = refusal(GenerateRequest {
            stopping: Some(StoppingCriteria {
                thinking_token_budget: Some(3),
                ..Default::default()
            }),
            ..Default::default()
        });
        assert!(said.unwrap().contains("stopping.thinking_token_budget"));
        let many = RandomSampling {
            num_sequences: 129,
            ..Default::default()
        };
        let status = sequences(Some(&many)).unwrap_err();
        assert!(status.message().contains("at most 128"), "{status}");
        assert_eq!(sequences(Some(&RandomSampling::default())).unwrap(), 1);
        let status = check_listed(5, &[7]).unwrap_err();
        assert!(status.message().contains("at most 4"), "{status}");
        check_listed(4, &[7]).unwrap();
        check_listed(MAX_SEQUENCES, &[]).unwrap();
        let select = |select| CandidateTokens { select: Some(select) };
        let all = select(Select::All(true));
        let status = beside(true, Some(&all), "response.output_candidates").unwrap_err();
        assert!(
            status.message().contains("response.output_candidates"),
            "{status}"
        );
        let ids = |ids| select(Select::TokenIds(vllm_proto::TokenIds { ids }));
        assert_eq!(
            beside(false, Some(&ids(vec![7, 5])), "x").unwrap(),
            (Some(0), vec![7, 5])
        );
        let status = beside(true, Some(&ids(Vec::new())), "x").unwrap_err();
        assert!(status.message().contains("empty"), "{status}");
        assert_eq!(beside(true, None, "x").unwrap(), (Some(0), Vec::new()));
        assert_eq!(beside(false, None, "x").unwrap(), (None, Vec::new()));
        let status = form(Some(StructuredOutput::StructuralTag("x".into()))).unwrap_err();
        assert!(status.message().contains("structural_tag"), "{status}");
    }

    #[test]
    fn neutral_values_are_no_wish() {
        let request = GenerateRequest {
            sampling: Some(RandomSampling {
                num_sequences: 1,
                ..Default::default()
            }),
            decoding: Some(DecodingParameters {
                repetition_penalty: 1.0,
                ..Default::default()
            }),
            stopping: Some(StoppingCriteria {
                thinking_token_budget: Some(-1),
                ..Default::default()
            }),
            response: Some(vllm_proto::ResponseOptions {
                skip_special_tokens: Some(true),
                ..Default::default()
            }),
            kv: Some(KvCacheParameters {
                bypass_prefix_cache: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(refusal(request), None);
    }
}
