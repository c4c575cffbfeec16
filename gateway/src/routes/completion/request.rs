//! A request as it is read, field by field, by the table of fields.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::asked::Asked;
use super::bounded::{Bounded, Ignored};
use super::fields::{self, Field, Treatment};
use super::kept::Kept;
use super::messages::{MAX_MESSAGES, Message};
use super::prompt::Prompts;
use super::route::Route;
use super::sampling::Sampling;
use super::{structure, template, tools};

/// What was read. Absent and null are the same.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Request {
    pub model: String,
    pub messages: Option<Vec<Message>>,
    pub prompt: Option<Prompts>,
    pub stream: bool,
    pub stream_options: StreamOptions,
    pub n: Option<i64>,
    pub best_of: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    pub sampling: Sampling,
    pub structure: structure::Asked,
    pub tools: tools::Asked,
    pub template: template::Asked,
    pub echo: Option<bool>,
    pub prompt_cache_key: Option<String>,
    pub session_id: Option<String>,
    pub cache_salt: Option<String>,
    pub add_special_tokens: Option<bool>,
    /// The first field that asks for something that is not built, and what to do instead.
    pub refused: Option<(&'static str, &'static str)>,
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct StreamOptions {
    /// Send a last chunk with `usage`.
    #[serde(default)]
    pub include_usage: Option<bool>,
    /// Send the usage so far in every chunk as well.
    #[serde(default)]
    pub continuous_usage_stats: Option<bool>,
}

/// A request that is read field by field.
pub trait Take: Default {
    /// Read the value of a used field. False, and nothing is read, when there is no such field.
    ///
    /// # Errors
    /// The value is not as expected.
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error>;

    /// The first field that asks for something that is not built, and what to do instead.
    fn refused(&mut self) -> &mut Option<(&'static str, &'static str)>;
}

/// Reads a request of a route.
#[derive(Debug, Clone, Copy)]
pub struct Reader<T> {
    route: Route,
    request: PhantomData<T>,
}

impl<T> Reader<T> {
    /// For this route.
    #[must_use]
    pub fn new(route: Route) -> Self {
        Self {
            route,
            request: PhantomData,
        }
    }
}

impl<'de, T: Take> DeserializeSeed<'de> for Reader<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Take> Visitor<'de> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut request = T::default();
        let mut has_model = false;
        while let Some(field) = map.next_key_seed(Name(self.route))? {
            match field.map(|field| (field.name, field.treatment)) {
                Some((name, Treatment::Used(_))) => {
                    has_model |= name == "model";
                    if !request.take(name, &mut map)? {
                        return Err(A::Error::custom(format_args!(
                            "the field '{name}' cannot be read"
                        )));
                    }
                }
                Some((name, Treatment::Refused(harmless, instead))) => {
                    let asked: Asked = map.next_value()?;
                    if !harmless.covers(&asked) {
                        request.refused().get_or_insert((name, instead));
                    }
                }
                Some((_, Treatment::Accepted(_))) | None => map.next_value_seed(Ignored::FIELD)?,
            }
        }
        if has_model {
            Ok(request)
        } else {
            Err(A::Error::missing_field("model"))
        }
    }
}

/// The row of a field by its name.
struct Name(Route);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(fields::find(self.0, name))
    }
}

