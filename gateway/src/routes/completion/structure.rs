//! What the answer must look like: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_…`.

use llamero_proto::v1::{Choices, Structure, structure::Form};
use serde::Deserialize;
use serde::de::MapAccess;

use super::kept::Kept;
use crate::error::ApiError;

/// The fields that say it, as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the APIs")]
pub struct Asked {
    pub response_format: Option<Kept>,
    pub structured_outputs: Option<Kept>,
    pub guided_json: Option<Kept>,
    pub guided_regex: Option<Kept>,
    pub guided_choice: Option<Kept>,
    pub guided_grammar: Option<Kept>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
    schema: Option<Kept>,
}

#[derive(Deserialize)]
struct JsonSchema {
    schema: Option<Kept>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Kept>,
    regex: Option<Kept>,
    choice: Option<Kept>,
    grammar: Option<Kept>,
    json_object: Option<bool>,
}

/// A form as the Responses and the Messages API say it: the schema stands beside the type.
#[derive(Debug, Deserialize)]
pub struct Format {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Kept>,
}

impl Format {
    /// What the answer must look like, if anything. The client calls it `name`.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn checked(self, name: &'static str) -> Result<Option<Structure>, ApiError> {
        let form = of_format(name, &self.kind, self.schema, &format!("{name}.schema"))?;
        Ok(form.map(|form| Structure {
            parameter: name.to_owned(),
            form: Some(form),
        }))
    }
}

/// Any object.
const OBJECT: &str = r#"{"type":"object"}"#;

impl Asked {
    /// Read the value of one of the fields. False, and nothing is read, for any other field.
    ///
    /// # Errors
    /// The value is not as expected.
    pub fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        let place = match name {
            "response_format" => &mut self.response_format,
            "structured_outputs" => &mut self.structured_outputs,
            "guided_json" => &mut self.guided_json,
            "guided_regex" => &mut self.guided_regex,
            "guided_choice" => &mut self.guided_choice,
            "guided_grammar" => &mut self.guided_grammar,
            _ => return Ok(false),
        };
        *place = map.next_value()?;
        Ok(true)
    }

    /// What the answer must look like, if anything.
    ///
    /// # Errors
    /// 400 naming the parameter: two at once, or one that is not as expected.
    pub fn checked(self) -> Result<Option<Structure>, ApiError> {
        let mut forms = Vec::new();
        let said = |kept: Option<Kept>| kept.filter(|kept| !kept.is_nothing());
        if let Some(kept) = said(self.response_format) {
            forms.extend(response_format(&kept)?.map(|form| ("response_format", form)));
        }
        if let Some(kept) = said(self.structured_outputs) {
            forms.extend(
                structured_outputs(&kept)?
                    .into_iter()
                    .map(|form| ("structured_outputs", form)),
            );
        }
        for (name, kept, read) in [
            ("guided_json", self.guided_json, schema as Read),
            ("guided_regex", self.guided_regex, regex),
            ("guided_choice", self.guided_choice, choice),
            ("guided_grammar", self.guided_grammar, grammar),
        ] {
            // An empty schema asks for JSON of any kind.
            let any = name == "guided_json" && kept.as_ref().is_some_and(|kept| kept.0 == "{}");
            if let Some(kept) = kept.filter(|kept| any || !kept.is_nothing()) {
                forms.push((name, read(name, kept)?));
            }
        }
        if let [(first, _), (second, _), ..] = &forms[..] {
            let message = format!(
                "'{second}' cannot be used beside '{first}': an answer has one form; leave one of them out."
            );
            return Err(ApiError::invalid(Some(second), message));
        }
        Ok(forms.pop().map(|(name, form)| Structure {
            parameter: name.to_owned(),
            form: Some(form),
        }))
    }
}

