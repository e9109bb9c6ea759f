//! The RWKV-4, 5, 6 and 7 layers.
