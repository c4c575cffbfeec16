//! Ports of Llamero's own services. All lie below 32768, where Linux begins to hand out ports of its own choice
//! (`net.ipv4.ip_local_port_range`), so that no outgoing connection can hold one of them.
//!
//! | port | what listens there |
//! |---|---|
//! | 8000 | gateway: HTTP for applications |
//! | 8080 | worker and operator: `/livez`, `/readyz`, `/metrics` |
//! | 8081 | gateway: the same |
//! | 18051 | worker of rank 0: inference (gRPC) |
//! | 18052 | worker: rank control (gRPC) |
//! | 18053 | gateway: demand and quota (gRPC) |
//! | 18054 | operator: enrolment (gRPC) |
//! | 18100 … | worker: ranks for their peers, one port each |

/// `vllm.Inference`, Completion, Telemetry: on the leader's pod.
pub const INFERENCE: u16 = 18051;
/// `RankControl`: on every worker pod.
pub const CONTROL: u16 = 18052;
/// `Demand`: on every gateway pod.
pub const DEMAND: u16 = 18053;
/// `Enrolment`: on every operator pod, where links are mutually authenticated.
pub const ENROLMENT: u16 = 18054;
/// Liveness, readiness and metrics of a worker pod.
pub const HEALTH: u16 = 8080;
/// Port of the first rank of a pod for its peers; rank `i` of the pod listens at `RANKS + i`.
pub const RANKS: u16 = 18100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_one_that_the_kernel_hands_out() {
        let last_rank = RANKS + u16::try_from(llamero_settings::limits::MAX_RANKS_PER_POD).unwrap();
        for port in [INFERENCE, CONTROL, DEMAND, ENROLMENT, HEALTH, last_rank] {
            assert!(port < 32_768, "{port}");
        }
        const { assert!(ENROLMENT < RANKS) };
    }
}
