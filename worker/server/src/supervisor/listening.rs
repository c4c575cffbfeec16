//! What happens once all ranks of the pod listen.

use std::net::{IpAddr, Ipv4Addr};

use llamero_engine::mesh::GroupKey;

use super::ALONE;
use super::control::Control;
use super::pod::Pod;
use crate::cli::serve::ServeArgs;
use crate::link::{Membership, RankAddress};

/// Once all local ranks listen: tells the ports, and connects the group when the worker stands alone.
pub async fn when_all_listen(args: ServeArgs, control: Control, (control_port, http_port): (u16, u16)) {
    let mut pod = control.pod.subscribe();
    let listening = |pod: &Pod| pod.ranks.iter().all(|rank| rank.rank_port.is_some());
    let (rank_ports, inference_port) = match pod.wait_for(listening).await {
        Ok(pod) => {
            let ports: Vec<u16> = pod.ranks.iter().filter_map(|rank| rank.rank_port).collect();
            (ports, pod.ranks.first().and_then(|rank| rank.inference_port))
        }
        Err(_) => return,
    };
    tracing::info!(control_port, http_port, inference_port, ?rank_ports, "listening");
    if args.group_uid.is_none() {
        let member = |port: &u16| RankAddress {
            pod_uid: args.pod_uid.clone(),
            ip: loopback(&args),
            port: *port,
        };
        let members = rank_ports.iter().map(member).collect();
        match GroupKey::random() {
            Ok(key) => {
                let membership = Membership {
                    group_uid: ALONE.to_owned(),
                    generation: 1,
                    lost: Vec::new(),
                    members,
                    key,
                };
                if let Err(why) = control.form(membership) {
                    tracing::error!("{why}");
                }
            }
            Err(error) => tracing::error!("the system has no random numbers for a key: {error}"),
        }
    }
    if let Some(path) = &args.ports_file {
        let ports = serde_json::json!({
            "control": control_port, "http": http_port, "inference": inference_port, "ranks": rank_ports,
        });
        let written = path.with_extension("part");
        let outcome =
            std::fs::write(&written, ports.to_string()).and_then(|()| std::fs::rename(&written, path));
        if let Err(error) = outcome {
            tracing::error!("{} cannot be written: {error}", path.display());
        }
    }
}

/// What listens everywhere takes IPv4 as well.
fn loopback(args: &ServeArgs) -> IpAddr {
    let listen = args.listen_address();
    if listen.is_unspecified() {
        return Ipv4Addr::LOCALHOST.into();
    }
    listen
}
