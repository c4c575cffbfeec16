//! What chat templates expect of Python, since they were written for Jinja2 under `transformers`.

use std::borrow::Cow;
use std::io::{Error as IoError, Result as IoResult, Write};

use minijinja::value::{Kwargs, StringInput};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::{nesting, operators};

/// Marks errors raised by the template itself.
pub(super) const RAISED: &str = "raise_exception: ";

/// Deepest value that is written as JSON.
const MAX_DEPTH: usize = 256;
/// As MiniJinja counts.
const BYTES_A_STEP: usize = 64;

/// Add the functions, filters and methods.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter(operators::PERCENT, operators::percent);
    environment.add_filter(operators::SIZED, operators::sized);
    environment.add_filter(nesting::KEPT, nesting::kept);
    environment.add_filter(nesting::KEPT_INSIDE, nesting::kept_inside);
    environment.add_filter("sum", sum);
    // Jinja2 has no such filter, and MiniJinja's adds lists that no fuel pays for.
    environment.remove_filter("chain");
    // They nest lists without a bracket, which is what bounds nesting; no chat template needs them.
    for nests in ["batch", "groupby", "slice", "zip"] {
        environment.remove_filter(nests);
    }
}

/// A template's source as MiniJinja takes it.
///
/// # Errors
/// A sentence about what cannot be taken.
pub(super) fn translate(source: &str) -> Result<String, String> {
    operators::with_filters(&without_generation_tags(source))
}

/// `{% generation %}` marks what a model is trained on; for a prompt it only opens a scope. Jinja2 has it from an extension, and
/// `with` is the tag that does the same.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let mut rest = source;
    let mut text = String::new();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let open = tag.strip_suffix(name).unwrap_or_default();
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

/// The sum of numbers. Jinja2's also adds lists, which no fuel would pay for.
fn sum(values: &Value) -> Result<Value, Error> {
    let mut whole = 0_i64;
    let mut broken = None;
    for value in values.try_iter()? {
        let number = f64::try_from(value.clone())?;
        match (i64::try_from(value), broken) {
            (Ok(value), None) => whole = whole.saturating_add(value),
            (_, before) => broken = Some(before.unwrap_or(0.0) + number),
        }
    }
    Ok(broken.map_or_else(|| Value::from(whole), |broken| Value::from(broken + whole as f64)))
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

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, since models saw that in training. What is written
/// is paid for as it comes: a value that holds itself twice at every level is short to say and endless to write.
fn tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    if value.is_undefined() {
        let message = "a value that is not there cannot be written as JSON";
        return Err(Error::new(ErrorKind::BadSerialization, message));
    }
    let spaces = b" ".repeat(indent.unwrap_or_default().min(32));
    let formatter = PythonJson {
        pretty: indent.map(|_| PrettyFormatter::with_indent(&spaces)),
        depth: 0,
    };
    let mut json = Paid {
        state,
        bytes: Vec::new(),
        unpaid: 0,
        out_of_fuel: None,
    };
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter));
    if let Some(error) = json.out_of_fuel {
        return Err(error);
    }
    let invalid = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| invalid(error.to_string()))?;
    String::from_utf8(json.bytes).map_err(|error| invalid(error.to_string()))
}

/// Bytes that the template's fuel pays for.
struct Paid<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    bytes: Vec<u8>,
    unpaid: usize,
    out_of_fuel: Option<Error>,
}

impl Write for Paid<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        self.bytes.extend_from_slice(bytes);
        self.unpaid += bytes.len();
        let steps = self.unpaid / BYTES_A_STEP;
        self.unpaid %= BYTES_A_STEP;
        self.state
            .consume_fuel(steps as u64)
            .map(|()| bytes.len())
            .map_err(|error| {
                self.out_of_fuel = Some(error);
                IoError::other("out of fuel")
            })
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

/// Python's separators, `, ` and `: `, and its numbers; indented or in one line.
struct PythonJson<'a> {
    pretty: Option<PrettyFormatter<'a>>,
    depth: usize,
}

impl PythonJson<'_> {
    /// As deep as JSON is read, twice over.
    fn deeper(&mut self) -> IoResult<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(IoError::other(format!(
                "the value is nested more than {MAX_DEPTH} deep"
            )));
        }
        Ok(())
    }
}

impl Formatter for PythonJson<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> IoResult<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        self.deeper()?;
        match &mut self.pretty {
            Some(pretty) => pretty.begin_array(writer),
            None => writer.write_all(b"["),
        }
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        self.depth -= 1;
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
        self.deeper()?;
        match &mut self.pretty {
            Some(pretty) => pretty.begin_object(writer),
            None => writer.write_all(b"{"),
        }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> IoResult<()> {
        self.depth -= 1;
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
