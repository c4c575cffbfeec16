//! How many groups there should be.
//!
//! The load is an absolute number of requests, and the wanted number of groups follows from it alone. So groups that are starting count
//! as capacity without any bookkeeping: they do not change the load, and a slow start cannot make the number cascade.

use llamero_api::deployment::{Autoscaling, AutoscalingState};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    observed::{Demand, Load, STALE_AFTER},
    time::{self, Millis},
};

/// What autoscaling looks at.
#[derive(Clone, Debug, Default)]
pub struct AutoscalerInput {
    /// The durable number of groups.
    pub last: i32,
    /// What was remembered.
    pub state: AutoscalingState,
    /// One entry for each group that serves: its load, or that there is none.
    pub loads: Vec<Option<Load>>,
    /// Some group is on its way to serve.
    pub starting: bool,
    /// What the gateways hold.
    pub demand: Option<Demand>,
}

/// A recommended number of groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// Groups.
    pub groups: i32,
    /// What to remember.
    pub state: AutoscalingState,
    /// When the number could change although the load does not.
    pub next_at: Option<Millis>,
}

impl Recommendation {
    fn new(groups: i32, message: &str, state: AutoscalingState) -> Self {
        Self {
            groups,
            state: AutoscalingState {
                message: message.to_owned(),
                ..state
            },
            next_at: None,
        }
    }
}

/// The recommended number of groups. Up at once; down to the highest number asked for within the stabilisation time; to zero after idle.
#[must_use]
pub fn recommend(policy: &Autoscaling, input: &AutoscalerInput, now: Millis) -> Recommendation {
    let floor = policy.min_replicas.max(0);
    let ceiling = policy.max_replicas.max(floor).max(1);
    let current = input.last.clamp(floor, ceiling);
    let hold = |message: &str| Recommendation::new(current, message, input.state.clone());

    let demand = input.demand.filter(|d| fresh(d.received_at, now));
    let held = demand.map_or(0, |d| d.held);
    if current == 0 {
        return if held > 0 {
            Recommendation::new(1, "woken by a waiting request", AutoscalingState::default())
        } else {
            hold("idle")
        };
    }
    let Some(running) = total(&input.loads, now) else {
        return hold("holding: a serving group has sent no fresh load sample");
    };
    if input.demand.is_some() && demand.is_none() {
        return hold("holding: a gateway has sent no fresh demand sample");
    }
    // A gateway counts what its groups run; clients that pass it by are only seen by the groups.
    let load = running.max(demand.map_or(0, |d| u64::from(d.in_flight))) + u64::from(held);
    let idle = Idle::of(input, demand, load, now);
    let to_zero_at = idle
        .since
        .as_ref()
        .filter(|_| floor == 0 && demand.is_some())
        .map(|since| time::millis(since) + policy.idle_timeout_to_zero.millis());
    if to_zero_at.is_some_and(|at| now >= at) {
        return Recommendation::new(0, "idle", idle.remembered());
    }

    let per_group = u64::from(policy.target_requests_per_group.max(1).unsigned_abs());
    let asked = i32::try_from(load.div_ceil(per_group))
        .unwrap_or(i32::MAX)
        .clamp(floor.max(1), ceiling);
    let mut recommendation = stabilised(policy, input, (asked, current), &idle, now);
    recommendation.next_at = time::earlier(recommendation.next_at, to_zero_at);
    recommendation
}

/// Up at once; down to the highest number asked for since the load began to ask for less, once that is long enough ago.
fn stabilised(
    policy: &Autoscaling,
    input: &AutoscalerInput,
    (asked, current): (i32, i32),
    idle: &Idle,
    now: Millis,
) -> Recommendation {
    if asked >= current {
        let message = if asked > current {
            "more requests than the groups should have"
        } else {
            "as many groups as the load asks for"
        };
        return Recommendation::new(asked, message, idle.remembered());
    }
    let since = input
        .state
        .lower_since
        .as_ref()
        .map_or_else(|| time::to_time(now), |since| time::not_ahead(since, now));
    let peak = input.state.lower_peak.unwrap_or(asked).max(asked).min(current);
    let at = time::millis(&since) + policy.scale_down_stabilization.millis();
    if now >= at {
        return Recommendation::new(
            peak,
            "fewer requests than the groups could have",
            idle.remembered(),
        );
    }
    let state = AutoscalingState {
        lower_since: Some(since),
        lower_peak: Some(peak),
        ..idle.remembered()
    };
    Recommendation {
        next_at: Some(at),
        ..Recommendation::new(current, "fewer groups would do, for now", state)
    }
}

/// Since when nobody has asked for anything.
struct Idle {
    since: Option<Time>,
    total: Option<i64>,
}

impl Idle {
    /// The clock runs while a group serves and no request is there. A group that starts has had no chance to answer whoever woke it, so
    /// the clock stands; and a request that came and went between two samples has moved the gateways' count, so the clock begins anew.
    fn of(input: &AutoscalerInput, demand: Option<Demand>, load: u64, now: Millis) -> Self {
        let serves = !input.loads.is_empty() || !input.starting;
        if load > 0 || !serves {
            return Self {
                since: None,
                total: None,
            };
        }
        let total = demand.map(|d| i64::try_from(d.total).unwrap_or(i64::MAX));
        let since = input
            .state
            .idle_since
            .as_ref()
            .filter(|_| input.state.idle_total == total)
            .map_or_else(|| time::to_time(now), |since| time::not_ahead(since, now));
        Self {
            since: Some(since),
            total,
        }
    }

