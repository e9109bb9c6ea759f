//! The Block-State Transformer layer.
