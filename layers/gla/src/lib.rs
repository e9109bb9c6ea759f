//! The gated linear attention and linear attention layers.
