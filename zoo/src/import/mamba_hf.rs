//! transformers' `MambaForCausalLM`, `Mamba2ForCausalLM` and `FalconMambaForCausalLM`.
//!
//! FalconMamba norms step sizes, B and C, without weights; its published configuration has an `expand` that is not that of
//! its tensors. In Mamba and FalconMamba `intermediate_size` overrules `expand`, as it does in transformers 5. In Mamba-2
//! `intermediate_size`, `norm_before_gate`, `rms_norm` and what the conversion left behind of the original configuration have
//! no effect there, and none here.

use std::sync::Arc;

use semisep_core::{MixerConfig, NormConfig, NormKind};
use semisep_mamba1::{Mamba1Config, ParameterNorms};
use semisep_mamba2::Mamba2Config;
use semisep_models::normal::{Architecture, ModelConfig};

use super::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer, residual};
use crate::Result;

/// `model_type` "mamba".
pub(super) const MAMBA: Importer = Importer {
    family: "mamba",
    detects: |config| is_type(config, "mamba", "MambaForCausalLM"),
    import: |folder| {
        let (mixer, note) = with_width(folder, mamba1(folder));
        import(folder, MAMBA.family, true, Arc::new(mixer), note)
    },
};

/// `model_type` "falcon_mamba".
pub(super) const FALCON_MAMBA: Importer = Importer {
    family: "falcon_mamba",
    detects: |config| is_type(config, "falcon_mamba", "FalconMambaForCausalLM"),
    import: |folder| {
        let eps = folder.config.number("mixer_rms_eps").unwrap_or(1e-6);
        let norms = Some(ParameterNorms { eps, weighted: false });
        let (mixer, note) = with_width(folder, Mamba1Config { norms, ..mamba1(folder) });
        import(folder, FALCON_MAMBA.family, true, Arc::new(mixer), note)
    },
};

/// `model_type` "mamba2".
pub(super) const MAMBA2: Importer = Importer {
    family: "mamba2",
    detects: |config| is_type(config, "mamba2", "Mamba2ForCausalLM"),
    import: |folder| import(folder, MAMBA2.family, false, mamba2(folder), None),
};

const EMBEDDING: &str = "backbone.embeddings.weight";

fn import(
    folder: &Folder<'_>,
    family: &'static str,
    tied_by_default: bool,
    mixer: Arc<dyn MixerConfig>,
    note: Option<String>,
) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_hidden_layers", MAX_LAYERS));
    if let Some(other) = config.text("hidden_act").filter(|act| !matches!(*act, "silu" | "swish")) {
        config.problem("hidden_act", format!("expected \"silu\", found {other:?}"));
    }
    if config.ok() {
        config.issues(mixer.check(d_model));
    }
    let (tie_embeddings, head) = folder.tied(config.flag("tie_word_embeddings"), tied_by_default, EMBEDDING);
    let model = ModelConfig {
        d_model,
        vocab_size: config.size("vocab_size"),
        pad_vocab_size_multiple: 1,
        tie_embeddings,
        norm: NormConfig { kind: NormKind::Rms, eps: eps(config) },
        residual_in_fp32: config.flag_or("residual_in_fp32", true),
        ..ModelConfig::new(d_model, 1)
    };
    folder.check_embedding(EMBEDDING, model.vocab_size, ("hidden_size", d_model));
    let layers = (0..n_layer).map(|_| layer("ssm", vec![residual(mixer.clone(), "mixer", "norm")]));
    let names = Names::new().rename("backbone.embeddings", "backbone.embedding");
    Ok(Import {
        family,
        architecture: Architecture { name: folder.name(), model, layers: layers.collect() },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: note.into_iter().chain(head).collect(),
    })
}

fn eps(config: &Fields) -> f64 {
    config.number("layer_norm_epsilon").unwrap_or(1e-5)
}

fn mamba1(folder: &Folder<'_>) -> Mamba1Config {
    let config = &folder.config;
    let auto = config.get("time_step_rank").is_some_and(|rank| rank.as_str() == Some("auto"));
    Mamba1Config {
        d_state: config.size_or("state_size", 16),
        d_conv: config.size_or("conv_kernel", 4),
        expand: config.size_or("expand", 2),
        dt_rank: if auto { None } else { config.size_from("time_step_rank", 1) },
        bias: config.flag_or("use_bias", false),
        conv_bias: config.flag_or("use_conv_bias", true),
        ..Mamba1Config::default()
    }
}

/// With the inner width of the tensors, else of `intermediate_size`, and a note where `expand` says otherwise.
fn with_width(folder: &Folder<'_>, mixer: Mamba1Config) -> (Mamba1Config, Option<String>) {
    let config = &folder.config;
    let stored = folder.checkpoint.get("backbone.layers.0.mixer.D").and_then(|d| d.shape.first().copied());
    let width = stored.or_else(|| config.size_from("intermediate_size", 1));
    let said = mixer.d_inner(config.size_or("hidden_size", 1));
    match width.filter(|&width| width != said && config.ok()) {
        None => (mixer, None),
        Some(width) => {
            let note = format!("expand = {} asks for {said} inner features, there are {width}", mixer.expand);
            (Mamba1Config { expand: 2, d_inner: Some(width), ..mixer }, Some(note))
        }
    }
}

fn mamba2(folder: &Folder<'_>) -> Arc<dyn MixerConfig> {
    let config = &folder.config;
    let mixer = Mamba2Config {
        d_state: config.size_or("state_size", 128),
        d_conv: config.size_or("conv_kernel", 4),
        expand: config.size_or("expand", 2),
        headdim: config.size_or("head_dim", 64),
        ngroups: config.size_or("n_groups", 8),
        chunk_size: config.size_or("chunk_size", 256),
        bias: config.flag_or("use_bias", false),
        conv_bias: config.flag_or("use_conv_bias", true),
        norm_eps: eps(config),
        dt_limit: config.limits("time_step_limit"),
        ..Mamba2Config::default()
    };
    let (heads, width) = (config.size_or("num_heads", 128), mixer.d_inner(config.size_or("hidden_size", 1)));
    if config.ok() && heads.saturating_mul(mixer.headdim) != width {
        let message = format!(
            "expected num_heads x head_dim = expand x hidden_size = {width}, found {heads} x {}",
            mixer.headdim
        );
        config.problem("num_heads", message);
    }
    Arc::new(mixer)
}
