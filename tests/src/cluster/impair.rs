//! Cables that work badly: one way only, or slowly. Undone by [`heal`].

use std::io::Write as _;

use anyhow::{Context, Result, bail};

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
}

const TABLE: &str = "llamero_impair";
/// Fills a node's `/run`.
const FILLER: &str = "/run/filler";

pub(super) fn impair(node: Node, impairment: Impairment) -> Result<()> {
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
    }
}

/// Takes every impairment back; none is fine.
pub(super) fn heal(node: Node) -> Result<()> {
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
        "table inet {TABLE} {{ chain cable {{ type filter hook {hook} priority {priority}; {direction} \"eth0\" drop; }} }}\n"
    );
    output_with_input(&mut inside(node, "nft", &["-f", "-"]), rules.as_bytes())?;
    Ok(())
}

/// Fills the node's `/run`, of which it has its own, to the last byte.
pub(super) fn fill(node: Node) -> Result<()> {
    let mut file = std::fs::File::create(node.file(FILLER)).context("cannot fill the node's /run")?;
    let block = vec![0; 1 << 16];
    loop {
        match file.write(&block) {
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
