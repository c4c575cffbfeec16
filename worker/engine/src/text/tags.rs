//! A template's source as text and tags, cut where MiniJinja cuts it, so that what is rewritten or counted in a tag is what MiniJinja
//! will read there; and bounds on how much a tag holds, since MiniJinja follows the operators of an expression recursively.

/// Longest template in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// Deepest brackets in a tag.
pub(super) const MAX_BRACKETS: usize = 32;
/// Most operators in a tag, those that are words and opening brackets included.
pub(super) const MAX_OPERATORS: usize = 1000;
/// Most `elif` in a template.
pub(super) const MAX_BRANCHES: usize = 500;

const WORDS: [&str; 7] = ["and", "else", "if", "in", "is", "not", "or"];

/// A part of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Text, comments and raw blocks.
    Text(&'a str),
    /// An expression or a statement.
    Tag {
        /// The opening, with its sign about white space.
        open: &'a str,
        body: &'a str,
        /// The closing, with its sign.
        close: &'a str,
    },
}

/// Cut a source into its pieces, which together are all of it. What MiniJinja will refuse anyway may be cut in any way.
///
/// # Errors
/// A sentence when it exceeds a bound.
pub(super) fn pieces(source: &str) -> Result<Vec<Piece<'_>>, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!(
            "it has {} bytes, and at most {MAX_SOURCE} can be used",
            source.len()
        ));
    }
    let (mut pieces, mut rest, mut branches) = (Vec::new(), source, 0);
    while let Some((at, kind)) = opening(rest) {
        let (before, tag) = rest.split_at(at);
        pieces.push(Piece::Text(before));
        let inside = 2 + usize::from(behind(tag, 2).starts_with(['-', '+']));
        let whole = match kind {
            b'#' => behind(tag, inside).find("#}").map(|end| inside + end + 2),
            b'%' => raw_block(tag, inside),
            _ => None,
        };
        if kind == b'#' || whole.is_some() {
            let (text, after) = tag.split_at(whole.unwrap_or(tag.len()));
            pieces.push(Piece::Text(text));
            rest = after;
            continue;
        }
        let (open, inner) = tag.split_at(inside);
        let (body, close) = body(inner, if kind == b'%' { "%}" } else { "}}" })?;
        branches += usize::from(first_word(body) == "elif");
        pieces.push(Piece::Tag { open, body, close });
        rest = behind(inner, body.len() + close.len());
    }
    if branches > MAX_BRANCHES {
        return Err(format!(
            "it has {branches} elif tags, and at most {MAX_BRANCHES} can be used"
        ));
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// The first opening of a tag, and the second of its characters.
fn opening(text: &str) -> Option<(usize, u8)> {
    let mut pairs = text.as_bytes().windows(2).enumerate();
    pairs.find_map(|(at, pair)| match *pair {
        [b'{', kind @ (b'{' | b'%' | b'#')] => Some((at, kind)),
        _ => None,
    })
}

/// The length of the raw block that `tag` begins with.
fn raw_block(tag: &str, inside: usize) -> Option<usize> {
    let mut at = inside + basic_tag(behind(tag, inside), "raw")?;
    loop {
        at += behind(tag, at).find("{%")? + 2;
        let sign = usize::from(behind(tag, at).starts_with(['-', '+']));
        if let Some(length) = basic_tag(behind(tag, at + sign), "endraw") {
            return Some(at + sign + length);
        }
    }
}

/// The length of the rest of a tag that is only this word.
fn basic_tag(text: &str, word: &str) -> Option<usize> {
    let end = text.trim_ascii_start().strip_prefix(word)?.trim_ascii_start();
    let end = end.strip_prefix(['-', '+']).unwrap_or(end);
    let rest = end.strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

/// The word that a tag's body begins with.
pub(super) fn first_word(body: &str) -> &str {
    let body = body.trim_ascii_start();
    body.find(|c: char| !is_word(c))
        .map_or(body, |end| body.split_at(end).0)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// What is in a tag before it closes, and the closing: outside of brackets and literals.
fn body<'a>(text: &'a str, end: &str) -> Result<(&'a str, &'a str), String> {
    let (mut at, mut depth, mut operators) = (0, 0_isize, 0_usize);
    while let Some(first) = behind(text, at).chars().next() {
        let (before, rest) = text.split_at(at);
        if depth == 0 {
            let sign = usize::from(rest.starts_with(['-', '+']));
            if behind(rest, sign).starts_with(end) {
                return Ok((before, rest.split_at(sign + end.len()).0));
            }
        }
        let mut length = first.len_utf8();
        match first {
            '"' | '\'' => length = literal_end(rest),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            first if is_word(first) => {
                let word = first_word(rest);
                length = word.len();
                operators += usize::from(WORDS.contains(&word));
            }
            _ => {}
        }
        operators += usize::from("([{.|~+-*/%=!<>".contains(first));
        at += length;
        if usize::try_from(depth).is_ok_and(|depth| depth > MAX_BRACKETS) {
            return Err(format!("brackets are nested more than {MAX_BRACKETS} deep"));
        }
        if operators > MAX_OPERATORS {
            return Err(format!("a tag has more than {MAX_OPERATORS} operators"));
        }
    }
    Ok((text, ""))
}

/// What follows so many bytes.
pub(super) fn behind(text: &str, bytes: usize) -> &str {
    text.get(bytes..).unwrap_or_default()
}

/// Where the string literal ends that `text` begins with.
pub(super) fn literal_end(text: &str) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The bodies of all tags.
    fn tags(source: &str) -> Vec<&str> {
        let pieces = pieces(source).unwrap();
        let whole: String = pieces
            .iter()
            .map(|piece| match *piece {
                Piece::Text(text) => text.to_owned(),
                Piece::Tag { open, body, close } => [open, body, close].concat(),
            })
            .collect();
        assert_eq!(whole, source);
        let bodies = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Tag { body, .. } => Some(body),
        });
        bodies.collect()
    }

    #[test]
    fn tags_end_where_they_end_for_minijinja() {
        let cases: [(&str, &[&str]); 9] = [
            ("a {{- b -}} c {%+ if d +%}{ {", &[" b ", " if d "]),
            ("{{ {'a': {'b': 1}} + '}}' }}x", &[" {'a': {'b': 1}} + '}}' "]),
            (
                "{% set a = '%}' ~ \"\\\"%}\" %}{{ a }}",
                &[" set a = '%}' ~ \"\\\"%}\" ", " a "],
            ),
            // What looks like a literal in text that is none.
            ("{% raw %}{{ '{% endraw %}{{ a }}", &[" a "]),
            ("{%- raw -%}{% endraw{%+ endraw -%}{{ b }}", &[" b "]),
            ("{#} {{ ' #}{{ c }}", &[" c "]),
            ("{#-#}#}{{ d }}", &[" d "]),
            ("é {{ 'é' }}{{ open", &[" 'é' ", " open"]),
            ("{{{'a': 1}}}", &["{'a': 1}"]),
        ];
        for (source, expected) in cases {
            assert_eq!(tags(source), expected, "{source}");
        }
    }

    #[test]
    fn tags_are_bounded() {
        let deep = format!("{{{{ {}1{} }}}}", "[".repeat(33), "]".repeat(33));
        let cases = [
            (deep, "32 deep"),
            (format!("{{{{ 1{} }}}}", "+1".repeat(1001)), "1000 operators"),
            (format!("{{{{ {}1 }}}}", "not ".repeat(1001)), "1000 operators"),
            (
                format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(501)),
                "501 elif",
            ),
            ("x".repeat(MAX_SOURCE + 1), "bytes"),
        ];
        for (source, words) in cases {
            let error = pieces(&source).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let list = format!("{{{{ [{}] }}}}", "'a-b', ".repeat(5000));
        assert_eq!(tags(&list).len(), 1);
    }
}
