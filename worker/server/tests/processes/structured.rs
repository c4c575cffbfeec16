//! Answers with a form, tool calls, log-probabilities and bans, from the real model.

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::structure::Form;
use llamero_proto::v1::{
    ChatMessage, ChatPrompt, Choices, CompletionChunk, CompletionRequest, Structure, ToolChoice,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Worker, complete, refused, story, turn};

fn ask(content: &str) -> ChatPrompt {
    ChatPrompt {
        messages: vec![ChatMessage {
            role: "user".into(),
            content: content.into(),
            ..ChatMessage::default()
        }],
        ..ChatPrompt::default()
    }
}

/// A request at temperature 1 whose answer has a form.
pub(crate) fn formed(form: Form, seed: u64) -> CompletionRequest {
    CompletionRequest {
        prompt: Some(Prompt::Chat(ask("Tell me something about a person, as JSON."))),
        temperature: Some(1.0),
        seed: Some(seed),
        max_tokens: Some(120),
        structure: Some(Structure {
            parameter: "response_format".into(),
            form: Some(form),
        }),
        ..CompletionRequest::default()
    }
}

#[tokio::test]
async fn forms_tools_figures_and_bans() {
    let _turn = turn().await;
    let worker = Worker::alone(1, &[]).await;
    texts(&worker).await;
    resuming(&worker).await;
    refusals(&worker).await;
    tools(&worker).await;
    several_calls(&worker).await;
    strict_tools(&worker).await;
    history_with_a_call(&worker).await;
    figures(&worker).await;
    bans(&worker).await;
}

async fn texts(worker: &Worker) {
    let texts = vec!["certainly not".to_owned(), "yes".to_owned()];
    for seed in 0..4 {
        let form = Form::Choices(Choices { texts: texts.clone() });
        assert!(texts.contains(&complete(worker, formed(form, seed)).await.unwrap().text));
    }
}

async fn resuming(worker: &Worker) {
    let schema = json!({"type": "array", "items": {"type": "integer"}, "minItems": 8, "maxItems": 9});
    let request = formed(Form::JsonSchema(schema.to_string()), 3);
    let whole = complete(worker, request.clone()).await.unwrap();
    for cut in [1, whole.token_ids.len() / 2, whole.token_ids.len() - 1] {
        let resumed = CompletionRequest {
            resume_token_ids: whole.token_ids[..cut].to_vec(),
            ..request.clone()
        };
        assert_eq!(
            complete(worker, resumed).await.unwrap().token_ids,
            whole.token_ids[cut..]
        );
    }
}

