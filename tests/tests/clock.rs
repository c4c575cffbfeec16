//! A process is told a wrong time, and no other one is.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::ops::RangeInclusive;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use llamero_tests::cluster::{PodProcess, clock};

const CHILD: &str = "LLAMERO_TEST_TELLS_TIME";

fn seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Not a test by itself: the program that is told a wrong time. Tells both its clocks for each line that comes.
#[test]
fn tell_time() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let began = Instant::now();
    for _ in std::io::stdin().lines() {
        println!("\ntime {} {}", seconds(), began.elapsed().as_secs());
    }
}

/// How far the child's clock is from ours, and how long it thinks to have run.
fn told(ask: &mut ChildStdin, lines: &mut Lines<BufReader<ChildStdout>>) -> (RangeInclusive<i64>, u64) {
    let before = seconds();
    writeln!(ask).unwrap();
    let line = lines.find_map(|line| Some(line.unwrap().strip_prefix("time ")?.to_owned()));
    let line = line.unwrap();
    let (wall, ran) = line.split_once(' ').unwrap();
    let wall: i64 = wall.parse().unwrap();
    (wall - seconds()..=wall - before, ran.parse().unwrap())
}

#[test]
fn one_process_has_a_wrong_clock_until_it_is_put_right() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tell_time", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = child.stdin.take().unwrap();
    let process = PodProcess::of(i32::try_from(child.id()).unwrap()).unwrap();
    for shift in [86_400, -3_600] {
        assert!(told(&mut ask, &mut lines).0.contains(&0));
        let shifted = clock::shift(&process, shift).unwrap();
        let (apart, ran) = told(&mut ask, &mut lines);
        assert!(apart.contains(&shift), "{apart:?}");
        assert!(ran < 3_600, "it thinks to have run for {ran} s");
        shifted.take_back().unwrap();
    }
    assert!(told(&mut ask, &mut lines).0.contains(&0));
    drop(ask);
    assert!(child.wait().unwrap().success());
    assert!(clock::shift(&process, 1).is_err());
}
