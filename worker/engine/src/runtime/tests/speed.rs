//! How long the planner takes where the group is large. Not a test of anything: run it by
//! `cargo test --release -p llamero-engine speed -- --ignored --nocapture` on a quiet machine.
