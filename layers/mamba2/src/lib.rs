//! The mamba2 layer.
