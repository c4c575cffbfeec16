//! What happens once all ranks of the pod listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
        let membership = Membership {
            group_uid: ALONE.to_owned(),
            generation: 1,
            members,
        };
        if let Err(why) = control.form(membership) {
            tracing::error!("{why}");
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

fn loopback(args: &ServeArgs) -> IpAddr {
    let listen = args.listen_address();
    match listen {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    }
}
