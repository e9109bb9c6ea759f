//! NVIDIA's Nemotron-H (`NemotronHForCausalLM`): each layer one mixer, of Mamba-2 (`M`), attention without positions (`*`),
//! an MLP with squared relu (`-`), or a mixture of such MLPs (`E`).

use std::sync::Arc;

use semisep_core::{Activation, MixerConfig, MlpConfig};
use semisep_mamba2::Mamba2Config;
use semisep_moe::{MoeConfig, Scoring};

use super::activation::activation;
use super::hybrid::{Hybrid, Whole, attention_names};
use super::{Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "nemotron_h".
pub(super) const NEMOTRON_H: Importer = Importer {
    family: "nemotron_h",
    detects: |config| is_type(config, "nemotron_h", "NemotronHForCausalLM"),
    import,
};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Mamba,
    Attention,
    Mlp,
    Experts,
}

const LETTERS: [(char, Kind); 4] =
    [('M', Kind::Mamba), ('*', Kind::Attention), ('-', Kind::Mlp), ('E', Kind::Experts)];

const TYPES: [(&str, Kind); 6] = [
    ("mamba", Kind::Mamba),
    ("linear_attention", Kind::Mamba),
    ("attention", Kind::Attention),
    ("full_attention", Kind::Attention),
    ("mlp", Kind::Mlp),
    ("moe", Kind::Experts),
];

fn import(folder: &Folder<'_>) -> Result<Import> {
    let mut hybrid = Hybrid::new(folder);
    let config = &folder.config;
    let kinds = kinds(&mut hybrid);
    let key = ["layer_norm_epsilon", "rms_norm_eps"].into_iter().find(|key| config.get(key).is_some());
    let eps = hybrid.eps(key.unwrap_or("layer_norm_epsilon"), 1e-5);
    let mut attention = hybrid.attention(|_| None);
    if let Some(first) = kinds.iter().position(|kind| *kind == Kind::Attention) {
        hybrid.stored_bias(&mut attention, &format!("backbone.layers.{first}.mixer.q_proj"));
    }
    let names = attention_names(
        Names::new(),
        &attention,
        hybrid.d_model,
        kinds.iter().enumerate().filter(|(_, kind)| **kind == Kind::Attention).map(|(i, _)| i),
        ("backbone.layers.*.mixer", "backbone.layers.*.mixer"),
    );
    let has = |kind| kinds.contains(&kind);
    let [ssm, attention, mlp, experts]: [Option<Arc<dyn MixerConfig>>; 4] = [
        has(Kind::Mamba).then(|| hybrid.checked(mamba(&hybrid, eps))),
        has(Kind::Attention).then(|| hybrid.checked(attention)),
        has(Kind::Mlp).then(|| hybrid.checked(mlp(&hybrid))),
        has(Kind::Experts).then(|| hybrid.checked(experts(&hybrid, &kinds))),
    ];
    let layers = kinds.iter().filter_map(|kind| {
        let (block, mixer) = match kind {
            Kind::Mamba => ("ssm", &ssm),
            Kind::Attention => ("attn", &attention),
            Kind::Mlp => ("mlp", &mlp),
            Kind::Experts => ("moe", &experts),
        };
        Some(layer(block, vec![residual(mixer.clone()?, "mixer", "norm")]))
    });
    let layers = layers.collect();
    let whole = Whole {
        embedding: "backbone.embeddings.weight",
        residual_in_fp32: config.flag_or("residual_in_fp32", false),
        ..Whole::new(NEMOTRON_H.family, eps)
    };
    let names = names
        .rename("backbone.embeddings", "backbone.embedding")
        .rename("backbone.layers.*.mixer.shared_experts", "backbone.layers.*.mixer.shared_expert")
        .ignore("mtp");
    hybrid.import(whole, layers, names)
}

