//! The key of a generation, and the proof of knowing it without telling it: HMAC-SHA256 (RFC 2104) over fresh random numbers of
//! both sides.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of a key, of a random number and of a proof.
pub const SECRET_BYTES: usize = 32;

/// A random number that is used once.
pub type Nonce = [u8; SECRET_BYTES];
/// Proof of knowing a key.
pub type Proof = [u8; SECRET_BYTES];

/// 32 random bytes that only the members of one generation know.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupKey([u8; SECRET_BYTES]);

/// The key has another length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key of the group has {0} bytes: send {SECRET_BYTES} random ones, the same to every member of a generation"
)]
pub struct KeyLength(usize);

/// The message of a handshake that a proof belongs to, so that a proof is of no use in any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The dialler's first message.
    Opening,
    /// The listener's challenge.
    Challenge,
    /// The dialler's Hello.
    Hello,
    /// The listener's answer.
    Answer,
}

impl GroupKey {
    /// A fresh key.
    ///
    /// # Errors
    /// The operating system has no random numbers.
    pub fn random() -> std::io::Result<Self> {
        Ok(Self(nonce()?))
    }

    /// The bytes, which must be kept from logs.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    fn mac(&self, purpose: Purpose, challenge: &Nonce, nonce: &Nonce, text: &[u8]) -> Hmac<Sha256> {
        // All labels have one length: with the fixed lengths of the random numbers, no two inputs are joined to the same bytes.
        let label = match purpose {
            Purpose::Opening => b"llamero rank link v3, opening  ",
            Purpose::Challenge => b"llamero rank link v3, challenge",
            Purpose::Hello => b"llamero rank link v3, hello    ",
            Purpose::Answer => b"llamero rank link v3, answer   ",
        };
        // A key of any length is taken, so there is no error to hand on; SHA-256 pads it to its block itself.
        let mut block = [0; 64];
        block[..SECRET_BYTES].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into());
        for part in [label.as_slice(), challenge, nonce, text] {
            mac.update(part);
        }
        mac
    }

    pub(super) fn prove(&self, purpose: Purpose, challenge: &Nonce, nonce: &Nonce, text: &[u8]) -> Proof {
        self.mac(purpose, challenge, nonce, text)
            .finalize()
            .into_bytes()
            .into()
    }

    /// Whether `proof` was made with this key. Takes the same time wherever it differs.
    pub(super) fn verifies(
        &self,
        proof: &Proof,
        purpose: Purpose,
        challenge: &Nonce,
        nonce: &Nonce,
        text: &[u8],
    ) -> bool {
        self.mac(purpose, challenge, nonce, text)
            .verify_slice(proof)
            .is_ok()
    }
}

impl From<[u8; SECRET_BYTES]> for GroupKey {
    fn from(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for GroupKey {
    type Error = KeyLength;

    fn try_from(bytes: &[u8]) -> Result<Self, KeyLength> {
        bytes.try_into().map(Self).map_err(|_| KeyLength(bytes.len()))
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupKey(…)")
    }
}

/// A fresh random number.
pub(super) fn nonce() -> std::io::Result<Nonce> {
    let mut nonce = [0; SECRET_BYTES];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_own_purpose_numbers_text_and_key_only() {
        let (key, other) = (GroupKey([1; 32]), GroupKey([2; 32]));
        let proof = key.prove(Purpose::Hello, &[3; 32], &[4; 32], b"text");
        assert!(key.verifies(&proof, Purpose::Hello, &[3; 32], &[4; 32], b"text"));
        assert!(!other.verifies(&proof, Purpose::Hello, &[3; 32], &[4; 32], b"text"));
        assert!(!key.verifies(&proof, Purpose::Answer, &[3; 32], &[4; 32], b"text"));
        assert!(!key.verifies(&proof, Purpose::Hello, &[4; 32], &[3; 32], b"text"));
        assert!(!key.verifies(&proof, Purpose::Hello, &[3; 32], &[4; 32], b"other"));
    }

    /// RFC 4231, test case 1, through the same padding to a block.
    #[test]
    fn the_mac_is_that_of_the_standard() {
        let mut block = [0; 64];
        block[..20].copy_from_slice(&[0x0b; 20]);
        let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into());
        mac.update(b"Hi There");
        let bytes = mac.finalize().into_bytes();
        assert_eq!(bytes[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
    }

    #[test]
    fn keys_have_one_length_and_stay_out_of_logs() {
        assert_eq!(GroupKey::try_from(&[0_u8; 0][..]), Err(KeyLength(0)));
        assert_ne!(GroupKey::random().unwrap(), GroupKey::random().unwrap());
        assert_eq!(format!("{:?}", GroupKey([7; 32])), "GroupKey(…)");
    }
}
