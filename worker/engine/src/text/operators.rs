//! What MiniJinja lacks or does not bound, written as filters before a template is compiled.
//!
//! `'…' % value` formats in Python; MiniJinja has `%` for numbers only. `+` on lists costs MiniJinja no fuel, however long they are, so
//! what is added passes a filter that refuses long lists. What a variable is set to passes [`super::nesting`].

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::nesting::{KEPT, KEPT_INSIDE};
use super::tags::{Piece, behind, first_word, literal_end, pieces};

/// Names of the filters; no template has filters of these names.
pub(super) const PERCENT: &str = "_percent";
pub(super) const SIZED: &str = "_sized";
/// Longest list that may be added to another.
const MAX_ADDED: usize = 65_536;

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

/// The source with filters in place of the operators, and around what variables are set to.
///
/// # Errors
/// A sentence when the template exceeds a bound.
pub(super) fn with_filters(source: &str) -> Result<String, String> {
    let mut text = String::with_capacity(source.len());
    for piece in pieces(source)? {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Tag { open, body, close } => {
                text.push_str(open);
                match Some(body).filter(|_| open.starts_with("{%")).and_then(set_value) {
                    Some((target, value)) => {
                        text.extend([target, "("]);
                        copy_expression(value, &mut text);
                        let inside = target.contains('.');
                        text.extend([")|", if inside { KEPT_INSIDE } else { KEPT }, " "]);
                    }
                    None => copy_expression(body, &mut text),
                }
                text.push_str(close);
            }
        }
    }
    Ok(text)
}

/// What a tag sets, up to its equals sign, and to what. None for other tags and for blocks.
fn set_value(body: &str) -> Option<(&str, &str)> {
    if first_word(body) != "set" {
        return None;
    }
    // Targets are names, which hold no literals.
    let (target, value) = body.split_at(body.find('=')? + 1);
    let is_empty = value.trim_ascii().is_empty();
    let is_block = target.contains('|');
    (!is_empty && !is_block).then_some((target, value))
}

fn copy<'a>(from: &'a str, bytes: usize, text: &mut String) -> &'a str {
    let (taken, rest) = from.split_at(bytes);
    text.push_str(taken);
    rest
}

/// Copy an expression. Brackets, and so this, are nested to a bounded depth.
fn copy_expression(from: &str, text: &mut String) {
    let mut rest = from;
    while let Some(first) = rest.chars().next() {
        rest = copy_one(rest, first, text);
        let next = rest.trim_start();
        let operand = match first {
            '"' | '\'' => next.strip_prefix('%'),
            // A text is no list, and may have an operator of its own behind it.
            '+' => Some(next).filter(|next| !next.starts_with(['"', '\''])),
            _ => None,
        };
        let Some(operand) = operand.map(str::trim_start).filter(|operand| !operand.is_empty()) else {
            continue;
        };
        let (operand, after) = operand.split_at(operand_end(operand));
        if first == '+' {
            text.push(' ');
            copy_expression(operand, text);
            text.extend(["|", SIZED]);
        } else {
            text.extend(["|", PERCENT, "("]);
            copy_expression(operand, text);
            text.push(')');
        }
        rest = after;
    }
}

/// Copy a string literal whole, else one character.
fn copy_one<'a>(from: &'a str, first: char, text: &mut String) -> &'a str {
    let length = match first {
        '"' | '\'' => literal_end(from),
        other => other.len_utf8(),
    };
    copy(from, length, text)
}

/// Where the operand ends that `text` begins with: a literal, a name or something in brackets, with its attributes, calls and filters,
/// which all bind closer than the operator.
fn operand_end(text: &str) -> usize {
    let name = |from: usize| {
        let letters = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
        behind(text, from)
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
        let rest = behind(text, end);
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
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = match character {
            '"' | '\'' => literal_end(rest),
            other => other.len_utf8(),
        };
        rest = behind(rest, length);
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return text.len() - rest.len();
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
                "{%- set t =( '%s'|_percent(m.a[0].b(1) | upper | f('|')) ~ 'x' )|_kept %}",
            ),
            (
                "{{ 7 % 3 }} 'a' % b + c {# 'a' % b #}",
                "{{ 7 % 3 }} 'a' % b + c {# 'a' % b #}",
            ),
            ("{%+ if a == 'x'%}{% endif +%}", "{%+ if a == 'x'%}{% endif +%}"),
            ("{{ '%s' % ", "{{ '%s' % "),
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
    fn what_variables_are_set_to_is_looked_at() {
        let cases = [
            ("{%- set x = 1 -%}", "{%- set x =( 1 )|_kept -%}"),
            (
                "{% set n.s=[n.s, a+b] %}",
                "{% set n.s=([n.s, a+ b|_sized] )|_kept_inside %}",
            ),
            ("{% set a, b = b, a %}", "{% set a, b =( b, a )|_kept %}"),
            (
                "{% set x = 'a=' if a == b %}",
                "{% set x =( 'a=' if a == b )|_kept %}",
            ),
            ("{% set x %}=1{% endset %}", "{% set x %}=1{% endset %}"),
            (
                "{% set x | f(a=1) %}{% endset %}",
                "{% set x | f(a=1) %}{% endset %}",
            ),
            ("{% if set == 1 %}{{ set = 1 }}", "{% if set == 1 %}{{ set = 1 }}"),
            (
                "{% raw %}{% set x = 1 %}{% endraw %}",
                "{% raw %}{% set x = 1 %}{% endraw %}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(with_filters(source).unwrap(), expected);
        }
    }
}
