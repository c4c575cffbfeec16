//! A request as it is read.

use serde::de::MapAccess;

use super::input::Input;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::request::Take;
use crate::routes::completion::sampling::Sampling;
use crate::routes::completion::structure;

/// Most words of `include`.
const MAX_INCLUDED: usize = 32;

/// What was read. Absent and null are the same.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the Responses API")]
pub struct Request {
    pub model: String,
    pub input: Option<Input>,
    pub instructions: Option<String>,
    pub stream: bool,
    pub max_output_tokens: Option<i64>,
    pub sampling: Sampling,
    pub structure: structure::Asked,
    pub cache_salt: Option<String>,
    pub include: Vec<String>,
    pub text: Option<Kept>,
    pub tools: Option<Kept>,
    pub tool_choice: Option<Kept>,
    pub parallel_tool_calls: Option<bool>,
    pub metadata: Option<Kept>,
    pub prompt_cache_key: Option<String>,
    /// The first field that asks for something that is not built, and what to do instead.
    pub refused: Option<(&'static str, &'static str)>,
}

impl Take for Request {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "model" => self.model = map.next_value()?,
            "input" => self.input = map.next_value()?,
            "instructions" => self.instructions = map.next_value()?,
            "stream" => self.stream = map.next_value::<Option<bool>>()?.unwrap_or_default(),
            "max_output_tokens" => self.max_output_tokens = map.next_value()?,
            "include" => {
                let included: Option<Bounded<String, MAX_INCLUDED>> = map.next_value()?;
                self.include = included.map(|included| included.0).unwrap_or_default();
            }
            "text" => self.text = map.next_value()?,
            "tools" => self.tools = map.next_value()?,
            "tool_choice" => self.tool_choice = map.next_value()?,
            "parallel_tool_calls" => self.parallel_tool_calls = map.next_value()?,
            "prompt_cache_key" => self.prompt_cache_key = map.next_value()?,
            "metadata" => self.metadata = map.next_value()?,
            "cache_salt" => self.cache_salt = map.next_value()?,
            _ => return Ok(self.sampling.take(name, map)? || self.structure.take(name, map)?),
        }
        Ok(true)
    }

    fn refused(&mut self) -> &mut Option<(&'static str, &'static str)> {
        &mut self.refused
    }
}
