//! What transformers' decoders made after Llama have in common: sizes, attention, MLP, embedding, head, and the names of
//! their tensors.

use std::sync::Arc;

use semisep_attention::AttentionConfig;
use semisep_core::{Activation, MixerConfig, MlpConfig, NormConfig, NormKind, RotaryConfig};
use semisep_models::normal::{Architecture, Layer, ModelConfig};

use super::activation::activation;
use super::rope::rope;
use super::{Fields, Folder, Import, MAX_LAYERS, Names, Piece};
use crate::Result;

/// Keys without a say in what the model computes: training, tokens, the program that wrote the file.
const NO_EFFECT: [&str; 37] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "classifier_dropout",
    "cls_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "max_position_embeddings",
    "max_sequence_length",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "return_dict",
    "rope_interleaved",
    "router_aux_loss_coef",
    "sep_token_id",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

/// Where Llama's embedding is.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// A configuration being read, with the sizes that all decoders name alike.
pub(super) struct Decoder<'a> {
    pub(super) folder: &'a Folder<'a>,
    pub(super) d_model: usize,
    pub(super) n_layer: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// What a family adds to its sizes.
pub(super) struct Family {
    pub(super) name: &'static str,
    /// Kind and eps of the norms.
    pub(super) norm: NormConfig,
    /// Where the embedding and the head are.
    pub(super) embedding: &'static str,
    pub(super) head: &'static str,
    /// Whether the head is the embedding, as the configuration says; and if it says nothing.
    pub(super) tied: (Option<bool>, bool),
}

impl Family {
    /// Llama's names, RMS norms, `tie_word_embeddings`.
    pub(super) fn llama(config: &Fields, name: &'static str, eps: f64) -> Self {
        Self {
            name,
            norm: NormConfig { kind: NormKind::Rms, eps },
            embedding: EMBEDDING,
            head: "lm_head.weight",
            tied: (config.flag("tie_word_embeddings"), false),
        }
    }
}

impl<'a> Decoder<'a> {
    /// The sizes; each layer has as many heads of keys as of queries unless it is said, and `head_dim` is the width over
    /// the heads.
    pub(super) fn new(folder: &'a Folder<'a>) -> Self {
        let config = &folder.config;
        let (d_model, heads) = (config.size("hidden_size"), config.size("num_attention_heads"));
        let head_dim = config.size_from("head_dim", 1);
        if head_dim.is_none() && config.ok() && !d_model.is_multiple_of(heads) {
            let message =
                format!("{heads} does not divide hidden_size = {d_model}, and there is no head_dim");
            config.problem("num_attention_heads", message);
        }
        let kv_heads = config.size_or("num_key_value_heads", heads);
        check_divides(config, ("num_key_value_heads", kv_heads), ("num_attention_heads", heads));
        Self {
            folder,
            d_model,
            n_layer: config.size_up_to("num_hidden_layers", MAX_LAYERS),
            heads,
            kv_heads,
            head_dim: head_dim.unwrap_or((d_model / heads).max(1)),
        }
    }

