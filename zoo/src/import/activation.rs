//! Activations by the names that configurations give them.

use semisep_core::Activation;

use super::Fields;

/// transformers' names, of several for the same the one to write first. `gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are
/// the same tanh approximation.
const NAMES: [(&str, Activation); 9] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
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

/// The name to write for an activation.
pub(crate) fn name(activation: Activation) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == activation).map_or("silu", |(name, _)| name)
}
