//! What a chat template is told beside the messages: vLLM's `chat_template_kwargs`, `add_generation_prompt` and
//! `continue_final_message`.

use llamero_proto::v1::ChatPrompt;
use serde_json::{Map, Value};

use super::kept::Kept;
use crate::error::ApiError;

/// Variables that other fields set.
const TAKEN: [&str; 5] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "strftime_now",
];

/// The fields, as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct Asked {
    pub chat_template_kwargs: Option<Kept>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
}

impl Asked {
    /// Write them into the prompt.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn apply(self, prompt: &mut ChatPrompt) -> Result<(), ApiError> {
        let goes_on = self.continue_final_message.unwrap_or(false);
        if goes_on && self.add_generation_prompt == Some(true) {
            let message =
                "'continue_final_message' and 'add_generation_prompt' exclude each other; leave one out.";
            return Err(ApiError::invalid(Some("continue_final_message"), message));
        }
        prompt.continue_final_message = goes_on;
        prompt.no_generation_prompt = self.add_generation_prompt == Some(false);
        let variables = self.chat_template_kwargs.filter(|kept| !kept.is_nothing());
        prompt.variables_json = variables.map(checked).transpose()?.unwrap_or_default();
        Ok(())
    }
}

fn checked(variables: Kept) -> Result<String, ApiError> {
    let wrong = |message: String| ApiError::invalid(Some("chat_template_kwargs"), message);
    let names: Map<String, Value> = serde_json::from_str(&variables.0).map_err(|_| {
        wrong(
            "'chat_template_kwargs' must be an object of names and values for the chat template.".to_owned(),
        )
    })?;
    if let Some(name) = TAKEN.iter().find(|name| names.contains_key(**name)) {
        return Err(wrong(format!(
            "'chat_template_kwargs' has '{name}', which other fields of the request say; leave it out."
        )));
    }
    Ok(variables.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(asked: Asked) -> Result<ChatPrompt, ApiError> {
        let mut prompt = ChatPrompt::default();
        asked.apply(&mut prompt).map(|()| prompt)
    }

    #[test]
    fn what_the_template_is_told() {
        assert_eq!(apply(Asked::default()).unwrap(), ChatPrompt::default());
        let kwargs = r#"{"date_string":"1 May 2025"}"#;
        let prompt = apply(Asked {
            chat_template_kwargs: Some(Kept(kwargs.to_owned())),
            add_generation_prompt: Some(false),
            continue_final_message: Some(true),
        })
        .unwrap();
        assert_eq!(prompt.variables_json, kwargs);
        assert!(prompt.continue_final_message && prompt.no_generation_prompt);
    }

    #[test]
    fn each_mistake_is_named() {
        for kwargs in ["[1]", r#"{"messages":[]}"#, "3"] {
            let asked = Asked {
                chat_template_kwargs: Some(Kept(kwargs.to_owned())),
                ..Asked::default()
            };
            let error = apply(asked).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("chat_template_kwargs"));
        }
        let asked = Asked {
            add_generation_prompt: Some(true),
            continue_final_message: Some(true),
            ..Asked::default()
        };
        assert_eq!(
            apply(asked).unwrap_err().param.as_deref(),
            Some("continue_final_message")
        );
    }
}
