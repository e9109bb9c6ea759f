//! The multi-scale retention layer.
