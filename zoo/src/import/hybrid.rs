//! What transformers' hybrids of state spaces and attention have in common: keys, sizes, names.

use std::sync::Arc;

use semisep_attention::AttentionConfig;
use semisep_core::{Activation, MAX_WIDTH, MixerConfig, MlpConfig, NormConfig, NormKind, RotaryConfig};
use semisep_mamba2::Mamba2Config;
use semisep_models::normal::{Architecture, Branch, Layer, Merge, ModelConfig, Stage};

use super::activation::activation;
use super::{Fields, Folder, Import, Names, Piece};
use crate::Result;

/// A hybrid's configuration being read.
pub(super) struct Hybrid<'a> {
    pub(super) folder: &'a Folder<'a>,
    pub(super) config: &'a Fields,
    pub(super) d_model: usize,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// What is not in the layers.
pub(super) struct Whole {
    pub(super) family: &'static str,
    /// Where the embedding is stored.
    pub(super) embedding: &'static str,
    /// Whether the head is the embedding if nobody says.
    pub(super) tied_by_default: bool,
    /// Added under the roots of norms.
    pub(super) eps: f64,
    /// Factors on embedding and logits.
    pub(super) multipliers: (f64, f64),
    pub(super) residual_in_fp32: bool,
}

impl Whole {
    /// Without factors, untied, the embedding where Llama has it.
    pub(super) fn new(family: &'static str, eps: f64) -> Self {
        Self {
            family,
            embedding: "model.embed_tokens.weight",
            tied_by_default: false,
            eps,
            multipliers: (1.0, 1.0),
            residual_in_fp32: true,
        }
    }
}

impl<'a> Hybrid<'a> {
    pub(super) fn new(folder: &'a Folder<'a>) -> Self {
        Self { folder, config: &folder.config, d_model: folder.config.size("hidden_size"), notes: Vec::new() }
    }

    /// Grouped-query attention with `attention_bias`; each head `head_dim` wide, or the width over the heads. `rope` gives
    /// the positions of heads so wide.
    pub(super) fn attention(&self, rope: impl FnOnce(usize) -> Option<RotaryConfig>) -> AttentionConfig {
        let config = self.config;
        let heads = config.size("num_attention_heads");
        let said = ["head_dim", "attention_head_dim"].into_iter().find_map(|key| config.size_from(key, 1));
        if said.is_none() && config.ok() && !self.d_model.is_multiple_of(heads) {
            let message = format!("{heads} does not divide hidden_size = {}", self.d_model);
            config.problem("num_attention_heads", message);
        }
        let kv_heads = config.size_or("num_key_value_heads", heads);
        if config.ok() && !heads.is_multiple_of(kv_heads) {
            let message = format!("{kv_heads} does not divide num_attention_heads = {heads}");
            config.problem("num_key_value_heads", message);
        }
        let head_dim = said.unwrap_or((self.d_model / heads).max(1));
        let bias = config.flag_or("attention_bias", false);
        AttentionConfig {
            n_kv_heads: (kv_heads != heads).then_some(kv_heads),
            head_dim: said,
            rope: rope(head_dim),
            qkv_bias: bias,
            out_bias: bias,
            ..AttentionConfig::new(heads)
        }
    }

    /// Without biases where the file has none of this layer's queries: transformers does not read `attention_bias` in every
    /// family.
    pub(super) fn stored_bias(&mut self, attention: &mut AttentionConfig, queries: &str) {
        let stored = |part: &str| self.folder.checkpoint.get(&format!("{queries}.{part}")).is_some();
        if attention.qkv_bias && stored("weight") && !stored("bias") {
            (attention.qkv_bias, attention.out_bias) = (false, false);
            self.notes.push("attention_bias = true has no effect: the file holds no such biases".into());
        }
    }

    /// The Mamba-2 layer that the keys `mamba_*` describe, `width` features wide inside, or `mamba_expand` times the
    /// model.
    pub(super) fn mamba2(&self, width: Option<usize>, eps: f64) -> Mamba2Config {
        let config = self.config;
        self.silu("hidden_act");
        let expand = config.number("mamba_expand").unwrap_or(2.0);
        let expanded = expand * self.d_model as f64;
        if !(expanded >= 1.0 && expanded <= MAX_WIDTH as f64) {
            config.problem("mamba_expand", format!("expected a factor of hidden_size, found {expand}"));
        }
        let (d_inner, heads) = (width.unwrap_or(expanded as usize), config.size_or("mamba_n_heads", 128));
        let auto = config.get("mamba_d_head").is_some_and(|head| head.as_str() == Some("auto"));
        let headdim = if auto { None } else { config.size_from("mamba_d_head", 1) };
        let headdim = headdim.unwrap_or((d_inner / heads).max(1));
        self.heads("mamba_n_heads", (heads, headdim), ("the inner width", d_inner));
        Mamba2Config {
            d_state: config.size_or("mamba_d_state", 256),
            d_conv: config.size_or("mamba_d_conv", 4),
            d_inner: (d_inner != 2 * self.d_model).then_some(d_inner),
            headdim,
            ngroups: config.size_or("mamba_n_groups", 1),
            chunk_size: config.size_or("mamba_chunk_size", 256),
            bias: config.flag_or("mamba_proj_bias", false),
            conv_bias: config.flag_or("mamba_conv_bias", true),
            norm_eps: eps,
            dt_limit: config.limits("time_step_limit"),
            ..Mamba2Config::default()
        }
    }

