//! The Block-State Transformer layer (Fathi et al. 2023, arXiv 2306.09539): attention within windows, which reads the
//! sequence before them from the states of an SSM. All windows run in parallel; nothing recurs but the SSM.
//!
//! ```text
//! Y = ssm(u)                      once over the whole sequence; several outputs (banks) a token
//! [q_s, q_c, k, v] = W norm(u)    a head of e features each
//! k', v' = W' norm(contexts)      each head from its own context vector: see below
//! o_s = softmax((q̂_s · k̂ + bias[t - t']) scale_s) v     over the window's earlier tokens t'
//! o_c = softmax( q̂_c · k̂'               scale_c) v'    over the window's contexts
//! r   = u + out [o_s, o_c]
//! y   = r + ffn_out relu(ffn_in norm(r))              x̂ = x / √(Σ x² + eps); norm: RMS with a scale
//! ```
//! Contexts of window k, a vector of d features for each head j:
//!
//! | variant | banks | contexts | lift | which a token t sees |
//! |---|---|---|---|---|
//! | SH | 1 | one a token t' of the window | `weight[j] Y[t'] + bias[j]` | t' ≤ t |
//! | MH | h | one a token t' of the window | `Y[t', j]` | t' ≤ t |
//! | MF | s | s, from the last token of window k - 1; learned for window 0 | rows of j in `W Y + b` | all |
//!
//! `Y[t]` holds u_t: SH and MH need the causal mask, MF the shift by a window. MF adds an identity a slot after the norm.
//! A token that sees nothing gets zeros.
//!
//! As a mixer in a stack this gives `y - u`: the stack adds u back. The norms stand inside, since the SSM reads u as it
//! is: the block has `norm = "none"`.
//!
//! Sources: the paper's sections 3.1 to 3.3 and the pseudocode of its appendix; the cell is that of the Block-Recurrent
//! Transformer as google-research/meliad has it (`transformer_layer.py`: L2-normalised queries and keys, learned scales,
//! T5 bias before the scale, own position hidden, no gate in the vertical direction). As a matrix mixer: the softmax rows
//! of the self-attention, and of the cross-attention where a context belongs to a token; of full rank.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | norms | `token_norm.scale`, `context_norm.scale`, `ffn_norm.scale` | (d) |
//! | tokens | `q_self`, `q_cross`, `k`, `v` `.weight` | (h e, d) |
//! | contexts | `context_k`, `context_v` `.weight` | (h e, d) |
//! | scales | `scale_self`, `scale_cross` | (h) |
//! | bias | `rel_bias.weight` | (buckets, h) |
//! | lift | `lift.weight`, `lift.bias` | SH: (h, 1), (h); MF: (h d, d), (h d) |
//! | MF | `init_contexts`, `context_ids` | (s, d) |
//! | output | `out.weight` (`.bias`) | (d, 2 h e) |
//! | feed-forward | `ffn_in`, `ffn_out` `.weight` (`.bias`) | (f, d), (d, f) |
//! | SSM | `ssm.*` | its own |

mod config;
mod contexts;
mod cost;
mod layer;
mod matrix;
mod unstructured;
mod windows;

pub use config::{BlockStateConfig, Variant};
pub use layer::BlockState;
pub use unstructured::{Unstructured, UnstructuredConfig};

const KIND: &str = "block_state";
