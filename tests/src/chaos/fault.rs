//! What can go wrong on purpose.

use std::time::Duration;

/// How long certificates live in the suite's installation (`tests/chaos.sh`), so that they are renewed all the time.
pub(super) const CERTIFICATE_LIFE: Duration = Duration::from_secs(30);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL to a rank process.
    KillRank,
    /// SIGSTOP to a rank process, shorter or longer than the stall timeout.
    PauseRank,
    /// SIGKILL to a worker's supervisor, which ends the container.
    KillSupervisor,
    /// SIGSTOP to a supervisor.
    PauseSupervisor,
    /// SIGKILL to the operator.
    KillOperator,
    /// SIGSTOP to the operator.
    PauseOperator,
    /// SIGSTOP to the operator until all certificates have ended, which live [`CERTIFICATE_LIFE`].
    EndCertificates,
    /// SIGKILL to a gateway: the only fault that may end streams.
    KillGateway,
    /// SIGSTOP to a gateway.
    PauseGateway,
    /// A node's cable is pulled.
    CutLink,
    /// A node hears nothing, but is heard.
    CutInto,
    /// A node hears everything, but is not heard.
    CutOutOf,
    /// A node's cable carries little.
    Throttle,
    /// What a node sends is late.
    Delay,
    /// A byte in a frame between ranks is another one.
    CorruptFrame,
    /// A byte in the file of a rank is another one, and a supervisor of that rank is killed, so that the file is read again.
    CorruptShard,
    /// The clock of one process is wrong.
    ShiftClock,
    /// The API server is away.
    StopApiServer,
    /// etcd is killed and starts again.
    RestartEtcd,
    /// Somebody else takes the operator's lease.
    StealLease,
    /// A node's `/run` is full, so nothing can start there, and a worker on it is killed.
    FillDisk,
    /// A node ends as by a power cut; another one comes.
    LoseNode,
}

/// What a fault is about, for colours and legends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Ranks and supervisors.
    Worker,
    /// The operator.
    Operator,
    /// The gateway.
    Gateway,
    /// Cables.
    Network,
    /// API server, etcd, nodes.
    Cluster,
}

/// How long a kind lasts and how long a run must be to have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Seconds in a short run, from and to.
    pub(super) short: (u64, u64),
    /// Seconds in a long run, from and to.
    pub(super) long: (u64, u64),
    /// Seconds that a run must last at least.
    pub(super) room: u64,
}

impl Kind {
    /// All that can be caused.
    pub const ALL: [Self; 22] = [
        Self::KillRank,
        Self::PauseRank,
        Self::KillSupervisor,
        Self::PauseSupervisor,
        Self::KillOperator,
        Self::PauseOperator,
        Self::EndCertificates,
        Self::KillGateway,
        Self::PauseGateway,
        Self::CutLink,
        Self::CutInto,
        Self::CutOutOf,
        Self::Throttle,
        Self::Delay,
        Self::CorruptFrame,
        Self::CorruptShard,
        Self::ShiftClock,
        Self::StopApiServer,
        Self::RestartEtcd,
        Self::StealLease,
        Self::FillDisk,
        Self::LoseNode,
    ];

    /// What is done, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillRank => "kill -9 of a rank",
            Self::PauseRank => "SIGSTOP of a rank",
            Self::KillSupervisor => "kill -9 of a supervisor",
            Self::PauseSupervisor => "SIGSTOP of a supervisor",
            Self::KillOperator => "kill -9 of the operator",
            Self::PauseOperator => "SIGSTOP of the operator",
            Self::EndCertificates => "operator away until all certificates have ended",
            Self::KillGateway => "kill -9 of the gateway",
            Self::PauseGateway => "SIGSTOP of the gateway",
            Self::CutLink => "link cut",
            Self::CutInto => "link cut one way, into a node",
            Self::CutOutOf => "link cut one way, out of a node",
            Self::Throttle => "link throttled",
            Self::Delay => "link late by 10 ms, out of a node",
            Self::CorruptFrame => "a corrupt byte in a frame between ranks",
            Self::CorruptShard => "a corrupt byte in a rank's file, read again",
            Self::ShiftClock => "clock of one process shifted",
            Self::StopApiServer => "API server away",
            Self::RestartEtcd => "etcd killed and started",
            Self::StealLease => "lease stolen",
            Self::FillDisk => "/run of a node full, worker killed there",
            Self::LoseNode => "node lost, another one comes",
        }
    }

    /// What it is about.
    #[must_use]
    pub const fn part(self) -> Part {
        match self {
            Self::KillRank
            | Self::PauseRank
            | Self::KillSupervisor
            | Self::PauseSupervisor
            | Self::CorruptShard => Part::Worker,
            Self::KillOperator | Self::PauseOperator | Self::EndCertificates | Self::StealLease => {
                Part::Operator
            }
            Self::KillGateway | Self::PauseGateway => Part::Gateway,
            Self::CutLink
            | Self::CutInto
            | Self::CutOutOf
            | Self::Throttle
            | Self::Delay
            | Self::CorruptFrame => Part::Network,
            Self::StopApiServer | Self::RestartEtcd | Self::FillDisk | Self::LoseNode | Self::ShiftClock => {
                Part::Cluster
            }
        }
    }

    /// How often it comes in a run. A group whose file was wrong waits for a minute before it reads it again, after each further time twice as long: after
    /// the fourth it is back within the time that a run waits for everything to be whole.
    pub(super) const fn most(self) -> usize {
        match self {
            Self::CorruptShard => 4,
            _ => usize::MAX,
        }
    }

    pub(super) const fn shape(self) -> Shape {
        let (short, long, room) = match self {
            Self::KillRank
            | Self::KillSupervisor
            | Self::KillOperator
            | Self::KillGateway
            | Self::RestartEtcd
            | Self::StealLease => ((1, 1), (1, 1), 0),
            // The stall timeout of the suite's deployment is 10 s: some of these are stalls and some are not.
            Self::PauseRank => ((2, 12), (2, 30), 0),
            Self::PauseSupervisor | Self::PauseOperator => ((2, 8), (2, 25), 0),
            Self::EndCertificates => {
                let life = CERTIFICATE_LIFE.as_secs();
                ((life + 2, life + 5), (life + 5, life + 30), 120)
            }
            // A liveness probe that fails for 30 s would end it, which is another fault.
            Self::PauseGateway => ((2, 6), (2, 15), 0),
            Self::CutLink | Self::CutInto | Self::CutOutOf => ((2, 8), (2, 45), 0),
            Self::Throttle | Self::Delay => ((4, 8), (5, 40), 0),
            // Until a long enough segment comes by.
            Self::CorruptFrame => ((3, 5), (3, 10), 0),
            // Behind it the group waits for a minute before it tries again.
            Self::CorruptShard => ((3, 5), (5, 30), 120),
            Self::ShiftClock => ((4, 10), (10, 60), 0),
            Self::StopApiServer => ((5, 10), (60, 60), 0),
            Self::FillDisk => ((10, 15), (20, 60), 120),
            Self::LoseNode => ((20, 30), (30, 90), 600),
        };
        Shape { short, long, room }
    }
}

/// One fault of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// After the start of the run.
    pub at: Duration,
    /// Until it is taken back.
    pub lasts: Duration,
    /// What it is.
    pub kind: Kind,
    /// Chooses among what can be hit at that time.
    pub pick: u64,
}
