//! Prompts as they are tokenised, told back and gone on with.

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{ChatMessage, ChatPrompt, CompletionRequest, TokenIds};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Worker, model_dir, turn};

fn text(text: &str) -> CompletionRequest {
    CompletionRequest {
        prompt: Some(Prompt::Text(text.into())),
        max_tokens: Some(1),
        temperature: Some(0.0),
        ..CompletionRequest::default()
    }
}

fn chat(turns: &[(&str, &str)], change: impl FnOnce(&mut ChatPrompt)) -> CompletionRequest {
    let message = |&(role, content): &(&str, &str)| ChatMessage {
        role: role.into(),
        content: content.into(),
        ..ChatMessage::default()
    };
    let mut chat = ChatPrompt {
        messages: turns.iter().map(message).collect(),
        ..ChatPrompt::default()
    };
    change(&mut chat);
    CompletionRequest {
        prompt: Some(Prompt::Chat(chat)),
        ..text("")
    }
}

async fn tokens(worker: &Worker, request: CompletionRequest) -> Vec<u32> {
    worker
        .completion()
        .tokenize(request)
        .await
        .unwrap()
        .into_inner()
        .ids
}

async fn rendered(worker: &Worker, request: CompletionRequest) -> String {
    let ids = tokens(worker, request).await;
    let text = worker.completion().detokenize(TokenIds { ids }).await;
    text.unwrap().into_inner().text
}

#[tokio::test]
async fn a_prompt_is_tokenised_told_back_and_gone_on_with() {
    let _turn = turn().await;
    let worker = Worker::alone(1, &[]).await;
    let said = "Llamas hum, <|im_start|> é";
    let tokenized = worker
        .completion()
        .tokenize(text(said))
        .await
        .unwrap()
        .into_inner();
    let spelled: Vec<u8> = tokenized.pieces.concat();
    assert_eq!(
        (spelled.as_slice(), tokenized.pieces.len()),
        (said.as_bytes(), tokenized.ids.len())
    );
    assert!(tokenized.max_context >= 16);
    assert_eq!(rendered(&worker, text(said)).await, said);
    let unknown = worker
        .completion()
        .detokenize(TokenIds { ids: vec![1 << 30] })
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::InvalidArgument);

    // The prompt comes back on the first chunk, whether it was a text or tokens.
    let as_tokens = Prompt::TokenIds(TokenIds { ids: tokenized.ids });
    for prompt in [Prompt::Text(said.into()), as_tokens] {
        let request = CompletionRequest {
            prompt: Some(prompt),
            echo: true,
            ..text("")
        };
        let mut chunks = worker.completion().complete(request).await.unwrap().into_inner();
        let first = chunks.message().await.unwrap().unwrap();
        assert_eq!(first.prompt_text, said);
        while let Some(chunk) = chunks.message().await.unwrap() {
            assert_eq!(chunk.prompt_text, "");
        }
    }
    templates(&worker).await;
}

/// The model with a tokenizer that begins a text as that of Llama 3 does, and a template with a date.
fn dated_model() -> tempfile::TempDir {
    let (from, dir) = (model_dir(), tempfile::tempdir().unwrap());
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ] {
        std::os::unix::fs::symlink(from.join(name), dir.path().join(name)).unwrap();
    }
    let tokenizer = std::fs::read_to_string(from.join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&tokenizer).unwrap();
    let (begin, text) = (
        json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
    );
    let around = json!({"type": "TemplateProcessing", "single": [begin, text], "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}});
    tokenizer["post_processor"] =
        json!({"type": "Sequence", "processors": [tokenizer["post_processor"].take(), around]});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

#[tokio::test]
async fn a_template_tells_the_time_of_the_request_and_a_text_may_begin_without_a_token() {
    let _turn = turn().await;
    let model = dated_model();
    let worker = Worker::start_with(model.path(), &["--tensor", "1"], &[]).await;
    worker.wait_for_health(true).await;
    // 1 May 2025 and a day later, whatever day it is.
    for (time, date) in [(1_746_100_800, "01 May 2025"), (1_746_187_200, "02 May 2025")] {
        let request = CompletionRequest {
            template_time: time,
            ..chat(&[("user", "hum")], |_| {})
        };
        assert_eq!(rendered(&worker, request).await, format!("{date}: hum"));
    }
    let usual = tokens(&worker, text("hum")).await;
    let bare = CompletionRequest {
        no_special_tokens: true,
        ..text("hum")
    };
    let bare = tokens(&worker, bare).await;
    assert_eq!((usual[0], &usual[1..]), (1, bare.as_slice()));
    assert!(!bare.is_empty());
}

async fn templates(worker: &Worker) {
    let turns = [("user", "What hums?"), ("assistant", "The llama ")];
    let usual = rendered(worker, chat(&turns[..1], |_| {})).await;
    assert!(usual.ends_with("<|im_start|>assistant\n"), "{usual:?}");
    let closed = rendered(worker, chat(&turns[..1], |chat| chat.no_generation_prompt = true)).await;
    assert_eq!(usual.strip_prefix(&closed), Some("<|im_start|>assistant\n"));
    let goes_on = rendered(worker, chat(&turns, |chat| chat.continue_final_message = true)).await;
    assert_eq!(goes_on, format!("{usual}The llama "));
    for turns in [&[("user", "a"), ("assistant", " ")][..], &[]] {
        let request = chat(turns, |chat| chat.continue_final_message = true);
        let refused = worker.completion().tokenize(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(
            refused.metadata().get("parameter").unwrap(),
            "continue_final_message"
        );
    }
}
