//! What the operator's passes cost, without a cluster: an API server, a scheduler and workers that only live in memory obey its plans.
//! `cargo run --release -p llamero-operator --example passes`, or `make bench-passes`.
//!
//! Two sizes: 1,000 pods as 125 groups of 8 on 100 nodes, and 10,000 pods as 1,250 groups on 5,000 nodes beside 60,000 pods of others.

#![allow(
    clippy::expect_used,
    reason = "a benchmark whose own objects are malformed may end"
)]

mod world;

use std::time::{Duration, Instant};

use world::World;

/// A size of cluster.
struct Size {
    deployments: usize,
    groups: usize,
    nodes: usize,
    foreign: usize,
    /// Milliseconds that a pass with nothing to do may take, and MiB that the process may hold.
    marks: (f64, f64),
}

const SIZES: [Size; 2] = [
    Size {
        deployments: 5,
        groups: 25,
        nodes: 100,
        foreign: 0,
        marks: (1.0, 64.0),
    },
    Size {
        deployments: 50,
        groups: 25,
        nodes: 5_000,
        foreign: 60_000,
        marks: (10.0, 256.0),
    },
];

fn main() {
    // One process a size, because memory that was freed may stay with the process.
    let wanted = std::env::args()
        .nth(1)
        .and_then(|word| word.parse::<usize>().ok());
    match wanted.and_then(|at| SIZES.get(at)) {
        Some(size) => measure(size),
        None => {
            for at in 0..SIZES.len() {
                let this = std::env::current_exe();
                let ended =
                    this.and_then(|this| std::process::Command::new(this).arg(at.to_string()).status());
                if !ended.is_ok_and(|status| status.success()) {
                    eprintln!("error: size {at} was not measured");
                    std::process::exit(1);
                }
            }
        }
    }
}

fn measure(size: &Size) {
    let pods = size.deployments * size.groups * 8;
    println!(
        "{pods} pods in {} groups of {} deployments, {} pods of others, {} nodes",
        size.deployments * size.groups,
        size.deployments,
        size.foreign,
        size.nodes
    );
    let mut world = World::new(size.nodes, size.foreign);
    let filled = Instant::now();
    world.pass();
    println!("  first lists taken in: {:.1} ms", ms(filled.elapsed()));
    world.deploy(size.deployments, size.groups);
    let mut passes = Vec::new();
    let began = Instant::now();
    while !world.serves() {
        passes.push(world.pass());
        assert!(
            passes.len() < 200,
            "the groups do not come to serve: {:#?}",
            world.what_is_missing()
        );
    }
    let longest = passes.iter().max().copied().unwrap_or_default();
    println!(
        "  start: {} passes, {:.0} ms in all with everything that obeys them, the longest pass {:.1} ms",
        passes.len(),
        ms(began.elapsed()),
        ms(longest)
    );
    world.settle();
    let (mark, memory_mark) = size.marks;
    let idle = repeat(200, || world.pass());
    row("nothing happened", &idle, Some(mark));
    row(
        "every leader reported",
        &repeat(50, || {
            world.leaders_report();
            world.pass()
        }),
        Some(mark),
    );
    row(
        "a pod of others came and went",
        &repeat(50, || {
            world.foreign_moves();
            world.pass()
        }),
        Some(mark),
    );
    row(
        "a pod of ours changed",
        &repeat(50, || {
            world.own_pod_changes();
            world.pass()
        }),
        None,
    );
    row(
        "a node was cordoned and let go",
        &repeat(20, || {
            world.cordon();
            world.pass()
        }),
        None,
    );
    row(
        "everything decided anew, nothing to do",
        &repeat(10, || {
            world.everything_is_due();
            world.pass()
        }),
        Some(mark),
    );
    world.drop_objects();
    let held = resident_mib();
    println!("  memory of the process: {held:.0} MiB (mark {memory_mark:.0})");
}

fn repeat(times: usize, mut pass: impl FnMut() -> Duration) -> Vec<Duration> {
    let mut took: Vec<Duration> = (0..times).map(|_| pass()).collect();
    took.sort();
    took
}

fn row(what: &str, took: &[Duration], mark: Option<f64>) {
    let at = |part: f64| {
        let at = (took.len() as f64 * part) as usize;
        took.get(at.min(took.len().saturating_sub(1)))
            .map_or(0.0, |took| ms(*took))
    };
    let mark = mark.map_or(String::new(), |mark| format!(" (mark {mark})"));
    println!(
        "  {what}: median {:.3} ms, 99 % {:.3} ms{mark}",
        at(0.5),
        at(0.99)
    );
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// `VmRSS` of this process.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
