//! RWKV's original files as llama.cpp has them.

use std::collections::BTreeMap;

use crate::common::golden;
use crate::writer::{Numbers, mapped, numbers};

type Tensors = BTreeMap<String, Numbers>;

/// From the original names, with what layers add divided by two once for every `rescale` layers before them.
pub fn rwkv6(rescale: usize) -> Tensors {
    let mut made = Tensors::new();
    let tensors = numbers(&golden("rwkv6-pth"));
    let layers = tensors.keys().filter(|name| name.ends_with(".ln1.weight")).count();
    for layer in 0..layers {
        let lerp = |part: &str| tensors[&format!("blocks.{layer}.att.time_maa_{part}")].values.clone();
        let values: Vec<f32> = ["w", "k", "v", "r", "g"].into_iter().flat_map(lerp).collect();
        let shape = [5, 1, 1, values.len() / 5];
        let fused = Numbers { shape: shape.into(), values };
        made.insert(format!("blk.{layer}.time_mix_lerp_fused.weight"), fused);
    }
    for (name, tensor) in tensors {
        let maa = name.split("att.time_maa_").nth(1);
        if maa.is_some_and(|part| part.len() == 1 && part != "x") {
            continue;
        }
        let mut new = mapped(
            &name,
            &[
                ("blocks.0.ln0", "token_embd_norm"),
                ("emb.", "token_embd."),
                ("ln_out", "output_norm"),
                ("head", "output"),
                ("blocks", "blk"),
                ("ln1", "attn_norm"),
                ("ln2", "attn_norm_2"),
                ("att.ln_x", "time_mix_ln"),
                ("att.time_maa_x", "time_mix_lerp_x"),
                ("att.time_maa_w", "time_mix_w"),
                ("att.time_faaaa", "time_mix_first"),
                ("att.time_", "time_mix_"),
                ("att.", "time_mix_"),
                ("ffn.time_maa_", "channel_mix_lerp_"),
                ("ffn.", "channel_mix_"),
            ],
        );
        if !new.ends_with(".weight") && !new.ends_with(".bias") {
            new += ".weight";
        }
        let transposed = ["time_mix_w1.", "time_mix_w2.", "decay_w1.", "decay_w2."];
        let tensor = if transposed.iter().any(|t| new.contains(t)) { tensor.transposed() } else { tensor };
        let squeezed = new.contains("time_mix_decay.") || new.contains("lerp");
        let tensor = if squeezed { tensor.squeezed() } else { tensor };
        let adds = new.contains("time_mix_output") || new.contains("channel_mix_value");
        let tensor = match name.split('.').nth(1).and_then(|n| n.parse::<usize>().ok()) {
            Some(layer) if adds && rescale > 0 => tensor.map(|w| w / 2f32.powi((layer / rescale) as i32)),
            _ => tensor,
        };
        made.insert(new, tensor);
    }
    made
}

/// From the original names; the first layer has values that stand for nothing.
pub fn rwkv7() -> Tensors {
    let mut made = Tensors::new();
    let tensors = numbers(&golden("rwkv7-pth"));
    let layers = tensors.keys().filter(|name| name.ends_with(".ln1.weight")).count();
    for layer in 0..layers {
        let lerp = |part: &str| tensors[&format!("blocks.{layer}.att.x_{part}")].values.clone();
        let values: Vec<f32> = ["r", "w", "k", "v", "a", "g"].into_iter().flat_map(lerp).collect();
        let shape = [6, 1, 1, values.len() / 6];
        let fused = Numbers { shape: shape.into(), values };
        made.insert(format!("blk.{layer}.time_mix_lerp_fused.weight"), fused);
    }
    for (name, tensor) in tensors {
        if name.contains("att.x_") || name.starts_with("blocks.0.att.v") && !name.contains("value") {
            continue;
        }
        let mut new = mapped(
            &name,
            &[
                ("blocks.0.ln0", "token_embd_norm"),
                ("emb.", "token_embd."),
                ("ln_out", "output_norm"),
                ("head", "output"),
                ("blocks", "blk"),
                ("ln1", "attn_norm"),
                ("ln2", "attn_norm_2"),
                ("att.ln_x", "time_mix_ln"),
                ("att.", "time_mix_"),
                ("ffn.x_", "channel_mix_lerp_"),
                ("ffn.", "channel_mix_"),
            ],
        );
        if !new.ends_with(".weight") && !new.ends_with(".bias") {
            new += ".weight";
        }
        let tensor = tensor.squeezed();
        let low_rank = ["w", "a", "v", "g"]
            .iter()
            .flat_map(|part| [format!("time_mix_{part}1."), format!("time_mix_{part}2.")]);
        let transposed = low_rank.into_iter().any(|part| new.contains(&part));
        let n = tensor.values.len();
        let tensor = match transposed {
            true => tensor.transposed(),
            false if new.contains("r_k") => tensor.reshaped(&[n]),
            false => tensor,
        };
        if new.starts_with("blk.0.time_mix_a") {
            made.insert(new.replace("time_mix_a", "time_mix_v"), tensor.clone());
        }
        made.insert(new, tensor);
    }
    made
}
