//! `Form` and `Drain` calls to worker pods.

use std::{collections::HashMap, time::Duration};

use llamero_api::{group::Transport, labels::CONTROL_PORT};
use llamero_core::plan::{FormMember, FormTarget};
use llamero_proto::v1;
use tonic::transport::{Channel, Endpoint};

use super::{
    EffectError,
    peers::{Asked, Peers},
};
use crate::links::form;

/// Connections to control ports by pod UID, those of the report streams.
pub type Channels = HashMap<String, Channel>;

/// How the pods of a group are reached.
pub(super) struct Dialled<'a> {
    /// Connections that are there.
    pub(super) channels: &'a Channels,
    /// How others are made.
    pub(super) transport: Transport,
}

fn channel(dialled: &Dialled<'_>, target: &FormTarget) -> Result<Channel, EffectError> {
    if let Some(channel) = dialled.channels.get(&target.pod_uid) {
        return Ok(channel.clone());
    }
    if dialled.transport == Transport::Mutual {
        // Every pass dials the pods that are to be told something; there is no other way to those that must be authenticated.
        let uid = &target.pod_uid;
        return Err(EffectError::Dropped(format!(
            "the pod with uid {uid} is not listened to yet"
        )));
    }
    Endpoint::from_shared(format!("http://{}", address(&target.ip, CONTROL_PORT)))
        .map(|endpoint| endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy())
        .map_err(|error| EffectError::Dropped(format!("{} is no address: {error}", target.ip)))
}

/// `ip:port`, with brackets where IPv6 needs them.
#[must_use]
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// Who is told, and what of.
pub(super) struct Forming<'a> {
    /// UID of the group.
    pub(super) group_uid: &'a str,
    /// The generation.
    pub(super) generation: i64,
    /// Ranks that the group does without.
    pub(super) lost: &'a [u32],
    /// All other ranks in rank order.
    pub(super) members: &'a [FormMember],
    /// By which they know each other.
    pub(super) key: [u8; 32],
}

/// Begins to tell all targets that are not being told; what comes of it their reports tell. Whether there were any.
pub(super) fn form(
    peers: &Peers,
    dialled: &Dialled<'_>,
    forming: &Forming<'_>,
    targets: &[FormTarget],
) -> Result<bool, EffectError> {
    let request = v1::FormRequest {
        group_uid: forming.group_uid.to_owned(),
        generation: u64::try_from(forming.generation).unwrap_or(0),
        members: forming
            .members
            .iter()
            .map(|member| v1::Member {
                rank: member.rank,
                pod_uid: member.pod_uid.clone(),
                ip: member.ip.clone(),
                port: u32::from(member.port),
            })
            .collect(),
        key: forming.key.to_vec(),
        lost: forming.lost.to_vec(),
    };
    let mut begun = false;
    for target in targets {
        let call = form::form(channel(dialled, target)?, request.clone());
        let told = async move { call.await.map(drop) };
        begun |= peers.call(&target.pod_uid, Asked::Form(forming.generation), told)?;
    }
    Ok(begun)
}

/// Begins to ask the leader to finish what runs.
pub(super) fn drain(peers: &Peers, dialled: &Dialled<'_>, leader: &FormTarget) -> Result<bool, EffectError> {
    let call = form::drain(channel(dialled, leader)?);
    peers.call(&leader.pod_uid, Asked::Drain, call)
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(address("10.0.0.1", 18052), "10.0.0.1:18052");
        assert_eq!(address("fd00::1", 18052), "[fd00::1]:18052");
    }
}
