//! How many groups there should be.
//!
//! The load is an absolute number of requests, and the wanted number of groups follows from it alone. So groups that are starting count
//! as capacity without any bookkeeping: they do not change the load, and a slow start cannot make the number cascade.

use llamero_api::deployment::{Autoscaling, AutoscalingState};

use crate::{
    observed::{Demand, Load, STALE_AFTER},
    time::{self, Millis},
};

/// What autoscaling looks at.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// The wanted number as last reported; absent for a new deployment.
    pub last: Option<i32>,
    /// What was remembered.
    pub state: AutoscalingState,
    /// One entry for each group that serves: its load, or that there is none.
    pub loads: Vec<Option<Load>>,
    /// What the gateways hold.
    pub demand: Option<Demand>,
}

/// A wanted number of groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Groups.
    pub groups: i32,
    /// What to remember.
    pub state: AutoscalingState,
    /// When the number could change although the load does not.
    pub next_at: Option<Millis>,
}

/// The wanted number of groups. Up at once; down to the highest number asked for within the stabilisation time; to zero after idle.
#[must_use]
pub fn wanted(spec: &Autoscaling, sight: &Sight, now: Millis) -> Wanted {
    let floor = spec.min_replicas.max(0);
    let ceiling = spec.max_replicas.max(floor).max(1);
    let current = sight.last.unwrap_or(floor.max(1)).clamp(floor, ceiling);
    let state = |message: &str, state: AutoscalingState| AutoscalingState {
        message: message.to_owned(),
        ..state
    };
    let hold = |groups: i32, message: &str| Wanted {
        groups,
        state: state(message, sight.state.clone()),
        next_at: None,
    };

    let demand = sight.demand.filter(|d| fresh(d.received_at, now));
    let held = demand.map_or(0, |d| d.held);
    if current == 0 {
        return if held > 0 {
            Wanted {
                groups: 1,
                state: state("woken by a waiting request", AutoscalingState::default()),
                next_at: None,
            }
        } else {
            hold(0, "idle")
        };
    }
    let Some(running) = total(&sight.loads, now) else {
        return hold(current, "holding: a serving group has sent no fresh load sample");
    };
    if sight.demand.is_some() && demand.is_none() {
        return hold(current, "holding: a gateway has sent no fresh demand sample");
    }
    // A gateway counts what its groups run; clients that pass it by are only seen by the groups.
    let load = running.max(demand.map_or(0, |d| u64::from(d.in_flight))) + u64::from(held);

    let now_time = time::to_time(now);
    let idle_since = (load == 0).then(|| sight.state.idle_since.clone().unwrap_or(now_time.clone()));
    let per_group = u64::from(spec.target_requests_per_group.max(1).unsigned_abs());
    let asked = i32::try_from(load.div_ceil(per_group))
        .unwrap_or(i32::MAX)
        .clamp(floor.max(1), ceiling);

    // Zero needs somebody who can wake us.
    if let (0, Some(since), true) = (floor, &idle_since, demand.is_some()) {
        let at = time::millis(since) + spec.idle_timeout_to_zero.millis();
        if now >= at {
            return Wanted {
                groups: 0,
                state: state(
                    "idle",
                    AutoscalingState {
                        idle_since,
                        ..Default::default()
                    },
                ),
                next_at: None,
            };
        }
    }
    let to_zero_at = idle_since
        .as_ref()
        .filter(|_| floor == 0 && demand.is_some())
        .map(|since| time::millis(since) + spec.idle_timeout_to_zero.millis());
    let message = format!("{load} requests, {per_group} a group");
    if asked >= current {
        let state = AutoscalingState {
            idle_since,
            message,
            ..Default::default()
        };
        return Wanted {
            groups: asked,
            state,
            next_at: to_zero_at,
        };
    }
    let since = sight.state.lower_since.clone().unwrap_or(now_time);
    let peak = sight.state.lower_peak.unwrap_or(asked).max(asked).min(current);
    let at = time::millis(&since) + spec.scale_down_stabilization.millis();
    if now >= at {
        let state = AutoscalingState {
            idle_since,
            message,
            ..Default::default()
        };
        return Wanted {
            groups: peak,
            state,
            next_at: to_zero_at,
        };
    }
    let state = AutoscalingState {
        lower_since: Some(since),
        lower_peak: Some(peak),
        idle_since,
        message,
    };
    Wanted {
        groups: current,
        state,
        next_at: time::earlier(Some(at), to_zero_at),
    }
}

fn fresh(received_at: Millis, now: Millis) -> bool {
    now - received_at <= STALE_AFTER
}

