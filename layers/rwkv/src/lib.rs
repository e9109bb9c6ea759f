//! RWKV 4, 5, 6 and 7: time mixes (the sequence mixers), and the channel mixes that stand in for the MLP.
//!
//! | version | time mix | state a layer | paper |
//! |---|---|---|---|
//! | 4 Dove | [`Rwkv4`]: an exponentially weighted average of values, channel by channel | 3 c | 2305.13048 |
//! | 5 Eagle | [`Rwkv5`]: heads of matrix states, a fixed decay a key channel | h n p | 2404.05892 |
//! | 6 Finch | [`Rwkv6`]: the same with decays and token shift that depend on the data | h n p | 2404.05892 |
//! | 7 Goose | [`Rwkv7`]: the generalised delta rule, a value residual across layers | h n p | 2503.14456 |
//!
//! All begin with the token shift: what each projection reads is a mix of a token and the one before it, hence one more
//! vector of state here and in each [`RwkvChannelMix`]. Parameters are named as in BlinkDL's `.pth` files below `att` and
//! `ffn`; where flash-linear-attention stores another shape, [`Layout::Fla`] asks for its names.

mod channel_mix;
mod config;
mod cost;
mod init;
mod lora;
mod matrix;
mod mixes;
mod readout;
mod rwkv4;
mod rwkv5;
mod rwkv6;
mod rwkv7;
mod scan;

pub use channel_mix::RwkvChannelMix;
pub use config::{Layout, Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};
pub use rwkv4::Rwkv4;
pub use rwkv5::Rwkv5;
pub use rwkv6::Rwkv6;
pub use rwkv7::Rwkv7;
