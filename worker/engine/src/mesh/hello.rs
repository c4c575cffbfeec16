//! What is said in a handshake: who dials, for which era, over which model in which arithmetic.
//!
//! | from | what | proves |
//! |---|---|---|
//! | dialler | [`Opening`]: a random number | that it, or somebody it heard, knew the key: a replay is possible |
//! | listener | [`Challenge`]: its own random number | that it knows the key, by both numbers |
//! | dialler | [`SignedHello`]: [`Hello`] | that it knows the key, by both numbers |
//! | listener | [`SignedAnswer`]: [`Answer`] | that it knows the key, by both numbers |
//!
//! From then on both sides send sealed frames only (`seal`), by keys that are made from the same key and both numbers.
//!
//! Whoever does not prove itself hears nothing more: the connection is closed. So a stranger that is dialled learns a random
//! number only, and one that dials learns nothing; who replays an opening gets a challenge, which does not help it either.
//! Ranks that are not formed close at once.

use serde::{Deserialize, Serialize};

use super::key::{Nonce, Proof};
use super::{Members, Topology};
use crate::step::Era;

/// Version of everything that ranks say to each other.
pub const PROTOCOL: u16 = 7;

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LinkKind {
    /// Plans, late values and answers, between rank 0 and another rank.
    Plan,
    /// Collectives.
    Data,
}

/// What the dialler says first. It tells the listener which generation's key to use, and strangers nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// A random number of the dialler's.
    pub nonce: Nonce,
    /// Over `nonce`, with zeros for the challenge that is yet to come.
    pub proof: Proof,
}

/// What the listener says to a dialler that knows a generation's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// A random number of the listener's.
    pub challenge: Nonce,
    /// Over challenge and the dialler's nonce.
    pub proof: Proof,
}

/// A [`Hello`] with the proof that it comes from a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHello {
    /// The [`Hello`] in postcard's form.
    pub hello: Vec<u8>,
    /// Over challenge, the dialler's nonce and `hello`.
    pub proof: Proof,
}

/// An [`Answer`] with the proof that it comes from a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedAnswer {
    /// The [`Answer`] in postcard's form.
    pub answer: Vec<u8>,
    /// Over challenge, the dialler's nonce and `answer`.
    pub proof: Proof,
}

/// What the dialler says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the dialler.
    pub protocol: u16,
    /// metadata.uid of the group.
    pub group_uid: String,
    /// The era the link is for.
    pub era: Era,
    /// The dialler's rank.
    pub from: u32,
    /// The rank it wants.
    pub to: u32,
    /// What for.
    pub link: LinkKind,
    /// How the group shares the model.
    pub topology: Topology,
    /// Numerics class (kernel family, KV type): ranks of one class compute the same bits.
    pub numerics: String,
    /// Content identity of the checkpoint.
    pub content: String,
    /// Ranks that the group does without, in the order in which it lost them.
    pub lost: Vec<u32>,
}

/// Why a link is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// Other version of the protocol.
    Protocol,
    /// Other group.
    OtherGroup,
    /// Lower generation, or an epoch that is over.
    OldEra,
    /// Still loading. Try again.
    NotReady,
    /// This is another rank, or the group has another topology.
    WrongRank,
    /// The two disagree about which ranks the group has lost, or in which order.
    OtherMembers,
    /// Other numerics class.
    OtherNumerics,
    /// Other weights.
    OtherContent,
    /// The link exists already.
    Duplicate,
}

/// What the one that accepted says to a dialler that has proved itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The link is for use from here on.
    Welcome,
    /// It is not.
    Refused {
        /// For programs.
        code: RefusalCode,
        /// For people.
        sentence: String,
        /// The latest era seen there, so that a leader that was restarted can choose a later one.
        latest: Era,
    },
}

/// What a rank knows about itself when somebody says Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// metadata.uid of the group.
    pub group_uid: String,
    /// This rank.
    pub rank: u32,
    /// Who belongs to the group, and how they share the model.
    pub members: Members,
    /// Numerics class.
    pub numerics: String,
    /// Content identity of the checkpoint.
    pub content: String,
}

impl Identity {
    /// A Hello from this rank.
    #[must_use]
    pub fn hello(&self, era: Era, to: u32, link: LinkKind) -> Hello {
        Hello {
            protocol: PROTOCOL,
            group_uid: self.group_uid.clone(),
            era,
            from: self.rank,
            to,
            link,
            topology: self.members.topology(),
            numerics: self.numerics.clone(),
            content: self.content.clone(),
            lost: self.members.lost().to_vec(),
        }
    }

