//! A mixer inside another mixer's configuration: `ssm = { mixer = "s4d", d_state = 16 }`.
//!
//! A layer crate does not know the mixers of other crates, and need not: it keeps a [`Nested`] in its configuration and
//! names it in [`MixerConfig::nested`]; whoever reads the configuration, and knows all kinds, fills it in.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use candle_core::{Result, bail};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{Issue, MixerConfig};

/// The configuration of any mixer, as the value of a key of another's.
///
/// Reading alone leaves it empty: only the registry knows the kinds. Written, it is the table that was read.
#[derive(Debug, Clone, Default)]
pub struct Nested(Option<Arc<dyn MixerConfig>>);

impl Nested {
    /// This mixer.
    pub fn new(config: impl MixerConfig + 'static) -> Self {
        Self(Some(Arc::new(config)))
    }

    /// Fills in what was read.
    pub fn resolve(&mut self, config: Arc<dyn MixerConfig>) {
        self.0 = Some(config);
    }

    /// The mixer.
    ///
    /// # Errors
    /// If nobody filled it in.
    pub fn get(&self) -> Result<&dyn MixerConfig> {
        match &self.0 {
            Some(config) => Ok(&**config),
            None => bail!("a nested mixer was read without a registry of mixers: nothing says what it is"),
        }
    }

    /// Everything wrong with it at this width; `key` is where it stands.
    pub fn check(&self, key: &str, d_model: usize) -> Vec<Issue> {
        let Some(config) = &self.0 else {
            return vec![Issue::new(
                key,
                "expected a mixer of the registry, found one that was not looked up",
            )];
        };
        let within = |issue: Issue| Issue { key: format!("{key}.{}", issue.key), ..issue };
        config.check(d_model).into_iter().map(within).collect()
    }
}

impl Serialize for Nested {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Some(config) = &self.0 else { return serializer.serialize_none() };
        let mut table = match config.to_json() {
            Value::Object(table) => table,
            _ => serde_json::Map::new(),
        };
        table.insert("mixer".into(), config.kind().into());
        table.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Nested;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Nested, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Nested(None))
            }
        }
        deserializer.deserialize_map(Table)
    }
}

impl JsonSchema for Nested {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Nested".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::new_ref("#/$defs/mixer".into())
    }
}
