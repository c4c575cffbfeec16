//! A `CompletionRequest` becomes a request of the engine, with what restricts and reads its answer, up to where it goes on.

use llamero_engine::runtime::{AdapterChoice, Sharing};
use llamero_engine::structured::{CallOr, Callable, Calls, Form};
use llamero_engine::text::RequestDraft;
use llamero_engine::text::tool_calls::ToolCallParser;
use llamero_proto::v1::completion_request::Prompt as Sent;
use llamero_proto::v1::structure;
use llamero_proto::v1::{ChatPrompt, CompletionRequest, Structure, ToolChoice};
use serde_json::{Value, json};
use tonic::Status;

use super::answer::{Opening, Tools, Wishes};
use super::model::{Model, blame};

/// Most texts that an answer must not contain.
const MAX_BAD_WORDS: usize = 64;
/// Parameters whose form is that of the answer's text, if it has text.
const FORMS_OF_TEXT: [&str; 4] = [
    "response_format",
    "text.format",
    "output_config.format",
    "output_format",
];
/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// Render, tokenise, compile and check everything, and go through resumed tokens.
///
/// # Errors
/// INVALID_ARGUMENT and FAILED_PRECONDITION.
pub fn prepare(
    model: &Model,
    mut request: CompletionRequest,
    adapter: Option<AdapterChoice>,
) -> Result<Prepared, Status> {
    let offered = match &request.prompt {
        Some(Sent::Chat(chat)) if !chat.tools_json.is_empty() => Some(Offered::read(chat)?),
        _ => None,
    };
    let mut form = request.structure.take().map(form).transpose()?;
    if let Some(offered) = &offered {
        form = offered.form(form)?;
    }
    if let (Some((_, parameter)), true) = (&form, request.ignore_eos) {
        let message = format!(
            "'ignore_eos' cannot be true beside '{parameter}': the answer would have to go on behind its form"
        );
        return Err(blame("ignore_eos", &message));
    }
    let sharing = Sharing::With(std::mem::take(&mut request.cache_salt));
    let (tokens, text) = prompt(model, &mut request)?;
    let draft = draft(model, tokens, request)?;
    let resumed = draft.resume_tokens.clone();
    let request = model.validate(draft)?;
    let constraint = form
        .map(|(form, parameter)| {
            let constraint = model.constraint(&form, &resumed, &parameter)?;
            Ok::<_, Status>((constraint, parameter.into()))
        })
        .transpose()?;
    let tools = offered.map(|offered| offered.tools(model, constraint.is_some()));
    let wishes = Wishes {
        constraint,
        tools,
        sharing,
        adapter,
    };
    Ok(Prepared {
        opening: Opening::new(model, request, wishes)?,
        prompt_text: text.unwrap_or_default(),
    })
}

/// What an answer begins with.
pub struct Prepared {
    /// The request for the engine, and what restricts and reads its answer.
    pub opening: Opening,
    /// The prompt's text if the client wants it back.
    pub prompt_text: String,
}

/// The tools of a request.
struct Offered {
    tools: Vec<Tool>,
    at_most_one: bool,
    /// One of the tools of this name, or of any name, must be called.
    required: Option<String>,
}

struct Tool {
    name: String,
    /// The schema of its parameters.
    parameters: String,
    /// Its arguments have that schema in every answer.
    is_strict: bool,
}

impl Tool {
    fn read(tool: &Value) -> Result<Self, Status> {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| wrong_tools("a tool has no name"))?;
        let parameters = function
            .get("parameters")
            .filter(|parameters| !parameters.is_null());
        let any = || json!({"type": "object"}).to_string();
        Ok(Self {
            name: name.to_owned(),
            parameters: parameters.map_or_else(any, Value::to_string),
            is_strict: function.get("strict") == Some(&Value::Bool(true)),
        })
    }
}

fn wrong_tools(why: &str) -> Status {
    blame("tools", &format!("'tools' cannot be read: {why}"))
}

impl Offered {
    fn read(chat: &ChatPrompt) -> Result<Self, Status> {
        let tools: Vec<Value> =
            serde_json::from_str(&chat.tools_json).map_err(|error| wrong_tools(&error.to_string()))?;
        if tools.len() > MAX_TOOLS {
            let many = tools.len();
            return Err(wrong_tools(&format!(
                "there are {many} tools; send at most {MAX_TOOLS}"
            )));
        }
        let must = chat.tool_choice() == ToolChoice::Required;
        Ok(Self {
            tools: tools.iter().map(Tool::read).collect::<Result<_, _>>()?,
            // A tool that is named is called once.
            at_most_one: chat.one_tool_call || (must && !chat.tool_name.is_empty()),
            required: must.then(|| chat.tool_name.clone()),
        })
    }

    /// The form of an answer that may call these tools, if it would have this form otherwise.
    fn form(&self, text: Option<(Form, String)>) -> Result<Option<(Form, String)>, Status> {
        // Fields of OpenAI's API give a form to the text of an answer, if it has text; the whole answer has the others.
        let whole = text
            .as_ref()
            .map(|(_, parameter)| parameter)
            .filter(|parameter| !FORMS_OF_TEXT.contains(&parameter.as_str()));
        match (&self.required, whole) {
            (Some(_), Some(parameter)) => Err(blame(
                "tool_choice",
                &format!(
                    "an answer cannot be a tool call and have the form of '{parameter}'; ask for one of them"
                ),
            )),
            (Some(name), None) => Ok(Some((self.call(name)?, "tools".to_owned()))),
            // There is no room for calls.
            (None, Some(_)) => Ok(text),
            (None, None) => Ok(match text {
                Some((text, parameter)) => Some((self.call_or(Some(text)), parameter)),
                None if self.tools.iter().any(|tool| tool.is_strict) => {
                    Some((self.call_or(None), "tools".to_owned()))
                }
                None => None,
            }),
        }
    }

