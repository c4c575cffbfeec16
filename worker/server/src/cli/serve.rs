//! `serve`: the command line of a worker pod.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;
use llamero_identity::enrol::args::EnrolmentArgs;
use llamero_proto::ports;
use llamero_settings::limits;
use llamero_settings::listen::EVERYWHERE;

use crate::config::{EngineArgs, within};
use crate::source::SourceArgs;

/// Serve a model: a supervisor that starts one process per rank
///
/// Without --group-uid the worker stands alone: it starts all ranks here and connects them on the loopback interface.
/// With --group-uid it serves one pod of a group and waits until the operator sends the members to its control port.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model and how it is served.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where the weights are, if not in the folder.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Who may call this pod.
    #[command(flatten)]
    pub identity: EnrolmentArgs,
    /// How clients at the inference port prove who they are where there is --enrolment; none: they do not, and it is plain text, for
    /// pods beside a mesh
    #[arg(long, value_enum, default_value_t = InferenceAuth::Mutual, value_name = "HOW")]
    pub inference_auth: InferenceAuth,
    /// Certificates in PEM of authorities whose clients may call the inference port too; read again when they change
    #[arg(long, value_name = "FILE", requires = "enrolment")]
    pub client_roots_file: Option<PathBuf>,
    /// Common name of a client among those of --client-roots-file that may load and unload adapters; may be repeated. Its certificate's subject
    /// is to say nothing else
    #[arg(long = "adapter-client", value_name = "NAME", requires = "client_roots_file")]
    pub adapter_clients: Vec<String>,
    /// UID of the group this pod belongs to; the worker stands alone when absent
    #[arg(long, value_name = "UID", requires = "ranks_per_pod")]
    pub group_uid: Option<String>,
    /// Index of this pod in its group
    #[arg(long, value_name = "INDEX", default_value_t = 0, requires = "group_uid")]
    pub member: u32,
    /// Ranks of this pod
    #[arg(long, value_name = "N", value_parser = within(limits::RANKS_PER_POD), requires = "group_uid")]
    pub ranks_per_pod: Option<u32>,
    /// Pods of this group on this node, this one included, which share its cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), requires = "group_uid")]
    pub pods_on_node: u32,
    /// Address to listen on; loopback when the worker stands alone, else all addresses of both families
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// gRPC port for clients, on the pod of rank 0; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = ports::INFERENCE)]
    pub inference_port: u16,
    /// gRPC port for the operator; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = ports::CONTROL)]
    pub control_port: u16,
    /// HTTP port of /livez, /readyz and /metrics; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = ports::HEALTH)]
    pub http_port: u16,
    /// Port of the first local rank for its peers, the others count up; 0 takes free ones
    #[arg(long, value_name = "PORT", default_value_t = ports::RANKS)]
    pub rank_port: u16,
    /// Write the ports in use to this file, as JSON, once all are open
    #[arg(long, value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// UID of this pod
    #[arg(long, value_name = "UID", env = "LLAMERO_POD_UID", default_value = "")]
    pub pod_uid: String,
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum InferenceAuth {
    /// By certificates, on both sides.
    #[default]
    Mutual,
    /// Not at all.
    None,
}

