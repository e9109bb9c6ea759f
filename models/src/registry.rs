//! The mixers that a blueprint may name: an open set.
//!
//! A layer of another crate joins with one line, and is then as good as a built-in one: named in TOML, checked, in the
//! JSON schema, written back.
//!
//! ```ignore
//! let mut registry = Registry::builtin();
//! registry.register::<LeakyConfig>("leaky")?;
//! ```

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use semisep_attention::AttentionConfig;
use semisep_block_state::{BlockStateConfig, UnstructuredConfig};
use semisep_core::{LinearMapConfig, MixerConfig, MlpConfig};
use semisep_deltanet::{DeltaNetConfig, GatedDeltaNetConfig};
use semisep_gau::GauConfig;
use semisep_gla::{GlaConfig, LinearAttentionConfig};
use semisep_griffin::RgLruConfig;
use semisep_h3::H3Config;
use semisep_hgrn2::Hgrn2Config;
use semisep_hyena::{HyenaConfig, StripedHyenaConfig};
use semisep_kan::KanConfig;
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use semisep_mamba3::Mamba3Config;
use semisep_moe::MoeConfig;
use semisep_retnet::RetNetConfig;
use semisep_rnn::{GruConfig, LstmConfig, MinGruConfig, MinLstmConfig, RnnConfig};
use semisep_rwkv::{Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};
use semisep_s4::{S4Config, S4dConfig};
use semisep_s5::S5Config;
use semisep_s6::S6Config;
use semisep_short_conv::ShortConvConfig;
use semisep_xlstm::MlstmConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::ValueDeserializer;

use crate::blueprint::{is_name, reserved_keys};

/// Reads one kind of mixer from a table of a blueprint.
type Read = for<'a> fn(ValueDeserializer<'a>) -> Result<Box<dyn MixerConfig>, toml::de::Error>;

#[derive(Clone)]
pub(crate) struct Kind {
    pub(crate) read: Read,
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

/// Kinds of mixers by name.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<String, Kind>,
}

/// Why a kind cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Names are letters, digits, `_` and `-`.
    #[error("mixer kind `{0}`: expected letters, digits, `_` and `-`")]
    Name(String),
    /// Another mixer has this name.
    #[error("mixer kind `{0}` is registered already")]
    Taken(String),
    /// A field of the configuration is called like a key that every block has.
    #[error("mixer kind `{kind}`: its field `{field}` is a key of every block: rename the field")]
    Field {
        /// The kind.
        kind: String,
        /// The field.
        field: String,
    },
}

impl Registry {
    /// Without any kind.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the layers of semisep.
    pub fn builtin() -> Self {
        let mut registry = Self::new();
        registry.insert::<AttentionConfig>("attention");
        registry.insert::<BlockStateConfig>("block_state");
        registry.insert::<DeltaNetConfig>("deltanet");
        registry.insert::<GatedDeltaNetConfig>("gated_deltanet");
        registry.insert::<GauConfig>("gau");
        registry.insert::<GlaConfig>("gla");
        registry.insert::<GruConfig>("gru");
        registry.insert::<H3Config>("h3");
        registry.insert::<Hgrn2Config>("hgrn2");
        registry.insert::<HyenaConfig>("hyena");
        registry.insert::<KanConfig>("kan");
        registry.insert::<LinearMapConfig>("linear");
        registry.insert::<LinearAttentionConfig>("linear_attention");
        registry.insert::<LstmConfig>("lstm");
        registry.insert::<Mamba1Config>("mamba1");
        registry.insert::<Mamba2Config>("mamba2");
        registry.insert::<Mamba3Config>("mamba3");
        registry.insert::<MinGruConfig>("min_gru");
        registry.insert::<MinLstmConfig>("min_lstm");
        registry.insert::<MlpConfig>("mlp");
        registry.insert::<MlstmConfig>("mlstm");
        registry.insert::<MoeConfig>("moe");
        registry.insert::<RetNetConfig>("retnet");
        registry.insert::<RgLruConfig>("rg_lru");
        registry.insert::<RnnConfig>("rnn");
        registry.insert::<Rwkv4Config>("rwkv4");
        registry.insert::<Rwkv5Config>("rwkv5");
        registry.insert::<Rwkv6Config>("rwkv6");
        registry.insert::<Rwkv7Config>("rwkv7");
        registry.insert::<RwkvChannelMixConfig>("rwkv_channel_mix");
        registry.insert::<S4Config>("s4");
        registry.insert::<S4dConfig>("s4d");
        registry.insert::<S5Config>("s5");
        registry.insert::<S6Config>("s6");
        registry.insert::<ShortConvConfig>("short_conv");
        registry.insert::<StripedHyenaConfig>("stripedhyena");
        registry.insert::<UnstructuredConfig>("unstructured");
        registry
    }

    /// Adds a mixer under the name that its [`MixerConfig::kind`] gives. The configuration's fields are the keys beside
    /// `mixer = "name"`; let it deny unknown fields.
    ///
    /// # Errors
    /// If the name is taken or no name, or a field is called like a key that every block has (`norm`, `share`, ...).
    pub fn register<C>(&mut self, name: &str) -> Result<(), RegistryError>
    where
        C: MixerConfig + DeserializeOwned + Serialize + JsonSchema + 'static,
    {
        if !is_name(name) {
            return Err(RegistryError::Name(name.into()));
        }
        if self.kinds.contains_key(name) {
            return Err(RegistryError::Taken(name.into()));
        }
        let fields = C::json_schema(&mut SchemaGenerator::default());
        let fields = properties(fields.as_value());
        if let Some(field) = reserved_keys().into_iter().find(|key| fields.contains(key)) {
            return Err(RegistryError::Field { kind: name.into(), field });
        }
        self.insert::<C>(name);
        Ok(())
    }

    fn insert<C>(&mut self, name: &str)
    where
        C: MixerConfig + DeserializeOwned + Serialize + JsonSchema + 'static,
    {
        self.kinds.insert(name.into(), Kind { read: read::<C>, schema: C::json_schema });
    }

    /// The names of all kinds, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(name)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

fn read<C>(table: ValueDeserializer<'_>) -> Result<Box<dyn MixerConfig>, toml::de::Error>
where
    C: MixerConfig + DeserializeOwned + 'static,
{
    Ok(Box::new(C::deserialize(table)?))
}

/// The keys of the object that a schema describes.
pub(crate) fn properties(schema: &serde_json::Value) -> Vec<String> {
    schema["properties"].as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default()
}
