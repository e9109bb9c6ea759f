//! The S5 layer.