    /// A problem unless so many heads of such a width are as wide as they should be.
    pub(super) fn heads(&self, key: &str, (heads, headdim): (usize, usize), (what, width): (&str, usize)) {
        if self.config.ok() && heads.saturating_mul(headdim) != width {
            let message =
                format!("expected heads whose widths sum to {what}, {width}, found {heads} x {headdim}");
            self.config.problem(key, message);
        }
    }

    /// A problem if this key names another activation than that of the state-space layers.
    pub(super) fn silu(&self, key: &str) {
        if activation(self.config, key, Activation::Silu) != Activation::Silu {
            let found = self.config.text(key).unwrap_or_default();
            self.config.problem(key, format!("expected \"silu\" for state-space layers, found {found:?}"));
        }
    }

    /// Llama's MLP of this width.
    pub(super) fn mlp(&self, width: &str) -> MlpConfig {
        MlpConfig {
            d_intermediate: Some(self.config.size(width)),
            fused: false,
            activation: activation(self.config, "hidden_act", Activation::Silu),
            bias: self.config.flag_or("mlp_bias", false),
            ..MlpConfig::default()
        }
    }

    /// The eps of norms under this key.
    pub(super) fn eps(&self, key: &str, default: f64) -> f64 {
        let eps = self.config.number(key).unwrap_or(default);
        if eps < 0.0 {
            self.config.problem(key, format!("expected a number >= 0, found {eps}"));
        }
        eps
    }

    /// A factor under this key.
    pub(super) fn factor(&self, key: &str) -> f64 {
        self.config.number(key).unwrap_or(1.0)
    }

    /// The mixer, checked where its sizes are known to be sound.
    pub(super) fn checked(&self, mixer: impl MixerConfig + 'static) -> Arc<dyn MixerConfig> {
        if self.config.ok() {
            self.config.issues(mixer.check(self.d_model));
        }
        Arc::new(mixer)
    }

    /// The whole.
    pub(super) fn import(mut self, whole: Whole, layers: Vec<Layer>, names: Names) -> Result<Import> {
        let Self { folder, config, d_model, .. } = self;
        let said = config.flag("tie_word_embeddings");
        let (tie_embeddings, note) = folder.tied(said, whole.tied_by_default, whole.embedding);
        self.notes.extend(note);
        let model = ModelConfig {
            pad_vocab_size_multiple: 1,
            tie_embeddings,
            norm: NormConfig { kind: NormKind::Rms, eps: whole.eps },
            residual_in_fp32: whole.residual_in_fp32,
            embedding_multiplier: whole.multipliers.0,
            logits_multiplier: whole.multipliers.1,
            ..ModelConfig::new(d_model, config.size("vocab_size"))
        };
        folder.check_embedding(whole.embedding, model.vocab_size, ("hidden_size", d_model));
        Ok(Import {
            family: whole.family,
            architecture: Architecture { name: folder.name(), model, layers },
            names: if tie_embeddings {
                names.tie("lm_head.weight", "backbone.embedding.weight")
            } else {
                names
            },
            notes: self.notes,
        })
    }
}

/// Queries, keys and values of these layers, stored apart below `from`, as one map below `to`, and the output map; `*` is the
/// layer. Each layer has rules of its own: other layers have an input and an output map, too.
pub(super) fn attention_names(
    mut names: Names,
    attention: &AttentionConfig,
    d_model: usize,
    layers: impl IntoIterator<Item = usize>,
    (from, to): (&str, &str),
) -> Names {
    let head_dim = attention.head_dim(d_model);
    for layer in layers {
        let [from, to] = [from, to].map(|pattern| pattern.replace('*', &layer.to_string()));
        let map = |name: &str, heads: usize| {
            Piece::of(format!("{from}.{name}")).split(0, &[heads.saturating_mul(head_dim)])
        };
        let (heads, kv_heads) = (attention.n_heads, attention.n_kv_heads());
        let maps = [map("q_proj", heads), map("k_proj", kv_heads), map("v_proj", kv_heads)];
        names = names
            .join(format!("{to}.in_proj"), maps)
            .rename(format!("{from}.o_proj"), format!("{to}.out_proj"));
    }
    names.ignore(format!("{from}.rotary_emb.inv_freq"))
}

/// A branch at `path` after `norm`, with a factor before and one after.
pub(super) fn branch(mixer: Arc<dyn MixerConfig>, path: &str, norm: &str, factors: (f64, f64)) -> Branch {
    Branch {
        pre_norm: Some(norm.into()),
        input_multiplier: factors.0,
        output_multiplier: factors.1,
        ..Branch::new(mixer, path)
    }
}

/// The sum of branches.
pub(super) fn stage(branches: Vec<Branch>) -> Stage {
    Stage { branches, merge: Merge::Sum }
}
