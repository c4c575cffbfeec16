//! `tools` and `tool_choice`.

use llamero_proto::v1::{ChatPrompt, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use super::bounded::Bounded;
use super::kept::Kept;
use crate::error::ApiError;

/// Most tools.
pub const MAX_TOOLS: usize = 128;
/// Longest name of a tool.
const MAX_NAME: usize = 64;

/// The fields about tools, as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the API")]
pub struct Asked {
    pub tools: Option<Kept>,
    pub tool_choice: Option<Kept>,
    pub parallel_tool_calls: Option<bool>,
}

#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl Asked {
    /// Write the tools into the prompt.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn apply(self, prompt: &mut ChatPrompt) -> Result<(), ApiError> {
        let tools = self.tools.filter(|tools| !tools.is_nothing());
        let choice = self.tool_choice.filter(|choice| !choice.is_nothing());
        let names = tools.as_ref().map(names).transpose()?.unwrap_or_default();
        let choice = choice.as_ref().map_or("\"auto\"", |choice| &choice.0);
        match choice {
            "\"auto\"" => {}
            // The model does not even hear of the tools.
            "\"none\"" => return Ok(()),
            _ if names.is_empty() => {
                let message =
                    "'tool_choice' asks for a call, but there are no 'tools'; send them, or leave it out.";
                return Err(ApiError::invalid(Some("tool_choice"), message));
            }
            "\"required\"" => prompt.set_tool_choice(ToolChoice::Required),
            named => {
                prompt.set_tool_choice(ToolChoice::Required);
                prompt.tool_name = chosen(named, &names)?;
            }
        }
        prompt.tools_json = tools.map(|tools| tools.0).unwrap_or_default();
        prompt.one_tool_call = self.parallel_tool_calls == Some(false);
        Ok(())
    }
}

/// A tool in the form of chat completion; the parameters keep the client's order.
#[must_use]
pub fn function_json(
    name: &str,
    description: Option<&str>,
    parameters: Option<&Kept>,
    strict: Option<bool>,
) -> String {
    let mut json = format!(
        "{{\"type\":\"function\",\"function\":{{\"name\":{}",
        Value::from(name)
    );
    if let Some(description) = description {
        json += &format!(",\"description\":{}", Value::from(description));
    }
    if let Some(Kept(parameters)) = parameters {
        json += &format!(",\"parameters\":{parameters}");
    }
    // What changes no answer changes no prompt.
    if strict == Some(true) {
        json += ",\"strict\":true";
    }
    json + "}}"
}

fn names(tools: &Kept) -> Result<Vec<String>, ApiError> {
    let tools: Bounded<Tool, MAX_TOOLS> = serde_json::from_str(&tools.0)
        .map_err(|error| ApiError::invalid(Some("tools"), format!("'tools' is not as expected: {error}.")))?;
    let mut names = Vec::new();
    for (index, tool) in tools.0.into_iter().enumerate() {
        let at = format!("tools[{index}]");
        let name = match tool.function {
            Some(function) if tool.kind == "function" => function.name,
            _ => {
                return Err(ApiError::unsupported(
                    &at,
                    format!("'{at}' is no function; only tools of type 'function' are supported."),
                ));
            }
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            let param = format!("{at}.function.name");
            let message = format!("'{param}' must be 1 to {MAX_NAME} letters, digits, '_', '-' and '.'.");
            return Err(ApiError::invalid(Some(&param), message));
        }
        if names.contains(&name) {
            return Err(ApiError::invalid(
                Some(&at),
                format!("'{at}' has the name of another tool."),
            ));
        }
        names.push(name);
    }
    Ok(names)
}

fn chosen(choice: &str, names: &[String]) -> Result<String, ApiError> {
    let wrong = |message: String| ApiError::invalid(Some("tool_choice"), message);
    let tool: Tool = serde_json::from_str(choice).map_err(|_| {
        wrong("'tool_choice' must be none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": …}}.".to_owned())
    })?;
    let name = match tool.function {
        Some(function) if tool.kind == "function" => function.name,
        _ => {
            return Err(ApiError::unsupported(
                "tool_choice",
                "'tool_choice' may only name a function.",
            ));
        }
    };
    if !names.contains(&name) {
        let name: String = name.chars().take(MAX_NAME).collect();
        return Err(wrong(format!(
            "'tool_choice' names '{name}', which is none of the 'tools'."
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(tools: Value, choice: Value) -> Result<ChatPrompt, ApiError> {
        let mut prompt = ChatPrompt::default();
        let asked = Asked {
            tools: Some(Kept(tools.to_string())),
            tool_choice: Some(Kept(choice.to_string())),
            parallel_tool_calls: Some(false),
        };
        asked.apply(&mut prompt).map(|()| prompt)
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn each_choice() {
        let tools = || json!([tool("f"), tool("g")]);
        for choice in [json!("auto"), json!(null)] {
            let prompt = apply(tools(), choice).unwrap();
            assert_eq!(
                (prompt.tools_json, prompt.one_tool_call),
                (tools().to_string(), true)
            );
            assert_eq!(prompt.tool_choice, i32::from(ToolChoice::Auto));
        }
        assert_eq!(apply(tools(), json!("none")).unwrap(), ChatPrompt::default());
        assert_eq!(apply(json!([]), json!("auto")).unwrap().tools_json, "");
        let prompt = apply(tools(), json!("required")).unwrap();
        assert_eq!(
            (prompt.tool_choice(), prompt.tool_name.as_str()),
            (ToolChoice::Required, "")
        );
        let prompt = apply(tools(), tool("g")).unwrap();
        assert_eq!(
            (prompt.tool_choice(), prompt.tool_name.as_str()),
            (ToolChoice::Required, "g")
        );
    }

    #[test]
    fn each_mistake_is_named() {
        for (tools, choice, param) in [
            (json!({"a": 1}), json!("auto"), "tools"),
            (json!([{"type": "web_search"}]), json!("auto"), "tools[0]"),
            (
                json!([tool("f"), tool("a b")]),
                json!("auto"),
                "tools[1].function.name",
            ),
            (json!([tool("f"), tool("f")]), json!("auto"), "tools[1]"),
            (
                json!([{"type": "function", "function": {"name": "f", "strict": "yes"}}]),
                json!("auto"),
                "tools",
            ),
            (json!([tool("f")]), json!("sometimes"), "tool_choice"),
            (json!([tool("f")]), tool("g"), "tool_choice"),
            (
                json!([tool("f")]),
                json!({"type": "allowed_tools"}),
                "tool_choice",
            ),
            (json!([]), json!("required"), "tool_choice"),
            (
                Value::from_iter((0..129).map(|i| tool(&format!("f{i}")))),
                json!("auto"),
                "tools",
            ),
        ] {
            let error = apply(tools, choice).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
    }
}
