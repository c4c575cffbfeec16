//! `vllm.Inference` and `vllm.Control` of a worker.

use tonic::Code;
use tonic::transport::Channel;
use vllm_proto::candidate_tokens::Select;
use vllm_proto::control_client::ControlClient;
use vllm_proto::finish_info::FinishReason as VllmReason;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{
    CandidateTokens, DecodingParameters, GenerateRequest, GetModelInfoRequest, GetServerInfoRequest,
    RandomSampling, ResponseOptions, SequenceOutput, StoppingCriteria, generate_request,
};

use crate::harness::{Worker, turn};

#[tokio::test]
async fn the_contract_is_answered_or_refused_with_a_sentence() {
    let _turn = turn().await;
    let worker = Worker::alone(1, &[]).await;
    answers(&worker).await;
    scores(&worker).await;
    sequences(&worker).await;
    refusals(&worker).await;
}

pub(crate) fn generate(text: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(generate_request::Prompt::Text(text.into())),
        ..GenerateRequest::default()
    }
}

async fn answers(worker: &Worker) {
    let mut client = InferenceClient::new(worker.channel());
    let request = GenerateRequest {
        stopping: Some(StoppingCriteria {
            ignore_eos: true,
            ..StoppingCriteria::default()
        }),
        response: Some(ResponseOptions {
            output_token_ids: true,
            prompt_token_ids: true,
            ..ResponseOptions::default()
        }),
        ..generate("The capital of France is")
    };
    let whole = client.generate(request.clone()).await.unwrap().into_inner();
    let (prompt, outputs) = (whole.prompt_info.unwrap(), whole.outputs.unwrap());
    assert!(outputs.text.contains("Paris"), "{outputs:?}");
    assert_eq!(prompt.token_ids.len(), prompt.num_prompt_tokens as usize);
    let finish = outputs.finish_info.unwrap();
    assert_eq!(
        (finish.num_output_tokens, finish.finish_reason()),
        (20, VllmReason::Length)
    );
    assert_eq!((outputs.num_tokens, outputs.token_ids.len()), (20, 20));

    let mut stream = client.generate_stream(request).await.unwrap().into_inner();
    let (mut text, mut token_ids, mut ends) = (String::new(), Vec::new(), 0);
    while let Some(part) = stream.message().await.unwrap() {
        assert_eq!(
            part.prompt_info.is_some(),
            token_ids.is_empty(),
            "the prompt comes first, and once"
        );
        let outputs = part.outputs.unwrap();
        text.push_str(&outputs.text);
        token_ids.extend(outputs.token_ids);
        ends += usize::from(outputs.finish_info.is_some());
    }
    assert_eq!((text, token_ids, ends), (outputs.text, outputs.token_ids, 1));

    let mut control = ControlClient::new(worker.channel());
    let info = control
        .get_server_info(GetServerInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.max_model_len, info.parallelism.unwrap().tensor_parallel_size),
        (1024, 1)
    );
    assert!(info.total_kv_blocks > 0);
    let info = control
        .get_model_info(GetModelInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.served_model_name, "smol");
}

/// What a token's log-probability was when it was generated, it is when the prompt has it.
async fn scores(worker: &Worker) {
    let mut client = InferenceClient::new(worker.channel());
    let candidates = || {
        Some(CandidateTokens {
            select: Some(Select::TopN(3)),
        })
    };
    let request = GenerateRequest {
        stopping: Some(StoppingCriteria {
            ignore_eos: true,
            max_new_tokens: 12,
            ..StoppingCriteria::default()
        }),
        response: Some(ResponseOptions {
            output_token_ids: true,
            prompt_token_ids: true,
            output_logprobs: true,
            output_candidates: candidates(),
            ..ResponseOptions::default()
        }),
        ..generate("Once upon a time, in a small village by the sea,")
    };
    let whole = client.generate(request.clone()).await.unwrap().into_inner();
    let (prompt, outputs) = (whole.prompt_info.unwrap(), whole.outputs.unwrap());
    assert_eq!((outputs.logprobs.len(), outputs.candidate_tokens.len()), (12, 12));
    assert_eq!(outputs.ranks, [1; 12], "greedy");

    let ids = [prompt.token_ids.clone(), outputs.token_ids.clone()].concat();
    let scored = GenerateRequest {
        prompt: Some(generate_request::Prompt::TokenIds(vllm_proto::TokenIds { ids })),
        response: Some(ResponseOptions {
            prompt_logprobs: true,
            prompt_candidates: candidates(),
            ..ResponseOptions::default()
        }),
        ..request.clone()
    };
    let again = client.generate(scored).await.unwrap().into_inner();
    let known = prompt.token_ids.len();
    let prompt = again.prompt_info.unwrap();
    assert_eq!(prompt.logprobs.len(), known + 12);
    assert_eq!(prompt.logprobs[0], 0.0, "the first has none");
    assert!(prompt.logprobs[1..].iter().all(|logprob| *logprob < 0.0));
    assert_eq!(prompt.logprobs[known..], outputs.logprobs, "bit for bit");
    assert_eq!(prompt.ranks[known..], outputs.ranks);
    assert_eq!(prompt.candidate_tokens[known..], outputs.candidate_tokens);
    assert!(again.outputs.unwrap().logprobs.is_empty(), "not asked for");

    given_tokens(&mut client, &request, &outputs).await;

    let penalised = GenerateRequest {
        decoding: Some(DecodingParameters {
            repetition_penalty: 9.0,
            ..DecodingParameters::default()
        }),
        ..request
    };
    let penalised = client.generate(penalised).await.unwrap().into_inner();
    let tokens = penalised.outputs.unwrap().token_ids;
    let before = penalised.prompt_info.unwrap().token_ids;
    for (at, token) in tokens.iter().enumerate() {
        assert!(
            !before.contains(token) && !tokens[..at].contains(token),
            "{token} comes again"
        );
    }
}

