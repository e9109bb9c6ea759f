//! Hybrids of attention with state spaces or short convolutions.

use serde_json::{Value as Json, json};

use super::Facts;
use super::rope::scaling;
use crate::checkpoint::is_bamba;

pub(super) fn jamba(facts: &Facts<'_>) -> Json {
    let attends = [("model.layers.*.self_attn.q_proj.weight", "attention")];
    // Which layers have experts is told by their tensors alone.
    let layers = facts.layers();
    let routed = |i: &usize| facts.has(&format!("model.layers.{i}.feed_forward.router.weight"));
    let mut routers = (0..layers).filter(routed);
    let (first, second) = (routers.next(), routers.next());
    let offset = first.unwrap_or(0);
    json!({
        "model_type": "jamba",
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": facts.most("attention.head_count_kv"),
        "layers_block_type": facts.kinds(&attends, "mamba"),
        "num_experts": if first.is_some() { facts.number("expert_count") } else { json!(1) },
        "num_experts_per_tok": if first.is_some() { facts.number("expert_used_count") } else { json!(1) },
        "expert_layer_offset": offset,
        "expert_layer_period": second.map_or(layers.max(1), |second| second - offset),
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "mamba_d_state": facts.number("ssm.state_size"),
        "mamba_d_conv": facts.number("ssm.conv_kernel"),
        "mamba_expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "mamba_dt_rank": facts.number("ssm.time_step_rank"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}

/// With experts and without.
pub(super) fn lfm2(facts: &Facts<'_>) -> Json {
    let attends = [("model.layers.*.self_attn.q_proj.weight", "full_attention")];
    let experts = facts.any("model.layers.*.feed_forward.gate.weight");
    json!({
        "model_type": if experts { "lfm2_moe" } else { "lfm2" },
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "block_auto_adjust_ff_dim": false,
        "num_hidden_layers": facts.layers(),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": facts.most("attention.head_count_kv"),
        "layer_types": facts.kinds(&attends, "conv"),
        "conv_L_cache": facts.number("shortconv.l_cache"),
        "conv_bias": facts.any("model.layers.*.conv.in_proj.bias"),
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": facts.metadata.number("rope.freq_base").unwrap_or(10_000.0),
        "rope_scaling": scaling(facts),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
        "moe_intermediate_size": facts.number("expert_feed_forward_length"),
        "num_dense_layers": facts.number("leading_dense_block_count"),
        "num_experts": facts.number("expert_count"),
        "num_experts_per_tok": facts.number("expert_used_count"),
        "use_expert_bias": facts.any("model.layers.*.feed_forward.expert_bias"),
        "routed_scaling_factor": facts.number("expert_weights_scale"),
    })
}

/// The Mamba-2 layers and the attention of hybrids, as transformers names their keys.
fn hybrid(facts: &Facts<'_>, model_type: &str, more: Json) -> Json {
    let config = json!({
        "model_type": model_type,
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "num_hidden_layers": facts.layers(),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": facts.most("attention.head_count_kv"),
        "head_dim": facts.number("attention.key_length"),
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": facts.metadata.number("rope.freq_base").unwrap_or(10_000.0),
        "rope_scaling": scaling(facts),
        "attention_bias": facts.any("model.layers.*.self_attn.q_proj.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
        "mamba_expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "mamba_d_state": facts.number("ssm.state_size"),
        "mamba_d_conv": facts.number("ssm.conv_kernel"),
        "mamba_n_heads": facts.number("ssm.time_step_rank"),
        "mamba_d_head": facts.quotient("ssm.inner_size", "ssm.time_step_rank"),
        "mamba_n_groups": facts.number("ssm.group_count"),
        "mamba_conv_bias": facts.any("model.layers.*.mamba.conv1d.bias"),
        "mamba_proj_bias": facts.any("model.layers.*.mamba.in_proj.bias"),
    });
    let (Json::Object(mut config), Json::Object(more)) = (config, more) else { return Json::Null };
    config.extend(more);
    Json::Object(config)
}

/// Its factors are in the tensors.
pub(super) fn falcon_h1(facts: &Facts<'_>) -> Json {
    let more = json!({
        "mamba_d_ssm": facts.number("ssm.inner_size"),
        "mamba_rms_norm": facts.any("model.layers.*.mamba.norm.weight"),
        "mamba_norm_before_gate": false,
        "projectors_bias": facts.any("model.layers.*.mamba.out_proj.bias"),
        "mlp_bias": facts.any("model.layers.*.feed_forward.gate_proj.bias"),
    });
    hybrid(facts, "falcon_h1", more)
}

/// Granite 4, and Granite without state spaces; Bamba, whose files say that they are Granite's.
pub(super) fn granite(facts: &Facts<'_>) -> Json {
    if is_bamba(facts.metadata) {
        let attends = |i: &usize| facts.has(&format!("model.layers.{i}.self_attn.q_proj.weight"));
        let more = json!({
            "attn_layer_indices": (0..facts.layers()).filter(attends).collect::<Vec<_>>(),
            "mlp_bias": facts.any("model.layers.*.feed_forward.gate_proj.bias"),
        });
        return hybrid(facts, "bamba", more);
    }
    let attends = [("model.layers.*.self_attn.q_proj.weight", "attention")];
    let experts = facts.any("model.layers.*.block_sparse_moe.router.layer.weight");
    let shared = if experts { "expert_shared_feed_forward_length" } else { "feed_forward_length" };
    let turns = facts.metadata.architecture() == "granite";
    let more = json!({
        "layer_types": facts.kinds(&attends, "mamba"),
        "position_embedding_type": if turns { "rope" } else { "nope" },
        "shared_intermediate_size": facts.number(shared),
        "num_local_experts": if experts { facts.number("expert_count") } else { json!(0) },
        "num_experts_per_tok": facts.number("expert_used_count"),
        "attention_multiplier": facts.number("attention.scale"),
        "embedding_multiplier": facts.number("embedding_scale"),
        "residual_multiplier": facts.number("residual_scale"),
        "logits_scaling": facts.number("logit_scale"),
    });
    hybrid(facts, "granitemoehybrid", more)
}

/// With experts and without: what each layer is, is told by its tensors.
pub(super) fn nemotron_h(facts: &Facts<'_>) -> Json {
    let kinds = [
        ("backbone.layers.*.mixer.A_log", "mamba"),
        ("backbone.layers.*.mixer.q_proj.weight", "attention"),
        ("backbone.layers.*.mixer.gate.weight", "moe"),
    ];
    let latent = ["moe_latent_size", "expert_latent_length"].map(|key| facts.number(key));
    json!({
        "model_type": "nemotron_h",
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.rows("backbone.layers.*.mixer.up_proj.weight"),
        "num_hidden_layers": facts.layers(),
        "layers_block_type": facts.kinds(&kinds, "mlp"),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": facts.most("attention.head_count_kv"),
        "head_dim": facts.number("attention.key_length"),
        "attention_bias": facts.any("backbone.layers.*.mixer.q_proj.bias"),
        "mlp_bias": facts.any("backbone.layers.*.mixer.up_proj.bias"),
        "mlp_hidden_act": "relu2",
        "vocab_size": facts.rows("backbone.embeddings.weight"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "ssm_state_size": facts.number("ssm.state_size"),
        "conv_kernel": facts.number("ssm.conv_kernel"),
        "mamba_num_heads": facts.number("ssm.time_step_rank"),
        "mamba_head_dim": facts.quotient("ssm.inner_size", "ssm.time_step_rank"),
        "n_groups": facts.number("ssm.group_count"),
        "use_bias": facts.any("backbone.layers.*.mixer.in_proj.bias"),
        "use_conv_bias": facts.any("backbone.layers.*.mixer.conv1d.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
        "n_routed_experts": facts.number("expert_count"),
        "n_shared_experts": facts.number("expert_shared_count"),
        "num_experts_per_tok": facts.number("expert_used_count"),
        "moe_intermediate_size": facts.number("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": facts.number("expert_shared_feed_forward_length"),
        "norm_topk_prob": facts.flag("expert_weights_norm"),
        "routed_scaling_factor": facts.number("expert_weights_scale"),
        "n_group": facts.number("expert_group_count"),
        "topk_group": facts.number("expert_group_used_count"),
        "moe_latent_size": latent.into_iter().find(|size| !size.is_null()),
    })
}
