//! BlinkDL's `.pth` files (ChatRWKV, rwkv-4-pile to rwkv-7-world): no configuration, all is in names and shapes.

use std::sync::Arc;

use semisep_core::MixerConfig;
use semisep_models::normal::Architecture;
use semisep_rwkv::{Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};

use super::{architecture, block, model, size, width};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::import::{Bare, Folder, Import, MAX_LAYERS, Names};

/// The family.
pub(in crate::import) const RWKV_PTH: Bare = Bare { family: "rwkv-pth", detects, import, names: names_of };

fn detects(checkpoint: &Checkpoint) -> bool {
    ["emb.weight", "blocks.0.att.key.weight", "blocks.0.ffn.key.weight"]
        .iter()
        .all(|name| checkpoint.get(name).is_some())
}

/// By the tensors that the versions do not share. Of 5 only 5.2 is in use.
fn version(folder: &Folder<'_>) -> usize {
    let has = |name: &str| folder.checkpoint.get(&format!("blocks.0.att.{name}")).is_some();
    if has("r_k") {
        7
    } else if has("time_maa_x") {
        6
    } else if has("gate.weight") && has("time_faaaa") {
        5
    } else if has("time_first") && !has("ln_x.weight") {
        4
    } else {
        let message = "expected the tensors of RWKV 4, 5.2, 6 or 7, found those of another version";
        folder.config.problem("blocks.0.att", message);
        4
    }
}

fn import(folder: &Folder<'_>) -> Result<Import> {
    let numbers =
        folder.checkpoint.tensors().filter_map(|t| t.name.strip_prefix("blocks.")?.split('.').next());
    let last = numbers.filter_map(|n| n.parse::<usize>().ok()).max().unwrap_or(0);
    if last >= MAX_LAYERS {
        folder.config.problem("blocks", format!("expected at most {MAX_LAYERS} layers, found layer {last}"));
    }
    let version = version(folder);
    let channel = RwkvChannelMixConfig {
        dim_ffn: Some(size(folder, "blocks.0.ffn.key.weight", 0)),
        ..RwkvChannelMixConfig::new(version)
    };
    let (vocab_size, d_model) = (size(folder, "emb.weight", 0), size(folder, "emb.weight", 1));
    let layers = (0..=last.min(MAX_LAYERS)).map(|i| {
        let name = if version == 7 && i == 0 { "rwkv7_first".into() } else { format!("rwkv{version}") };
        block(&name, time_mix(folder, version, i > 0, last > 0), &channel)
    });
    let layers = layers.collect();
    Ok(Import {
        family: RWKV_PTH.family,
        architecture: architecture(folder, model(d_model, vocab_size, 1e-5), layers),
        names: names(version),
        notes: Vec::new(),
    })
}

/// The time mix of a layer; the ranks of RWKV-7's value residual are those of the second.
fn time_mix(folder: &Folder<'_>, version: usize, later: bool, several: bool) -> Arc<dyn MixerConfig> {
    let att = |name: &str| format!("blocks.0.att.{name}");
    let rows = |name: &str| size(folder, &att(name), 0);
    let last = |name: &str| width(folder, &att(name));
    let dim_att = Some(rows("key.weight"));
    match version {
        4 => Arc::new(Rwkv4Config { dim_att, ..Rwkv4Config::default() }),
        5 => Arc::new(Rwkv5Config { head_size: last("time_faaaa"), dim_att, ..Rwkv5Config::default() }),
        6 => Arc::new(Rwkv6Config {
            head_size: last("time_faaaa"),
            dim_att,
            d_mix_lora: size(folder, &att("time_maa_w2"), 1),
            d_decay_lora: last("time_decay_w1"),
            ..Rwkv6Config::default()
        }),
        _ => Arc::new(Rwkv7Config {
            head_size: last("r_k"),
            d_decay_lora: Some(last("w1")),
            d_aaa_lora: Some(last("a1")),
            d_mv_lora: several.then(|| width(folder, "blocks.1.att.v1")),
            d_gate_lora: Some(last("g1")),
            value_residual: later,
            ..Rwkv7Config::default()
        }),
    }
}

/// By the time mix of the first layer.
fn names_of(architecture: &Architecture) -> Option<Names> {
    const KINDS: [(&str, usize); 4] = [("rwkv4", 4), ("rwkv5", 5), ("rwkv6", 6), ("rwkv7", 7)];
    let kind = architecture.layers.first()?.stages.first()?.branches.first()?.mixer.kind();
    KINDS.iter().find(|(known, _)| *known == kind).map(|(_, version)| names(*version))
}

/// Vectors that are stored as (1, 1, d), of all versions.
const ONES: [&str; 26] = [
    "att.time_mix_k",
    "att.time_mix_v",
    "att.time_mix_r",
    "att.time_mix_g",
    "ffn.time_mix_k",
    "ffn.time_mix_r",
    "att.time_maa_x",
    "att.time_maa_w",
    "att.time_maa_k",
    "att.time_maa_v",
    "att.time_maa_r",
    "att.time_maa_g",
    "ffn.time_maa_k",
    "ffn.time_maa_r",
    "att.x_r",
    "att.x_w",
    "att.x_k",
    "att.x_v",
    "att.x_a",
    "att.x_g",
    "att.w0",
    "att.a0",
    "att.v0",
    "att.k_k",
    "att.k_a",
    "ffn.x_k",
];

fn names(version: usize) -> Names {
    let names = Names::new()
        .rename("emb", "backbone.embedding")
        .rename("blocks.0.ln0", "backbone.embedding_norm")
        .rename("blocks.*.ln1", "backbone.layers.*.norm")
        .rename("blocks.*.ln2", "backbone.layers.*.norm2")
        .rename("blocks.*.att", "backbone.layers.*.mixer")
        .rename("blocks.*.ffn", "backbone.layers.*.mlp")
        .rename("ln_out", "backbone.norm_f")
        .rename("head", "lm_head");
    let names = ONES.iter().fold(names, |names, tensor| names.ones(format!("blocks.*.{tensor}"), 2));
    let names = if version == 6 { names.ones("blocks.*.att.time_decay", 2) } else { names };
    if version < 7 {
        return names;
    }
    // The first layer makes the values that the others are mixed with: files may hold its own gate, which nothing reads.
    names.ignore("blocks.0.att.v0").ignore("blocks.0.att.v1").ignore("blocks.0.att.v2")
}
