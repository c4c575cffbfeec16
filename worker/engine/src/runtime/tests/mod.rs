//! Groups of 1 to 4 ranks over loopback, with a tiny model that computes through the real collective.

mod fake;
mod faults;
mod group;
mod mesh;
mod serving;
