//! The alphabet of byte-level BPE (Radford et al. 2019): every byte is written as one printable character, so that any
//! bytes make a string. Printable ASCII and Latin-1 stand for themselves, the other 68 bytes for U+0100 and up.

/// The byte that a character of the alphabet stands for.
pub(super) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x143 => {
            let index = u8::try_from(code - 0x100).ok()?;
            Some(match index {
                0..=0x20 => index,
                0x21..=0x42 => index - 0x21 + 0x7f,
                _ => 0xad,
            })
        }
        _ => None,
    }
}

/// The character that each byte is written as.
pub(super) fn letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    for character in (0x21..0x144).filter_map(char::from_u32) {
        if let Some(letter) = byte_of(character).and_then(|byte| letters.get_mut(usize::from(byte))) {
            *letter = character;
        }
    }
    letters
}

/// The bytes of a token as the vocabulary spells it. Tokens with other characters (added ones) stand for themselves.
pub(super) fn token_bytes(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let characters: Vec<char> = (0..0x200)
            .filter_map(char::from_u32)
            .filter(|&c| byte_of(c).is_some())
            .collect();
        let bytes: HashSet<u8> = characters.iter().filter_map(|&c| byte_of(c)).collect();
        assert_eq!((characters.len(), bytes.len()), (256, 256));
        for (byte, letter) in letters().into_iter().enumerate() {
            assert_eq!(byte_of(letter).map(usize::from), Some(byte));
        }
    }

    #[test]
    fn space_and_newline_have_their_usual_letters() {
        assert_eq!(token_bytes("ĠaĊ"), b" a\n");
        assert_eq!(token_bytes("<|начало|>"), "<|начало|>".as_bytes());
    }
}
