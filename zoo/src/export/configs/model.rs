//! A model as writers of configurations see it: its layers by kind, its mixers by type.

use semisep_models::normal::{Architecture, Branch, Layer};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A model to write.
pub(super) struct Model<'a> {
    pub(super) architecture: &'a Architecture,
    /// What each layer is made of: `attention + mlp` in series, `attention | mlp` in parallel.
    kinds: Vec<String>,
}

impl<'a> Model<'a> {
    pub(super) fn new(architecture: &'a Architecture) -> Self {
        let stages = |layer: &Layer| {
            let stages = layer.stages.iter().map(|stage| {
                let kinds: Vec<&str> = stage.branches.iter().map(|branch| branch.mixer.kind()).collect();
                kinds.join(" | ")
            });
            stages.collect::<Vec<_>>().join(" + ")
        };
        Self { architecture, kinds: architecture.layers.iter().map(stages).collect() }
    }

    /// Refuses a model that has other layers than these.
    pub(super) fn only(&self, family: &str, layers: &[&str]) -> Result<(), String> {
        match self.kinds.iter().position(|kinds| !layers.contains(&kinds.as_str())) {
            None if self.kinds.is_empty() => Err("it has no layers".into()),
            None => Ok(()),
            Some(i) => Err(format!(
                "layer {i} is {}; the layers of {family} are {}",
                self.kinds[i],
                layers.join(", ")
            )),
        }
    }

    /// Residual width.
    pub(super) fn d_model(&self) -> usize {
        self.architecture.model.d_model
    }

    /// How many layers.
    pub(super) fn n_layer(&self) -> usize {
        self.kinds.len()
    }

    /// Added under the roots of the model's norms.
    pub(super) fn eps(&self) -> f64 {
        self.architecture.model.norm.eps
    }

    /// What each layer is made of.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.iter().map(String::as_str)
    }

    fn has(&self, layer: usize, kind: &str) -> bool {
        self.branches(layer).any(|branch| branch.mixer.kind() == kind)
    }

    /// The layers in which a mixer of this kind is, all or some.
    pub(super) fn with(&self, kind: &str) -> Vec<usize> {
        (0..self.n_layer()).filter(|&i| self.has(i, kind)).collect()
    }

    /// One of two values a layer: by whether it has a mixer of this kind.
    pub(super) fn each<T: Copy>(&self, kind: &str, [with, without]: [T; 2]) -> Vec<T> {
        (0..self.n_layer()).map(|i| if self.has(i, kind) { with } else { without }).collect()
    }

    /// The first branch of this kind.
    pub(super) fn branch(&self, kind: &str) -> Option<&'a Branch> {
        self.branches_of(kind).next()
    }

    fn branches_of(&self, kind: &str) -> impl Iterator<Item = &'a Branch> {
        let branches = (0..self.n_layer()).flat_map(|i| self.branches(i));
        branches.filter(move |branch| branch.mixer.kind() == kind)
    }

    /// The parameters that each mixer of this kind shares with others.
    pub(super) fn shares(&self, kind: &str) -> impl Iterator<Item = &'a str> {
        self.branches_of(kind).filter_map(|branch| branch.share.as_deref())
    }

    /// The window of each layer's attention.
    pub(super) fn windows(&self) -> Vec<Option<usize>> {
        let window = |branch: &Branch| branch.mixer.to_json().get("window")?.as_u64().map(|w| w as usize);
        (0..self.n_layer()).map(|i| self.branches(i).find_map(window)).collect()
    }

    fn branches(&self, layer: usize) -> impl Iterator<Item = &'a Branch> + use<'a> {
        self.architecture.layers[layer].stages.iter().flat_map(|stage| &stage.branches)
    }

    /// The first mixer of this kind, if there is one. Whether the others are like it, the comparison tells.
    pub(super) fn find<C: DeserializeOwned>(&self, kind: &str) -> Option<C> {
        serde_json::from_value(self.branch(kind)?.mixer.to_json()).ok()
    }

    /// All mixers of this kind, in order.
    pub(super) fn all_of<C: DeserializeOwned>(&self, kind: &str) -> Vec<C> {
        let typed = |branch: &Branch| serde_json::from_value(branch.mixer.to_json()).ok();
        self.branches_of(kind).filter_map(typed).collect()
    }

    /// As [`Model::find`], where the layers are such that there is one.
    pub(super) fn first<C: DeserializeOwned>(&self, kind: &str) -> Result<C, String> {
        self.find(kind).ok_or_else(|| format!("it has no layer of {kind}"))
    }

    /// The first mixer of this kind as its keys, those that say something.
    pub(super) fn raw(&self, kind: &str) -> Result<Map<String, Value>, String> {
        let branch = self.branch(kind).ok_or_else(|| format!("it has no layer of {kind}"))?;
        Ok(super::object(branch.mixer.to_json()))
    }
}

/// The keys of an object that say something, under their names there.
pub(super) fn keys(config: &Map<String, Value>, names: &[(&str, &str)]) -> Value {
    let value = |(ours, theirs): &(&str, &str)| Some(((*theirs).to_owned(), config.get(*ours)?.clone()));
    Value::Object(names.iter().filter_map(value).collect())
}

/// The number near this guess, a whole one if possible, of which something gives exactly what it should. Without one, the
/// guess: the comparison says what is not exact.
pub(super) fn exactly<T: PartialEq>(guess: f64, gives: impl Fn(f64) -> T, what: T) -> f64 {
    let (up, down) = (guess.next_up(), guess.next_down());
    let near = [guess.round(), guess, up, down, up.next_up(), down.next_down()];
    near.into_iter().find(|x| gives(*x) == what).unwrap_or(guess)
}
