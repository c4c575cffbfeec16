//! Llamero on a real cluster: needs a cluster with the chart installed (`tests/e2e.sh` sees to that) and real weights.
//!
//! | module | what it shows |
//! |---|---|
//! | [`answers`] | text of ranks on different nodes is the text of one process; grpcurl works |
//! | [`bounds`] | what tenants may ask for is the same to the API server and to the operator |
//! | [`clients`] | client packages of others, through the gateway |
//! | [`dashboard`] | the dashboard's metrics are exported |
//! | [`disruption`] | a drained node: members move and the stream goes on |
//! | [`edge`] | two gateways with TLS, keys and limits in front of two groups |
//! | [`faults`] | a killed rank, a deleted pod: streams go on, survivors keep their weights |
//! | [`gpus`] | ranks on an emulated driver: the CPU's text, a killed rank, nodes without GPUs, an image without CUDA |
//! | [`hub`] | weights straight from a Hub, two ranks on one node |
//! | [`identities`] | certificates on both sides: who enrols, who gets in, renewal, an operator that is away |
//! | [`network`] | fences between pods, enforced |
//! | [`operations`] | definitions, roles |
//! | [`penetration`] | whoever should not get in does not, each attempt with its answer: `docs/security.md` |
//! | [`placement`] | whole groups or nothing |
//! | [`plugin`] | `kubectl llamero` foretells, explains, steers and talks |
//! | [`policy`] | what tenants may ask for |
//! | [`refusals`] | what the API server and the gateway refuse, and how |
//! | [`rollout`] | changes that go wrong, canaries, names that two want |
//! | [`secrecy`] | what nobody must read in statuses, Events and logs |
//! | [`sources`] | a claim, an image and a directory hold the same weights |
//! | [`routing`] | conversations at two groups: affinity beside the least loaded and beside turns |
//! | [`scaling`] | up, down, to zero and back |
//! | [`writes`] | the operator dies at a write of a placement and a new one converges |

mod answers;
mod bounds;
mod client;
mod clients;
mod dashboard;
mod disruption;
mod edge;
mod faults;
mod fixture;
mod gpus;
mod hub;
mod identities;
mod installation;
mod network;
mod operations;
mod parts;
mod penetration;
mod placement;
mod plugin;
mod policy;
mod refusals;
mod rollout;
mod routing;
mod scaling;
mod secrecy;
mod sources;
mod stranger;
mod writes;
