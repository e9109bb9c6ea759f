//! Where the tensors of Zamba and Zamba2 are.

use crate::checkpoint::Checkpoint;
use crate::import::{Names, Piece};

/// Where the blocks are below a layer.
const BLOCK: &str = "shared_transf";
const BLOCK2: &str = "shared_transformer";

/// Widths that tensors are cut at.
pub(super) struct Sizes {
    /// Of the MLP.
    pub(super) hidden: usize,
    /// Of Mamba.
    pub(super) inner: usize,
    /// Heads of Mamba, where its tensors are stored head by head.
    pub(super) mamba_heads: usize,
    /// Rows of queries, and of each of keys and values.
    pub(super) attention: (usize, usize),
}

/// The layer of a file that holds the block which these layers share: the first that has it.
fn holder(checkpoint: &Checkpoint, block: &str, layers: &[usize]) -> Option<usize> {
    let first = layers.first().copied();
    let holds =
        |i: &&usize| checkpoint.get(&format!("model.layers.{i}.{block}.self_attn.o_proj.weight")).is_some();
    layers.iter().find(holds).copied().or(first)
}

/// Whether layers that should share a block hold different ones.
pub(in crate::import) fn apart(
    checkpoint: &Checkpoint,
    zamba2: bool,
    hybrid: &[usize],
    blocks: usize,
) -> bool {
    let block = if zamba2 { BLOCK2 } else { BLOCK };
    let stored = |i: usize| checkpoint.get(&format!("model.layers.{i}.{block}.self_attn.o_proj.weight"));
    hybrid.iter().enumerate().any(|(k, &layer)| {
        let first = hybrid.get(k % blocks.max(1)).and_then(|&first| stored(first));
        first.zip(stored(layer)).is_some_and(|(first, own)| !checkpoint.same(first, own))
    })
}

fn common(hybrid: &[usize]) -> Names {
    let norm = |names: Names, i: &usize| {
        names.rename(
            format!("model.layers.{i}.mamba_decoder.input_layernorm"),
            format!("backbone.layers.{i}.norm"),
        )
    };
    hybrid
        .iter()
        .fold(Names::new(), norm)
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.final_layernorm", "backbone.norm_f")
        .rename("model.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("model.layers.*.linear", "backbone.layers.*.linear")
}

/// The block that these layers share, but for its MLP: below the first of them in ours, once in the file.
fn block(mut names: Names, checkpoint: &Checkpoint, block: &str, layers: &[usize], sizes: &Sizes) -> Names {
    let (Some(source), Some(owner)) = (holder(checkpoint, block, layers), layers.first()) else {
        return names;
    };
    let (from, to) = (format!("model.layers.{source}.{block}"), format!("backbone.layers.{owner}"));
    let (q, k) = sizes.attention;
    let parts = [("q_proj", q), ("k_proj", k), ("v_proj", k)]
        .map(|(p, rows)| Piece::of(format!("{from}.self_attn.{p}")).split(0, &[rows]));
    names = names
        .join(format!("{to}.attn.in_proj"), parts)
        .rename(format!("{from}.self_attn.o_proj"), format!("{to}.attn.out_proj"))
        .rename(format!("{from}.input_layernorm"), format!("{to}.attn.input_layernorm"))
        .rename(format!("{from}.pre_ff_layernorm"), format!("{to}.norm_mlp"));
    // Pickles hold the same again below each layer that uses it.
    let again = layers.iter().filter(|&&i| i != source);
    again.fold(names, |names, i| names.ignore(format!("model.layers.{i}.{block}")))
}

/// Mamba with heads: maps that are stored head by head, and an input map whose rows alternate.
pub(super) fn zamba(checkpoint: &Checkpoint, hybrid: &[usize], blocks: usize, sizes: &Sizes) -> Names {
    let mut names = common(hybrid);
    for first in 0..blocks.min(hybrid.len()) {
        let layers: Vec<usize> = hybrid.iter().copied().skip(first).step_by(blocks).collect();
        names = block(names, checkpoint, BLOCK, &layers, sizes);
        let Some(source) = holder(checkpoint, BLOCK, &layers) else { continue };
        let from = format!("model.layers.{source}.{BLOCK}.feed_forward");
        names = names.rename(from, format!("backbone.layers.{}.mlp", hybrid[first]));
    }
    let decoders = hybrid.iter().map(|i| (format!("model.layers.{i}.mamba_decoder.mamba"), i.to_string()));
    for (from, layer) in decoders.chain([("model.layers.*.mamba".to_owned(), "*".to_owned())]) {
        let to = format!("backbone.layers.{layer}.mixer");
        let piece = |name: &str| Piece::of(format!("{from}.{name}"));
        names =
            names.join(format!("{to}.in_proj"), [piece("in_proj").split(0, &[sizes.inner, 2]).swap(0, 1)]);
        for (native, foreign) in [
            ("x_proj.weight", "x_proj_weight"),
            ("dt_proj.weight", "dt_proj_weight"),
            ("dt_proj.bias", "dt_proj_bias"),
            ("A_log", "A_log"),
            ("D", "D"),
        ] {
            names = names.join(format!("{to}.{native}"), [piece(foreign).split(0, &[sizes.mamba_heads])]);
        }
        names = names.rename(from, to);
    }
    names
}

/// Gate and value of the MLP in one map, and adapters below the shared block for each layer that uses it.
pub(super) fn zamba2(checkpoint: &Checkpoint, hybrid: &[usize], blocks: usize, sizes: &Sizes) -> Names {
    let mamba = |names: Names, i: &usize| {
        names.rename(format!("model.layers.{i}.mamba_decoder.mamba"), format!("backbone.layers.{i}.mixer"))
    };
    let mut names =
        hybrid.iter().fold(common(hybrid), mamba).rename("model.layers.*.mamba", "backbone.layers.*.mixer");
    let hidden = sizes.hidden;
    // Stored as [gate, value].
    let swapped = |from: &str| [hidden, 0].map(|start| Piece::of(from.to_owned()).take(0, start, hidden));
    for first in 0..blocks.min(hybrid.len()) {
        let uses: Vec<(usize, usize)> =
            hybrid.iter().copied().enumerate().skip(first).step_by(blocks).collect();
        let layers: Vec<usize> = uses.iter().map(|(_, layer)| *layer).collect();
        names = block(names, checkpoint, BLOCK2, &layers, sizes);
        let Some(source) = holder(checkpoint, BLOCK2, &layers) else { continue };
        let from = format!("model.layers.{source}.{BLOCK2}");
        let mlp = format!("backbone.layers.{}.mlp", hybrid[first]);
        names = names
            .join(format!("{mlp}.fc1"), swapped(&format!("{from}.feed_forward.gate_up_proj")))
            .rename(format!("{from}.feed_forward.down_proj"), format!("{mlp}.fc2"));
        for (use_index, layer) in uses {
            let to = format!("backbone.layers.{layer}");
            let adapter = format!("{from}.feed_forward.gate_up_proj_adapter_list.{use_index}");
            names = names
                .rename(format!("{adapter}.0"), format!("{to}.mlp.adapter.0"))
                .join(format!("{to}.mlp.adapter.1"), swapped(&format!("{adapter}.1")));
            for part in ["q", "k", "v"] {
                let list = format!("{from}.self_attn.linear_{part}_adapter_list.{use_index}");
                names = names.rename(list, format!("{to}.attn.{part}_adapter"));
            }
        }
    }
    names
}
