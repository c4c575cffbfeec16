//! What a supervisor and a rank's process say to each other: one JSON object a line, over a socket pair.
//!
//! The rank's end is its standard input, so that nothing has to be inherited by number, and so that the rank notices
//! the end of its supervisor as the end of its input. The first byte carries memory files (`SCM_RIGHTS`, see
//! unix(7)): the rank's weights alone, or the notes of loading and the weights of all ranks of the pod. JSON lines follow.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use llamero_engine::DeviceReport;
use llamero_engine::mesh::GroupKey;
use llamero_identity::credentials::Material;
use llamero_proto::v1::Phase;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::config::RankConfig;

/// From the supervisor to a rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Down {
    /// The first line: who the rank is. Boxed, because it is large and comes once.
    Start(Box<RankConfig>),
    /// The members of the group.
    Form(Membership),
    /// The certificate and key by which rank 0 serves clients, again at every renewal.
    Credentials(Material),
    /// Stop. Rank 0: not ready, grace, finish, tell the others. Others: go on until rank 0 has left.
    Drain,
}

/// The members of a group, in rank order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// UID of the group.
    pub group_uid: String,
    /// Only grows.
    pub generation: u64,
    /// Ranks that the group does without, in the order in which it lost them.
    #[serde(default)]
    pub lost: Vec<u32>,
    /// Where each of the others listens for its peers, in rank order.
    pub members: Vec<RankAddress>,
    /// What the members of this generation know and nobody else does.
    #[serde(with = "key_bytes")]
    pub key: GroupKey,
}

impl Membership {
    /// The ranks that are there, each with where it listens.
    pub fn present(&self) -> impl Iterator<Item = (u32, &RankAddress)> {
        let ranks = (0..).filter(|rank| !self.lost.contains(rank));
        ranks.zip(&self.members)
    }
}

/// A key in JSON: an array of its bytes. The link is a socket pair between two processes of this pod.
mod key_bytes {
    use llamero_engine::mesh::GroupKey;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &GroupKey, to: S) -> Result<S::Ok, S::Error> {
        key.as_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GroupKey, D::Error> {
        <[u8; 32]>::deserialize(from).map(GroupKey::from)
    }
}

/// Where one rank listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankAddress {
    /// UID of the pod that runs the rank; a replacement has another one.
    pub pod_uid: String,
    /// Address of the pod.
    pub ip: IpAddr,
    /// The rank's port.
    pub port: u16,
}

/// From a rank to its supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Up {
    /// The rank listens. `inference_port` is there on rank 0 only.
    Listening {
        /// Port for the other ranks.
        rank_port: u16,
        /// Port for clients.
        inference_port: Option<u16>,
    },
    /// The whole present state. Boxed, because it is large.
    State(Box<RankState>),
    /// The group was told to end; the process exits next and is not started again.
    Left,
}

/// State of a rank, as its process sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RankState {
    /// A value of [`Phase`].
    pub phase: i32,
    /// Bytes of this rank's shard in memory.
    pub loaded_bytes: u64,
    /// Bytes of this rank's shard.
    pub total_bytes: u64,
    /// Bytes this process read from the checkpoint.
    pub read_bytes: u64,
    /// Generation the rank belongs to.
    pub generation: u64,
    /// Epoch within the generation.
    pub epoch: u64,
    /// Steps entered within the epoch.
    pub entered: u64,
    /// Steps completed within the epoch.
    pub completed: u64,
    /// Milliseconds since a step was completed last.
    pub idle_millis: Option<u64>,
    /// Layers computed by this process.
    pub layers: u64,
    /// Milliseconds since anything moved: bytes loaded, a layer, a step.
    pub still_millis: Option<u64>,
    /// What the weights are.
    pub content_identity: String,
    /// In which arithmetic they are computed.
    pub numerics: String,
    /// What it computes on, beside CPUs.
    pub device: Option<DeviceReport>,
    /// Why the rank is not further, in words.
    pub message: String,
    /// Rank 0 only: the whole group completed a step within the stall time-out, or computes one whose layers move, and
    /// nothing drains.
    pub group_serving: bool,
    /// Rank 0 only: the group drains.
    pub draining: bool,
    /// Rank 0 only: tokens of the longest sequence that the group holds; none before it has formed.
    #[serde(default)]
    pub longest_sequence: Option<u32>,
    /// Rank 0 only: load of the group.
    pub load: Option<Load>,
}