impl Take for Request {
    fn refused(&mut self) -> &mut Option<(&'static str, &'static str)> {
        &mut self.refused
    }

    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        if self.sampling.take(name, map)? || self.structure.take(name, map)? {
            return Ok(true);
        }
        match name {
            "model" => self.model = map.next_value()?,
            "messages" => {
                let messages: Option<Bounded<Message, MAX_MESSAGES>> = map.next_value()?;
                self.messages = messages.map(|messages| messages.0);
            }
            "prompt" => self.prompt = map.next_value()?,
            "stream" => self.stream = map.next_value::<Option<bool>>()?.unwrap_or_default(),
            "stream_options" => {
                self.stream_options = map.next_value::<Option<StreamOptions>>()?.unwrap_or_default();
            }
            "n" => self.n = map.next_value()?,
            "best_of" => self.best_of = map.next_value()?,
            "max_completion_tokens" => self.max_completion_tokens = map.next_value()?,
            "max_tokens" => {
                let most: Option<i64> = map.next_value()?;
                self.sampling.max_tokens = most.map(|most| (most, "max_tokens"));
            }
            "prompt_logprobs" => self.sampling.prompt_logprobs = map.next_value()?,
            "logprobs" => self.sampling.logprobs = map.next_value()?,
            "cache_salt" => self.cache_salt = map.next_value()?,
            "prompt_cache_key" => self.prompt_cache_key = map.next_value()?,
            "session_id" => self.session_id = map.next_value()?,
            "echo" => self.echo = map.next_value()?,
            "add_special_tokens" => self.add_special_tokens = map.next_value()?,
            "add_generation_prompt" => self.template.add_generation_prompt = map.next_value()?,
            "continue_final_message" => self.template.continue_final_message = map.next_value()?,
            "parallel_tool_calls" => self.tools.parallel_tool_calls = map.next_value()?,
            _ => return self.keep(name, map),
        }
        Ok(true)
    }
}

impl Request {
    /// Read the value of a field that is passed on.
    fn keep<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        let place: &mut Option<Kept> = match name {
            "tools" => &mut self.tools.tools,
            "tool_choice" => &mut self.tools.tool_choice,
            "chat_template_kwargs" => &mut self.template.chat_template_kwargs,
            _ => return Ok(false),
        };
        *place = map.next_value()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(route: Route, body: &str) -> Result<Request, serde_json::Error> {
        Reader::new(route).deserialize(&mut serde_json::Deserializer::from_str(body))
    }

    #[test]
    fn every_used_field_is_read_and_may_be_null() {
        for route in [Route::Chat, Route::Text] {
            for field in fields::FIELDS {
                let used = matches!(field.treatment, Treatment::Used(_));
                if used && field.name != "model" {
                    read(route, &format!(r#"{{"model": "m", "{}": null}}"#, field.name)).unwrap();
                }
            }
        }
    }

    #[test]
    fn every_refused_field_is_named_when_it_asks_and_passes_as_null() {
        for (route, field) in [Route::Chat, Route::Text]
            .iter()
            .flat_map(|route| fields::FIELDS.iter().map(move |field| (*route, field)))
        {
            let found = fields::find(route, field.name).filter(|found| *found == field);
            let (Some(_), Treatment::Refused(..)) = (found, field.treatment) else {
                continue;
            };
            let asks = format!(r#"{{"model": "m", "{}": {{"type": "x", "y": 1}}}}"#, field.name);
            let (name, _) = read(route, &asks).unwrap().refused.unwrap();
            assert_eq!(name, field.name);
            let null = format!(r#"{{"model": "m", "{}": null}}"#, field.name);
            assert_eq!(read(route, &null).unwrap().refused, None);
        }
    }

    #[test]
    fn books_and_unknown_fields_pass_but_not_when_nested_too_deep() {
        let request = read(
            Route::Chat,
            r#"{"model": "m", "metadata": {"a": "b"}, "made_up": [1]}"#,
        );
        assert_eq!(request.unwrap().refused, None);
        for field in ["made_up", "metadata", "tools", "response_format"] {
            let deep = format!(
                r#"{{"model": "m", "{field}": {}{}}}"#,
                "[".repeat(100),
                "]".repeat(100)
            );
            let error = read(Route::Chat, &deep).unwrap_err().to_string();
            assert!(error.contains("nested more than 64"), "{field}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = read(Route::Chat, "{}").unwrap_err().to_string();
        assert!(error.contains("missing field `model`"), "{error}");
    }
}
