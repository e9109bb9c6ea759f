//! The gated short convolution.
