//! Delay on a node's cable, where the kernel has no netem: what leaves the node goes through a TUN device, whose reader holds each packet for a while
//! and then gives it back to the kernel, which sends it on by the cable.
//!
//! ```text
//! node or pod ──► table 214: the device ──► relay waits ──► the device ──► table 213: eth0, not tracked again
//! ```

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use tun_rs::DeviceBuilder;

use super::addresses::{HOST, NODE_PREFIX, POD_NETWORK};
use super::node::Node;
use super::process;
use crate::command::{command, output, output_with_input};
use crate::{paths, poll};

const DEVICE: &str = "llamero-relay";
const TABLE: &str = "llamero_relay";
/// Routing tables: past the relay, and to it.
const PAST: &str = "213";
const THROUGH: &str = "214";
/// Packets that are held at once; more wait in the device's own queue, which then drops.
const HELD: usize = 8192;
/// Longest packet of the device.
const PACKET: usize = 2048;

fn part(node: Node) -> String {
    format!("relay/{}", node.name())
}

/// Everything that leaves the node takes `delay` longer, until [`heal`].
pub(super) fn delay(node: Node, delay: Duration) -> Result<()> {
    let program = paths::program("llamero-cluster");
    let mut relay = inside(node, &program.display().to_string());
    relay.arg("relay").arg(delay.as_millis().to_string());
    process::start(&part(node), &mut relay)?;
    poll::until("the relay's device", Duration::from_secs(60), || {
        Ok(Some(ip(node, &["link", "set", DEVICE, "mtu", "1500", "up"])?))
    })
    .with_context(|| format!("its log is {}", process::log_file(&part(node)).display()))?;
    // What comes back from the device has addresses of this node.
    for (setting, value) in [("rp_filter", "0"), ("accept_local", "1")] {
        let setting = format!("net.ipv4.conf.{DEVICE}.{setting}={value}");
        output(inside(node, "sysctl").args(["-q", "-w", &setting]))?;
    }
    let rules = format!(
        "table inet {TABLE} {{ chain again {{ type filter hook prerouting priority raw; iifname \"{DEVICE}\" notrack; }}; }}\n"
    );
    output_with_input(inside(node, "nft").args(["-f", "-"]), rules.as_bytes())?;
    let mut batch = String::new();
    for line in ip(node, &["-4", "route", "show", "dev", "eth0"])?.lines() {
        let _ = writeln!(batch, "route add {line} dev eth0 table {PAST}");
    }
    let (own, source) = (node.index().pod_network(), node.index().address());
    let _ = writeln!(
        batch,
        "route add default dev {DEVICE} src {source} table {THROUGH}"
    );
    let _ = writeln!(batch, "rule add priority 100 iif {DEVICE} lookup {PAST}");
    let _ = writeln!(batch, "rule add priority 150 to {own} lookup main");
    for network in [format!("{HOST}/{NODE_PREFIX}"), POD_NETWORK.to_owned()] {
        let _ = writeln!(batch, "rule add priority 200 to {network} lookup {THROUGH}");
    }
    output_with_input(inside(node, "ip").args(["-batch", "-"]), batch.as_bytes())?;
    Ok(())
}

/// Takes the delay back; there being none is fine.
pub(super) fn heal(node: Node) -> Result<()> {
    let part = part(node);
    for priority in ["100", "150", "200", "200"] {
        // Each rule once; none is fine.
        let _ = ip(node, &["rule", "delete", "priority", priority]);
    }
    let _ = ip(node, &["route", "flush", "table", PAST]);
    let relays: Vec<_> = process::all()?
        .into_iter()
        .filter(|one| one.part == part)
        .collect();
    process::end(&relays, Signal::KILL, Duration::ZERO)?;
    let remove = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    output_with_input(inside(node, "nft").args(["-f", "-"]), remove.as_bytes())?;
    if ip(node, &["rule", "show"])?.contains(THROUGH) {
        bail!("{} still sends through the relay", node.name());
    }
    Ok(())
}

/// The relay: makes the device and holds each of its packets for `delay`. Runs until it is killed.
///
/// # Errors
/// The device cannot be made, read or written.
pub fn relay(delay: Duration) -> Result<()> {
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .build_sync()
        .context("cannot make the device: is there /dev/net/tun, and is this root?")?;
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(HELD);
    std::thread::scope(|scope| {
        let device = &device;
        let reading = scope.spawn(move || -> Result<()> {
            let mut packet = vec![0; PACKET];
            loop {
                let length = device.recv(&mut packet)?;
                let due = Instant::now() + delay;
                let packet = packet.get(..length).unwrap_or_default().to_vec();
                if sender.send((due, packet)).is_err() {
                    return Ok(());
                }
            }
        });
        deliver(&receiver, |packet| device.send(packet).map(drop))?;
        reading.join().map_err(|_| anyhow!("the relay's reader broke"))?
    })
}

/// Gives each packet out when it is due, in their order.
fn deliver(
    receiver: &Receiver<(Instant, Vec<u8>)>,
    mut give: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<()> {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    loop {
        let wait = held.front().map_or(Duration::from_secs(3600), |(due, _)| {
            due.saturating_duration_since(Instant::now())
        });
        match receiver.recv_timeout(wait) {
            Ok(packet) => held.push_back(packet),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if held.is_empty() => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => poll::pause(wait),
        }
        while let Some((due, packet)) = held.front() {
            if *due > Instant::now() {
                break;
            }
            // The kernel refuses what it cannot route, such as what IPv6 says to itself.
            let _ = give(packet);
            held.pop_front();
        }
    }
}

fn ip(node: Node, words: &[&str]) -> Result<String> {
    output(inside(node, "ip").args(words))
}

fn inside(node: Node, program: &str) -> std::process::Command {
    command(
        "nsenter",
        &["--target", &node.init().to_string(), "--net", program],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_when_they_are_due_and_in_their_order() {
        let (sender, receiver) = sync_channel(HELD);
        let due = Instant::now() + Duration::from_millis(50);
        for number in 0..10_u8 {
            sender.send((due, vec![number])).unwrap();
        }
        drop(sender);
        let mut given = Vec::new();
        deliver(&receiver, |packet| {
            assert!(Instant::now() >= due);
            given.extend_from_slice(packet);
            Ok(())
        })
        .unwrap();
        assert_eq!(given, (0..10).collect::<Vec<u8>>());
    }
}
