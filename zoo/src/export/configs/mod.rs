//! Configurations of public families, written for any model that they can express.
//!
//! A writer says what it can; what it leaves out is found out by reading it back with the family's importer and comparing
//! the two architectures.

mod decoders;
mod fla;
mod hybrids;
mod long_conv;
mod mamba;
mod model;
mod moe;
mod parts;
mod rwkv;
mod zamba;

use model::Model;
use semisep_models::normal::Architecture;
use serde_json::{Map, Value, json};

/// The keys of a configuration, or why there are none.
type Keys = Result<Value, String>;

/// How a family of checkpoints writes its configuration.
pub(super) struct Dialect {
    /// The family by its importer's name.
    pub(super) family: &'static str,
    /// `model_type` and the class in transformers' terms; a few families have neither.
    class: Option<(&'static str, &'static str)>,
    /// The layers that it has, as `describe` calls them.
    layers: &'static [&'static str],
    /// Everything but the class and what [`common`] gives. What is null is left out.
    keys: fn(&Model<'_>) -> Keys,
    /// Keys that are written though they are null: there that is a value.
    nulls: &'static [&'static str],
}

/// Families whose configuration can be written, by name.
pub(super) const DIALECTS: &[Dialect] = &[
    hybrids::BAMBA,
    fla::DELTANET,
    mamba::FALCON_MAMBA,
    hybrids::FALCON_H1,
    fla::GATED_DELTANET,
    fla::GLA,
    decoders::GPT_NEOX,
    hybrids::GRANITE,
    fla::HGRN2,
    long_conv::HYENADNA,
    long_conv::HYENADNA_HF,
    hybrids::JAMBA,
    decoders::LFM2,
    moe::LFM2_MOE,
    decoders::LLAMA,
    mamba::MAMBA,
    mamba::MAMBA2,
    decoders::MISTRAL,
    hybrids::NEMOTRON_H,
    decoders::OLMO2,
    decoders::OLMO_HYBRID,
    decoders::QWEN2,
    decoders::QWEN3,
    moe::QWEN3_MOE,
    moe::QWEN3_NEXT,
    hybrids::RECURRENT_GEMMA,
    fla::RETNET,
    fla::RETNET_TORCHSCALE,
    rwkv::RWKV4_HF,
    rwkv::RWKV5_HF,
    rwkv::RWKV6_FLA,
    rwkv::RWKV6_HF,
    rwkv::RWKV7_FLA,
    mamba::STATE_SPACES,
    long_conv::STRIPED_HYENA,
    fla::XLSTM,
    zamba::ZAMBA,
    zamba::ZAMBA2,
];

/// The layers of the families that have no configuration, as of a [`Dialect`].
pub(super) const BARE: &[(&str, &[&str])] = &[(
    "rwkv-pth",
    &[
        "rwkv4 + rwkv_channel_mix",
        "rwkv5 + rwkv_channel_mix",
        "rwkv6 + rwkv_channel_mix",
        "rwkv7 + rwkv_channel_mix",
    ],
)];

/// Refuses a model with layers that a family without a configuration does not have.
pub(super) fn check_bare(family: &str, architecture: &Architecture) -> Result<(), String> {
    let layers = BARE.iter().find(|(name, _)| *name == family).map_or(&[][..], |(_, layers)| layers);
    Model::new(architecture).only(family, layers)
}

impl Dialect {
    const fn new(
        family: &'static str,
        class: Option<(&'static str, &'static str)>,
        layers: &'static [&'static str],
        keys: fn(&Model<'_>) -> Keys,
    ) -> Self {
        Self { family, class, layers, keys, nulls: &[] }
    }

    /// The configuration of a model.
    ///
    /// # Errors
    /// Says what the model is that the family is not. That there is none does not mean that it is the same model.
    pub(super) fn write(&self, architecture: &Architecture) -> Result<Map<String, Value>, String> {
        let model = Model::new(architecture);
        model.only(self.family, self.layers)?;
        let mut config = Map::new();
        if let Some((model_type, class)) = self.class {
            config.insert("architectures".into(), json!([class]));
            config.insert("model_type".into(), model_type.into());
            config.extend(object(common(architecture)));
        }
        config.extend(object((self.keys)(&model)?));
        for key in self.nulls {
            config.entry(*key).or_insert(Value::Null);
        }
        Ok(config)
    }
}

/// What transformers' and fla's configurations have in common.
fn common(architecture: &Architecture) -> Value {
    let model = &architecture.model;
    json!({
        "hidden_size": model.d_model,
        "num_hidden_layers": architecture.layers.len(),
        "vocab_size": model.padded_vocab(),
        "tie_word_embeddings": model.tie_embeddings,
    })
}

/// The keys that say something.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

/// Several sets of keys together.
fn all<const N: usize>(sets: [Value; N]) -> Value {
    Value::Object(sets.into_iter().flat_map(object).collect())
}
