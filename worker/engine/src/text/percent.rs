//! Python's `'…' % value` in chat templates. MiniJinja knows the operator for numbers only, so `'literal' % operand` is written as
//! a filter before the template is compiled.

use minijinja::formatting::{FormatStyle, format};
use minijinja::{Error, Value};

/// Name of the filter; no template has a filter of that name.
pub(super) const FILTER: &str = "_percent";

/// The filter: a tuple has one value for each directive, everything else is one value.
pub(super) fn percent(literal: &str, operand: &Value) -> Result<String, Error> {
    let values: Vec<Value> = if operand.is_tuple() {
        operand.try_iter()?.collect()
    } else {
        vec![operand.clone()]
    };
    format(FormatStyle::Printf, literal, &values)
}

/// The source with the filter in place of the operator.
pub(super) fn with_filter(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest
        .find("{{")
        .into_iter()
        .chain(rest.find("{%"))
        .chain(rest.find("{#"))
        .min()
    {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        rest = match &tag[..2] {
            "{#" => copy(tag, tag.find("#}").unwrap_or(tag.len()), &mut text),
            "{{" => copy_tag(tag, "}}", &mut text),
            _ => copy_tag(tag, "%}", &mut text),
        };
    }
    text + rest
}

fn copy<'a>(from: &'a str, bytes: usize, text: &mut String) -> &'a str {
    let (taken, rest) = from.split_at(bytes);
    text.push_str(taken);
    rest
}

/// Copy a tag up to its end and give what follows.
fn copy_tag<'a>(tag: &'a str, end: &str, text: &mut String) -> &'a str {
    let mut rest = copy(tag, 2, text);
    while let Some(first) = rest.chars().next() {
        if rest.starts_with(end) {
            break;
        }
        if !matches!(first, '"' | '\'') {
            rest = copy(rest, first.len_utf8(), text);
            continue;
        }
        rest = copy(rest, literal_end(rest), text);
        let operator = rest.trim_start();
        if let Some(operand) = operator
            .strip_prefix('%')
            .filter(|behind| !behind.starts_with('}'))
        {
            let operand = operand.trim_start();
            text.extend(["|", FILTER, "("]);
            rest = copy(operand, operand_end(operand), text);
            text.push(')');
        }
    }
    rest
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
    fn literals_before_the_operator_become_filters() {
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
                "{{ 7 % 3 }} 'a' % b {# 'a' % b #}",
                "{{ 7 % 3 }} 'a' % b {# 'a' % b #}",
            ),
            ("{% if a == 'x'%}{% endif %}", "{% if a == 'x'%}{% endif %}"),
            ("{{ '%s' % ", "{{ '%s'|_percent()"),
            ("{{ 'open", "{{ 'open"),
            ("{{ '%s' % 'é' }}", "{{ '%s'|_percent('é') }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(with_filter(source), expected);
        }
    }
}
