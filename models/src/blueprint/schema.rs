//! The JSON Schema of blueprints, from the types that read them.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::hash::sorted;
use super::keys::{BranchKeys, LayerKeys, ParallelKeys, SeriesKeys, StackKeys};
use crate::Registry;
use crate::normal::ModelConfig;
use crate::registry::properties;

/// The JSON Schema (2020-12) of blueprints that name the mixers of this registry.
pub fn json_schema(registry: &Registry) -> Value {
    let mut generator = SchemaGenerator::default();
    let mut definitions = Map::new();
    let (mut blocks, mut mlps, mut mixers) = (vec![], vec![], vec![]);
    for kind in registry.names() {
        let block = Table::of_kind(registry, kind, &mut generator);
        definitions.insert(format!("mixer.{kind}"), block.clone().require("mixer").value());
        mixers.push(reference(&format!("mixer.{kind}")));
        let mut mlp = block.clone().with::<BranchKeys>(&mut generator);
        let block = block.with::<BranchKeys>(&mut generator).with::<LayerKeys>(&mut generator).with_mlp();
        definitions.insert(format!("block.{kind}"), block.require("mixer").value());
        blocks.push(reference(&format!("block.{kind}")));
        // The usual channel mixer need not be named.
        if kind != "mlp" {
            mlp = mlp.require("mixer");
        }
        definitions.insert(format!("mlp.{kind}"), mlp.value());
        mlps.push(reference(&format!("mlp.{kind}")));
    }
    let parallel = Table::of::<ParallelKeys>(&mut generator).with::<LayerKeys>(&mut generator).with_mlp();
    let series = Table::of::<SeriesKeys>(&mut generator).with::<LayerKeys>(&mut generator).with_mlp();
    definitions.insert("block.parallel".into(), parallel.value());
    definitions.insert("block.series".into(), series.value());
    blocks.extend([reference("block.parallel"), reference("block.series")]);
    definitions.insert("block".into(), json!({ "oneOf": blocks }));
    definitions.insert("mixer".into(), json!({ "oneOf": mixers }));
    definitions.insert("mlp".into(), json!({ "oneOf": mlps }));
    let model = Table::of::<ModelConfig>(&mut generator).value();
    let stack = stack(&mut generator);
    definitions.extend(generator.take_definitions(true));
    sorted(&json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "semisep blueprint",
        "description": "A sequence model as a stack of blocks.",
        "type": "object",
        "properties": {
            "name": { "description": "The architecture's name.", "type": "string", "minLength": 1 },
            "model": model,
            "blocks": {
                "description": "Blocks by name; the stack says which layers are made of them.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": { "pattern": "^[A-Za-z0-9_-]{1,64}$" },
                "additionalProperties": reference("block"),
            },
            "stack": stack,
        },
        "required": ["name", "model", "blocks", "stack"],
        "additionalProperties": false,
        "$defs": definitions,
    }))
}

fn stack(generator: &mut SchemaGenerator) -> Value {
    let mut stack = Table::of::<StackKeys>(generator).value();
    let forms = ["at", "every", "layers", "pattern"].map(|form| json!({ "required": [form] }));
    stack["oneOf"] = Value::from(forms.to_vec());
    stack
}

fn reference(definition: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{definition}") })
}

/// The schema of a type's own table, alone.
pub(super) fn own_schema<T: JsonSchema>() -> Value {
    T::json_schema(&mut SchemaGenerator::default()).to_value()
}

/// The keys of a type's table.
pub(super) fn keys_of<T: JsonSchema>() -> Vec<String> {
    properties(&own_schema::<T>())
}

/// The schema of a table that is put together from several types.
#[derive(Clone)]
struct Table(Value);

impl Table {
    fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Self {
        let mut value = T::json_schema(generator).to_value();
        value["additionalProperties"] = false.into();
        Self(value)
    }

    fn of_kind(registry: &Registry, kind: &str, generator: &mut SchemaGenerator) -> Self {
        let schema = registry.get(kind).map(|k| (k.schema)(generator).to_value()).unwrap_or_default();
        let mut table = Self(json!({
            "type": "object",
            "description": schema["description"],
            "properties": schema["properties"],
            "required": schema["required"],
            "additionalProperties": false,
        }));
        table.0["properties"]["mixer"] = json!({ "description": "The kind of mixer.", "const": kind });
        table
    }

    fn with<T: JsonSchema>(mut self, generator: &mut SchemaGenerator) -> Self {
        let other = T::json_schema(generator).to_value();
        for (key, value) in other["properties"].as_object().into_iter().flatten() {
            self.0["properties"][key] = value.clone();
        }
        self
    }

    fn with_mlp(mut self) -> Self {
        let description =
            "A channel mixer after it, with a norm and a residual of its own; `{}` takes the defaults.";
        let mut mlp = reference("mlp");
        mlp["description"] = description.into();
        self.0["properties"]["mlp"] = mlp;
        self
    }

    fn require(mut self, key: &str) -> Self {
        match self.0["required"].as_array_mut() {
            Some(required) => required.push(key.into()),
            None => self.0["required"] = json!([key]),
        }
        self
    }

    fn value(self) -> Value {
        self.0
    }
}
