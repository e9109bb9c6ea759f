//! What a GGUF file says, by key and by tensor, as values of a configuration.

use serde_json::{Value as Json, json};

use crate::checkpoint::{Checkpoint, Metadata, Value};
use crate::import::MAX_LAYERS;

/// A file's metadata and its tensors, under their families' names.
pub(super) struct Facts<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) checkpoint: &'a Checkpoint,
}

impl Facts<'_> {
    /// A number of this architecture; null if it is not there.
    pub(super) fn number(&self, key: &str) -> Json {
        self.metadata.number(key).map_or(Json::Null, whole)
    }

    /// A truth value of this architecture; null if it is not there.
    pub(super) fn flag(&self, key: &str) -> Json {
        match self.metadata.own(key) {
            Some(Value::Flag(flag)) => json!(flag),
            _ => Json::Null,
        }
    }

    /// How many layers there are, but for those that predict several tokens at once.
    pub(super) fn layers(&self) -> usize {
        let number = |key| self.metadata.number(key).unwrap_or(0.0);
        (number("block_count") - number("nextn_predict_layers")).clamp(0.0, MAX_LAYERS as f64) as usize
    }

    /// The largest of a number a layer, or the one for all; null if it is not there.
    pub(super) fn most(&self, key: &str) -> Json {
        match self.metadata.own(key) {
            Some(Value::Numbers(numbers)) => whole(numbers.iter().copied().fold(0.0, f64::max)),
            _ => self.number(key),
        }
    }

    /// A kind for each layer: the first of which it has a tensor of this name, with `*` for the layer; else the last.
    pub(super) fn kinds(&self, kinds: &[(&str, &str)], otherwise: &str) -> Json {
        let kind = |layer: usize| {
            let layer = layer.to_string();
            let found = kinds.iter().find(|(tensor, _)| self.has(&tensor.replacen('*', &layer, 1)));
            found.map_or(otherwise, |(_, kind)| kind)
        };
        json!((0..self.layers()).map(kind).collect::<Vec<_>>())
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.checkpoint.get(tensor).is_some()
    }

    /// Whether some layer has a tensor of this name, with `*` for the layer.
    pub(super) fn any(&self, tensor: &str) -> bool {
        self.first(tensor).is_some()
    }

    /// The name of the tensor in the first layer that has it.
    fn first(&self, tensor: &str) -> Option<String> {
        (0..self.layers()).map(|i| tensor.replacen('*', &i.to_string(), 1)).find(|name| self.has(name))
    }

    /// Rows of a tensor, in the first layer that has it where there is a `*` for the layer; null if none has.
    pub(super) fn rows(&self, tensor: &str) -> Json {
        let stored = self.first(tensor).and_then(|name| self.checkpoint.get(&name));
        stored.and_then(|stored| stored.shape.first()).map_or(Json::Null, |rows| json!(rows))
    }

    /// The quotient of two numbers of this architecture, whole if it is.
    pub(super) fn quotient(&self, key: &str, by: &str) -> Json {
        let (Some(number), Some(by)) = (self.metadata.number(key), self.metadata.number(by)) else {
            return Json::Null;
        };
        whole(number / by)
    }
}

fn whole(number: f64) -> Json {
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}