async fn refusals(worker: &Worker) {
    let not = Form::JsonSchema(r#"{"not": {"type": "null"}}"#.into());
    refused(worker, formed(not.clone(), 1), Code::InvalidArgument, "\"not\"").await;
    let status = complete(worker, formed(not, 1)).await.unwrap_err();
    assert_eq!(status.metadata().get("parameter").unwrap(), "response_format");
    let endless = CompletionRequest {
        ignore_eos: true,
        ..formed(Form::Regex("a".into()), 1)
    };
    refused(worker, endless, Code::InvalidArgument, "'ignore_eos'").await;
}

/// Name and arguments of each call, and the text beside them.
async fn calls(worker: &Worker, request: CompletionRequest) -> (Vec<(String, String)>, String, Vec<u32>) {
    let mut stream = worker.completion().complete(request).await.unwrap().into_inner();
    let (mut calls, mut text, mut tokens): (Vec<(String, String)>, _, _) =
        (Vec::new(), String::new(), Vec::new());
    while let Some(chunk) = stream.message().await.unwrap() {
        let CompletionChunk {
            tool_calls,
            text: more,
            token_ids,
            ..
        } = chunk;
        text += &more;
        tokens.extend(token_ids);
        for piece in tool_calls {
            if !piece.name.is_empty() {
                calls.push((piece.name, String::new()));
            }
            calls.last_mut().unwrap().1 += &piece.arguments;
        }
    }
    (calls, text, tokens)
}

async fn tools(worker: &Worker) {
    let parameters = json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"], "additionalProperties": false, "$defs": {"city": {"enum": ["Paris", "Rome"]}}});
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ]);
    let request = |tool_name: &str, seed| CompletionRequest {
        prompt: Some(Prompt::Chat(ChatPrompt {
            tools_json: tools.to_string(),
            tool_choice: ToolChoice::Required.into(),
            tool_name: tool_name.into(),
            ..ask("How is the weather in Rome?")
        })),
        temperature: Some(1.0),
        seed: Some(seed),
        max_tokens: Some(80),
        ..CompletionRequest::default()
    };
    for seed in 0..3 {
        let (made, text, tokens) = calls(worker, request("weather", seed)).await;
        let [(name, arguments)] = &made[..] else {
            panic!("{made:?} {text}")
        };
        assert_eq!((name.as_str(), text.as_str()), ("weather", ""));
        let value: Value = serde_json::from_str(arguments).unwrap();
        assert!(
            ["Paris", "Rome"].contains(&value["city"].as_str().unwrap()),
            "{value}"
        );
        assert!((1..=7).contains(&value["days"].as_i64().unwrap()), "{value}");
        // Whoever goes on with the answer shows the rest of the call, and no more.
        let cut = tokens.len() - 4;
        let resumed = CompletionRequest {
            resume_token_ids: tokens[..cut].to_vec(),
            ..request("weather", seed)
        };
        let mut stream = worker.completion().complete(resumed).await.unwrap().into_inner();
        let mut rest = String::new();
        while let Some(chunk) = stream.message().await.unwrap() {
            assert_eq!(chunk.text, "");
            rest.extend(chunk.tool_calls.iter().map(|piece| piece.arguments.as_str()));
        }
        assert!(
            arguments.ends_with(&rest) && !rest.is_empty(),
            "{arguments} {rest}"
        );
        let (made, ..) = calls(worker, request("", seed)).await;
        assert!(["weather", "now"].contains(&made[0].0.as_str()), "{made:?}");
    }
    // The form of an answer's text says nothing of an answer that must be a call; another form does.
    let formed = |parameter: &str| CompletionRequest {
        structure: Some(Structure {
            parameter: parameter.into(),
            form: Some(Form::JsonSchema(r#"{"type": "null"}"#.into())),
        }),
        ..request("weather", 0)
    };
    let (made, ..) = calls(worker, formed("response_format")).await;
    assert_eq!(made[0].0, "weather");
    refused(
        worker,
        formed("guided_json"),
        Code::InvalidArgument,
        "'guided_json'",
    )
    .await;
}

/// Ids of a text's tokens.
async fn tokens(worker: &Worker, text: &str) -> Vec<u32> {
    let text = CompletionRequest {
        prompt: Some(Prompt::Text(text.to_owned())),
        no_special_tokens: true,
        ..CompletionRequest::default()
    };
    worker.completion().tokenize(text).await.unwrap().into_inner().ids
}

/// Where calls are required there is at least one, and as many more as the model makes, unless one is asked for: here it would go on for ever.
async fn several_calls(worker: &Worker) {
    let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": none}});
    let request = |tool_name: &str, one_tool_call| ChatPrompt {
        tools_json: json!([tool("sun"), tool("rain")]).to_string(),
        tool_choice: ToolChoice::Required.into(),
        tool_name: tool_name.into(),
        one_tool_call,
        ..ask("Call the tools, all of them.")
    };
    let bias: Vec<(u32, f32)> = tokens(worker, ";")
        .await
        .into_iter()
        .map(|id| (id, 100.0))
        .collect();
    for (name, one, several) in [("", false, true), ("", true, false), ("rain", false, false)] {
        let request = CompletionRequest {
            prompt: Some(Prompt::Chat(request(name, one))),
            temperature: Some(0.0),
            logit_bias: bias.iter().copied().collect(),
            max_tokens: Some(60),
            ..CompletionRequest::default()
        };
        let (made, text, _) = calls(worker, request).await;
        assert_eq!(made.len() > 1, several, "{name:?} {one}: {made:?} {text}");
        // The number of tokens cuts off the last one of several, in its head or behind it.
        assert!(text.is_empty() || several && text.starts_with(';'), "{text}");
        let last = usize::from(several && text.is_empty());
        for (called, arguments) in &made[..made.len() - last] {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert!(arguments == json!({}) && called.contains(name), "{made:?}");
        }
    }
}

/// The model decides whether it calls a tool; once it has begun to, a strict tool gets arguments of its schema.
async fn strict_tools(worker: &Worker) {
    let parameters = json!({"properties": {"days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["days"],
        "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "weather", "strict": true, "parameters": parameters}}]);
    let request = CompletionRequest {
        prompt: Some(Prompt::Chat(ChatPrompt {
            tools_json: tools.to_string(),
            one_tool_call: true,
            ..ask("How is the weather in Rome?")
        })),
        temperature: Some(1.0),
        max_tokens: Some(60),
        ..CompletionRequest::default()
    };
    let begun = tokens(worker, r#"[{"name": "weather", "arguments":"#).await;
    for seed in 0..4 {
        let call = CompletionRequest {
            resume_token_ids: begun.clone(),
            seed: Some(seed),
            ..request.clone()
        };
        let (made, text, _) = calls(worker, call).await;
        let Some((name, arguments)) = made.first() else {
            panic!("{text}")
        };
        assert_eq!((name.as_str(), text.as_str()), ("weather", ""));
        let value: Value = serde_json::from_str(arguments).unwrap();
        assert!((1..=7).contains(&value["days"].as_i64().unwrap()), "{value}");
    }
    let text = CompletionRequest {
        resume_token_ids: tokens(worker, r#"{"weather":"#).await,
        seed: Some(1),
        ..request.clone()
    };
    let (made, text, _) = calls(worker, text).await;
    assert!(made.is_empty() && !text.is_empty(), "{made:?} {text}");
    let other = CompletionRequest {
        resume_token_ids: tokens(worker, r#"{"name": "forecast", "parameters":"#).await,
        ..request.clone()
    };
    refused(worker, other, Code::InvalidArgument, "'tools'").await;
    let mut unclear = request;
    if let Some(Prompt::Chat(chat)) = &mut unclear.prompt {
        chat.tools_json = chat
            .tools_json
            .replace("\"required\"", "\"not\": {}, \"required\"");
    }
    refused(worker, unclear, Code::InvalidArgument, "\"not\"").await;
}

/// A history with a call and its result is rendered, also by a template that knows no tools.
async fn history_with_a_call(worker: &Worker) {
    let call = json!({"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\": \"Rome\"}"}}]});
    let result = json!({"role": "tool", "tool_call_id": "call_1", "content": "sunny, 31 degrees"});
    let mut prompt = ask("How is the weather in Rome?");
    prompt.messages.extend([call, result].map(|message| ChatMessage {
        json: message.to_string(),
        ..ChatMessage::default()
    }));
    let answer = async |prompt: ChatPrompt| {
        let request = CompletionRequest {
            prompt: Some(Prompt::Chat(prompt)),
            temperature: Some(0.0),
            max_tokens: Some(30),
            ..CompletionRequest::default()
        };
        complete(worker, request).await.unwrap().text
    };
    let (asked, continued) = (
        answer(ask("How is the weather in Rome?")).await,
        answer(prompt).await,
    );
    assert_ne!(asked, continued, "the history is not part of the prompt");
}

async fn figures(worker: &Worker) {
    let mut plain = Vec::new();
    for logprobs in [Some(5), Some(0), None] {
        let request = CompletionRequest {
            logprobs,
            ..story(12)
        };
        let mut stream = worker.completion().complete(request).await.unwrap().into_inner();
        let (mut tokens, mut figures) = (Vec::new(), Vec::new());
        while let Some(chunk) = stream.message().await.unwrap() {
            tokens.extend(chunk.token_ids);
            figures.extend(chunk.logprobs);
        }
        assert_eq!(figures.len(), if logprobs.is_some() { 12 } else { 0 });
        for (figure, token) in figures.iter().zip(&tokens) {
            assert_eq!(figure.token_id, *token);
            assert!(figure.logprob <= 0.0 && figure.top.len() == logprobs.unwrap() as usize);
            let Some(best) = figure.top.first() else { continue };
            // Greedy: the likeliest is taken.
            assert_eq!(
                (best.token_id, best.logprob, &best.bytes),
                (*token, figure.logprob, &figure.bytes)
            );
            assert!(
                figure
                    .top
                    .windows(2)
                    .all(|pair| pair[0].logprob >= pair[1].logprob)
            );
            let mass: f32 = figure.top.iter().map(|top| top.logprob.exp()).sum();
            assert!(mass <= 1.001, "{mass}");
        }
        plain.push(tokens);
    }
    assert!(plain.iter().all(|tokens| *tokens == plain[0]));
}

async fn bans(worker: &Worker) {
    let short = CompletionRequest {
        prompt: Some(Prompt::Chat(ask(
            "What is the capital of France? Answer in one word.",
        ))),
        temperature: Some(0.0),
        max_tokens: Some(40),
        ..CompletionRequest::default()
    };
    let answer = complete(worker, short.clone()).await.unwrap();
    assert!(answer.text.contains("Paris"), "{answer:?}");
    // A token of the answer as its end: whether this model ends by itself is not what is tested.
    let short = CompletionRequest {
        stop_token_ids: vec![answer.token_ids[8]],
        ..short
    };
    assert!(complete(worker, short.clone()).await.unwrap().output_tokens < 20);
    let longer = CompletionRequest {
        min_tokens: 30,
        ..short.clone()
    };
    assert!(complete(worker, longer).await.unwrap().output_tokens >= 30);
    let banned = CompletionRequest {
        bad_words: vec!["Paris".into()],
        ..short.clone()
    };
    assert!(!complete(worker, banned).await.unwrap().text.contains("Paris"));
    let shown = CompletionRequest {
        stop: vec!["Par".into()],
        include_stop_string: true,
        ..short
    };
    assert!(complete(worker, shown).await.unwrap().text.ends_with("Par"));
}
