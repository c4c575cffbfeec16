//! `serve`: the command line of a worker pod.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;

use crate::config::EngineArgs;

/// Serve a model: a supervisor that starts one process per rank
///
/// Without --group-uid the worker stands alone: it starts all ranks here and connects them on the loopback interface.
/// With --group-uid it serves one pod of a group and waits until the operator sends the members to its control port.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model and how it is served.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// UID of the group this pod belongs to; the worker stands alone when absent
    #[arg(long, value_name = "UID", requires = "ranks_per_pod")]
    pub group_uid: Option<String>,
    /// Index of this pod in its group
    #[arg(long, value_name = "INDEX", default_value_t = 0, requires = "group_uid")]
    pub member: u32,
    /// Ranks of this pod
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256), requires = "group_uid")]
    pub ranks_per_pod: Option<u32>,
    /// Address to listen on; loopback when the worker stands alone, else all
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// gRPC port for clients, on the pod of rank 0; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 50051)]
    pub inference_port: u16,
    /// gRPC port for the operator; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 50052)]
    pub control_port: u16,
    /// HTTP port of /livez, /readyz and /metrics; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub http_port: u16,
    /// Port of the first local rank for its peers, the others count up; 0 takes free ones
    #[arg(long, value_name = "PORT", default_value_t = 50100)]
    pub rank_port: u16,
    /// Write the ports in use to this file, as JSON, once all are open
    #[arg(long, value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// UID of this pod
    #[arg(long, value_name = "UID", env = "LLAMERO_POD_UID", default_value = "")]
    pub pod_uid: String,
}

/// Which ranks run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRanks {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Ranks of the whole group.
    pub world: u32,
}

impl ServeArgs {
    /// Which ranks this pod runs.
    ///
    /// # Errors
    /// A sentence when pods and ranks do not add up.
    pub fn local_ranks(&self) -> Result<LocalRanks, String> {
        let world = self.engine.tensor * self.engine.pipeline;
        let Some(count) = self.ranks_per_pod else {
            return Ok(LocalRanks {
                first: 0,
                count: world,
                world,
            });
        };
        if !world.is_multiple_of(count) {
            return Err(format!(
                "{world} ranks (tensor × pipeline) cannot be spread over pods of {count}: \
                 --ranks-per-pod must divide the number of ranks"
            ));
        }
        let pods = world / count;
        if self.member >= pods {
            return Err(format!(
                "--member {} is out of range: the group has {pods} pods, counted from 0",
                self.member
            ));
        }
        Ok(LocalRanks {
            first: self.member * count,
            count,
            world,
        })
    }

    /// Address to listen on.
    #[must_use]
    pub fn listen_address(&self) -> IpAddr {
        self.listen.unwrap_or(IpAddr::V4(if self.group_uid.is_some() {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        }))
    }

    /// Compute threads of each rank.
    #[must_use]
    pub fn threads(&self, local_ranks: u32) -> u32 {
        self.engine
            .threads
            .unwrap_or_else(|| (cores() / local_ranks.max(1)).max(1))
    }

    /// Whether the local ranks have more threads than there are cores.
    #[must_use]
    pub fn oversubscribed(&self, local_ranks: u32) -> bool {
        self.threads(local_ranks).saturating_mul(local_ranks) > cores()
    }
}

/// Cores that this container may use; honours cgroup quotas.
fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn serve(args: &str) -> ServeArgs {
        let words = ["serve", "--model-dir", "/m"]
            .into_iter()
            .chain(args.split_ascii_whitespace());
        Cli::try_parse_from(words).unwrap().serve
    }

    #[test]
    fn ranks_are_dealt_to_pods_in_order() {
        assert_eq!(
            serve("--tensor 3").local_ranks(),
            Ok(LocalRanks {
                first: 0,
                count: 3,
                world: 3
            })
        );
        let pod = serve("--group-uid g --member 1 --ranks-per-pod 2 --tensor 4");
        assert_eq!(
            pod.local_ranks(),
            Ok(LocalRanks {
                first: 2,
                count: 2,
                world: 4
            })
        );
    }

    #[test]
    fn what_does_not_add_up_is_said() {
        let odd = serve("--group-uid g --member 0 --ranks-per-pod 2 --tensor 3");
        assert!(odd.local_ranks().unwrap_err().contains("must divide"));
        let far = serve("--group-uid g --member 2 --ranks-per-pod 2 --tensor 4");
        assert!(far.local_ranks().unwrap_err().contains("2 pods"));
    }

    #[test]
    fn a_group_needs_ranks_per_pod() {
        assert!(Cli::try_parse_from(["serve", "--model-dir", "/m", "--group-uid", "g"]).is_err());
        assert_eq!(serve("--threads 4 --tensor 2").threads(2), 4);
        assert!(serve("").threads(64) >= 1);
    }
}
