//! Mamba and Mamba-2.

use serde_json::{Value as Json, json};

use super::Facts;

pub(super) fn mamba(facts: &Facts<'_>) -> Json {
    let normed = facts.flag("ssm.dt_b_c_rms") == json!(true);
    json!({
        "model_type": if normed { "falcon_mamba" } else { "mamba" },
        "hidden_size": facts.number("embedding_length"),
        "num_hidden_layers": facts.number("block_count"),
        "vocab_size": facts.rows("backbone.embeddings.weight"),
        "state_size": facts.number("ssm.state_size"),
        "conv_kernel": facts.number("ssm.conv_kernel"),
        "intermediate_size": facts.number("ssm.inner_size"),
        "expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "time_step_rank": facts.number("ssm.time_step_rank"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "use_bias": facts.has("backbone.layers.0.mixer.in_proj.bias"),
        "use_conv_bias": facts.has("backbone.layers.0.mixer.conv1d.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}

pub(super) fn mamba2(facts: &Facts<'_>) -> Json {
    json!({
        "model_type": "mamba2",
        "hidden_size": facts.number("embedding_length"),
        "num_hidden_layers": facts.number("block_count"),
        "vocab_size": facts.rows("backbone.embeddings.weight"),
        "state_size": facts.number("ssm.state_size"),
        "conv_kernel": facts.number("ssm.conv_kernel"),
        "expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "num_heads": facts.number("ssm.time_step_rank"),
        "head_dim": facts.quotient("ssm.inner_size", "ssm.time_step_rank"),
        "n_groups": facts.number("ssm.group_count"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "use_bias": facts.has("backbone.layers.0.mixer.in_proj.bias"),
        "use_conv_bias": facts.has("backbone.layers.0.mixer.conv1d.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}
