//! Tool calls.

use llamero_gateway::Settings;
use llamero_proto::v1::{ChatPrompt, FinishReason, ToolCallDelta, ToolChoice, completion_request::Prompt};
use serde_json::{Value, json};

use crate::support::client::post;
use crate::support::worker::Worker;
use crate::support::{chat, with_worker};

async fn answer_with_calls(worker: &mut Worker) -> ChatPrompt {
    let call = worker.call().await;
    let Some(Prompt::Chat(chat)) = call.request.prompt.clone() else {
        panic!("{:?}", call.request)
    };
    let mut answering = call.accept().await;
    let piece = |index, name: &str, arguments: &str| ToolCallDelta {
        index,
        name: name.into(),
        arguments: arguments.into(),
    };
    // A token may end one piece of a call and begin the next, or end a call and begin another.
    for pieces in [
        vec![piece(0, "f", ""), piece(0, "", "{")],
        vec![piece(0, "", "\"a\":")],
        vec![piece(0, "", " 1}"), piece(1, "g", ""), piece(1, "", "{}")],
    ] {
        answering.send_as("", |chunk| chunk.tool_calls = pieces).await;
    }
    answering.send("", &[1], Some(FinishReason::Stop)).await;
    chat
}

#[tokio::test]
async fn tool_calls_come_whole_and_in_pieces() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let path = "/v1/chat/completions";
    let tool =
        |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"z": 1, "a": 2}}});
    let extra = json!({"tools": [tool("f"), tool("g")], "tool_choice": "required"});
    let request = post(served.http, path, chat(extra.clone()));
    let (reply, asked) = tokio::join!(request, answer_with_calls(&mut worker));
    assert_eq!(asked.tool_choice(), ToolChoice::Required);
    assert_eq!(
        serde_json::from_str::<Value>(&asked.tools_json).unwrap(),
        extra["tools"]
    );
    let answer = reply.json().await;
    let id = |call: u32| {
        let id = answer["id"].as_str().unwrap().trim_start_matches("chatcmpl-");
        format!("call_{id}00{call:02x}")
    };
    assert_eq!(
        answer["choices"][0]["message"],
        json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": id(0), "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"id": id(1), "type": "function", "function": {"name": "g", "arguments": "{}"}}]})
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");

    let mut streamed = extra;
    streamed["stream"] = true.into();
    let (mut reply, _) = tokio::join!(
        post(served.http, path, chat(streamed)),
        answer_with_calls(&mut worker)
    );
    let (mut pieces, mut ends) = (Vec::new(), Vec::new());
    while let Some(event) = reply.event().await.filter(|event| event != "[DONE]") {
        let event: Value = serde_json::from_str(&event).unwrap();
        let choice = &event["choices"][0];
        pieces.extend(
            choice["delta"]["tool_calls"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        ends.push(choice["finish_reason"].clone());
    }
    let begins: Vec<_> = pieces.iter().filter(|piece| piece.get("id").is_some()).collect();
    // At most one piece of each call in a chunk: OpenAI's package takes the first list for as many calls.
    assert_eq!((begins.len(), pieces.len()), (2, 4));
    assert_eq!(pieces[0]["function"], json!({"name": "f", "arguments": "{"}));
    assert_eq!(
        (&begins[1]["index"], &begins[1]["function"]["name"]),
        (&json!(1), &json!("g"))
    );
    assert_eq!(pieces[2], json!({"index": 0, "function": {"arguments": " 1}"}}));
    assert_eq!(ends.last().unwrap(), "tool_calls");
}

#[tokio::test]
async fn strict_tools_reach_the_leader_as_they_are() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let tool = |strict: Value| json!({"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}});
    for strict in [json!(true), json!(false), Value::Null] {
        let tools = json!([tool(strict)]);
        let request = post(
            served.http,
            "/v1/chat/completions",
            chat(json!({"tools": tools, "tool_choice": "auto"})),
        );
        let (reply, asked) = tokio::join!(request, answer_with_calls(&mut worker));
        assert_eq!(asked.tool_choice(), ToolChoice::Auto);
        assert_eq!(serde_json::from_str::<Value>(&asked.tools_json).unwrap(), tools);
        let answer = reply.json().await;
        assert_eq!(
            answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"],
            "f"
        );
    }
    let tools = json!([tool(json!("yes"))]);
    let refused = post(served.http, "/v1/chat/completions", chat(json!({"tools": tools}))).await;
    assert_eq!(refused.status().as_u16(), 400);
    assert_eq!(refused.json().await["error"]["param"], "tools");
}