    fn call(&self, required: &str) -> Result<Form, Status> {
        let tools = self
            .tools
            .iter()
            .filter(|tool| required.is_empty() || tool.name == required);
        let callable: Vec<_> = tools
            .map(|tool| (tool.name.clone(), tool.parameters.clone()))
            .collect();
        if callable.is_empty() {
            let message = format!("'tool_choice' names {required:?}, which is none of the tools");
            return Err(blame("tool_choice", &message));
        }
        Ok(Form::Call(Calls {
            tools: callable,
            one: self.at_most_one,
        }))
    }

    fn call_or(&self, text: Option<Form>) -> Form {
        let tools = self.tools.iter().map(|tool| Callable {
            name: tool.name.clone(),
            arguments: tool.is_strict.then(|| tool.parameters.clone()),
        });
        Form::CallOr(CallOr {
            text: text.map(Box::new),
            tools: tools.collect(),
            one: self.at_most_one,
        })
    }

    /// What reads the calls of an answer.
    fn tools(self, model: &Model, has_form: bool) -> Tools {
        let strict = self.tools.iter().filter(|tool| tool.is_strict);
        let strict: Vec<String> = strict.map(|tool| tool.name.clone()).collect();
        let names = self.tools.into_iter().map(|tool| tool.name).collect();
        let parser = ToolCallParser::new(names, self.at_most_one);
        let parser = match has_form {
            true => parser.formed(strict),
            false => parser,
        };
        Tools::new(&model.tokenizer, parser)
    }
}

fn form(structure: Structure) -> Result<(Form, String), Status> {
    use structure::Form as Asked;
    let parameter = if structure.parameter.is_empty() {
        "structure".to_owned()
    } else {
        structure.parameter
    };
    let form = match structure.form {
        Some(Asked::JsonSchema(schema)) => Form::Json(schema),
        Some(Asked::Regex(regex)) => Form::Regex(regex),
        Some(Asked::Choices(choices)) => Form::Choice(choices.texts),
        Some(Asked::Lark(lark)) => Form::Lark(lark),
        None => {
            return Err(blame(
                &parameter,
                "the structure of the answer is empty; leave it out",
            ));
        }
    };
    Ok((form, parameter))
}

/// Take the prompt out of a request: its tokens, and its text if it is wanted.
///
/// # Errors
/// INVALID_ARGUMENT, FAILED_PRECONDITION and OUT_OF_RANGE.
pub fn prompt(model: &Model, request: &mut CompletionRequest) -> Result<(Vec<u32>, Option<String>), Status> {
    let echo = request.echo;
    Ok(match request.prompt.take() {
        Some(Sent::Text(text)) => {
            let tokens = model.tokens_of_text(&text, !request.no_special_tokens)?;
            (tokens, echo.then_some(text))
        }
        Some(Sent::TokenIds(tokens)) => {
            let text = echo.then(|| model.text_of(&tokens.ids)).transpose()?;
            (tokens.ids, text)
        }
        Some(Sent::Chat(chat)) => {
            let prompt = model.render(chat, request.template_time)?;
            let text = echo.then(|| prompt.text().to_owned());
            (model.tokens_of_chat(&prompt)?, text)
        }
        None => {
            return Err(Status::invalid_argument(
                "there is no prompt; send text, token_ids or chat",
            ));
        }
    })
}

fn draft(model: &Model, prompt: Vec<u32>, request: CompletionRequest) -> Result<RequestDraft, Status> {
    Ok(RequestDraft {
        prompt,
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repetition_penalty: request.repetition_penalty,
        logit_bias: request.logit_bias.into_iter().collect(),
        seed: request.seed,
        stop: request.stop,
        stop_tokens: request.stop_token_ids,
        ignore_eos: request.ignore_eos,
        logprobs: request.logprobs,
        listed_tokens: Vec::new(),
        prompt_logprobs: request.prompt_logprobs,
        priority: request.priority,
        min_tokens: request.min_tokens,
        bad_words: bad_words(model, &request.bad_words)?,
        allowed_tokens: request.allowed_token_ids,
        include_stop_string: request.include_stop_string,
        show_special_tokens: request.show_special_tokens,
        resume_tokens: request.resume_token_ids,
    })
}

/// A word in the middle of a text is other tokens than at its beginning: both are banned.
fn bad_words(model: &Model, words: &[String]) -> Result<Vec<Vec<u32>>, Status> {
    if words.len() > MAX_BAD_WORDS {
        let message = format!(
            "'bad_words' has {} entries; send at most {MAX_BAD_WORDS}",
            words.len()
        );
        return Err(blame("bad_words", &message));
    }
    let mut all = Vec::new();
    for word in words {
        if word.trim().is_empty() {
            return Err(blame("bad_words", "a bad word is empty; leave it out"));
        }
        for form in [word.clone(), format!(" {}", word.trim_start())] {
            let encoded = model.tokenizer.encode(&form, false);
            all.push(encoded.map_err(|error| blame("bad_words", &error.to_string()))?);
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}
