//! The identity of an architecture: a hash of its normal form.

use serde_json::{Map, Value, json};

use crate::normal::{Architecture, Input, Layer, Output, Stage};

impl Architecture {
    /// 128 bits in hex over all that decides parameters and arithmetic: two architectures with the same hash can
    /// exchange weights and states. Names of the model and of its blocks do not count. Stable between machines.
    pub fn hash(&self) -> String {
        format!("{:032x}", fnv1a(sorted(&self.to_json()).to_string().as_bytes()))
    }

    /// The normal form as JSON, without names: what [`Architecture::hash`] is of.
    pub fn to_json(&self) -> Value {
        let layers = self.layers.iter().map(|layer| {
            // The first layer of the same id stands for the id.
            let share = layer.share.as_ref();
            let first = share.and_then(|id| self.layers.iter().position(|l| l.share.as_ref() == Some(id)));
            // So it is with the ids of branches.
            let has = |l: &Layer, id: &str| {
                l.stages.iter().flat_map(|s| &s.branches).any(|b| b.share.as_deref() == Some(id))
            };
            let stages = stages_json(&layer.stages, &|id| json!(self.layers.iter().position(|l| has(l, id))));
            json!({ "stages": stages, "share": first })
        });
        json!({ "model": self.model.of_weights(), "layers": layers.collect::<Vec<_>>() })
    }
}

/// The stages of a layer as JSON.
pub(crate) fn layer_json(stages: &[Stage]) -> Value {
    stages_json(stages, &|id| json!(id))
}

/// The same with something for the ids of shared branches. What is usual is left out.
fn stages_json(stages: &[Stage], share: &dyn Fn(&str) -> Value) -> Value {
    let stage = |stage: &Stage| {
        let branches = stage.branches.iter().map(|b| {
            json!({
                "mixer": b.mixer.kind(),
                "config": b.mixer.to_json(),
                "path": b.path,
                "pre_norm": b.pre_norm,
                "post_norm": b.post_norm,
                "input_multiplier": b.input_multiplier,
                "output_multiplier": b.output_multiplier,
                "input": (b.input != Input::Stream).then_some(b.input),
                "output": (b.output != Output::Stream).then_some(b.output),
                "share": b.share.as_deref().map(share),
            })
        });
        json!({ "merge": stage.merge, "branches": branches.collect::<Vec<_>>() })
    };
    stages.iter().map(stage).collect()
}

/// The same JSON with keys in order and without nulls, whatever serde_json's features.
pub(super) fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(all) => all.iter().map(sorted).collect(),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// FNV-1a of 128 bits (Fowler, Noll, Vo; draft-eastlake-fnv).
fn fnv1a(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors() {
        assert_eq!(fnv1a(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv1a(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(fnv1a(b"foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn sorting_is_deep_and_drops_nulls() {
        let value = json!({ "b": [{ "z": 1, "a": null }], "a": 2.5 });
        assert_eq!(sorted(&value).to_string(), r#"{"a":2.5,"b":[{"z":1}]}"#);
    }
}
