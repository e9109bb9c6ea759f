//! The S4 and S4D layers.
