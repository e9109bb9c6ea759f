//! The H3 layer.
