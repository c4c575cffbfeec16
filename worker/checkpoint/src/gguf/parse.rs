//! The binary part of GGUF: a reader that bounds every length by what the file can hold.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

use std::io::{self, Read};

use super::GgufValue;

/// Longest text and longest array that are taken; real vocabularies stay far below.
const MAX_TEXT: u64 = 64 << 20;
const MAX_ITEMS: u64 = 1 << 26;

/// Reads little-endian values and counts the bytes.
pub(super) struct Parser<R> {
    input: R,
    position: u64,
    size: u64,
}

type Parsed<T> = Result<T, String>;

impl<R: Read> Parser<R> {
    pub(super) fn new(input: R, size: u64) -> Self {
        Self {
            input,
            position: 0,
            size,
        }
    }

    /// Bytes consumed so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Parsed<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    pub(super) fn count(&mut self, least: u64) -> Parsed<u64> {
        let count = self.u64()?;
        if count > MAX_ITEMS || count.saturating_mul(least) > self.size - self.position {
            return Err(format!(
                "it claims {count} items, more than it can hold; the file is damaged or cut off"
            ));
        }
        Ok(count)
    }

    pub(super) fn text(&mut self) -> Parsed<String> {
        let length = self.count(1)?;
        if length > MAX_TEXT {
            return Err(too_long(length));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| too_long(length))?];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| "a text in its metadata is not UTF-8; the file is damaged".to_owned())
    }

    /// A value of the type with number `kind`.
    pub(super) fn value(&mut self, kind: u32) -> Parsed<GgufValue> {
        self.nested_value(kind, 0)
    }

    fn nested_value(&mut self, kind: u32, depth: u32) -> Parsed<GgufValue> {
        Ok(match kind {
            0 => GgufValue::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => GgufValue::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => GgufValue::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => GgufValue::Float(f32::from_le_bytes(self.bytes()?)),
            7 => GgufValue::Bool(u8::from_le_bytes(self.bytes()?) != 0),
            8 => GgufValue::Text(self.text()?),
            9 if depth < 4 => {
                let kind = self.u32()?;
                let count = self.count(1)?;
                GgufValue::Array(
                    (0..count)
                        .map(|_| self.nested_value(kind, depth + 1))
                        .collect::<Parsed<_>>()?,
                )
            }
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => GgufValue::Float(narrow(f64::from_le_bytes(self.bytes()?))),
            _ => {
                return Err(format!(
                    "its metadata has a value of the unknown type {kind}; the file is damaged"
                ));
            }
        })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Parsed<()> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                format!(
                    "the file is cut off at byte {}, inside its header; download it again",
                    self.position
                )
            }
            _ => format!("it cannot be read: {error}"),
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

fn too_long(length: u64) -> String {
    format!("it claims a text of {length} bytes; the file is damaged")
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "metadata of models is f32; what is written as f64 has no more digits that count"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}
