//! transformers' hybrids of state spaces and attention.

use semisep_attention::AttentionConfig;
use semisep_core::MlpConfig;
use semisep_griffin::RgLruConfig;
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use semisep_moe::MoeConfig;
use serde_json::{Value, json};

use super::model::exactly;
use super::parts::{attention, attention_or_none, limits, mamba2, mlp, rope, types};
use super::{Dialect, all};
use crate::import::activation;

pub(super) const BAMBA: Dialect = Dialect::new(
    "bamba",
    Some(("bamba", "BambaForCausalLM")),
    &["mamba2 + mlp", "attention + mlp"],
    |model| {
        let (c, d): (MlpConfig, usize) = (model.first("mlp")?, model.d_model());
        Ok(all([
            attention(&attention_or_none(model), d, 0.5),
            mamba2(model),
            mlp(&c, d),
            json!({
                "mlp_bias": c.bias,
                "rms_norm_eps": model.eps(),
                "attn_layer_indices": model.with("attention"),
            }),
        ]))
    },
);

pub(super) const FALCON_H1: Dialect = Dialect::new(
    "falcon_h1",
    Some(("falcon_h1", "FalconH1ForCausalLM")),
    &["mamba2 | attention + mlp"],
    |model| {
        let (d, whole) = (model.d_model(), &model.architecture.model);
        let (ssm, heads): (Mamba2Config, AttentionConfig) =
            (model.first("mamba2")?, model.first("attention")?);
        let c: MlpConfig = model.first("mlp")?;
        let factors = |kind| model.branch(kind).map(|b| (b.input_multiplier, b.output_multiplier));
        let (around, beside, after) = (factors("mamba2"), factors("attention"), factors("mlp"));
        let root = (heads.head_dim(d) as f64).sqrt();
        let keys = |scale: f64| exactly(scale * root, |keys| keys / root, scale);
        Ok(all([
            attention(&heads, d, 1.0),
            mamba2(model),
            mlp(&c, d),
            json!({
                "mamba_expand": 2,
                "mamba_d_ssm": ssm.d_inner(d),
                "mamba_rms_norm": ssm.rmsnorm,
                "mamba_norm_before_gate": ssm.norm_before_gate,
                "projectors_bias": ssm.out_bias.unwrap_or(ssm.bias),
                "mlp_bias": c.bias,
                "rms_norm_eps": model.eps(),
                "embedding_multiplier": whole.embedding_multiplier,
                "lm_head_multiplier": whole.logits_multiplier,
                "key_multiplier": heads.scale.map_or(1.0, keys),
                "attention_in_multiplier": beside.map(|b| b.0),
                "attention_out_multiplier": beside.map(|b| b.1),
                "ssm_in_multiplier": around.map(|b| b.0),
                "ssm_out_multiplier": around.map(|b| b.1),
                "ssm_multipliers": ssm.ssm_multipliers.unwrap_or([1.0; 5]),
                "mlp_multipliers": [c.gate_multiplier, after.map_or(1.0, |b| b.1)],
            }),
        ]))
    },
);

pub(super) const GRANITE: Dialect = Dialect::new(
    "granitemoehybrid",
    Some(("granitemoehybrid", "GraniteMoeHybridForCausalLM")),
    &["mamba2 + mlp", "attention + mlp", "mamba2 + moe", "attention + moe"],
    |model| {
        let (d, whole) = (model.d_model(), &model.architecture.model);
        let heads = attention_or_none(model);
        let (experts, c): (Option<MoeConfig>, Option<MlpConfig>) = (model.find("moe"), model.find("mlp"));
        let act = experts.as_ref().map(|e| e.activation).or(c.as_ref().map(|c| c.activation));
        let shared = experts.as_ref().and_then(|e| e.shared_d_intermediate).or(c.map(|c| c.hidden(d)));
        let first = &model.architecture.layers[0].stages[0].branches[0];
        let divisor = 1.0 / whole.logits_multiplier;
        Ok(all([
            attention(&heads, d, 1.0),
            mamba2(model),
            json!({
                "position_embedding_type": if heads.rope.is_some() { "rope" } else { "nope" },
                "attention_multiplier": heads.scale.unwrap_or(1.0 / (heads.head_dim(d) as f64).sqrt()),
                "residual_multiplier": first.output_multiplier,
                "embedding_multiplier": whole.embedding_multiplier,
                "logits_scaling": exactly(divisor, |by| 1.0 / by, whole.logits_multiplier),
                "rms_norm_eps": model.eps(),
                "hidden_act": act.map(activation::name),
                "shared_intermediate_size": shared,
                "num_local_experts": experts.as_ref().map_or(0, |e| e.num_experts),
                "num_experts_per_tok": experts.as_ref().map_or(0, |e| e.num_experts_per_tok),
                "intermediate_size": experts.map(|e| e.d_intermediate).or(shared),
                "layer_types": types(model, "attention", "mamba"),
            }),
        ]))
    },
);

