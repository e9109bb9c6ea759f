//! flash-linear-attention's models of one linear recurrence, torchscale's RetNet, and xLSTM.

use semisep_core::MlpConfig;
use semisep_hgrn2::Hgrn2Config;
use semisep_retnet::RetNetConfig;
use semisep_xlstm::MlstmConfig;
use serde_json::json;

use super::model::{Model, exactly};
use super::{Dialect, Keys, all};
use crate::import::activation;

pub(super) const DELTANET: Dialect =
    Dialect::new("deltanet-fla", Some(("delta_net", "DeltaNetForCausalLM")), &["deltanet + mlp"], |model| {
        fla(model, "deltanet")
    });

pub(super) const GATED_DELTANET: Dialect = Dialect::new(
    "gated-deltanet-fla",
    Some(("gated_deltanet", "GatedDeltaNetForCausalLM")),
    &["gated_deltanet + mlp"],
    |model| fla(model, "gated_deltanet"),
);

pub(super) const GLA: Dialect =
    Dialect::new("gla-fla", Some(("gla", "GLAForCausalLM")), &["gla + mlp"], |model| fla(model, "gla"));

pub(super) const RETNET: Dialect =
    Dialect::new("retnet-fla", Some(("retnet", "RetNetForCausalLM")), &["retnet + mlp"], |model| {
        fla(model, "retnet")
    });

pub(super) const HGRN2: Dialect =
    Dialect::new("hgrn2-fla", Some(("hgrn2", "HGRN2ForCausalLM")), &["hgrn2 + mlp"], |model| {
        let c: Hgrn2Config = model.first("hgrn2")?;
        Ok(all([fla(model, "hgrn2")?, json!({ "num_heads": model.d_model() / c.expand_ratio.max(1) })]))
    });

/// The mixers' keys are fla's own; the activation of the gate is that of the MLP.
fn fla(model: &Model<'_>, kind: &str) -> Keys {
    let mlp: MlpConfig = model.first("mlp")?;
    let mut mixer = model.raw(kind)?;
    mixer.remove("gate_fn");
    let act = match activation::name(mlp.activation) {
        "silu" => "swish",
        other => other,
    };
    Ok(all([
        mixer.into(),
        json!({
            "norm_eps": model.eps(),
            "intermediate_size": mlp.hidden(model.d_model()),
            "hidden_act": act,
        }),
    ]))
}

pub(super) const RETNET_TORCHSCALE: Dialect =
    Dialect::new("retnet-torchscale", None, &["retnet + mlp"], |model| {
        let (whole, d) = (&model.architecture.model, model.d_model());
        let (c, mlp): (RetNetConfig, MlpConfig) = (model.first("retnet")?, model.first("mlp")?);
        Ok(json!({
            "decoder_embed_dim": d,
            "decoder_value_embed_dim": (c.expand_v * d as f64).round() as usize,
            "decoder_retention_heads": c.num_heads,
            "decoder_ffn_embed_dim": mlp.hidden(d),
            "decoder_layers": model.n_layer(),
            "decoder_normalize_before": true,
            "vocab_size": whole.padded_vocab(),
            "activation_fn": activation::name(mlp.activation),
            "layernorm_eps": model.eps(),
            "no_scale_embedding": whole.embedding_multiplier == 1.0,
            "share_decoder_input_output_embed": whole.tie_embeddings,
        }))
    });

pub(super) const XLSTM: Dialect = Dialect {
    nulls: &["gate_soft_cap", "output_logit_soft_cap"],
    ..Dialect::new("xlstm", Some(("xlstm", "xLSTMForCausalLM")), &["mlstm + mlp"], |model| {
        let (d, c): (usize, MlstmConfig) = (model.d_model(), model.first("mlstm")?);
        let hidden = model.first::<MlpConfig>("mlp")?.hidden(d);
        let factor = exactly(hidden as f64 / d as f64, |factor| (d as f64 * factor) as usize, hidden);
        Ok(json!({
            "embedding_dim": d,
            "num_blocks": model.n_layer(),
            "num_heads": c.num_heads,
            "qk_dim_factor": c.qk_dim_factor,
            "v_dim_factor": c.v_dim_factor,
            "gate_soft_cap": c.gate_soft_cap,
            "input_gate_bias_init": c.input_gate_bias_init,
            "eps": c.eps,
            "norm_eps": model.eps(),
            "ffn_proj_factor": factor,
            "ffn_round_up_to_multiple_of": 1,
            "output_logit_soft_cap": model.architecture.model.logits_soft_cap,
            "add_out_norm": true,
            "use_bias": false,
            "weight_mode": "single",
        }))
    })
};
