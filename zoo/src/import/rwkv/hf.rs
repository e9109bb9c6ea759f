//! The Hugging Face layout: RWKV-4 in transformers, RWKV-5 and 6 with code of their own (RWKV/v5-Eagle, v6-Finch).

use std::sync::Arc;

use semisep_core::MixerConfig;
use semisep_rwkv::{Rwkv4Config, Rwkv5Config, Rwkv6Config, RwkvChannelMixConfig};

use super::{architecture, block, model, size_or, width_or};
use crate::Result;
use crate::import::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, is_type};

/// RWKV-4.
pub(in crate::import) const RWKV4_HF: Importer = Importer {
    family: "rwkv4-hf",
    detects: |config| is_type(config, "rwkv", "RwkvForCausalLM"),
    import: |folder| import(folder, RWKV4_HF.family, 4),
};

/// RWKV-5.
pub(in crate::import) const RWKV5_HF: Importer = Importer {
    family: "rwkv5-hf",
    detects: |config| is_type(config, "rwkv5", "Rwkv5ForCausalLM"),
    import: |folder| import(folder, RWKV5_HF.family, 5),
};

/// RWKV-6. flash-linear-attention has the same model type for another layout, and its heads under another key.
pub(in crate::import) const RWKV6_HF: Importer = Importer {
    family: "rwkv6-hf",
    detects: |config| {
        is_type(config, "rwkv6", "Rwkv6ForCausalLM") && config.get("proj_low_rank_dim").is_none()
    },
    import: |folder| import(folder, RWKV6_HF.family, 6),
};

const EMBEDDING: &str = "rwkv.embeddings.weight";
const FFN_KEY: &str = "rwkv.blocks.0.feed_forward.key.weight";

fn import(folder: &Folder<'_>, family: &'static str, version: usize) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_hidden_layers", MAX_LAYERS));
    let vocab_size = config.size("vocab_size");
    folder.check_embedding(EMBEDDING, vocab_size, ("hidden_size", d_model));
    let mut model = model(d_model, vocab_size, config.number("layer_norm_epsilon").unwrap_or(1e-5));
    // The last norm has the default of torch, whatever the configuration says.
    model.final_norm_eps = (model.norm.eps != 1e-5).then_some(1e-5);
    // Files hold the weights unscaled: transformers divides them when it starts to infer.
    model.rescale_every = config.size_from("rescale_every", 0).unwrap_or(6);
    model.tie_embeddings = match folder.checkpoint.is_empty() {
        true => config.flag_or("tie_word_embeddings", false),
        false => folder.checkpoint.get("head.weight").is_none(),
    };
    let channel = RwkvChannelMixConfig {
        dim_ffn: Some(size_or(folder, FFN_KEY, 0, ("intermediate_size", 4 * d_model))),
        ..RwkvChannelMixConfig::new(version)
    };
    let time = time_mix(folder, config, version, d_model);
    let layers = (0..n_layer).map(|_| block(&format!("rwkv{version}"), time.clone(), &channel)).collect();
    Ok(Import {
        family,
        architecture: architecture(folder, model, layers),
        names: names(version),
        notes: Vec::new(),
    })
}

fn time_mix(folder: &Folder<'_>, config: &Fields, version: usize, d_model: usize) -> Arc<dyn MixerConfig> {
    let att = |name: &str| format!("rwkv.blocks.0.attention.{name}");
    let dim_att = Some(size_or(folder, &att("key.weight"), 0, ("attention_hidden_size", d_model)));
    let head_size = || width_or(folder, &att("time_faaaa"), ("head_size", 64));
    // The ranks of the remote code, which no configuration names.
    let (mix, decay) = if d_model == 4096 { (64, 128) } else { (32, 64) };
    // The norm of heads reads its input divided by this: the same as a larger eps.
    let divisor = config.number("head_size_divisor").unwrap_or(8.0);
    let norm_eps = 1e-5 * divisor * divisor;
    match version {
        4 => Arc::new(Rwkv4Config { dim_att, ..Rwkv4Config::default() }),
        5 => Arc::new(Rwkv5Config { head_size: head_size(), dim_att, norm_eps, ..Rwkv5Config::default() }),
        _ => Arc::new(Rwkv6Config {
            head_size: head_size(),
            dim_att,
            d_mix_lora: size_or(folder, &att("time_maa_w2"), 1, ("time_mix_extra_dim", mix)),
            d_decay_lora: width_or(folder, &att("time_decay_w1"), ("time_decay_extra_dim", decay)),
            norm_eps,
            ..Rwkv6Config::default()
        }),
    }
}

/// Vectors that are stored as (1, 1, d), of all versions.
const ONES: [&str; 14] = [
    "attention.time_mix_key",
    "attention.time_mix_value",
    "attention.time_mix_receptance",
    "attention.time_mix_gate",
    "feed_forward.time_mix_key",
    "feed_forward.time_mix_receptance",
    "attention.time_maa_x",
    "attention.time_maa_w",
    "attention.time_maa_k",
    "attention.time_maa_v",
    "attention.time_maa_r",
    "attention.time_maa_g",
    "feed_forward.time_maa_k",
    "feed_forward.time_maa_r",
];

fn names(version: usize) -> Names {
    let mut names =
        ONES.iter().fold(Names::new(), |names, tensor| names.ones(format!("rwkv.blocks.*.{tensor}"), 2));
    if version == 6 {
        names = names.ones("rwkv.blocks.*.attention.time_decay", 2);
    }
    names
        .rename("rwkv.embeddings", "backbone.embedding")
        .rename("rwkv.blocks.0.pre_ln", "backbone.embedding_norm")
        .rename("rwkv.blocks.*.ln1", "backbone.layers.*.norm")
        .rename("rwkv.blocks.*.ln2", "backbone.layers.*.norm2")
        .rename("rwkv.blocks.*.attention.time_mix_key", "backbone.layers.*.mixer.time_mix_k")
        .rename("rwkv.blocks.*.attention.time_mix_value", "backbone.layers.*.mixer.time_mix_v")
        .rename("rwkv.blocks.*.attention.time_mix_receptance", "backbone.layers.*.mixer.time_mix_r")
        .rename("rwkv.blocks.*.attention.time_mix_gate", "backbone.layers.*.mixer.time_mix_g")
        .rename("rwkv.blocks.*.attention", "backbone.layers.*.mixer")
        .rename("rwkv.blocks.*.feed_forward.time_mix_key", "backbone.layers.*.mlp.time_mix_k")
        .rename("rwkv.blocks.*.feed_forward.time_mix_receptance", "backbone.layers.*.mlp.time_mix_r")
        .rename("rwkv.blocks.*.feed_forward", "backbone.layers.*.mlp")
        .rename("rwkv.ln_out", "backbone.norm_f")
        .rename("head", "lm_head")
}
