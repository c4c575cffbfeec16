//! The operator dies at every write of a placement, and its successor converges.
