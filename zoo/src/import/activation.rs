//! Activations by the names that configurations give them.

use semisep_core::Activation;

use super::Fields;

/// transformers' names. Its `gelu_new` and `gelu_fast` write the same tanh approximation in two ways.
const NAMES: [(&str, Activation); 9] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
];

/// The activation that a key names, this one if it is absent.
pub(super) fn activation(config: &Fields, key: &str, default: Activation) -> Activation {
    let Some(found) = config.text(key) else { return default };
    let known = NAMES.iter().find(|(name, _)| *name == found);
    if known.is_none() {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        config.problem(key, format!("expected one of {}, found {found:?}", names.join(", ")));
    }
    known.map_or(default, |(_, activation)| *activation)
}
