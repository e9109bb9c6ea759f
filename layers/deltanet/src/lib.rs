//! The DeltaNet and gated DeltaNet layers.
