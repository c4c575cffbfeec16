//! What is emulated, from environment variables.
//!
//! `LLAMERO_GPU_EMULATOR` is a list such as `devices=2,cc=9.0,memory=80GiB,order=reverse`:
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `devices` | number of devices | 1 |
//! | `cc` | compute capability | 9.0 |
//! | `cuda` | the latest version of CUDA that the driver knows | 13.5 |
//! | `sms` | multiprocessors | 132 |
//! | `memory` | bytes of each device (`KiB`, `MiB`, `GiB`) | 8GiB |
//! | `bandwidth` | bytes a second that clock and bus of the memory promise; an interpreter keeps no such promise; in steps of 250 kB | 256KiB |
//! | `order` | `forward`, `reverse` or `seed:N` | forward |
//! | `streams` | `eager`: work is done when enqueued; `deferred`: when somebody waits for it | eager |
//! | `threads` | host threads of a launch | all |
//! | `timeout` | seconds until a launch is given up | 120 |
//! | `peers` | `yes`, `no` (devices do not reach each other) or `lost` (they do, they say, and what is written to another device's memory is lost) | yes |
//! | `mode` | compute mode: `default`, `prohibited`, or `taken` (exclusive, and another process has the devices) | default |
//! | `log` | file that gets a line of JSON for each launch | none |
//! | `fault` | see [`super::faults`]; may stand several times | none |

use std::time::Duration;

use super::faults::Fault;
use crate::exec::order::Order;

/// When work of a stream is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streams {
    Eager,
    Deferred,
}

/// Who may compute on the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Default,
    Prohibited,
    Taken,
}

/// The emulated machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub(super) devices: usize,
    pub(super) capability: (u32, u32),
    /// Major and minor.
    pub(super) cuda: (u32, u32),
    pub(super) multiprocessors: u32,
    pub(super) memory: u64,
    pub(super) bandwidth: u64,
    pub(super) order: Order,
    pub(super) streams: Streams,
    pub(super) threads: usize,
    pub(super) timeout: Duration,
    pub(super) peers: bool,
    pub(super) peer_writes_are_lost: bool,
    pub(super) mode: Mode,
    pub(super) log: Option<std::path::PathBuf>,
    pub(super) faults: Vec<Fault>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            devices: 1,
            capability: (9, 0),
            cuda: (13, 5),
            multiprocessors: 132,
            memory: 8 << 30,
            bandwidth: 256 << 10,
            order: Order::Forward,
            streams: Streams::Eager,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            timeout: Duration::from_secs(120),
            peers: true,
            peer_writes_are_lost: false,
            mode: Mode::Default,
            log: None,
            faults: Vec::new(),
        }
    }
}

/// Name of the variable.
pub(super) const VARIABLE: &str = "LLAMERO_GPU_EMULATOR";

impl Config {
    /// From the environment.
    ///
    /// # Errors
    /// A sentence that names what is not understood.
    pub(super) fn from_environment() -> Result<Self, String> {
        Self::parse(&std::env::var(VARIABLE).unwrap_or_default())
    }

    /// As the driver tells it: 13050 for CUDA 13.5.
    pub(super) fn driver_version(&self) -> i32 {
        (self.cuda.0 * 1000 + self.cuda.1 * 10) as i32
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            config
                .set(key, value)
                .ok_or_else(|| format!("{VARIABLE}: `{item}` is not understood"))?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "devices" => self.devices = value.parse().ok().filter(|n| (1..=32).contains(n))?,
            "cc" => self.capability = version(value)?,
            "cuda" => self.cuda = version(value)?,
            "sms" => self.multiprocessors = value.parse().ok().filter(|n| *n > 0)?,
            "memory" => self.memory = bytes(value)?,
            "bandwidth" => self.bandwidth = bytes(value)?,
            "order" => {
                self.order = match value {
                    "forward" => Order::Forward,
                    "reverse" => Order::Reverse,
                    _ => Order::Seeded(value.strip_prefix("seed:")?.parse().ok()?),
                }
            }
            "streams" => {
                self.streams = match value {
                    "eager" => Streams::Eager,
                    "deferred" => Streams::Deferred,
                    _ => return None,
                }
            }
            "threads" => self.threads = value.parse().ok().filter(|n| (1..=64).contains(n))?,
            "timeout" => self.timeout = Duration::from_secs(value.parse().ok()?),
            "peers" => {
                (self.peers, self.peer_writes_are_lost) = match value {
                    "yes" => (true, false),
                    "no" => (false, false),
                    "lost" => (true, true),
                    _ => return None,
                }
            }
            "mode" => {
                self.mode = match value {
                    "default" => Mode::Default,
                    "prohibited" => Mode::Prohibited,
                    "taken" => Mode::Taken,
                    _ => return None,
                }
            }
            "log" => self.log = Some(value.into()),
            "fault" => self.faults.push(Fault::parse(value)?),
            _ => return None,
        }
        Some(())
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];
    let (unit, shift) = units.into_iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_it_documents_and_nothing_else() {
        let config =
            Config::parse("devices=2,cc=8.9,memory=24GiB,order=seed:7,streams=deferred,fault=oom@3").unwrap();
        assert_eq!(config.capability, (8, 9));
        assert_eq!(config.memory, 24 << 30);
        assert_eq!(config.order, Order::Seeded(7));
        assert_eq!(config.streams, Streams::Deferred);
        assert_eq!(config.faults.len(), 1);
        for wrong in [
            "devices=0",
            "cc=9",
            "memory=1TB",
            "order=sideways",
            "speed=fast",
            "fault=fire",
            "log",
        ] {
            let refused = Config::parse(wrong);
            assert!(wrong == "log" || refused.unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