    pub(super) fn config(&self) -> &'a Fields {
        &self.folder.config
    }

    /// Rotary positions on whole heads, of base 10000 unless it is said.
    pub(super) fn rope(&self) -> RotaryConfig {
        rope(self.config(), self.head_dim, 10_000.0, 1.0)
    }

    /// Attention with these positions; biases are for the caller to read.
    pub(super) fn attention(&self, rope: Option<RotaryConfig>) -> AttentionConfig {
        AttentionConfig {
            n_kv_heads: (self.kv_heads != self.heads).then_some(self.kv_heads),
            head_dim: Some(self.head_dim),
            nope: rope.is_none(),
            rope,
            ..AttentionConfig::new(self.heads)
        }
    }

    /// Llama's MLP, of the width that this key says.
    pub(super) fn mlp(&self, width: &str) -> MlpConfig {
        MlpConfig {
            d_intermediate: Some(self.config().size(width)),
            fused: false,
            activation: activation(self.config(), "hidden_act", Activation::Silu),
            ..MlpConfig::default()
        }
    }

    /// A problem if there is another activation: convolution and gate of the gated DeltaNet use that of the MLP.
    pub(super) fn silu(&self) {
        if activation(self.config(), "hidden_act", Activation::Silu) != Activation::Silu {
            let found = self.config().text("hidden_act").unwrap_or_default();
            let message = format!("expected \"silu\" beside layers of gated DeltaNet, found {found:?}");
            self.config().problem("hidden_act", message);
        }
    }

    /// The mixer, checked where its sizes are known to be sound.
    pub(super) fn checked(&self, mixer: impl MixerConfig + 'static) -> Arc<dyn MixerConfig> {
        if self.config().ok() {
            self.config().issues(mixer.check(self.d_model));
        }
        Arc::new(mixer)
    }

    /// Llama's names of the attention of this layer, or of every (`*`): queries, keys and values, stored apart, are one map
    /// here; `share` rows of queries a head and feature (2 where gates lie between them).
    pub(super) fn attention_names(&self, names: Names, layer: &str, share: usize) -> Names {
        let [q, k] = [self.heads * share, self.kv_heads].map(|heads| heads.saturating_mul(self.head_dim));
        let (from, to) =
            (format!("model.layers.{layer}.self_attn"), format!("backbone.layers.{layer}.mixer"));
        let map = |name: &str, rows| Piece::of(format!("{from}.{name}")).split(0, &[rows]);
        names
            .join(format!("{to}.in_proj"), [map("q_proj", q), map("k_proj", k), map("v_proj", k)])
            .rename(format!("{from}.o_proj"), format!("{to}.out_proj"))
            .ignore(format!("{from}.rotary_emb.inv_freq"))
            .rename(from, to)
    }

    /// As [`Decoder::attention_names`] for the layers that attend; the mixers of the others are below `other` of their
    /// layers.
    pub(super) fn hybrid_names(&self, names: Names, attends: &[bool], other: &str, share: usize) -> Names {
        attends.iter().enumerate().fold(names, |names, (i, attends)| {
            if *attends {
                return self.attention_names(names, &i.to_string(), share);
            }
            names.rename(format!("model.layers.{i}.{other}"), format!("backbone.layers.{i}.mixer"))
        })
    }

    /// The whole.
    pub(super) fn import(
        self,
        family: Family,
        layers: Vec<Layer>,
        names: Names,
        mut notes: Vec<String>,
    ) -> Result<Import> {
        let Self { folder, d_model, .. } = self;
        let config = &folder.config;
        let vocab_size = config.size("vocab_size");
        let (said, default) = family.tied;
        let (tie_embeddings, note) = folder.tied_to(said, default, family.head, family.embedding);
        notes.extend(note);
        folder.check_embedding(family.embedding, vocab_size, ("hidden_size", d_model));
        if let Some(quantised) = config.get("quantization_config") {
            let method =
                quantised.get("quant_method").and_then(|method| method.as_str()).unwrap_or("unknown");
            let found = format!("expected weights as they were trained, found them quantised ({method})");
            config.problem("quantization_config", found);
        }
        config.ignore(&NO_EFFECT);
        let others = config.unread();
        if !others.is_empty() {
            notes.push(format!(
                "keys that are not known of this family were passed over: {}",
                others.join(", ")
            ));
        }
        let model = ModelConfig {
            pad_vocab_size_multiple: 1,
            tie_embeddings,
            norm: family.norm,
            ..ModelConfig::new(d_model, vocab_size)
        };
        Ok(Import {
            family: family.name,
            architecture: Architecture { name: folder.name(), model, layers },
            names: if tie_embeddings {
                names.tie("lm_head.weight", "backbone.embedding.weight")
            } else {
                names
            },
            notes,
        })
    }
}

/// A problem at the first key if its value does not divide the other's.
pub(super) fn check_divides(config: &Fields, (key, part): (&str, usize), (what, whole): (&str, usize)) {
    if config.ok() && !whole.is_multiple_of(part) {
        config.problem(key, format!("{part} does not divide {what} = {whole}"));
    }
}

/// Llama's names of everything but the mixers.
pub(super) fn names() -> Names {
    Names::new()
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.norm", "backbone.norm_f")
        .rename("model.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("model.layers.*.post_attention_layernorm", "backbone.layers.*.norm2")
        .rename("model.layers.*.mlp", "backbone.layers.*.mlp")
}
