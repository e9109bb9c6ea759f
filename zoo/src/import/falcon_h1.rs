//! transformers' `FalconH1ForCausalLM`: Mamba-2 and attention side by side on one normed input, then an MLP.
//!
//! Its muP factors are long decimals, kept as they are. The factor on the keys is one on the scores, as keys enter nowhere
//! else.

use semisep_core::MlpConfig;
use semisep_mamba2::Mamba2Config;

use super::hybrid::{Hybrid, Whole, attention_names, branch, stage};
use super::rope::rope;
use super::{Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer};
use crate::Result;

/// `model_type` "falcon_h1".
pub(super) const FALCON_H1: Importer = Importer {
    family: "falcon_h1",
    detects: |config| is_type(config, "falcon_h1", "FalconH1ForCausalLM"),
    import,
};

fn import(folder: &Folder<'_>) -> Result<Import> {
    let mut hybrid = Hybrid::new(folder);
    let config = &folder.config;
    let n_layer = config.size_up_to("num_hidden_layers", MAX_LAYERS);
    let eps = hybrid.eps("rms_norm_eps", 1e-5);
    if config.get("attn_layer_indices").is_some() {
        let note = "attn_layer_indices has no effect: every layer has attention beside its state space";
        hybrid.notes.push(note.into());
    }
    let mut attention = hybrid.attention(|head_dim| Some(rope(config, head_dim, 1e4, 1.0)));
    let keys = hybrid.factor("key_multiplier");
    if keys <= 0.0 {
        config.problem("key_multiplier", format!("expected a number > 0, found {keys}"));
    }
    let head_dim = attention.head_dim(hybrid.d_model) as f64;
    attention.scale = (keys != 1.0).then_some(keys / head_dim.sqrt());
    let names = names(attention_names(
        Names::new(),
        &attention,
        hybrid.d_model,
        0..n_layer,
        ("model.layers.*.self_attn", "backbone.layers.*.attn"),
    ));
    let (mamba, (mlp, down)) = (mamba(&hybrid, eps), mlp(&hybrid));
    let (attention, ssm, mlp) = (hybrid.checked(attention), hybrid.checked(mamba), hybrid.checked(mlp));
    let factor = |key: &str| hybrid.factor(key);
    let beside = (factor("attention_in_multiplier"), factor("attention_out_multiplier"));
    let around = (factor("ssm_in_multiplier"), factor("ssm_out_multiplier"));
    let multipliers = (factor("embedding_multiplier"), factor("lm_head_multiplier"));
    let layers = (0..n_layer).map(|_| {
        let mixers = vec![
            branch(ssm.clone(), "mamba", "norm", around),
            branch(attention.clone(), "attn", "norm", beside),
        ];
        let mlp = vec![branch(mlp.clone(), "mlp", "norm2", (1.0, down))];
        layer("hybrid", vec![stage(mixers), stage(mlp)])
    });
    let layers = layers.collect();
    hybrid.import(Whole { multipliers, ..Whole::new(FALCON_H1.family, eps) }, layers, names)
}

fn mamba(hybrid: &Hybrid<'_>, eps: f64) -> Mamba2Config {
    let config = hybrid.config;
    let mixer = hybrid.mamba2(config.size_from("mamba_d_ssm", 1), eps);
    let out_bias = config.flag_or("projectors_bias", false);
    Mamba2Config {
        out_bias: (out_bias != mixer.bias).then_some(out_bias),
        rmsnorm: config.flag_or("mamba_rms_norm", false),
        norm_before_gate: config.flag_or("mamba_norm_before_gate", true),
        ssm_multipliers: config.numbers("ssm_multipliers").filter(|all| *all != [1.0; 5]),
        ..mixer
    }
}

/// The MLP, and the factor on what it gives.
fn mlp(hybrid: &Hybrid<'_>) -> (MlpConfig, f64) {
    let [gate, down] = hybrid.config.numbers("mlp_multipliers").unwrap_or([1.0; 2]);
    (MlpConfig { gate_multiplier: gate, ..hybrid.mlp("intermediate_size") }, down)
}

fn names(names: Names) -> Names {
    names
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.final_layernorm", "backbone.norm_f")
        .rename("model.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("model.layers.*.pre_ff_layernorm", "backbone.layers.*.norm2")
        .rename("model.layers.*.mamba", "backbone.layers.*.mamba")
        .rename("model.layers.*.feed_forward", "backbone.layers.*.mlp")
}