/// The kind of each layer. The pattern counts where `num_hidden_layers` says otherwise.
fn kinds(hybrid: &mut Hybrid<'_>) -> Vec<Kind> {
    let Hybrid { config, notes, .. } = hybrid;
    let said = config.get("num_hidden_layers").map(|_| config.size_up_to("num_hidden_layers", MAX_LAYERS));
    if let Some(kinds) = layout::pattern(config, "hybrid_override_pattern", &LETTERS) {
        if let Some(said) = said.filter(|&said| said != kinds.len() && config.ok()) {
            let n = kinds.len();
            notes.push(format!(
                "hybrid_override_pattern has {n} layers, num_hidden_layers says {said}: {n} it is"
            ));
        }
        return kinds;
    }
    let listed = ["layers_block_type", "layer_types"].into_iter().find(|key| config.get(key).is_some());
    let Some(key) = listed else {
        config.problem(
            "hybrid_override_pattern",
            "expected a letter of \"M*-E\" for each layer, found nothing",
        );
        return Vec::new();
    };
    let n_layer = said.unwrap_or_else(|| config.get(key).and_then(|l| l.as_array()).map_or(1, Vec::len));
    layout::types(config, key, n_layer, &TYPES, notes).unwrap_or_default()
}

fn mamba(hybrid: &Hybrid<'_>, eps: f64) -> Mamba2Config {
    let config = hybrid.config;
    hybrid.silu("mamba_hidden_act");
    let (heads, headdim) = (config.size_or("mamba_num_heads", 128), config.size_or("mamba_head_dim", 64));
    let d_inner = heads.saturating_mul(headdim);
    Mamba2Config {
        d_state: config.size_or("ssm_state_size", 128),
        d_conv: config.size_or("conv_kernel", 4),
        d_inner: (d_inner != 2 * hybrid.d_model).then_some(d_inner),
        headdim,
        ngroups: config.size_or("n_groups", 8),
        chunk_size: config.size_or("chunk_size", 128),
        bias: config.flag_or("use_bias", false),
        conv_bias: config.flag_or("use_conv_bias", true),
        norm_eps: eps,
        dt_limit: config.limits("time_step_limit"),
        ..Mamba2Config::default()
    }
}

fn mlp(hybrid: &Hybrid<'_>) -> MlpConfig {
    MlpConfig {
        d_intermediate: Some(hybrid.config.size("intermediate_size")),
        gated: false,
        fused: false,
        activation: activation(hybrid.config, "mlp_hidden_act", Activation::Relu2),
        bias: hybrid.config.flag_or("mlp_bias", false),
        ..MlpConfig::default()
    }
}

fn experts(hybrid: &Hybrid<'_>, kinds: &[Kind]) -> MoeConfig {
    let config = hybrid.config;
    if config.flag_or("mlp_bias", false) {
        config.problem("mlp_bias", "expected false beside experts (not supported), found true");
    }
    let hidden = config.size("moe_intermediate_size");
    let shared = (config.size_from("n_shared_experts", 0).unwrap_or(1) > 0).then(|| {
        // One MLP, however many experts it stands for: the tensor says how wide.
        let first = kinds.iter().position(|kind| *kind == Kind::Experts).unwrap_or_default();
        let name = format!("backbone.layers.{first}.mixer.shared_experts.up_proj.weight");
        let stored = hybrid.folder.checkpoint.get(&name).and_then(|tensor| tensor.shape.first().copied());
        stored.unwrap_or_else(|| config.size_or("moe_shared_expert_intermediate_size", hidden))
    });
    MoeConfig {
        num_experts: config.size(config.first_of(&["n_routed_experts", "num_local_experts"])),
        num_experts_per_tok: config.size_or("num_experts_per_tok", 2),
        d_intermediate: hidden,
        latent_size: config.size_from("moe_latent_size", 1),
        gated: false,
        fused: false,
        activation: activation(config, "mlp_hidden_act", Activation::Relu2),
        scoring: Scoring::Sigmoid,
        norm_topk_prob: config.flag_or("norm_topk_prob", true),
        expert_bias: true,
        n_group: config.size_or("n_group", 1),
        topk_group: config.size_or("topk_group", 1),
        routed_scaling_factor: config.number("routed_scaling_factor").unwrap_or(1.0),
        shared_d_intermediate: shared,
        ..MoeConfig::default()
    }
}
