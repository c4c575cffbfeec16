//! Rank 0 reaches everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::mesh::dial::{DialError, dial};
use crate::mesh::hello::{Identity, LinkKind, RefusalCode};
use crate::mesh::{Connection, ControlLink, DataLink, EraAbort, Membership};
use crate::step::Era;

/// Rank 0's links of an era that is being connected.
pub(super) struct Dialling {
    membership: Arc<Membership>,
    identity: Identity,
    era: Era,
    abort: Arc<EraAbort>,
    dial_timeout: Duration,
    /// By rank, once they are there.
    plans: BTreeMap<u32, Connection>,
}

/// How an attempt to reach everybody went.
pub(super) enum Reached {
    /// All plan and data links are there, in rank order.
    All(Vec<ControlLink>, Vec<DataLink>),
    /// Somebody is missing. Try again after a while.
    Missing {
        /// Everybody who is missing, and why.
        why: String,
        /// The words of somebody who would refuse every later attempt in the same way.
        lasting: Option<String>,
    },
    /// This era cannot come about; the next needs an epoch above this one.
    Over { epoch: u64, rank: u32, why: String },
    /// The others belong to a later generation, which this rank has not been told.
    Superseded { rank: u32, why: String },
}

impl Dialling {
    pub(super) fn new(
        membership: Arc<Membership>,
        identity: Identity,
        era: Era,
        abort: Arc<EraAbort>,
        dial_timeout: Duration,
    ) -> Self {
        Self {
            membership,
            identity,
            era,
            abort,
            dial_timeout,
            plans: BTreeMap::new(),
        }
    }

    /// Dial everybody who is missing, once.
    pub(super) fn attempt(&mut self) -> Reached {
        let mut missing = Vec::new();
        let mut lasting = None;
        for (rank, address) in self.membership.addresses.range(1..) {
            let rank = *rank;
            match self.plans.get(&rank) {
                Some(connection) if connection.is_closed() => {
                    let why = format!("rank {rank} went away while the others were connected");
                    return Reached::Over {
                        epoch: self.era.epoch,
                        rank,
                        why,
                    };
                }
                Some(_) => {}
                None => {
                    let hello = self.identity.hello(self.era, rank, LinkKind::Plan);
                    match dial(*address, &hello, &self.membership.key, self.dial_timeout) {
                        Ok(connection) => {
                            self.plans.insert(rank, connection);
                        }
                        Err(error) => match refused_for_good(rank, &error, self.era) {
                            Some(over) => return over,
                            None => {
                                if refuses_always(&error) {
                                    lasting = Some(error.to_string());
                                }
                                missing.push(error.to_string());
                            }
                        },
                    }
                }
            }
            if self.abort.is_aborted() {
                return Reached::Over {
                    epoch: self.era.epoch,
                    rank,
                    why: "interrupted".into(),
                };
            }
        }
        if missing.is_empty() {
            self.data_links()
        } else {
            Reached::Missing {
                why: missing.join("; "),
                lasting,
            }
        }
    }

    fn data_links(&mut self) -> Reached {
        let over = |rank, why: String| Reached::Over {
            epoch: self.era.epoch,
            rank,
            why,
        };
        let mut data = Vec::new();
        for (rank, address) in self.membership.addresses.range(1..) {
            let rank = *rank;
            if self.abort.is_aborted() {
                return over(rank, "interrupted".into());
            }
            let hello = self.identity.hello(self.era, rank, LinkKind::Data);
            match dial(*address, &hello, &self.membership.key, self.dial_timeout) {
                Ok(connection) => data.push(DataLink::new(connection, rank)),
                Err(error) => {
                    let refused = refused_for_good(rank, &error, self.era);
                    return refused.unwrap_or_else(|| over(rank, error.to_string()));
                }
            }
        }
        let mut plans = Vec::new();
        for (rank, connection) in std::mem::take(&mut self.plans) {
            if let Err(error) = connection.watch(&self.abort) {
                return over(rank, error.to_string());
            }
            plans.push(ControlLink::new(
                connection,
                rank,
                self.era,
                Arc::clone(&self.abort),
            ));
        }
        for link in &data {
            if let Err(error) = link.watch(&self.abort) {
                return over(link.peer(), error.to_string());
            }
        }
        Reached::All(plans, data)
    }
}

