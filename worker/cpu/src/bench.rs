//! Speed beside bounds.
