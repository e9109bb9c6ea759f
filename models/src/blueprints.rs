//! The blueprints that ship, by name.

/// Names and sources, sorted by name.
const SHIPPED: &[(&str, &str)] = &[
    ("bst-mf", include_str!("../../blueprints/bst-mf.toml")),
    ("bst-mf-s4-large", include_str!("../../blueprints/bst-mf-s4-large.toml")),
    ("bst-mf-s4-small", include_str!("../../blueprints/bst-mf-s4-small.toml")),
    ("bst-mf-unstructured-large", include_str!("../../blueprints/bst-mf-unstructured-large.toml")),
    ("bst-mf-unstructured-small", include_str!("../../blueprints/bst-mf-unstructured-small.toml")),
    ("bst-mh", include_str!("../../blueprints/bst-mh.toml")),
    ("bst-mh-s4-large", include_str!("../../blueprints/bst-mh-s4-large.toml")),
    ("bst-mh-s4-small", include_str!("../../blueprints/bst-mh-s4-small.toml")),
    ("bst-mh-unstructured-large", include_str!("../../blueprints/bst-mh-unstructured-large.toml")),
    ("bst-mh-unstructured-small", include_str!("../../blueprints/bst-mh-unstructured-small.toml")),
    ("bst-sh", include_str!("../../blueprints/bst-sh.toml")),
    ("bst-sh-s4-large", include_str!("../../blueprints/bst-sh-s4-large.toml")),
    ("bst-sh-s4-small", include_str!("../../blueprints/bst-sh-s4-small.toml")),
    ("bst-sh-unstructured-large", include_str!("../../blueprints/bst-sh-unstructured-large.toml")),
    ("bst-sh-unstructured-small", include_str!("../../blueprints/bst-sh-unstructured-small.toml")),
    ("deltanet", include_str!("../../blueprints/deltanet.toml")),
    ("gated-deltanet", include_str!("../../blueprints/gated-deltanet.toml")),
    ("gau", include_str!("../../blueprints/gau.toml")),
    ("gla", include_str!("../../blueprints/gla.toml")),
    ("griffin", include_str!("../../blueprints/griffin.toml")),
    ("gru", include_str!("../../blueprints/gru.toml")),
    ("h3", include_str!("../../blueprints/h3.toml")),
    ("hyena", include_str!("../../blueprints/hyena.toml")),
    ("kan-transformer", include_str!("../../blueprints/kan-transformer.toml")),
    ("lfm2", include_str!("../../blueprints/lfm2.toml")),
    ("linear-attention", include_str!("../../blueprints/linear-attention.toml")),
    ("lstm", include_str!("../../blueprints/lstm.toml")),
    ("mamba-1.4b", include_str!("../../blueprints/mamba-1.4b.toml")),
    ("mamba-130m", include_str!("../../blueprints/mamba-130m.toml")),
    ("mamba-2.8b", include_str!("../../blueprints/mamba-2.8b.toml")),
    ("mamba-370m", include_str!("../../blueprints/mamba-370m.toml")),
    ("mamba-790m", include_str!("../../blueprints/mamba-790m.toml")),
    ("mamba1", include_str!("../../blueprints/mamba1.toml")),
    ("mamba2", include_str!("../../blueprints/mamba2.toml")),
    ("mamba2-1.3b", include_str!("../../blueprints/mamba2-1.3b.toml")),
    ("mamba2-130m", include_str!("../../blueprints/mamba2-130m.toml")),
    ("mamba2-2.7b", include_str!("../../blueprints/mamba2-2.7b.toml")),
    ("mamba2-370m", include_str!("../../blueprints/mamba2-370m.toml")),
    ("mamba2-780m", include_str!("../../blueprints/mamba2-780m.toml")),
    ("mamba2-hybrid", include_str!("../../blueprints/mamba2-hybrid.toml")),
    ("mamba2-hybrid-mlp-2.7b", include_str!("../../blueprints/mamba2-hybrid-mlp-2.7b.toml")),
    ("mamba2attn-2.7b", include_str!("../../blueprints/mamba2attn-2.7b.toml")),
    ("mamba3", include_str!("../../blueprints/mamba3.toml")),
    ("min-rnn", include_str!("../../blueprints/min-rnn.toml")),
    ("moe", include_str!("../../blueprints/moe.toml")),
    ("retnet", include_str!("../../blueprints/retnet.toml")),
    ("rwkv4", include_str!("../../blueprints/rwkv4.toml")),
    ("rwkv5", include_str!("../../blueprints/rwkv5.toml")),
    ("rwkv6", include_str!("../../blueprints/rwkv6.toml")),
    ("rwkv7", include_str!("../../blueprints/rwkv7.toml")),
    ("s4", include_str!("../../blueprints/s4.toml")),
    ("s4d", include_str!("../../blueprints/s4d.toml")),
    ("s5", include_str!("../../blueprints/s5.toml")),
    ("s6", include_str!("../../blueprints/s6.toml")),
    ("stripedhyena", include_str!("../../blueprints/stripedhyena.toml")),
    ("transformer", include_str!("../../blueprints/transformer.toml")),
    ("transformerpp-130m", include_str!("../../blueprints/transformerpp-130m.toml")),
    ("transformerpp-2.7b", include_str!("../../blueprints/transformerpp-2.7b.toml")),
];

/// The small models over bytes, of equal size within two in a hundred, one for each architecture.
pub const SMALL: [&str; 32] = [
    "bst-mf",
    "bst-mh",
    "bst-sh",
    "deltanet",
    "gated-deltanet",
    "gau",
    "gla",
    "griffin",
    "gru",
    "h3",
    "hyena",
    "kan-transformer",
    "lfm2",
    "linear-attention",
    "lstm",
    "mamba1",
    "mamba2",
    "mamba2-hybrid",
    "mamba3",
    "min-rnn",
    "retnet",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "s4",
    "s4d",
    "s5",
    "s6",
    "stripedhyena",
    "transformer",
    "moe",
];

/// The four of [`SMALL`] that are compared with each other by default.
pub const SUITE: [&str; 4] = ["mamba1", "mamba2", "mamba2-hybrid", "transformer"];

/// The names of all shipped blueprints, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// The text of a shipped blueprint.
pub fn source(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(n, _)| *n == name).map(|(_, source)| *source)
}
