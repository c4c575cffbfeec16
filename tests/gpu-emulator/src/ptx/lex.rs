//! Words, numbers and punctuation of PTX, each with its line.

use super::PtxError;

/// One piece of PTX text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// An opcode with its modifiers, a register, a label, a directive: letters, digits and `_ $ % .`, and `::` inside.
    Word(String),
    /// An integer, as 64 bits.
    Int(u64),
    /// `0f…`: the bits of an f32.
    F32(u32),
    /// `0d…`: the bits of an f64.
    F64(u64),
    /// A quoted text.
    Text,
    /// Any other character.
    Punct(char),
}

/// A token and the line it stands in, from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lexed {
    pub(super) token: Token,
    pub(super) line: u32,
}

/// All tokens of `text`, without comments.
///
/// # Errors
/// A number or quoted text that does not end.
pub(super) fn lex(text: &str) -> Result<Vec<Lexed>, PtxError> {
    let mut lexer = Lexer {
        bytes: text.as_bytes(),
        at: 0,
        line: 1,
    };
    let mut tokens = Vec::new();
    while let Some(lexed) = lexer.next()? {
        tokens.push(lexed);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Result<Option<Lexed>, PtxError> {
        self.skip_blank();
        // NVRTC ends its text with a NUL.
        if self.at >= self.bytes.len() || self.peek(0) == 0 {
            return Ok(None);
        }
        let line = self.line;
        let first = self.peek(0);
        let token = match first {
            b'0'..=b'9' => self.number()?,
            b'"' => self.text()?,
            _ if word(first) => self.word(),
            _ => {
                self.at += 1;
                Token::Punct(char::from(first))
            }
        };
        Ok(Some(Lexed { token, line }))
    }

    fn skip_blank(&mut self) {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'/') => self.skip_while(|lexer| lexer.peek(0) != b'\n'),
                (b'/', b'*') => {
                    self.at += 2;
                    self.skip_while(|lexer| (lexer.peek(0), lexer.peek(1)) != (b'*', b'/'));
                    self.at += 2;
                }
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                _ => return,
            }
        }
    }

    fn skip_while(&mut self, inside: impl Fn(&Self) -> bool) {
        while self.at < self.bytes.len() && inside(self) {
            self.line += u32::from(self.peek(0) == b'\n');
            self.at += 1;
        }
    }

    fn word(&mut self) -> Token {
        let start = self.at;
        while word(self.peek(0)) || self.inner_colons() {
            self.at += if self.peek(0) == b':' { 2 } else { 1 };
        }
        Token::Word(String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned())
    }

    /// `L2::128B` is one word, `label:` is not.
    fn inner_colons(&self) -> bool {
        self.peek(0) == b':' && self.peek(1) == b':' && word(self.peek(2))
    }

    fn text(&mut self) -> Result<Token, PtxError> {
        self.at += 1;
        self.skip_while(|lexer| lexer.peek(0) != b'"');
        if self.at >= self.bytes.len() {
            return Err(PtxError::syntax(self.line, "a quoted text does not end"));
        }
        self.at += 1;
        Ok(Token::Text)
    }

    fn number(&mut self) -> Result<Token, PtxError> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric() {
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        self.parse_number(&text)
            .ok_or_else(|| PtxError::syntax(self.line, format!("`{text}` is not a number")))
    }

    fn parse_number(&self, text: &str) -> Option<Token> {
        let radix = |digits: &str, radix| u64::from_str_radix(digits.trim_end_matches('U'), radix).ok();
        Some(match text.get(..2) {
            Some("0f" | "0F") => Token::F32(u32::from_str_radix(&text[2..], 16).ok()?),
            Some("0d" | "0D") => Token::F64(u64::from_str_radix(&text[2..], 16).ok()?),
            Some("0x" | "0X") => Token::Int(radix(&text[2..], 16)?),
            Some("0b" | "0B") => Token::Int(radix(&text[2..], 2)?),
            _ => Token::Int(radix(text, 10)?),
        })
    }
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_an_instruction_and_counts_lines() {
        let tokens =
            lex("// head\n@!%p1 ld.global.L2::128B.v2.u32 {%r1, %r2}, [%rd1+-8]; /* a\nb */ L1:\n0f3F800000")
                .unwrap();
        let words: Vec<_> = tokens.iter().map(|lexed| (&lexed.token, lexed.line)).collect();
        assert!(words.contains(&(&Token::Word("ld.global.L2::128B.v2.u32".into()), 2)));
        assert!(words.contains(&(&Token::Word("L1".into()), 3)));
        assert_eq!(words.last(), Some(&(&Token::F32(0x3f80_0000), 4)));
        assert_eq!(words[2].0, &Token::Word("%p1".into()));
    }

    #[test]
    fn refuses_what_is_no_number() {
        assert!(lex("add 0x;").is_err());
        assert!(lex("\n 12q4;").unwrap_err().to_string().contains("line 2"));
    }
}
