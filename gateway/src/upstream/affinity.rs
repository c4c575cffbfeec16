//! Which requests belong together: those that begin alike find what they have in common in the same leader's cache.
//!
//! The key of a request is a hash of the bytes that its conversation began with, so that all its turns have the same
//! one, and so have questions about the same long text. Leaders are ranked for a key by rendezvous hashing: gateways
//! that know the same leaders agree without talking, and a leader that comes or goes moves only its own share of keys.

use std::hash::Hasher;

use llamero_proto::v1::{ChatMessage, ChatPrompt, completion_request::Prompt};
use llamero_settings::hash::{Fnv1a, mix};

/// Shorter prompts are computed sooner than any queue is worth.
const SHORT: usize = 1 << 10;
/// So many bytes of the first turn tell it from others. Behind them stands what differs between questions about one text.
const CHUNK: usize = 4 << 10;

/// What requests that belong together have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Affinity(u64);

impl Affinity {
    /// Of what a client calls a session, or a cache.
    #[must_use]
    pub fn of_session(name: &str) -> Self {
        let mut hash = Hash::default();
        hash.add(b"session");
        hash.add(name.as_bytes());
        hash.end()
    }

    /// Of a prompt that is a text.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        let mut hash = Hash::default();
        hash.add(beginning(text.as_bytes()));
        (text.len() >= SHORT).then(|| hash.end())
    }

    /// Of a prompt that is tokens.
    #[must_use]
    pub fn of_tokens(ids: &[u32]) -> Option<Self> {
        let mut hash = Hash::default();
        for id in ids.iter().take(CHUNK / size_of::<u32>()) {
            hash.add(&id.to_le_bytes());
        }
        (size_of_val(ids) >= SHORT).then(|| hash.end())
    }

    /// Of a prompt. Short ones have none: they go to the least loaded leader.
    #[must_use]
    pub fn of_prompt(prompt: &Prompt) -> Option<Self> {
        match prompt {
            Prompt::Text(text) => Self::of_text(text),
            Prompt::TokenIds(tokens) => Self::of_tokens(&tokens.ids),
            Prompt::Chat(chat) => Self::of_chat(chat),
        }
    }

    fn of_chat(chat: &ChatPrompt) -> Option<Self> {
        let mut hash = Hash::default();
        hash.add(beginning(chat.tools_json.as_bytes()));
        for message in &chat.messages {
            hash.add(beginning(said(message)));
            if message.role == "user" {
                break;
            }
        }
        let messages: usize = chat.messages.iter().map(|message| said(message).len()).sum();
        (messages + chat.tools_json.len() >= SHORT).then(|| hash.end())
    }

    /// How well a leader fits; the one with the most is the first choice.
    #[must_use]
    pub fn weight(self, address: &str) -> u64 {
        let mut hash = Hash::default();
        hash.add(&self.0.to_le_bytes());
        hash.add(address.as_bytes());
        hash.end().0
    }
}

fn said(message: &ChatMessage) -> &[u8] {
    if message.json.is_empty() {
        message.content.as_bytes()
    } else {
        message.json.as_bytes()
    }
}

fn beginning(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(CHUNK)]
}

/// FNV-1a, with the finish of SplitMix64 so that similar names give unlike weights. It is the same in every version of
/// the gateway, as it must be while they are replaced one by one.
#[derive(Default)]
struct Hash(Fnv1a);

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
        // What stands in two parts is not what stands in one.
        self.0.write_u8(0xff);
    }

    fn end(self) -> Affinity {
        Affinity(mix(self.0.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(turns: &[(&str, &str)]) -> Option<Affinity> {
        let message = |&(role, content): &(&str, &str)| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            ..ChatMessage::default()
        };
        Affinity::of_prompt(&Prompt::Chat(ChatPrompt {
            messages: turns.iter().map(message).collect(),
            ..ChatPrompt::default()
        }))
    }

    #[test]
    fn turns_of_a_conversation_belong_together_and_users_of_one_system_prompt_do_not() {
        let system = ("system", "s".repeat(9000));
        let system = (system.0, system.1.as_str());
        let first = chat(&[system, ("user", "a")]);
        assert!(first.is_some());
        assert_eq!(
            first,
            chat(&[system, ("user", "a"), ("assistant", "b"), ("user", "c")])
        );
        assert_ne!(first, chat(&[system, ("user", "b")]));
        assert_ne!(first, chat(&[("system", "t"), ("user", &"a".repeat(9000))]));
        let text = |question: &str| format!("{}{question}", "text ".repeat(1000));
        assert_eq!(
            chat(&[("user", &text("what?"))]),
            chat(&[("user", &text("why?"))])
        );
        assert_eq!(chat(&[("system", "s"), ("user", "short")]), None);
        let prompt = |text: &str| Affinity::of_prompt(&Prompt::Text(text.to_owned()));
        assert_eq!(prompt(&text("what?")), prompt(&text("why?")));
        assert_ne!(Affinity::of_session("a"), Affinity::of_session("b"));
    }

    #[test]
    fn weights_are_spread_evenly_and_stay_when_others_come() {
        let best = |key: Affinity, leaders: u32| {
            (0..leaders).max_by_key(|leader| key.weight(&format!("10.0.0.{leader}:18051")))
        };
        let mut counts = [0; 4];
        for index in 0..4000 {
            let key = Affinity::of_session(&index.to_string());
            let four = best(key, 4).unwrap();
            counts[four as usize] += 1;
            assert!(best(key, 5) == Some(four) || best(key, 5) == Some(4));
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