/// Tokens that are named have the values that they have among the likeliest, and unlikely ones have theirs.
async fn given_tokens(
    client: &mut InferenceClient<Channel>,
    request: &GenerateRequest,
    likeliest: &SequenceOutput,
) {
    let first = &likeliest.candidate_tokens[0].tokens;
    let ids = vec![first[2].id, first[0].id, 17];
    let mut named = request.clone();
    let response = named.response.as_mut().unwrap();
    response.output_candidates = Some(CandidateTokens {
        select: Some(Select::TokenIds(vllm_proto::TokenIds { ids: ids.clone() })),
    });
    let outputs = client.generate(named.clone()).await.unwrap().into_inner();
    let outputs = outputs.outputs.unwrap();
    // They change no answer.
    assert_eq!(
        (&outputs.token_ids, &outputs.logprobs),
        (&likeliest.token_ids, &likeliest.logprobs)
    );
    assert_eq!(outputs.candidate_tokens.len(), 12);
    for (given, top) in outputs.candidate_tokens.iter().zip(&likeliest.candidate_tokens) {
        let of: Vec<u32> = given.tokens.iter().map(|token| token.id).collect();
        assert_eq!(of, ids);
        for token in &given.tokens {
            let among = top.tokens.iter().find(|one| one.id == token.id);
            match among {
                Some(same) => assert_eq!(token.logprob, same.logprob),
                None => assert!(token.logprob < top.tokens[2].logprob, "{token:?} {top:?}"),
            }
            assert_eq!(token.rank, 0, "not known");
        }
    }
    let response = named.response.as_mut().unwrap();
    response.output_candidates = Some(CandidateTokens {
        select: Some(Select::TokenIds(vllm_proto::TokenIds { ids: vec![1 << 30] })),
    });
    let status = client.generate(named).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("output_candidates"), "{status}");
}

/// Several answers to a prompt are those that as many requests with their seeds get.
async fn sequences(worker: &Worker) {
    let mut client = InferenceClient::new(worker.channel());
    let request = |num_sequences, seed| GenerateRequest {
        temperature: Some(1.0),
        sampling: Some(RandomSampling {
            num_sequences,
            seed: Some(seed),
            ..RandomSampling::default()
        }),
        response: Some(ResponseOptions {
            prompt_logprobs: true,
            ..ResponseOptions::default()
        }),
        ..generate("Once upon a time, in a small village by the sea,")
    };
    let mut stream = client.generate_stream(request(3, 40)).await.unwrap().into_inner();
    let (mut texts, mut ends, mut parts) = (vec![String::new(); 3], [0; 3], 0);
    while let Some(part) = stream.message().await.unwrap() {
        assert_eq!(
            part.prompt_info.is_some_and(|prompt| !prompt.logprobs.is_empty()),
            parts == 0,
            "the prompt comes first, and once"
        );
        let outputs = part.outputs.unwrap();
        texts[outputs.index as usize] += &outputs.text;
        ends[outputs.index as usize] += usize::from(outputs.finish_info.is_some());
        parts += 1;
    }
    assert_eq!(ends, [1; 3]);
    for (seed, text) in (40..).zip(&texts) {
        let alone = client.generate(request(1, seed)).await.unwrap().into_inner();
        assert_eq!(&alone.outputs.unwrap().text, text, "{seed}");
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let status = client.generate(request(2, 1)).await.unwrap_err();
    assert!(status.message().contains("GenerateStream"), "{status}");
}

async fn refusals(worker: &Worker) {
    let mut client = InferenceClient::new(worker.channel());
    let cases = [
        (
            GenerateRequest {
                lora_name: "l".into(),
                ..generate("x")
            },
            Code::NotFound,
            "no adapter \"l\"",
        ),
        (
            GenerateRequest {
                temperature: Some(-0.5),
                ..generate("x")
            },
            Code::InvalidArgument,
            "temperature",
        ),
        (
            GenerateRequest {
                model: "m".into(),
                ..generate("x")
            },
            Code::NotFound,
            "\"smol\"",
        ),
        (GenerateRequest::default(), Code::InvalidArgument, "no prompt"),
    ];
    for (request, code, part) in cases {
        let status = client.generate(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{status}");
        let status = client.generate_stream(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
}