impl RankState {
    /// The phase as its type.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::try_from(self.phase).unwrap_or(Phase::Unspecified)
    }

    /// Milliseconds, when it was sent, since the group was seen to work: see [`llamero_engine::runtime::RankState::worked_at`].
    #[must_use]
    pub fn group_idle_millis(&self) -> u64 {
        let idle = self.idle_millis.unwrap_or(0);
        match self.phase() {
            Phase::Serving => self.still_millis.map_or(idle, |still| still.min(idle)),
            _ => idle,
        }
    }
}

/// Load of the group, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Sequences that run.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// KV blocks in use.
    pub kv_blocks_used: u32,
    /// KV blocks in all.
    pub kv_blocks_total: u32,
    /// Prompt tokens since the process started.
    pub prompt_tokens: u64,
    /// Output tokens since the process started.
    pub output_tokens: u64,
    /// Prompt tokens that were looked for in the KV cache since the process started.
    pub prefix_lookup_tokens: u64,
    /// Of those, tokens that were there.
    pub prefix_hit_tokens: u64,
    /// Rows that had drafts since the process started.
    #[serde(default)]
    pub drafts: u64,
    /// Tokens that were drafted in them.
    #[serde(default)]
    pub draft_tokens: u64,
    /// Of those, tokens that were right.
    #[serde(default)]
    pub accepted_tokens: u64,
}

/// Files that go over a link at once. Files that are under way to all ranks count together against the limit of open files,
/// often 1024, and more would not fit there when all start at the same time.
pub const MAX_FILES: usize = 25;

/// Sends memory files, [`MAX_FILES`] at most. The first thing on a new link.
///
/// # Errors
/// What the kernel says, or that there are too many.
pub fn send_files(link: impl AsFd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other(format!(
            "no room for {} file descriptors",
            files.len()
        )));
    }
    rustix::net::sendmsg(link, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send_files`] sent; the link must be blocking.
///
/// # Errors
/// What the kernel says, or that no file came.
pub fn receive_files(link: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        link,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut received = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            received.extend(files);
        }
    }
    if received.is_empty() {
        return Err(io::Error::other(
            "no memory file came: `llamero-worker rank` is started by `llamero-worker serve` only",
        ));
    }
    Ok(received)
}

/// One message as a line.
///
/// # Errors
/// Only if the message cannot be written as JSON.
pub fn line<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn files_cross_and_lines_follow() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"weights").unwrap();
        let many = [file.as_fd(); MAX_FILES];
        send_files(&here, &many).unwrap();
        here.write_all(&line(&Down::Drain).unwrap()).unwrap();
        drop(here);
        let mut received = receive_files(&there).unwrap();
        assert_eq!(received.len(), MAX_FILES);
        let mut received = std::fs::File::from(received.pop().unwrap());
        received.rewind().unwrap();
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "weights");
        text.clear();
        there.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\"drain\"\n");
    }

    #[test]
    fn a_membership_crosses_with_its_key_and_does_not_show_it() {
        let form = Down::Form(Membership {
            group_uid: "g".into(),
            generation: 3,
            lost: vec![2],
            members: Vec::new(),
            key: GroupKey::from([0xab; 32]),
        });
        let line = line(&form).unwrap();
        assert_eq!(serde_json::from_slice::<Down>(&line).unwrap(), form);
        assert!(!format!("{form:?}").contains("171"), "{form:?}");
    }

    #[test]
    fn a_byte_without_a_file_is_refused() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"\n").unwrap();
        assert!(
            receive_files(&there)
                .unwrap_err()
                .to_string()
                .contains("llamero-worker serve")
        );
    }
}
