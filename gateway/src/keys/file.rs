//! The keys as they are written down: YAML, or JSON, which is YAML too.
//!
//! ```yaml
//! keys:
//!   - name: team-a
//!     key: sk-…                       # or sha256: the key's hash in hex
//!     namespaces: [team-a, "*"]       # default: all
//!     models: ["llama-*"]             # default: all
//!     limits: {requestsPerMinute: 600, tokensPerMinute: 200000, concurrency: 16}
//! ```

use std::collections::BTreeSet;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::scope::Scope;

/// Largest file in bytes.
pub const MAX_BYTES: u64 = 8 << 20;
/// Most keys.
const MAX_KEYS: usize = 10_000;
/// Most names in a scope.
const MAX_NAMES: usize = 256;
/// Shorter keys can be guessed.
const MIN_KEY: usize = 16;
/// Longest key, and longest name of one.
const MAX_KEY: usize = 512;
const MAX_NAME: usize = 64;

/// SHA-256 of a key. Keys are long and random, so that nothing slower is needed.
pub type Hash = [u8; 32];

/// The hash of a key.
#[must_use]
pub fn hash(key: &str) -> Hash {
    Sha256::digest(key.as_bytes()).into()
}

/// One key; what it is itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Names it in metrics, logs and messages.
    pub name: String,
    /// What it sees.
    pub scope: Scope,
    /// How much it may.
    pub limits: Limits,
}

/// Limits of one key over all gateways; absent ones are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Requests that begin in any 60 seconds.
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers in any 60 seconds.
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub concurrency: Option<u32>,
}

impl Limits {
    /// Whether there is none.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a file of keys is not usable. Messages never show a key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("cannot read the API keys: {0}")]
    Read(#[from] std::io::Error),
    /// It is not YAML of the form that the documentation shows.
    #[error("the API keys are not as expected{}: see docs/gateway-keys.md", at(*line))]
    Form {
        /// Line of the file, if it is known.
        line: Option<usize>,
    },
    /// It is too large.
    #[error("there are {0} API keys; use at most {MAX_KEYS}")]
    TooMany(usize),
    /// One key is not usable.
    #[error("the API key number {number} ('{name}') {problem}")]
    Key {
        /// Which, from 1.
        number: usize,
        /// Its name.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

fn at(line: Option<usize>) -> String {
    line.map(|line| format!(" (line {line})")).unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    key: Option<String>,
    sha256: Option<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    limits: Limits,
}

/// Read the text of a file.
///
/// # Errors
/// [`KeysError`].
pub fn parse(text: &str) -> Result<Vec<(Hash, Key)>, KeysError> {
    let file: File = serde_yaml_ng::from_str(text).map_err(|error| KeysError::Form {
        // The error's own words could show what stands there.
        line: error.location().map(|at| at.line()),
    })?;
    if file.keys.len() > MAX_KEYS {
        return Err(KeysError::TooMany(file.keys.len()));
    }
    let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
    let mut keys = Vec::with_capacity(file.keys.len());
    for (index, entry) in file.keys.into_iter().enumerate() {
        let name = entry.name.chars().take(MAX_NAME).collect();
        let wrong = |problem: String| KeysError::Key {
            number: index + 1,
            name,
            problem,
        };
        let (hash, key) = match read(entry) {
            Ok(read) => read,
            Err(problem) => return Err(wrong(problem)),
        };
        if !names.insert(key.name.clone()) {
            return Err(wrong("has the name of another one; give each its own".to_owned()));
        }
        if !hashes.insert(hash) {
            return Err(wrong("is the same as another one; make a new one".to_owned()));
        }
        keys.push((hash, key));
    }
    Ok(keys)
}

fn read(entry: Entry) -> Result<(Hash, Key), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if entry.name.is_empty() || entry.name.len() > MAX_NAME || !entry.name.bytes().all(plain) {
        return Err(format!(
            "must have a name of 1 to {MAX_NAME} letters, digits, '-', '_' and '.'"
        ));
    }
    let hash = match (entry.key, entry.sha256) {
        (Some(key), None) if !(MIN_KEY..=MAX_KEY).contains(&key.len()) => {
            return Err(format!(
                "must have {MIN_KEY} to {MAX_KEY} characters; make one by: openssl rand -hex 24"
            ));
        }
        (Some(key), None) if !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            return Err("must consist of ASCII characters without spaces".to_owned());
        }
        (Some(key), None) => hash(&key),
        (None, Some(hex)) => from_hex(&hex).ok_or("has a sha256 that is not 64 hex digits")?,
        _ => return Err("needs exactly one of 'key' and 'sha256'".to_owned()),
    };
    if entry.namespaces.len() > MAX_NAMES || entry.models.len() > MAX_NAMES {
        return Err(format!("lists more than {MAX_NAMES} namespaces or models"));
    }
    let limits = entry.limits;
    let none_at_all = [limits.requests_per_minute, limits.tokens_per_minute];
    if none_at_all.contains(&Some(0)) || limits.concurrency == Some(0) {
        return Err("has a limit of 0; remove the key instead, or leave the limit out".to_owned());
    }
    let key = Key {
        name: entry.name,
        scope: Scope::new(entry.namespaces, entry.models),
        limits,
    };
    Ok((hash, key))
}

fn from_hex(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = Hash::default();
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_by_itself_or_by_its_hash() {
        let secret = "sk-0123456789abcdef";
        let hex: String = hash(secret).iter().map(|byte| format!("{byte:02x}")).collect();
        let limits = "limits: {requestsPerMinute: 5, tokensPerMinute: 10, concurrency: 2}";
        let by_key = parse(&format!("keys:\n- name: a\n  key: {secret}\n  {limits}\n")).unwrap();
        let by_hash = parse(&format!(r#"{{"keys": [{{"name": "a", "sha256": "{hex}"}}]}}"#)).unwrap();
        assert_eq!(by_key[0].0, by_hash[0].0);
        assert_eq!(by_key[0].1.limits.concurrency, Some(2));
        assert!(by_hash[0].1.limits.are_none() && !by_key[0].1.limits.are_none());
        assert!(
            !format!("{by_key:?}").contains("0123456789abcdef"),
            "the key itself is not kept"
        );
        assert_eq!(parse("keys: []").unwrap(), []);
    }

    #[test]
    fn each_mistake_gets_a_sentence_without_the_key() {
        let entry = |fields: &str| format!("keys:\n- {{{fields}}}\n");
        let secret = "key: sk-very-secret-0123";
        for (text, words) in [
            ("keys: 3".to_owned(), "docs/gateway-keys.md"),
            (format!("keys:\n- {secret} x: y"), "not as expected"),
            (entry(&format!("name: a, {secret}, colour: red")), "(line 2)"),
            (entry(&format!("name: 'a b', {secret}")), "letters, digits"),
            (entry("name: a"), "exactly one of"),
            (entry("name: a, key: short"), "openssl rand"),
            (
                entry("name: a, key: 'has spaces in it, really'"),
                "without spaces",
            ),
            (entry("name: a, sha256: abc"), "64 hex digits"),
            (
                entry(&format!("name: a, {secret}, limits: {{concurrency: 0}}")),
                "limit of 0",
            ),
            (
                format!(
                    "{}- {{name: a, key: 0123456789abcdef}}\n",
                    entry(&format!("name: a, {secret}"))
                ),
                "name of another",
            ),
            (
                format!(
                    "{}- {{name: b, {secret}}}\n",
                    entry(&format!("name: a, {secret}"))
                ),
                "same as another",
            ),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("very-secret"), "{error}");
        }
    }
}
