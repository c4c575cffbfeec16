//! What an answer must look like.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::calls::CallOr;
use super::formats::make_exact;

/// Longest description of a form in bytes.
pub const MAX_FORM_BYTES: usize = 256 << 10;
/// White space between the parts of JSON. Bounded, since a model that has fallen into white space does not find out again.
pub(super) const JSON_SPACE: &str = r"[ \n\r\t]{1,16}";

/// A form.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// JSON by this schema (text of a JSON object or boolean).
    Json(String),
    /// A text that matches as a whole; the syntax of the crate `regex`.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
    /// A call of one of these tools, as Llama writes it, or calls of them.
    Call(Calls),
    /// A text, or calls of tools.
    CallOr(CallOr),
}

/// An answer that is a call, or calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// Names, and the schemas of their parameters.
    pub tools: Vec<(String, String)>,
    /// One call, or else at least one.
    pub one: bool,
}

/// Why a form cannot be used, for the user who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// Too long.
    #[error("it has {0} bytes; send at most {MAX_FORM_BYTES}")]
    TooLong(usize),
    /// Not JSON, or JSON that is no schema.
    #[error("it is not a JSON schema: {0}")]
    NoSchema(String),
    /// No choice, or an empty one.
    #[error("it has {0}; send at least one text, none of them empty")]
    NoChoice(&'static str),
    /// Not valid, or with a part that cannot be enforced, or too complex.
    #[error("it cannot be enforced: {0}")]
    Unsupported(String),
    /// The model cannot end an answer by itself.
    #[error(
        "the checkpoint names no end-of-text token, so no answer could have a form; add eos_token_id to its generation_config.json"
    )]
    NoEnd,
}

impl Form {
    /// The grammar of the form.
    ///
    /// # Errors
    /// [`FormError`], before anything is compiled.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, FormError> {
        let bytes = self.bytes();
        if bytes > MAX_FORM_BYTES {
            return Err(FormError::TooLong(bytes));
        }
        Ok(match self {
            Self::Json(text) => TopLevelGrammar::from_json_schema(schema(text)?),
            Self::Regex(text) => TopLevelGrammar::from_regex(text),
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Choice(texts) => TopLevelGrammar::from_lark(choice(texts)?),
            Self::Call(calls) => TopLevelGrammar::from_lark(calls.lark()?),
            Self::CallOr(either) => either.grammar()?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Json(text) | Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::Call(calls) => {
                let tools = calls.tools.iter();
                tools.map(|(name, schema)| name.len() + schema.len()).sum()
            }
            Self::CallOr(either) => either.bytes(),
        }
    }
}

/// A text as Lark writes it, whose strings are JSON's.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A schema for the compiler.
///
/// # Errors
/// [`FormError::NoSchema`].
pub(crate) fn schema(text: &str) -> Result<Value, FormError> {
    let wrong = |why: &str| FormError::NoSchema(why.to_owned());
    let mut schema = match serde_json::from_str(text) {
        Ok(Value::Object(schema)) => schema,
        Ok(Value::Bool(true)) => serde_json::Map::new(),
        Ok(Value::Bool(false)) => return Err(wrong("nothing matches false")),
        Ok(_) => return Err(wrong("it must be an object")),
        Err(error) => return Err(wrong(&error.to_string())),
    };
    // The compiler's own switches, one of which would make it ignore what it cannot enforce.
    if schema.contains_key("x-guidance") {
        return Err(FormError::Unsupported(
            "the keyword \"x-guidance\" is not allowed".to_owned(),
        ));
    }
    make_exact(&mut schema);
    schema.insert(
        "x-guidance".to_owned(),
        json!({ "whitespace_pattern": JSON_SPACE }),
    );
    Ok(Value::Object(schema))
}

/// The same for the arguments of a call, which are an object whether their schema says so or not.
///
/// # Errors
/// [`FormError::NoSchema`].
pub(super) fn object(text: &str) -> Result<Value, FormError> {
    let mut schema = schema(text)?;
    if let Value::Object(schema) = &mut schema {
        schema.entry("type").or_insert_with(|| "object".into());
    }
    Ok(schema)
}

impl Calls {
    /// Each schema is a document of its own, so that its references stay its own. Nothing but a semicolon is between calls, so that a model
    /// behind one chooses between an end and another call, and falls into no white space that only another call would follow.
    fn lark(&self) -> Result<String, FormError> {
        if self.tools.is_empty() {
            return Err(FormError::NoChoice("no tool"));
        }
        let names: Vec<String> = (0..self.tools.len())
            .map(|index| format!("call{index}"))
            .collect();
        let more = if self.one { "" } else { " (\";\" \" \"? call)*" };
        let mut lark = format!("start: call{more}\ncall: {}\n", names.join(" | "));
        for (index, (name, parameters)) in self.tools.iter().enumerate() {
            let head = format!("{{\"name\": {}, \"parameters\": ", Value::from(name.as_str()));
            let (head, schema) = (literal(&head), object(parameters)?);
            lark +=
                &format!("call{index}: {head} arguments{index} \"}}\"\narguments{index}: %json {schema}\n");
        }
        Ok(lark)
    }
}

fn choice(texts: &[String]) -> Result<String, FormError> {
    if texts.is_empty() {
        return Err(FormError::NoChoice("no text"));
    }
    if texts.iter().any(String::is_empty) {
        return Err(FormError::NoChoice("an empty text"));
    }
    let literals: Vec<String> = texts.iter().map(|text| literal(text)).collect();
    Ok(format!("start: {}", literals.join(" | ")))
}
