//! The Hyena and StripedHyena layers.
