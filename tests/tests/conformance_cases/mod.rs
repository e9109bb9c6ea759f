//! The configurations that are held to the contract, a file a family.

pub(crate) mod attention;
pub(crate) mod block_state;
pub(crate) mod deltanet;
pub(crate) mod gau;
pub(crate) mod gla;
pub(crate) mod griffin;
pub(crate) mod h3;
pub(crate) mod hgrn2;
pub(crate) mod hyena;
pub(crate) mod kan;
pub(crate) mod mamba;
pub(crate) mod mamba3;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod retnet;
pub(crate) mod rnn;
pub(crate) mod rwkv;
pub(crate) mod s4;
pub(crate) mod s5;
pub(crate) mod s6;
pub(crate) mod short_conv;
pub(crate) mod xlstm;
