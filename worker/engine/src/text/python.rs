//! What chat templates expect of Python, since they were written for Jinja2 under `transformers`.

use std::borrow::Cow;
use std::io::{Result as IoResult, Write};

use minijinja::value::{Kwargs, StringInput};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::percent;

/// Marks errors raised by the template itself.
pub(super) const RAISED: &str = "raise_exception: ";

/// Add the functions, filters and methods.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter(percent::FILTER, percent::percent);
}

/// A template's source as MiniJinja takes it.
pub(super) fn translate(source: &str) -> String {
    percent::with_filter(&without_generation_tags(source))
}

/// `{% generation %}` marks what a model is trained on; for a prompt it only opens a scope. Jinja2 has it from an extension, and
/// `with` is the tag that does the same.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let mut rest = source;
    let mut text = String::new();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let open = &tag[..tag.len() - name.len()];
        let replaced = [("generation", "with"), ("endgeneration", "endwith")]
            .into_iter()
            .find_map(|(from, to)| Some((name.strip_prefix(from)?, to)))
            .filter(|(end, _)| end.trim_start().trim_start_matches(['-', '+']).starts_with("%}"));
        text.push_str(before);
        rest = tag;
        if let Some((end, to)) = replaced {
            text.push_str(open);
            text.push_str(to);
            rest = end;
        }
    }
    if text.is_empty() {
        return Cow::Borrowed(source);
    }
    text.push_str(rest);
    Cow::Owned(text)
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

/// Python also strips the four separators of ASCII.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn trim(value: StringInput<'_>, characters: Option<Cow<'_, str>>) -> Value {
    let text = value.as_str();
    Value::from(match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)),
        None => text.trim_matches(is_space),
    })
}

fn method(state: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, arguments) {
        (Some(text), "strip", []) => Ok(Value::from(text.trim_matches(is_space))),
        (Some(text), "lstrip", []) => Ok(Value::from(text.trim_start_matches(is_space))),
        (Some(text), "rstrip", []) => Ok(Value::from(text.trim_end_matches(is_space))),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, since models saw that in training.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let invalid = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = Vec::new();
    let spaces = b" ".repeat(indent.unwrap_or_default().min(32));
    let formatter = PythonJson {
        pretty: indent.map(|_| PrettyFormatter::with_indent(&spaces)),
    };
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        .map_err(invalid)?;
    String::from_utf8(json).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python's separators, `, ` and `: `, and its numbers; indented or in one line.
struct PythonJson<'a> {
    pretty: Option<PrettyFormatter<'a>>,
}

impl Formatter for PythonJson<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> IoResult<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_array(writer),
            None => writer.write_all(b"["),
        }
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_array(writer),
            None => writer.write_all(b"]"),
        }
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> IoResult<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_array_value(writer, first),
            None => separate(writer, first),
        }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        self.pretty
            .as_mut()
            .map_or(Ok(()), |pretty| pretty.end_array_value(writer))
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_object(writer),
            None => writer.write_all(b"{"),
        }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_object(writer),
            None => writer.write_all(b"}"),
        }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> IoResult<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_object_key(writer, first),
            None => separate(writer, first),
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        self.pretty
            .as_mut()
            .map_or(Ok(()), |pretty| pretty.end_object_value(writer))
    }
}

fn separate<W: ?Sized + Write>(writer: &mut W, first: bool) -> IoResult<()> {
    if first { Ok(()) } else { writer.write_all(b", ") }
}

/// A number as Python's `repr` writes it: the shortest digits, with an exponent from 1e16 up and below 1e-4.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (1.25e300, "1.25e+300"),
        ];
        for (value, written) in cases {
            assert_eq!(float(value), written);
        }
    }

    #[test]
    fn generation_tags_become_scopes_and_nothing_else_changes() {
        let source = "{%- generation -%}a{% endgeneration +%}{% if generation %}{% set generation = 1 %}{% generations %}";
        let expected =
            "{%- with -%}a{% endwith +%}{% if generation %}{% set generation = 1 %}{% generations %}";
        assert_eq!(without_generation_tags(source), expected);
        assert!(matches!(without_generation_tags("no tag"), Cow::Borrowed(_)));
    }
}