/// Arguments that are right one by one and do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// Pods of different sizes.
    #[error(
        "{world} ranks (tensor × pipeline) cannot be spread over pods of {count}: --ranks-per-pod must divide the number of ranks"
    )]
    RanksPerPod {
        /// Ranks of the group.
        world: u32,
        /// Ranks of each pod.
        count: u32,
    },
    /// A pod that the group does not have.
    #[error("--member {member} is out of range: the group has {pods} pods, counted from 0")]
    Member {
        /// What was given.
        member: u32,
        /// Pods of the group.
        pods: u32,
    },
    /// Ports beyond the last one.
    #[error(
        "--rank-port {first} leaves no room for {count} ranks, which count up from it: give at most {}, or 0 to take free ones",
        (u32::from(u16::MAX) + 1).saturating_sub(*count)
    )]
    RankPort {
        /// The first port.
        first: u16,
        /// Ranks of this pod.
        count: u32,
    },
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
    /// Pods and ranks do not add up.
    pub fn local_ranks(&self) -> Result<LocalRanks, ArgumentsError> {
        let world = self.engine.tensor * self.engine.pipeline;
        let Some(count) = self.ranks_per_pod else {
            return Ok(LocalRanks {
                first: 0,
                count: world,
                world,
            });
        };
        if !world.is_multiple_of(count) {
            return Err(ArgumentsError::RanksPerPod { world, count });
        }
        let pods = world / count;
        if self.member >= pods {
            let member = self.member;
            return Err(ArgumentsError::Member { member, pods });
        }
        Ok(LocalRanks {
            first: self.member * count,
            count,
            world,
        })
    }

    /// Ports for the peers of this pod's `count` ranks, in their order; all 0 when free ones are to be taken.
    ///
    /// # Errors
    /// There are not so many ports.
    pub fn rank_ports(&self, count: u32) -> Result<Vec<u16>, ArgumentsError> {
        let first = self.rank_port;
        let port = |index: u32| match first {
            0 => Ok(0),
            _ => {
                u16::try_from(u32::from(first) + index).map_err(|_| ArgumentsError::RankPort { first, count })
            }
        };
        (0..count).map(port).collect()
    }

    /// Address to listen on.
    #[must_use]
    pub fn listen_address(&self) -> IpAddr {
        let usual = match self.group_uid {
            Some(_) => EVERYWHERE,
            None => Ipv4Addr::LOCALHOST.into(),
        };
        self.listen.unwrap_or(usual)
    }

    /// Compute threads of each rank.
    #[must_use]
    pub fn threads(&self, local_ranks: u32) -> u32 {
        self.engine
            .threads
            .unwrap_or_else(|| (self.cores() / local_ranks.max(1)).max(1))
    }

    /// Whether the ranks of this pod have more threads, all together, than the pod may use processors.
    #[must_use]
    pub fn oversubscribed(&self, local_ranks: u32) -> bool {
        self.threads(local_ranks).saturating_mul(local_ranks) > self.cores()
    }

    /// Cores that are this pod's.
    fn cores(&self) -> u32 {
        (cores() / self.pods_on_node.max(1)).max(1)
    }
}

fn cores() -> u32 {
    u32::try_from(llamero_cpu::cores()).unwrap_or(u32::MAX)
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
        let said = |error: ArgumentsError| error.to_string();
        assert!(said(odd.local_ranks().unwrap_err()).contains("must divide"));
        let far = serve("--group-uid g --member 2 --ranks-per-pod 2 --tensor 4");
        assert!(said(far.local_ranks().unwrap_err()).contains("2 pods"));
        let last = serve("--tensor 3 --rank-port 65533");
        assert_eq!(last.rank_ports(3), Ok(vec![65_533, 65_534, 65_535]));
        assert!(said(last.rank_ports(4).unwrap_err()).contains("at most 65532"));
        assert_eq!(serve("--rank-port 0").rank_ports(2), Ok(vec![0, 0]));
    }

    #[test]
    fn a_group_needs_ranks_per_pod() {
        assert!(Cli::try_parse_from(["serve", "--model-dir", "/m", "--group-uid", "g"]).is_err());
        assert_eq!(serve("--threads 4 --tensor 2").threads(2), 4);
        assert!(serve("").threads(64) >= 1);
        let shared = serve("--group-uid g --ranks-per-pod 1 --pods-on-node 2");
        assert_eq!(shared.threads(1), (cores() / 2).max(1));
        assert!(!shared.oversubscribed(1));
    }

    #[test]
    fn threads_are_counted_over_all_ranks_of_the_pod() {
        let cores = cores();
        let one = serve(&format!("--threads {cores}"));
        assert!(!one.oversubscribed(1));
        assert!(one.oversubscribed(2), "each rank alone would fit");
        assert!(!serve("").oversubscribed(1));
    }

    #[test]
    fn what_the_resources_allow_is_taken() {
        for (flag, range) in [
            ("--threads", limits::THREADS),
            ("--max-sequences", limits::MAX_SEQUENCES),
            ("--max-batched-tokens", limits::MAX_BATCHED_TOKENS),
            ("--max-queued-requests", limits::MAX_QUEUED_REQUESTS),
            ("--max-context-length", limits::MAX_CONTEXT_LENGTH),
            ("--tensor", limits::TENSOR),
            ("--pipeline", limits::PIPELINE),
        ] {
            let try_with = |value: u64| {
                let value = value.to_string();
                Cli::try_parse_from(["serve", "--model-dir", "/m", flag, &value]).is_ok()
            };
            let (least, most) = (u64::from(*range.start()), u64::from(*range.end()));
            assert!(try_with(least) && try_with(most), "{flag}");
            assert!(!try_with(least - 1) && !try_with(most + 1), "{flag}");
        }
    }

    #[test]
    fn a_pod_of_a_group_listens_everywhere() {
        assert_eq!(serve("").listen_address(), Ipv4Addr::LOCALHOST);
        let pod = serve("--group-uid g --ranks-per-pod 1");
        assert_eq!(pod.listen_address(), EVERYWHERE);
        assert_eq!((pod.inference_port, pod.control_port), (18_051, 18_052));
    }
}