pub(super) const JAMBA: Dialect = Dialect::new(
    "jamba",
    Some(("jamba", "JambaForCausalLM")),
    &["mamba1 + mlp", "attention + mlp", "mamba1 + moe", "attention + moe"],
    |model| {
        let (d, n) = (model.d_model(), model.n_layer());
        let (c, experts): (Option<MlpConfig>, Option<MoeConfig>) = (model.find("mlp"), model.find("moe"));
        let act = experts.as_ref().map(|e| e.activation).or(c.as_ref().map(|c| c.activation));
        let width = experts.as_ref().map(|e| e.d_intermediate).or(c.as_ref().map(|c| c.hidden(d)));
        let attends = period(&model.with("attention"), n);
        let routed = period(&model.with("moe"), n).ok_or("its experts are not in every so many layers")?;
        Ok(all([
            attention(&attention_or_none(model), d, 1.0),
            mamba1(&model.find("mamba1").unwrap_or_default(), d),
            json!({
                "mlp_bias": c.map(|c| c.bias),
                "hidden_act": act.map(activation::name),
                "intermediate_size": width,
                "rms_norm_eps": model.eps(),
                "attn_layer_period": attends.map(|(period, _)| period),
                "attn_layer_offset": attends.map(|(_, offset)| offset),
                // A list, where layers of attention are not every so many.
                "layers_block_type": attends.is_none().then(|| types(model, "attention", "mamba")),
                "num_experts": experts.as_ref().map_or(1, |e| e.num_experts),
                "num_experts_per_tok": experts.map_or(1, |e| e.num_experts_per_tok),
                "expert_layer_period": routed.0,
                "expert_layer_offset": routed.1,
            }),
        ]))
    },
);

/// Mamba under the keys `mamba_*`.
pub(super) fn mamba1(c: &Mamba1Config, d_model: usize) -> Value {
    json!({
        "mamba_d_state": c.d_state,
        "mamba_d_conv": c.d_conv,
        "mamba_expand": c.d_inner(d_model) / d_model,
        "mamba_dt_rank": c.dt_rank.map_or("auto".into(), Value::from),
        "mamba_proj_bias": c.bias,
        "mamba_conv_bias": c.conv_bias,
    })
}

/// Period and offset of these among so many layers.
fn period(layers: &[usize], n: usize) -> Option<(usize, usize)> {
    let (period, offset) = match layers {
        [] => (n + 1, n),
        [only] => (n, *only),
        [first, second, ..] => (second - first, *first),
    };
    let chosen = (0..n).filter(|i| i % period == offset);
    chosen.eq(layers.iter().copied()).then_some((period, offset))
}

pub(super) const NEMOTRON_H: Dialect = Dialect::new(
    "nemotron_h",
    Some(("nemotron_h", "NemotronHForCausalLM")),
    &["mamba2", "attention", "mlp", "moe"],
    |model| {
        let d = model.d_model();
        let letters = [("mamba2", "M"), ("attention", "*"), ("mlp", "-"), ("moe", "E")];
        let letter = |kind: &str| letters.iter().find(|(known, _)| *known == kind).map(|(_, letter)| *letter);
        let ssm: Option<Mamba2Config> = model.find("mamba2");
        let (c, experts): (Option<MlpConfig>, Option<MoeConfig>) = (model.find("mlp"), model.find("moe"));
        let act = c.as_ref().map(|c| c.activation).or(experts.as_ref().map(|e| e.activation));
        Ok(all([
            attention(&attention_or_none(model), d, 1.0),
            ssm.as_ref().map_or(Value::Null, |c| nemotron_mamba(c, d)),
            experts.as_ref().map_or(Value::Null, nemotron_experts),
            json!({
                "hybrid_override_pattern": model.kinds().filter_map(letter).collect::<String>(),
                "layer_norm_epsilon": model.eps(),
                "residual_in_fp32": model.architecture.model.residual_in_fp32,
                "mlp_hidden_act": act.map(activation::name),
                "intermediate_size": c.as_ref().map(|c| c.hidden(d)),
                "mlp_bias": c.map(|c| c.bias),
            }),
        ]))
    },
);