/// Running and waiting requests of all serving groups, or nothing when one of them is silent.
fn total(loads: &[Option<Load>], now: Millis) -> Option<u64> {
    loads.iter().try_fold(0, |sum, load| {
        let load = load.filter(|load| fresh(load.received_at, now))?;
        Some(sum + u64::from(load.running) + u64::from(load.waiting))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const T: Millis = 1_000_000_000;

    fn spec() -> Autoscaling {
        serde_json::from_value(json!({
            "minReplicas": 0, "maxReplicas": 8, "targetRequestsPerGroup": 10,
            "scaleDownStabilization": "60s", "idleTimeoutToZero": "100s"
        }))
        .unwrap()
    }

    fn load(requests: u32, at: Millis) -> Option<Load> {
        Some(Load {
            running: requests,
            waiting: 0,
            received_at: at,
        })
    }

    fn demand(held: u32, at: Millis) -> Option<Demand> {
        Some(Demand {
            held,
            in_flight: 0,
            received_at: at,
        })
    }

    fn see(last: i32, loads: Vec<Option<Load>>, demand: Option<Demand>) -> Sight {
        Sight {
            last: Some(last),
            loads,
            demand,
            ..Sight::default()
        }
    }

    #[test]
    fn up_at_once_and_starting_groups_count() {
        let first = wanted(&spec(), &see(1, vec![load(45, T)], demand(0, T)), T);
        assert_eq!(first.groups, 5);
        // Four groups still start: the same load does not ask for more.
        let second = wanted(
            &spec(),
            &Sight {
                state: first.state,
                ..see(5, vec![load(45, T)], demand(0, T))
            },
            T + 1,
        );
        assert_eq!(second.groups, 5);
    }

    #[test]
    fn down_to_the_peak_of_the_window() {
        let mut sight = see(5, vec![load(10, T)], demand(0, T));
        let mut decide = |requests, at| {
            sight.loads = vec![load(requests, at)];
            sight.demand = demand(0, at);
            let out = wanted(&spec(), &sight, at);
            sight.state = out.state.clone();
            sight.last = Some(out.groups);
            (out.groups, out.next_at)
        };
        assert_eq!(decide(10, T), (5, Some(T + 60_000)));
        assert_eq!(decide(25, T + 30_000).0, 5);
        assert_eq!(decide(10, T + 60_000).0, 3);
    }

    #[test]
    fn missing_and_stale_samples_hold() {
        assert_eq!(
            wanted(&spec(), &see(3, vec![load(90, T), None], demand(0, T)), T).groups,
            3
        );
        assert_eq!(
            wanted(&spec(), &see(3, vec![load(0, T - 10_001)], demand(0, T)), T).groups,
            3
        );
        assert_eq!(
            wanted(&spec(), &see(3, vec![load(90, T)], demand(0, T - 10_001)), T).groups,
            3
        );
    }

    #[test]
    fn idle_goes_to_zero_and_a_held_request_wakes() {
        let idle = wanted(&spec(), &see(1, vec![load(0, T)], demand(0, T)), T);
        assert_eq!((idle.groups, idle.next_at), (1, Some(T + 100_000)));
        let later = T + 100_000;
        let zero = wanted(
            &spec(),
            &Sight {
                state: idle.state,
                ..see(1, vec![load(0, later)], demand(0, later))
            },
            later,
        );
        assert_eq!(zero.groups, 0);
        let asleep = wanted(
            &spec(),
            &Sight {
                state: zero.state,
                ..see(0, vec![], demand(0, later))
            },
            later,
        );
        assert_eq!(asleep.groups, 0);
        assert_eq!(
            wanted(&spec(), &see(0, vec![], demand(1, later)), later).groups,
            1
        );
        // While the woken group starts, the held request keeps the clock of idleness still.
        let starting = wanted(
            &spec(),
            &see(1, vec![], demand(1, later + 200_000)),
            later + 200_000,
        );
        assert_eq!((starting.groups, starting.state.idle_since), (1, None));
    }

    #[test]
    fn without_a_gateway_nobody_could_wake_so_one_stays() {
        let state = AutoscalingState {
            idle_since: Some(time::to_time(T)),
            ..Default::default()
        };
        let out = wanted(
            &spec(),
            &Sight {
                state,
                ..see(1, vec![load(0, T + 900_000)], None)
            },
            T + 900_000,
        );
        assert_eq!(out.groups, 1);
    }

    #[test]
    fn a_new_deployment_starts_with_one() {
        assert_eq!(wanted(&spec(), &Sight::default(), T).groups, 1);
    }
}