type Read = fn(&'static str, Kept) -> Result<Form, ApiError>;

fn response_format(kept: &Kept) -> Result<Option<Form>, ApiError> {
    let name = "response_format";
    let format: ResponseFormat = parse(name, kept)?;
    let (schema, place) = match format.kind.as_str() {
        "json_schema" => (
            format.json_schema.and_then(|held| held.schema),
            "response_format.json_schema.schema",
        ),
        _ => (format.schema, "response_format.schema"),
    };
    of_format(name, &format.kind, schema, place)
}

/// The form of a type and a schema, which the client calls `place`.
fn of_format(name: &str, kind: &str, schema: Option<Kept>, place: &str) -> Result<Option<Form>, ApiError> {
    match (kind, schema) {
        ("text", _) => Ok(None),
        // Not OpenAI's, but what llama.cpp and others take: an object by this schema.
        ("json_object" | "json_schema", Some(Kept(schema))) => Ok(Some(Form::JsonSchema(schema))),
        ("json_object", None) => Ok(Some(Form::JsonSchema(OBJECT.to_owned()))),
        ("json_schema", None) => {
            let message = format!("'{place}' is missing; it holds the JSON schema of the answer.");
            Err(ApiError::invalid(Some(place), message))
        }
        (other, _) => {
            let other: String = other.chars().take(64).collect();
            let message = format!("'{name}' has the type '{other}'; use text, json_object or json_schema.");
            Err(ApiError::unsupported(name, message))
        }
    }
}

fn structured_outputs(kept: &Kept) -> Result<Vec<Form>, ApiError> {
    let name = "structured_outputs";
    let asked: StructuredOutputs = parse(name, kept)?;
    let mut forms = Vec::new();
    for (kept, read) in [
        (asked.json, schema as Read),
        (asked.regex, regex),
        (asked.choice, choice),
        (asked.grammar, grammar),
    ] {
        if let Some(kept) = kept {
            forms.push(read(name, kept)?);
        }
    }
    if asked.json_object == Some(true) {
        forms.push(Form::JsonSchema(OBJECT.to_owned()));
    }
    Ok(forms)
}

/// A schema comes as JSON, or as a string with JSON in it.
fn schema(name: &'static str, kept: Kept) -> Result<Form, ApiError> {
    if kept.0.starts_with('"') {
        return parse(name, &kept).map(Form::JsonSchema);
    }
    Ok(Form::JsonSchema(kept.0))
}

fn regex(name: &'static str, kept: Kept) -> Result<Form, ApiError> {
    parse(name, &kept).map(Form::Regex)
}

fn choice(name: &'static str, kept: Kept) -> Result<Form, ApiError> {
    let texts = parse(name, &kept)?;
    Ok(Form::Choices(Choices { texts }))
}

fn grammar(name: &'static str, kept: Kept) -> Result<Form, ApiError> {
    parse(name, &kept).map(Form::Lark)
}

fn parse<T: for<'de> Deserialize<'de>>(name: &str, kept: &Kept) -> Result<T, ApiError> {
    serde_json::from_str(&kept.0)
        .map_err(|error| ApiError::invalid(Some(name), format!("'{name}' is not as expected: {error}.")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(fields: Value) -> Result<Option<Structure>, ApiError> {
        let field = |name: &str| fields.get(name).map(|value| Kept(value.to_string()));
        let asked = Asked {
            response_format: field("response_format"),
            structured_outputs: field("structured_outputs"),
            guided_json: field("guided_json"),
            guided_regex: field("guided_regex"),
            guided_choice: field("guided_choice"),
            guided_grammar: field("guided_grammar"),
        };
        asked.checked()
    }

    #[test]
    fn each_way_to_ask_for_a_form() {
        let schema = || Form::JsonSchema(r#"{"type":"null"}"#.to_owned());
        let object = || Form::JsonSchema(OBJECT.to_owned());
        let texts = vec!["a".to_owned(), "b".to_owned()];
        for (fields, name, form) in [
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                object(),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "null"}}}}),
                "response_format",
                schema(),
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": {"type": "null"}}}),
                "response_format",
                schema(),
            ),
            (
                json!({"guided_json": {}}),
                "guided_json",
                Form::JsonSchema("{}".to_owned()),
            ),
            (json!({"guided_json": {"type": "null"}}), "guided_json", schema()),
            (
                json!({"guided_json": "{\"type\":\"null\"}"}),
                "guided_json",
                schema(),
            ),
            (
                json!({"guided_choice": ["a", "b"]}),
                "guided_choice",
                Form::Choices(Choices { texts }),
            ),
            (
                json!({"guided_grammar": "start: \"x\""}),
                "guided_grammar",
                Form::Lark("start: \"x\"".to_owned()),
            ),
            (
                json!({"structured_outputs": {"regex": "x+"}}),
                "structured_outputs",
                Form::Regex("x+".to_owned()),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                "structured_outputs",
                object(),
            ),
        ] {
            let structure = checked(fields).unwrap().unwrap();
            assert_eq!((structure.parameter.as_str(), structure.form), (name, Some(form)));
        }
        for nothing in [
            json!({}),
            json!({"response_format": {"type": "text"}, "guided_json": null, "structured_outputs": {}}),
        ] {
            assert_eq!(checked(nothing).unwrap(), None);
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for (fields, param) in [
            (json!({"response_format": {"type": "xml"}}), "response_format"),
            (json!({"response_format": "json"}), "response_format"),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_regex": 4}), "guided_regex"),
            (json!({"guided_choice": "a"}), "guided_choice"),
            (
                json!({"structured_outputs": {"structural_tag": "x"}}),
                "structured_outputs",
            ),
            (
                json!({"structured_outputs": {"regex": "x", "choice": ["a"]}}),
                "structured_outputs",
            ),
            (
                json!({"guided_regex": "x", "response_format": {"type": "json_object"}}),
                "guided_regex",
            ),
        ] {
            let error = checked(fields).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
    }
}