/// Whether the same two ranks will always be refused so: something must be changed first.
fn refuses_always(error: &DialError) -> bool {
    matches!(
        error,
        DialError::Refused {
            code: RefusalCode::OtherContent
                | RefusalCode::OtherNumerics
                | RefusalCode::OtherGroup
                | RefusalCode::Protocol
                | RefusalCode::WrongRank
                | RefusalCode::OtherMembers,
            ..
        }
    )
}

/// Whether a refusal means that this era can never be connected.
fn refused_for_good(rank: u32, error: &DialError, era: Era) -> Option<Reached> {
    let DialError::Refused {
        code: RefusalCode::OldEra | RefusalCode::Duplicate,
        latest,
        ..
    } = error
    else {
        return None;
    };
    let why = error.to_string();
    if latest.generation > era.generation {
        return Some(Reached::Superseded { rank, why });
    }
    let epoch = if latest.generation == era.generation {
        latest.epoch.max(era.epoch)
    } else {
        era.epoch
    };
    Some(Reached::Over { epoch, rank, why })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::mesh::{Abort, GroupKey, Inbox, Listener, Topology};

    const LONG: Duration = Duration::from_secs(60);
    const ERA: Era = Era {
        generation: 1,
        epoch: 1,
    };

    fn listen() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// Passes connections on to `to`. Ends the era when the second one comes, which is the data link.
    fn relay(to: SocketAddr, abort: Arc<EraAbort>) -> SocketAddr {
        let socket = listen();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            for (nth, from) in socket.incoming().enumerate() {
                if nth == 1 {
                    abort.abort();
                }
                let (from, to) = (from.unwrap(), TcpStream::connect(to).unwrap());
                let ends = [(from.try_clone(), to.try_clone()), (Ok(to), Ok(from))];
                for (from, to) in ends {
                    let (mut from, mut to) = (from.unwrap(), to.unwrap());
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
            }
        });
        address
    }

    #[test]
    fn an_interruption_is_noticed_between_data_links() {
        let topology = Topology::tensor(4);
        let inboxes: Vec<Arc<Inbox>> = (0..4)
            .map(|rank| Arc::new(Inbox::new(rank, topology.into(), "n".into(), "c".into())))
            .collect();
        let listeners = inboxes
            .iter()
            .map(|inbox| Listener::start(listen(), Arc::clone(inbox)).unwrap());
        let listeners: Vec<Listener> = listeners.collect();
        let abort = Arc::new(EraAbort::default());
        let mut members: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
        members[2] = relay(members[2], Arc::clone(&abort));
        let membership = Membership {
            group_uid: "g".into(),
            generation: 1,
            lost: Vec::new(),
            addresses: Membership::in_rank_order(members),
            key: GroupKey::from([7; 32]),
        };
        for inbox in &inboxes {
            inbox.set_ready(None);
            inbox.form(membership.clone()).unwrap();
        }
        let identity = Identity {
            group_uid: "g".into(),
            rank: 0,
            members: topology.into(),
            numerics: "n".into(),
            content: "c".into(),
        };
        let mut dialling = Dialling::new(Arc::new(membership), identity, ERA, abort, LONG);
        match dialling.attempt() {
            Reached::Over { rank: 3, why, .. } => assert_eq!(why, "interrupted"),
            _ => panic!("goes on"),
        }
        let kind = |inbox: &Inbox| inbox.take(ERA).map(|accepted| accepted.link);
        assert_eq!(kind(&inboxes[3]), Some(LinkKind::Plan));
        assert_eq!(kind(&inboxes[3]), None, "nobody was dialled any more");
    }
}
