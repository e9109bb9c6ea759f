//! The mamba1 layer.
