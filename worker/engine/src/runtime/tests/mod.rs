//! Groups of 1 to 4 ranks over loopback, with a tiny model that computes through the real mesh; and planner, executor and
//! members without threads, in any order of events.

mod adapters;
mod bounds;
mod charges;
mod constrained;
mod divergence;
pub(super) mod fake;
mod fake_adapters;
mod faults;
mod faults_of_fake;
mod full_socket;
mod group;
mod mesh;
pub(super) mod model;
mod serving;
mod simulation;
mod speed;
mod stalls;
mod survivors;
