//! Mamba and Mamba-2, to transformers' names.

use super::Rule;
use super::change::Change::{Flat, NegativeExp, Nothing};

pub(super) const MAMBA: &[Rule] = &[
    ("token_embd", "backbone.embeddings", Nothing),
    ("output_norm", "backbone.norm_f", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "backbone.layers.*.norm", Nothing),
    ("blk.*.ssm_in", "backbone.layers.*.mixer.in_proj", Nothing),
    ("blk.*.ssm_conv1d", "backbone.layers.*.mixer.conv1d", Nothing),
    ("blk.*.ssm_x", "backbone.layers.*.mixer.x_proj", Nothing),
    ("blk.*.ssm_dt", "backbone.layers.*.mixer.dt_proj", Nothing),
    ("blk.*.ssm_a", "backbone.layers.*.mixer.A_log", NegativeExp),
    ("blk.*.ssm_d", "backbone.layers.*.mixer.D", Nothing),
    ("blk.*.ssm_out", "backbone.layers.*.mixer.out_proj", Nothing),
];

pub(super) const MAMBA2: &[Rule] = &[
    ("token_embd", "backbone.embeddings", Nothing),
    ("output_norm", "backbone.norm_f", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "backbone.layers.*.norm", Nothing),
    ("blk.*.ssm_in", "backbone.layers.*.mixer.in_proj", Nothing),
    ("blk.*.ssm_conv1d", "backbone.layers.*.mixer.conv1d", Nothing),
    ("blk.*.ssm_dt.bias", "backbone.layers.*.mixer.dt_bias", Nothing),
    ("blk.*.ssm_a", "backbone.layers.*.mixer.A_log", NegativeExp),
    ("blk.*.ssm_d", "backbone.layers.*.mixer.D", Nothing),
    ("blk.*.ssm_norm", "backbone.layers.*.mixer.norm", Flat),
    ("blk.*.ssm_out", "backbone.layers.*.mixer.out_proj", Nothing),
];