fn nemotron_mamba(c: &Mamba2Config, d_model: usize) -> Value {
    json!({
        "mamba_num_heads": c.n_heads(d_model),
        "mamba_head_dim": c.headdim,
        "ssm_state_size": c.d_state,
        "conv_kernel": c.d_conv,
        "n_groups": c.ngroups,
        "chunk_size": c.chunk_size,
        "use_bias": c.bias,
        "use_conv_bias": c.conv_bias,
        "time_step_limit": limits(c),
    })
}

fn nemotron_experts(c: &MoeConfig) -> Value {
    json!({
        "n_routed_experts": c.num_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "moe_intermediate_size": c.d_intermediate,
        "n_shared_experts": usize::from(c.shared_d_intermediate.is_some()),
        "moe_shared_expert_intermediate_size": c.shared_d_intermediate,
        "moe_latent_size": c.latent_size,
        "norm_topk_prob": c.norm_topk_prob,
        "n_group": c.n_group,
        "topk_group": c.topk_group,
        "routed_scaling_factor": c.routed_scaling_factor,
    })
}

pub(super) const RECURRENT_GEMMA: Dialect = Dialect {
    nulls: &["logits_soft_cap"],
    ..Dialect::new(
        "recurrent_gemma",
        Some(("recurrent_gemma", "RecurrentGemmaForCausalLM")),
        &["rg_lru + mlp", "attention + mlp"],
        |model| {
            let d = model.d_model();
            let (lru, heads): (Option<RgLruConfig>, Option<AttentionConfig>) =
                (model.find("rg_lru"), model.find("attention"));
            let c: MlpConfig = model.first("mlp")?;
            let default = RgLruConfig::default();
            if let (Some(lru), Some(heads)) = (&lru, &heads)
                && lru.num_blocks != heads.n_heads
            {
                let (blocks, heads) = (lru.num_blocks, heads.n_heads);
                return Err(format!(
                    "rg_lru has {blocks} blocks, attention {heads} heads, there both are one number"
                ));
            }
            let number = heads.as_ref().map(|c| c.n_heads).or(lru.as_ref().map(|c| c.num_blocks));
            Ok(all([
                heads.as_ref().and_then(|c| Some(rope(&c.rope?, c.head_dim(d), 0.5))).unwrap_or_default(),
                json!({
                    "block_types": types(model, "attention", "recurrent"),
                    "lru_width": lru.as_ref().map_or(d, |c| c.lru_width.unwrap_or(d)),
                    "conv1d_width": lru.as_ref().map_or(default.conv1d_width, |c| c.conv1d_width),
                    "num_attention_heads": number,
                    "num_key_value_heads": heads.as_ref().map(AttentionConfig::n_kv_heads),
                    "head_dim": heads.as_ref().map(|c| c.head_dim(d)),
                    "attention_bias": heads.as_ref().map(|c| c.qkv_bias),
                    "attention_window_size": heads.and_then(|c| c.window),
                    // Of gate and value together.
                    "intermediate_size": 2 * c.hidden(d),
                    "hidden_activation": activation::name(c.activation),
                    "rms_norm_eps": model.eps(),
                    "logits_soft_cap": model.architecture.model.logits_soft_cap,
                }),
            ]))
        },
    )
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods() {
        assert_eq!(period(&[1, 4, 7], 9), Some((3, 1)));
        assert_eq!(period(&[2], 5), Some((5, 2)));
        assert_eq!(period(&[], 5), Some((6, 5)));
        assert_eq!(period(&[1, 4], 9), None);
        assert_eq!(period(&[4, 5], 6), None);
    }
}
