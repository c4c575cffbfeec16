//! Two operators that MiniJinja lacks or does not bound, written as filters before a template is compiled.
//!
//! `'…' % value` formats in Python; MiniJinja has `%` for numbers only. `+` on lists costs MiniJinja no fuel, however long they are, so
//! what is added passes a filter that refuses long lists.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Names of the filters; no template has filters of these names.
pub(super) const PERCENT: &str = "_percent";
pub(super) const SIZED: &str = "_sized";
/// Longest list that may be added to another.
const MAX_ADDED: usize = 65_536;
/// Deepest brackets behind a `+`.
const MAX_DEPTH: usize = 64;

/// Formatting: a tuple has one value for each directive, everything else is one value.
pub(super) fn percent(literal: &str, operand: &Value) -> Result<String, Error> {
    let values: Vec<Value> = if operand.is_tuple() {
        operand.try_iter()?.collect()
    } else {
        vec![operand.clone()]
    };
    format(FormatStyle::Printf, literal, &values)
}

/// What is added, unless it is a long list.
pub(super) fn sized(value: Value) -> Result<Value, Error> {
    let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_list && value.len().is_none_or(|length| length > MAX_ADDED) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("lists of more than {MAX_ADDED} items cannot be added"),
        ));
    }
    Ok(value)
}

/// The source with filters in place of the operators.
///
/// # Errors
/// A sentence when brackets are nested too deeply to be followed.
pub(super) fn with_filters(source: &str) -> Result<String, String> {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    let openings = |text: &str| {
        ["{{", "{%", "{#"]
            .into_iter()
            .filter_map(|tag| text.find(tag))
            .min()
    };
    while let Some(at) = openings(rest) {
        let tag = copy(rest, at, &mut text);
        let end = match &tag[..2] {
            "{#" => {
                rest = copy(tag, tag.find("#}").unwrap_or(tag.len()), &mut text);
                continue;
            }
            "{{" => "}}",
            _ => "%}",
        };
        // The sign behind an opening is about white space.
        let sign = usize::from(tag[2..].starts_with(['-', '+']));
        rest = copy_expression(copy(tag, 2 + sign, &mut text), Some(end), 0, &mut text)?;
    }
    Ok(text + rest)
}

fn copy<'a>(from: &'a str, bytes: usize, text: &mut String) -> &'a str {
    let (taken, rest) = from.split_at(bytes);
    text.push_str(taken);
    rest
}

/// Copy an expression up to the end of its tag, or to the end of `from`, and give what follows.
fn copy_expression<'a>(
    from: &'a str,
    end: Option<&str>,
    depth: usize,
    text: &mut String,
) -> Result<&'a str, String> {
    if depth > MAX_DEPTH {
        return Err(format!("brackets are nested more than {MAX_DEPTH} deep"));
    }
    let mut rest = from;
    while let Some(first) = rest.chars().next() {
        if end.is_some_and(|end| rest.starts_with(end)) {
            break;
        }
        rest = copy_one(rest, first, text);
        let next = rest.trim_start();
        let operand = match first {
            '"' | '\'' => next.strip_prefix('%').filter(|behind| !behind.starts_with('}')),
            // A text is no list, and may have an operator of its own behind it.
            '+' => Some(next).filter(|next| !next.starts_with(['"', '\'', '%', '}'])),
            _ => None,
        };
        let Some(operand) = operand.map(str::trim_start) else {
            continue;
        };
        let length = operand_end(operand);
        if first == '+' {
            text.push(' ');
            copy_expression(&operand[..length], None, depth + 1, text)?;
            text.extend(["|", SIZED]);
        } else {
            text.extend(["|", PERCENT, "("]);
            copy_expression(&operand[..length], None, depth + 1, text)?;
            text.push(')');
        }
        rest = &operand[length..];
    }
    Ok(rest)
}

/// Copy a string literal whole, else one character.
fn copy_one<'a>(from: &'a str, first: char, text: &mut String) -> &'a str {
    let length = match first {
        '"' | '\'' => literal_end(from),
        other => other.len_utf8(),
    };
    copy(from, length, text)
}

/// Where the string literal ends that `text` begins with.
fn literal_end(text: &str) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        if !escaped && Some(character) == quote {
            return at + 1;
        }
        escaped = !escaped && character == '\\';
    }
    text.len()
}

/// Where the operand ends that `text` begins with: a literal, a name or something in brackets, with its attributes, calls and filters,
/// which all bind closer than the operator.
fn operand_end(text: &str) -> usize {
    let name = |from: usize| {
        let letters = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
        text[from..]
            .find(|c| !letters(c))
            .map_or(text.len(), |at| from + at)
    };
    let mut end = match text.chars().next() {
        Some('"' | '\'') => literal_end(text),
        Some('(' | '[' | '{') => bracket_end(text),
        Some('-' | '+') => name(1),
        _ => name(0),
    };
    loop {
        let rest = &text[end..];
        let pipe = rest.trim_start();
        end = if rest.starts_with(['(', '[']) {
            end + bracket_end(rest)
        } else if rest.starts_with('.') {
            name(end)
        } else if let Some(filter) = pipe.strip_prefix('|') {
            name(text.len() - filter.trim_start().len())
        } else {
            return end;
        };
    }
}

/// Where the bracket closes that `text` begins with.
fn bracket_end(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(character) = text[at..].chars().next() {
        at += match character {
            '"' | '\'' => literal_end(&text[at..]),
            other => other.len_utf8(),
        };
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_become_filters() {
        let cases = [
            ("{{ 'a%s' % x }}", "{{ 'a%s'|_percent(x) }}"),
            (
                "{{ \"%s\\\"%d\"%(x, y[')'])+'z' }}",
                "{{ \"%s\\\"%d\"|_percent((x, y[')']))+'z' }}",
            ),
            (
                "{%- set t = '%s' % m.a[0].b(1) | upper | f('|') ~ 'x' %}",
                "{%- set t = '%s'|_percent(m.a[0].b(1) | upper | f('|')) ~ 'x' %}",
            ),
            (
                "{{ 7 % 3 }} 'a' % b + c {# 'a' % b #}",
                "{{ 7 % 3 }} 'a' % b + c {# 'a' % b #}",
            ),
            ("{%+ if a == 'x'%}{% endif +%}", "{%+ if a == 'x'%}{% endif +%}"),
            ("{{ '%s' % ", "{{ '%s'|_percent()"),
            ("{{ 'open", "{{ 'open"),
            ("{{ '%s' % 'é' }}", "{{ '%s'|_percent('é') }}"),
            ("{{ a + b * (c+d) }}", "{{ a + b|_sized * (c+ d|_sized) }}"),
            (
                "{{ a + (b + 'x%s' % c) | trim }}",
                "{{ a + (b + 'x%s'|_percent(c)) | trim|_sized }}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(with_filters(source).unwrap(), expected);
        }
    }

    #[test]
    fn brackets_without_end_are_refused() {
        let error = with_filters(&format!("{{{{ {}", "+(".repeat(100_000))).unwrap_err();
        assert!(error.contains("64 deep"), "{error}");
    }
}