    fn remembered(&self) -> AutoscalingState {
        AutoscalingState {
            idle_since: self.since.clone(),
            idle_total: self.total,
            ..AutoscalingState::default()
        }
    }
}

/// Of the present: not from long ago, nor received by a clock that was ahead, whose silence since nobody can tell.
fn fresh(received_at: Millis, now: Millis) -> bool {
    now.abs_diff(received_at) <= STALE_AFTER.unsigned_abs()
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
            total: 7,
            received_at: at,
        })
    }

    fn see(last: i32, loads: Vec<Option<Load>>, demand: Option<Demand>) -> AutoscalerInput {
        AutoscalerInput {
            last,
            loads,
            demand,
            ..AutoscalerInput::default()
        }
    }

    #[test]
    fn up_at_once_and_starting_groups_count() {
        let first = recommend(&spec(), &see(1, vec![load(45, T)], demand(0, T)), T);
        assert_eq!(first.groups, 5);
        // Four groups still start: the same load does not ask for more.
        let second = recommend(
            &spec(),
            &AutoscalerInput {
                state: first.state,
                ..see(5, vec![load(45, T)], demand(0, T))
            },
            T + 1,
        );
        assert_eq!(second.groups, 5);
    }

    #[test]
    fn down_to_the_peak_of_the_window() {
        let mut input = see(5, vec![load(10, T)], demand(0, T));
        let mut decide = |requests, at| {
            input.loads = vec![load(requests, at)];
            input.demand = demand(0, at);
            let out = recommend(&spec(), &input, at);
            input.state = out.state.clone();
            input.last = out.groups;
            (out.groups, out.next_at)
        };
        assert_eq!(decide(10, T), (5, Some(T + 60_000)));
        assert_eq!(decide(25, T + 30_000).0, 5);
        assert_eq!(decide(10, T + 60_000).0, 3);
    }

    #[test]
    fn missing_and_stale_samples_hold() {
        assert_eq!(
            recommend(&spec(), &see(3, vec![load(90, T), None], demand(0, T)), T).groups,
            3
        );
        assert_eq!(
            recommend(&spec(), &see(3, vec![load(0, T - 10_001)], demand(0, T)), T).groups,
            3
        );
        assert_eq!(
            recommend(&spec(), &see(3, vec![load(90, T)], demand(0, T - 10_001)), T).groups,
            3
        );
    }

    #[test]
    fn idle_goes_to_zero_and_a_held_request_wakes() {
        let idle = recommend(&spec(), &see(1, vec![load(0, T)], demand(0, T)), T);
        assert_eq!((idle.groups, idle.next_at), (1, Some(T + 100_000)));
        let later = T + 100_000;
        let zero = recommend(
            &spec(),
            &AutoscalerInput {
                state: idle.state,
                ..see(1, vec![load(0, later)], demand(0, later))
            },
            later,
        );
        assert_eq!(zero.groups, 0);
        let asleep = recommend(
            &spec(),
            &AutoscalerInput {
                state: zero.state,
                ..see(0, vec![], demand(0, later))
            },
            later,
        );
        assert_eq!(asleep.groups, 0);
        assert_eq!(
            recommend(&spec(), &see(0, vec![], demand(1, later)), later).groups,
            1
        );
    }

    #[test]
    fn no_zero_while_a_woken_group_loads() {
        // The request that woke the group has been given up; the group loads for longer than the idle time-out.
        let mut input = AutoscalerInput {
            starting: true,
            ..see(1, vec![], demand(0, T))
        };
        for at in [T, T + 200_000, T + 900_000] {
            input.demand = demand(0, at);
            let out = recommend(&spec(), &input, at);
            assert_eq!((out.groups, out.state.idle_since.as_ref()), (1, None));
            input.state = out.state;
        }
        // Once it serves, the idle time-out begins.
        input.starting = false;
        input.loads = vec![load(0, T + 900_000)];
        let serving = recommend(&spec(), &input, T + 900_000);
        assert_eq!((serving.groups, serving.next_at), (1, Some(T + 1_000_000)));
    }

    #[test]
    fn no_zero_while_short_requests_come_between_samples() {
        let mut input = see(1, vec![load(0, T)], demand(0, T));
        for tick in 0..30i64 {
            let at = T + tick * 20_000;
            input.loads = vec![load(0, at)];
            input.demand = demand(0, at).map(|d| Demand {
                total: 7 + tick.unsigned_abs(),
                ..d
            });
            let out = recommend(&spec(), &input, at);
            assert_eq!(out.groups, 1, "at tick {tick}");
            input.state = out.state;
        }
    }

    #[test]
    fn without_a_gateway_nobody_could_wake_so_one_stays() {
        let state = AutoscalingState {
            idle_since: Some(time::to_time(T)),
            ..Default::default()
        };
        let out = recommend(
            &spec(),
            &AutoscalerInput {
                state,
                ..see(1, vec![load(0, T + 900_000)], None)
            },
            T + 900_000,
        );
        assert_eq!(out.groups, 1);
    }

    #[test]
    fn the_bounds_hold_whatever_stood_there() {
        let loads = || vec![load(0, T)];
        let mut policy = spec();
        policy.min_replicas = 2;
        assert_eq!(recommend(&policy, &see(1, loads(), demand(0, T)), T).groups, 2);
        assert_eq!(recommend(&policy, &see(500, loads(), demand(0, T)), T).groups, 8);
    }
}