    /// Check everything in a Hello that does not change during a generation.
    ///
    /// # Errors
    /// The code and a sentence that says what differs.
    pub fn check(&self, hello: &Hello) -> Result<(), (RefusalCode, String)> {
        let refuse = |code, sentence| Err((code, sentence));
        if hello.protocol != PROTOCOL {
            let sentence = format!(
                "protocol {} is spoken there and {PROTOCOL} here: run the same image on all ranks",
                hello.protocol
            );
            return refuse(RefusalCode::Protocol, sentence);
        }
        if hello.group_uid != self.group_uid {
            let sentence = format!(
                "this rank belongs to group {} and not to {}",
                self.group_uid, hello.group_uid
            );
            return refuse(RefusalCode::OtherGroup, sentence);
        }
        if hello.topology != self.members.topology() {
            let sentence = format!(
                "rank {} was started for {} and rank {} for {}: start all members with the same parallelism",
                hello.from,
                hello.topology,
                self.rank,
                self.members.topology()
            );
            return refuse(RefusalCode::WrongRank, sentence);
        }
        if hello.lost != self.members.lost() {
            let sentence = format!(
                "rank {} takes {:?} for the ranks that the group has lost and rank {} takes {:?}: tell all members the same \
                 ones, in the same order",
                hello.from,
                hello.lost,
                self.rank,
                self.members.lost()
            );
            return refuse(RefusalCode::OtherMembers, sentence);
        }
        if hello.to != self.rank || self.members.index(hello.from).is_none() || hello.from == self.rank {
            let sentence = format!(
                "this is rank {}; rank {} wanted rank {}",
                self.rank, hello.from, hello.to
            );
            return refuse(RefusalCode::WrongRank, sentence);
        }
        if hello.link == LinkKind::Plan && hello.from != 0 {
            let sentence = format!("plans come from rank 0 and not from rank {}", hello.from);
            return refuse(RefusalCode::WrongRank, sentence);
        }
        if hello.numerics != self.numerics {
            let sentence = format!(
                "rank {} computes as {} and rank {} as {}: a group needs processors of one kind, and one type of KV cache",
                hello.from, hello.numerics, self.rank, self.numerics
            );
            return refuse(RefusalCode::OtherNumerics, sentence);
        }
        if hello.content != self.content {
            let sentence = format!(
                "rank {} has other weights ({}) than rank {} ({}): give both the same checkpoint",
                hello.from, hello.content, self.rank, self.content
            );
            return refuse(RefusalCode::OtherContent, sentence);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_has_its_own_refusal() {
        let identity = |rank| Identity {
            group_uid: "g".into(),
            rank,
            members: Members::new(Topology::tensor(5), &[4, 3]).unwrap(),
            numerics: "x86-avx512bf16-v1".into(),
            content: "m".into(),
        };
        let good = identity(0).hello(
            Era {
                generation: 1,
                epoch: 1,
            },
            2,
            LinkKind::Plan,
        );
        let code = |change: &dyn Fn(&mut Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            identity(2).check(&hello).map_err(|(code, sentence)| {
                assert!(sentence.len() > 20);
                code
            })
        };
        assert_eq!(code(&|_| ()), Ok(()));
        assert_eq!(code(&|hello| hello.protocol = 9), Err(RefusalCode::Protocol));
        assert_eq!(
            code(&|hello| hello.group_uid = "h".into()),
            Err(RefusalCode::OtherGroup)
        );
        assert_eq!(code(&|hello| hello.to = 1), Err(RefusalCode::WrongRank));
        assert_eq!(
            code(&|hello| hello.topology.pipeline = 4),
            Err(RefusalCode::WrongRank)
        );
        for lost in [vec![], vec![4], vec![3, 4], vec![4, 3, 1]] {
            assert_eq!(
                code(&|hello| hello.lost.clone_from(&lost)),
                Err(RefusalCode::OtherMembers),
                "{lost:?}"
            );
        }
        for from in [3, 4, 5] {
            assert_eq!(code(&|hello| hello.from = from), Err(RefusalCode::WrongRank));
        }
        assert_eq!(code(&|hello| hello.from = 2), Err(RefusalCode::WrongRank));
        assert_eq!(
            code(&|hello| hello.from = 1),
            Err(RefusalCode::WrongRank),
            "rank 1 sends no plans"
        );
        assert_eq!(
            code(&|hello| hello.numerics = "generic-v1".into()),
            Err(RefusalCode::OtherNumerics)
        );
        assert_eq!(
            code(&|hello| hello.content = "n".into()),
            Err(RefusalCode::OtherContent)
        );
    }
}
