//! The mamba3 layer.
