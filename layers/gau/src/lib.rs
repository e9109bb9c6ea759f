//! The gated attention unit.
