//! What the engine takes from checkpoints and requests.

use std::fs;

use jiff::civil::DateTime;
use llamero_engine::structured::{Form, Grammars};
use llamero_engine::text::tool_calls::{ToolCallParser, ToolPiece};
use llamero_engine::text::{ChatMessage, ChatTemplate, Conversation, TemplateFiles, Tokenizer};
use llamero_fuzz::{Shape, Target, drive};
use serde_json::{Value, json};

use crate::outcome;

/// GPT-2's letters for bytes: printable ones mean themselves, the others follow from 256 on.
fn letters() -> Vec<char> {
    let mut next = 256_u32;
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap()
        }
    };
    (0..=255).map(letter).collect()
}

/// A byte-level tokenizer with one merge and two special tokens.
fn small_tokenizer() -> Value {
    let mut vocabulary: serde_json::Map<String, Value> = letters()
        .iter()
        .enumerate()
        .map(|(byte, letter)| (letter.to_string(), json!(byte)))
        .collect();
    vocabulary.insert("he".to_owned(), json!(256));
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "added_tokens": [special(257, "<|end|>"), special(258, "<|start|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|start|>": {"id": "<|start|>", "ids": [258], "tokens": ["<|start|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["h e"]},
    })
}

fn tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("tokenizer.json"),
        small_tokenizer().to_string(),
    )
    .unwrap();
    Tokenizer::from_dir(folder.path()).unwrap()
}

#[test]
fn tokenizers() {
    let target = Target {
        name: "tokenizer",
        shape: Shape::Json,
        // Tables of bytes, ids and merges, and the regular expression's automaton.
        factor: 2000,
        constant: 64 << 20,
        threads: false,
    };
    drive(target, || {
        let folder = tempfile::tempdir().unwrap();
        let take = move |input: &[u8]| {
            fs::write(folder.path().join("tokenizer.json"), input).unwrap();
            let tokenizer = Tokenizer::from_dir(folder.path());
            if let Ok(tokenizer) = &tokenizer {
                let _ = tokenizer.fewest_tokens("hello");
                if let Ok(tokens) = tokenizer.encode("he said é <|end|> \u{1f600}", true) {
                    let _ = tokenizer.decode(&tokens);
                }
                let _ = tokenizer.decode(&[0, 255, 258, 259, u32::MAX]);
                let _ = tokenizer.special_tokens();
            }
            outcome(tokenizer)
        };
        let mut sparse = small_tokenizer();
        sparse["model"]["vocab"]["zz"] = json!(u32::MAX);
        let seeds = [small_tokenizer(), sparse].map(|seed| seed.to_string().into_bytes());
        (seeds.to_vec(), take)
    });
}

#[test]
fn chat_templates() {
    let target = Target {
        name: "template",
        shape: Shape::Text,
        // The steps of a template are bounded, and so is what each may make.
        factor: 4000,
        constant: 192 << 20,
        threads: true,
    };
    drive(target, || {
        let tokenizer = tokenizer();
        let take = move |input: &[u8]| {
            let Ok(source) = std::str::from_utf8(input) else {
                return "not UTF".to_owned();
            };
            let files = TemplateFiles {
                source: source.to_owned(),
                token_names: vec![
                    ("bos_token", "<|start|>".to_owned()),
                    ("eos_token", "<|end|>".to_owned()),
                ],
            };
            let template = match ChatTemplate::new(&files, &tokenizer) {
                Ok(template) => template,
                Err(error) => return error.to_string(),
            };
            let messages = [
                ChatMessage::new("system", "Be brief."),
                ChatMessage::new("user", "Hello <|end|>!"),
            ];
            let conversation = Conversation {
                messages: &messages,
                tools_json: Some(
                    r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]"#,
                ),
                variables_json: Some(r#"{"date_string": "1 May"}"#),
                add_generation_prompt: true,
                now: DateTime::default(),
            };
            outcome(template.render(&conversation))
        };
        (Vec::new(), take)
    });
}

#[test]
fn forms_of_answers() {
    let target = Target {
        name: "form",
        shape: Shape::Json,
        factor: 4000,
        constant: 256 << 20,
        threads: false,
    };
    drive(target, || {
        let tokenizer = tokenizer();
        let grammars = Grammars::new(&tokenizer, tokenizer.vocab_size(), &[257]).unwrap();
        let take = move |input: &[u8]| {
            let text = String::from_utf8_lossy(input).into_owned();
            let forms = [
                Form::Json(text.clone()),
                Form::Regex(text.clone()),
                Form::Lark(text),
            ];
            let outcomes = forms.map(|form| outcome(grammars.compile(&form, &[]).map(drop)));
            outcomes.join(" ")
        };
        (Vec::new(), take)
    });
}

/// The pieces of an answer in which a control character stands for `<|python_tag|>`, cut into parts of `part` bytes or so.
fn pieces_of_calls(answer: &str, part: usize, at_most_one: bool) -> Vec<ToolPiece> {
    let mut parser = ToolCallParser::new(
        vec![
            "f".to_owned(),
            "brave_search".to_owned(),
            "code_interpreter".to_owned(),
        ],
        at_most_one,
    );
    let mut pieces = Vec::new();
    for (index, text) in answer.split('\u{1}').enumerate() {
        if index > 0 {
            pieces.extend(parser.python_tag());
        }
        let letters: Vec<char> = text.chars().collect();
        for letters in letters.chunks(part.max(1)) {
            pieces.extend(parser.push(&letters.iter().collect::<String>()));
        }
    }
    pieces.extend(parser.finish());
    pieces
}

/// What a client makes of them: the text, and each call's name and arguments.
fn joined(pieces: &[ToolPiece]) -> (String, Vec<(String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            ToolPiece::Text(more) => text.push_str(more),
            ToolPiece::Begin { index, name } => {
                assert_eq!(*index as usize, calls.len(), "calls are numbered in their order");
                calls.push((name.clone(), String::new()));
            }
            ToolPiece::Arguments { index, text } => {
                assert_eq!(
                    *index as usize + 1,
                    calls.len(),
                    "arguments belong to the last call"
                );
                calls.last_mut().unwrap().1.push_str(text);
            }
        }
    }
    (text, calls)
}

#[test]
fn calls_in_answers() {
    let target = Target {
        name: "tool-calls",
        shape: Shape::Text,
        factor: 4000,
        constant: 1 << 20,
        threads: false,
    };
    drive(target, || {
        let take = |input: &[u8]| {
            let answer = String::from_utf8_lossy(input);
            let mut words = String::new();
            for at_most_one in [false, true] {
                let whole = joined(&pieces_of_calls(&answer, usize::MAX, at_most_one));
                let cut = joined(&pieces_of_calls(&answer, 1 + input.len() % 7, at_most_one));
                assert_eq!(whole, cut, "where an answer is cut makes a difference");
                let (text, calls) = whole;
                assert!(!at_most_one || calls.len() <= 1);
                words += match (text.is_empty(), calls.len()) {
                    (true, 0) => "nothing ",
                    (false, 0) => "text ",
                    (true, 1) => "call ",
                    (false, 1) => "text and call ",
                    (true, _) => "calls ",
                    (false, _) => "text and calls ",
                };
                if calls
                    .iter()
                    .any(|(_, arguments)| serde_json::from_str::<Value>(arguments).is_err())
                {
                    words += "broken off ";
                }
            }
            words
        };
        (Vec::new(), take)
    });
}
