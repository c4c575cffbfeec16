//! The fixed header in front of every message between ranks, 44 bytes, little end first:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `LMR3` |
//! | 4 | 2 | kind |
//! | 6 | 2 | tag: the backend's number for the kind of call; 0 outside data links |
//! | 8 | 8 | generation |
//! | 16 | 8 | epoch |
//! | 24 | 8 | step |
//! | 32 | 4 | sequence number of the frame on its link |
//! | 36 | 4 | length of the payload |
//! | 40 | 4 | FNV-1a of the 40 bytes before, folded to 32 bits |

use std::hash::Hasher as _;

use crate::step::Era;
use llamero_settings::hash::Fnv1a;

/// Bytes of a header.
pub const HEADER: usize = 44;
const MAGIC: [u8; 4] = *b"LMR3";

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`super::hello::Opening`].
    Opening = 1,
    /// [`super::hello::Challenge`].
    Challenge = 2,
    /// [`super::hello::SignedHello`].
    Hello = 3,
    /// [`super::hello::SignedAnswer`].
    Answer = 4,
    /// [`super::Message`].
    Control = 5,
    /// Bytes of a backend.
    Data = 6,
    /// The sender aborted the era; the payload says why.
    Abort = 7,
}

impl Kind {
    fn from_code(code: u16) -> Option<Self> {
        [
            Self::Opening,
            Self::Challenge,
            Self::Hello,
            Self::Answer,
            Self::Control,
            Self::Data,
            Self::Abort,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == code)
    }

    /// Longest payload in bytes, so that a header from a stranger cannot make anybody allocate. Data frames are read
    /// into buffers of known size and need no other bound.
    #[must_use]
    pub fn longest(self) -> u32 {
        match self {
            Self::Opening | Self::Challenge => 64,
            Self::Hello | Self::Answer => 4 << 10,
            Self::Abort => 4 << 10,
            Self::Control => 64 << 20,
            Self::Data => 1 << 30,
        }
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// See [`super::Label::tag`].
    pub tag: u16,
    /// The era the sender is in.
    pub era: Era,
    /// Step within the era; 0 outside steps.
    pub step: u64,
    /// Number of the frame on its link, from 0; 0 outside data links.
    pub sequence: u32,
    /// Bytes that follow.
    pub length: u32,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Other magic: not one of ours at all.
    #[error("not a Llamero frame (it starts with {0:02x?})")]
    Magic([u8; 4]),
    /// The check sum does not match.
    #[error("the frame's header is damaged")]
    Damaged,
    /// A kind of a later version.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// Longer than its kind may be.
    #[error("a {kind:?} frame of {length} bytes is longer than the allowed {}", kind.longest())]
    Length {
        /// The kind.
        kind: Kind,
        /// The length that was claimed.
        length: u32,
    },
}

impl Header {
    /// A header outside data links; the length is filled in when the frame is put together.
    #[must_use]
    pub fn of(kind: Kind, era: Era, step: u64) -> Self {
        Self {
            kind,
            tag: 0,
            era,
            step,
            sequence: 0,
            length: 0,
        }
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[6..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.era.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.era.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.step.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.length.to_le_bytes());
        let sum = checksum(&bytes);
        bytes[40..44].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Check and read a header.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if u32_at(bytes, 40) != checksum(bytes) {
            return Err(FrameError::Damaged);
        }
        let code = u16::from_le_bytes([bytes[4], bytes[5]]);
        let kind = Kind::from_code(code).ok_or(FrameError::Kind(code))?;
        let length = u32_at(bytes, 36);
        if length > kind.longest() {
            return Err(FrameError::Length { kind, length });
        }
        Ok(Self {
            kind,
            tag: u16::from_le_bytes([bytes[6], bytes[7]]),
            era: Era {
                generation: u64_at(bytes, 8),
                epoch: u64_at(bytes, 16),
            },
            step: u64_at(bytes, 24),
            sequence: u32_at(bytes, 32),
            length,
        })
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "every caller's offset is a constant and lies 4 bytes before the end or earlier"
)]
fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "both halves are folded into the lower one"
)]
fn checksum(bytes: &[u8; HEADER]) -> u32 {
    let mut hash = Fnv1a::default();
    hash.write(&bytes[..40]);
    let sum = hash.finish();
    (sum ^ (sum >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: Header = Header {
        kind: Kind::Data,
        tag: 0xabcd,
        era: Era {
            generation: 0x0123_4567_89ab_cdef,
            epoch: 7,
        },
        step: u64::MAX,
        sequence: 9,
        length: 4096,
    };

    #[test]
    fn round_trip() {
        assert_eq!(Header::decode(&SAMPLE.encode()), Ok(SAMPLE));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for bit in 0..HEADER * 8 {
            let mut bytes = SAMPLE.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let header = Header {
            kind: Kind::Hello,
            length: u32::MAX,
            ..SAMPLE
        };
        assert_eq!(
            Header::decode(&header.encode()),
            Err(FrameError::Length {
                kind: Kind::Hello,
                length: u32::MAX
            })
        );
    }

    proptest! {
        #[test]
        fn garbage_is_refused(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut header = [0; HEADER];
            header[..32].copy_from_slice(&bytes);
            prop_assert!(Header::decode(&header).is_err());
        }
    }
}
