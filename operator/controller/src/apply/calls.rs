//! `Form` and `Drain` calls to worker pods.

use std::{collections::HashMap, time::Duration};

use futures::future::join_all;
use llamero_api::labels::CONTROL_PORT;
use llamero_core::plan::{FormMember, FormTarget};
use llamero_proto::v1;
use tonic::transport::{Channel, Endpoint};

use super::{EffectError, Writer};
use crate::links::form;

/// Connections to control ports by pod UID, those of the report streams.
pub type Channels = HashMap<String, Channel>;

fn channel(channels: &Channels, target: &FormTarget) -> Result<Channel, EffectError> {
    if let Some(channel) = channels.get(&target.pod_uid) {
        return Ok(channel.clone());
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

/// Tells all targets at once. The first failure is returned after all have been told.
pub(super) async fn form(
    writer: &Writer,
    channels: &Channels,
    group_uid: &str,
    generation: i64,
    members: &[FormMember],
    targets: &[FormTarget],
    key: [u8; 32],
) -> Result<(), EffectError> {
    if !writer.leads() {
        return Err(EffectError::NotLeading);
    }
    let request = v1::FormRequest {
        group_uid: group_uid.to_owned(),
        generation: u64::try_from(generation).unwrap_or(0),
        members: members
            .iter()
            .map(|member| v1::Member {
                rank: member.rank,
                pod_uid: member.pod_uid.clone(),
                ip: member.ip.clone(),
                port: u32::from(member.port),
            })
            .collect(),
        key: key.to_vec(),
    };
    let mut calls = Vec::new();
    for target in targets {
        calls.push(form_one(channels, target, request.clone()));
    }
    join_all(calls).await.into_iter().collect()
}

async fn form_one(
    channels: &Channels,
    target: &FormTarget,
    request: v1::FormRequest,
) -> Result<(), EffectError> {
    form::form(channel(channels, target)?, request).await?;
    Ok(())
}

/// Asks the leader to finish what runs.
pub(super) async fn drain(
    writer: &Writer,
    channels: &Channels,
    leader: &FormTarget,
) -> Result<(), EffectError> {
    if !writer.leads() {
        return Err(EffectError::NotLeading);
    }
    Ok(form::drain(channel(channels, leader)?).await?)
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
