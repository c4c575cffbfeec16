//! A request as it is read.

use serde::de::MapAccess;

use super::blocks::{Blocks, Turn};
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::MAX_MESSAGES;
use crate::routes::completion::request::Take;
use crate::routes::completion::sampling::{Sampling, Stop};

/// What was read. Absent and null are the same.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the Messages API")]
pub struct Request {
    pub model: String,
    pub messages: Option<Vec<Turn>>,
    pub system: Option<Blocks>,
    pub max_tokens: Option<i64>,
    pub stream: bool,
    pub sampling: Sampling,
    pub tools: Option<Kept>,
    pub tool_choice: Option<Kept>,
    pub thinking: Option<Kept>,
    pub output_config: Option<Kept>,
    pub output_format: Option<Kept>,
    /// The first field that asks for something that is not built, and what to do instead.
    pub refused: Option<(&'static str, &'static str)>,
}

impl Take for Request {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "model" => self.model = map.next_value()?,
            "messages" => {
                let turns: Option<Bounded<Turn, MAX_MESSAGES>> = map.next_value()?;
                self.messages = turns.map(|turns| turns.0);
            }
            "system" => self.system = map.next_value()?,
            "max_tokens" => self.max_tokens = map.next_value()?,
            "stream" => self.stream = map.next_value::<Option<bool>>()?.unwrap_or_default(),
            "stop_sequences" => self.sampling.stop = map.next_value::<Option<Stop>>()?,
            "tools" => self.tools = map.next_value()?,
            "tool_choice" => self.tool_choice = map.next_value()?,
            "thinking" => self.thinking = map.next_value()?,
            "output_config" => self.output_config = map.next_value()?,
            "output_format" => self.output_format = map.next_value()?,
            _ => return self.sampling.take(name, map),
        }
        Ok(true)
    }

    fn refused(&mut self) -> &mut Option<(&'static str, &'static str)> {
        &mut self.refused
    }
}
