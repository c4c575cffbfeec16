//! Refuses what is not built and what makes no sense.

use llamero_proto::v1::{TokenIds, completion_request};
use serde_json::Value;

use super::types::{Prompt, TextRequest};
use crate::error::ApiError;
use crate::routes::unsupported::{refuse, refuse_format, refuse_several};

/// The prompt of a request that asks for nothing that is not built.
///
/// # Errors
/// 400 naming the parameter.
pub fn validate(request: &TextRequest) -> Result<completion_request::Prompt, ApiError> {
    refuse_several("n", request.n)?;
    refuse_several("best_of", request.best_of)?;
    // Here even 0 asks for the log-probability of the token itself.
    let logprobs = request
        .logprobs
        .as_ref()
        .filter(|value| !value.is_null())
        .map(|_| Value::Bool(true));
    refuse("logprobs", logprobs.as_ref(), &[], "leave it out")?;
    refuse(
        "echo",
        request.echo.as_ref(),
        &[],
        "put the prompt before the answer yourself",
    )?;
    refuse(
        "suffix",
        request.suffix.as_ref(),
        &[""],
        "the model only writes forward",
    )?;
    refuse_format(request.response_format.as_ref())?;
    prompt(&request.prompt)
}

fn prompt(prompt: &Prompt) -> Result<completion_request::Prompt, ApiError> {
    let tokens = |ids: &[u32]| completion_request::Prompt::TokenIds(TokenIds { ids: ids.to_vec() });
    let found = match prompt {
        Prompt::Text(text) => completion_request::Prompt::Text(text.clone()),
        Prompt::Texts(texts) => match &texts[..] {
            [text] => completion_request::Prompt::Text(text.clone()),
            several => return Err(one_prompt(several.len())),
        },
        Prompt::Tokens(ids) => tokens(ids),
        Prompt::TokenLists(lists) => match &lists[..] {
            [ids] => tokens(ids),
            several => return Err(one_prompt(several.len())),
        },
    };
    let empty = match &found {
        completion_request::Prompt::Text(text) => text.is_empty(),
        completion_request::Prompt::TokenIds(tokens) => tokens.ids.is_empty(),
        completion_request::Prompt::Chat(chat) => chat.messages.is_empty(),
    };
    if empty {
        return Err(ApiError::invalid(
            Some("prompt"),
            "'prompt' is empty; send some text to go on from.",
        ));
    }
    Ok(found)
}

fn one_prompt(count: usize) -> ApiError {
    if count == 0 {
        return ApiError::invalid(Some("prompt"), "'prompt' is empty; send some text to go on from.");
    }
    let message = format!("'prompt' has {count} entries, but only one is supported; send several requests.");
    ApiError::unsupported("prompt", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(extra: Value) -> Result<completion_request::Prompt, ApiError> {
        let mut request = json!({"model": "m", "prompt": "hi"});
        request
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        validate(&serde_json::from_value(request).unwrap())
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = completion_request::Prompt::Text("hi".to_owned());
        let tokens = completion_request::Prompt::TokenIds(TokenIds { ids: vec![1, 2] });
        assert_eq!(check(json!({})).unwrap(), text);
        assert_eq!(check(json!({"prompt": ["hi"]})).unwrap(), text);
        assert_eq!(check(json!({"prompt": [1, 2]})).unwrap(), tokens);
        assert_eq!(check(json!({"prompt": [[1, 2]]})).unwrap(), tokens);
    }

    #[test]
    fn each_mistake_gets_its_sentence() {
        for (extra, param) in [
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": [[1], [2]]}), "prompt"),
            (json!({"n": 3}), "n"),
            (json!({"best_of": 3}), "best_of"),
            (json!({"logprobs": 0}), "logprobs"),
            (json!({"echo": true}), "echo"),
            (json!({"suffix": "end"}), "suffix"),
        ] {
            let error = check(extra).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
        check(json!({"echo": false, "suffix": null, "logprobs": null, "best_of": 1})).unwrap();
    }
}
