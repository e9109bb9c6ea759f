//! The attention layer.
