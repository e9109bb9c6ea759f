//! The configurations that are held to the contract, a file a family.

pub(crate) mod attention;
pub(crate) mod mamba;
pub(crate) mod mlp;
