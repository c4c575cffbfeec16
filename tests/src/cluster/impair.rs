//! Cables that work badly: one way only, slowly, late, or with a wrong byte. Undone by [`heal`].

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::delay;
use super::node::Node;
use crate::command::{command, output, output_with_input};

/// What is wrong with a node's cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impairment {
    /// The node hears nothing, but is heard.
    NothingIn,
    /// The node hears everything, but is not heard.
    NothingOut,
    /// Both ways carry so many megabits a second.
    Slow(u32),
    /// What leaves the node takes so many milliseconds longer.
    Late(u64),
    /// One packet of each direction between TCP ports from the first to the last one has a wrong byte, which no check sum shows.
    WrongByte(u16, u16),
}

const TABLE: &str = "llamero_impair";
/// Fills a node's `/run`.
const FILLER: &str = "/run/filler";

/// Half of an impairment is taken back.
pub(super) fn impair(node: Node, impairment: Impairment) -> Result<()> {
    let done = begin(node, impairment);
    if done.is_err() {
        heal(node)?;
    }
    done
}

fn begin(node: Node, impairment: Impairment) -> Result<()> {
    match impairment {
        // Before connections are tracked, so that nothing is known of what is dropped.
        Impairment::NothingIn => drop_packets(node, "prerouting", -310, "iifname"),
        Impairment::NothingOut => drop_packets(node, "postrouting", 310, "oifname"),
        Impairment::Slow(megabits) => {
            let rate = format!("{megabits}mbit");
            let shape = ["root", "tbf", "rate", &rate, "burst", "128kb", "latency", "400ms"];
            output(command("tc", &["qdisc", "replace", "dev", &node.index().link()]).args(shape))?;
            output(inside(node, "tc", &["qdisc", "replace", "dev", "eth0"]).args(shape))?;
            Ok(())
        }
        Impairment::Late(millis) => delay::delay(node, Duration::from_millis(millis)),
        Impairment::WrongByte(first, last) => wrong_byte(node, first, last),
    }
}

/// Takes every impairment back; none is fine.
pub(super) fn heal(node: Node) -> Result<()> {
    delay::heal(node)?;
    let remove = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    output_with_input(&mut inside(node, "nft", &["-f", "-"]), remove.as_bytes())?;
    let link = node.index().link();
    for (shown, mut delete) in [
        (
            output(&mut command("tc", &["qdisc", "show", "dev", &link]))?,
            command("tc", &["qdisc", "delete", "dev", &link, "root"]),
        ),
        (
            output(&mut inside(node, "tc", &["qdisc", "show", "dev", "eth0"]))?,
            inside(node, "tc", &["qdisc", "delete", "dev", "eth0", "root"]),
        ),
    ] {
        if shown.contains("tbf") {
            output(&mut delete)?;
        }
    }
    Ok(())
}

fn drop_packets(node: Node, hook: &str, priority: i32, direction: &str) -> Result<()> {
    let rules = format!(
        "table inet {TABLE} {{ chain cable {{ type filter hook {hook} priority {priority}; {direction} \"eth0\" drop; }}; }}\n"
    );
    output_with_input(&mut inside(node, "nft", &["-f", "-"]), rules.as_bytes())?;
    Ok(())
}

/// The kernel does not look at check sums between the two ends of a virtual cable, so what is changed there arrives.
fn wrong_byte(node: Node, first: u16, last: u16) -> Result<()> {
    let mut rules =
        format!("table inet {TABLE} {{ chain cable {{ type filter hook prerouting priority -310;\n");
    for end in ["sport", "dport"] {
        // The 81st byte of a long enough segment: behind a frame's header.
        let _ = writeln!(
            rules,
            "iifname \"eth0\" tcp {end} {first}-{last} meta length > 200 limit rate 1/hour burst 1 packets counter @ih,640,8 set 0x5a;"
        );
    }
    rules.push_str("}; }\n");
    output_with_input(&mut inside(node, "nft", &["-f", "-"]), rules.as_bytes())?;
    Ok(())
}

/// Fills the node's `/run`, of which it has its own, to the last byte.
pub(super) fn fill(node: Node) -> Result<()> {
    let mut file = std::fs::File::create(node.file(FILLER)).context("cannot fill the node's /run")?;
    let block = vec![0; 1 << 16];
    loop {
        match std::io::Write::write(&mut file, &block) {
            Ok(0) => bail!("the node's /run takes no bytes, and says nothing"),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).context("cannot fill the node's /run"),
        }
    }
}

/// Makes room again; there being room is fine.
pub(super) fn make_room(node: Node) -> Result<()> {
    match std::fs::remove_file(node.file(FILLER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot make room in the node's /run")
        }
        _ => Ok(()),
    }
}

fn inside(node: Node, program: &str, words: &[&str]) -> std::process::Command {
    let mut inside = command(
        "nsenter",
        &["--target", &node.init().to_string(), "--net", program],
    );
    inside.args(words);
    inside
}
