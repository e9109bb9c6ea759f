//! Spellings of one model: a blueprint may leave out a width that a checkpoint's configuration gives, hold a gated MLP as
//! one map or two, or call its parts by other names. [`settled`] makes one of all of them.

use std::sync::Arc;

use semisep_attention::AttentionConfig;
use semisep_core::{MixerConfig, MlpConfig, RotaryConfig, WindowMode};
use semisep_deltanet::GatedDeltaNetConfig;
use semisep_gla::GlaConfig;
use semisep_griffin::RgLruConfig;
use semisep_hyena::{HyenaConfig, StripedHyenaConfig};
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use semisep_models::normal::{Architecture, Branch, Merge, Stage};
use semisep_moe::MoeConfig;
use semisep_retnet::RetNetConfig;
use semisep_rwkv::{Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};
use semisep_xlstm::MlstmConfig;
use serde::de::DeserializeOwned;

/// The same model: defaults filled in, without what says how a new model begins or which options have no effect, padding
/// counted as vocabulary, parameters called by their places. Two spellings of one model have the same hash then.
pub(super) fn settled(architecture: &Architecture) -> Architecture {
    let mut settled = architecture.clone();
    settled.model.vocab_size = architecture.model.padded_vocab();
    settled.model.pad_vocab_size_multiple = 1;
    for layer in &mut settled.layers {
        for (i, stage) in layer.stages.iter_mut().enumerate() {
            stage_settled(stage, i, architecture.model.d_model);
        }
    }
    settled
}

fn stage_settled(stage: &mut Stage, place: usize, d_model: usize) {
    if stage.branches.len() == 1 && stage.merge == Merge::Mean {
        stage.merge = Merge::Sum;
    }
    for (i, branch) in stage.branches.iter_mut().enumerate() {
        let Branch { mixer, path, pre_norm, post_norm, .. } = branch;
        *path = format!("{place}.{i}");
        for norm in [pre_norm, post_norm].into_iter().flatten() {
            *norm = "norm".into();
        }
        if let Some(settled) = mixer_settled(&**mixer, d_model) {
            *mixer = settled;
        }
    }
}

type Settled = Option<Arc<dyn MixerConfig>>;

/// The configuration as its type, changed.
fn changed<C: MixerConfig + DeserializeOwned + 'static>(
    mixer: &dyn MixerConfig,
    change: impl FnOnce(C) -> C,
) -> Settled {
    Some(Arc::new(change(serde_json::from_value(mixer.to_json()).ok()?)))
}

/// `None` for a kind that has one spelling.
fn mixer_settled(mixer: &dyn MixerConfig, d: usize) -> Settled {
    match mixer.kind() {
        "attention" => changed(mixer, |c| attention(c, d)),
        "mlp" => changed(mixer, |c: MlpConfig| MlpConfig {
            d_intermediate: Some(c.hidden(d)),
            multiple_of: 1,
            fused: true,
            ..c
        }),
        "moe" => changed(mixer, |c: MoeConfig| MoeConfig {
            fused: true,
            norm_topk_eps: if c.norm_topk_prob {
                c.norm_topk_eps
            } else {
                MoeConfig::default().norm_topk_eps
            },
            ..c
        }),
        "mamba1" => changed(mixer, |c| mamba1(c, d)),
        "mamba2" => changed(mixer, |c| mamba2(c, d)),
        "gated_deltanet" => changed(mixer, gated_deltanet),
        "retnet" => changed(mixer, |c: RetNetConfig| RetNetConfig { num_kv_heads: Some(c.kv_heads()), ..c }),
        "gla" => changed(mixer, |c: GlaConfig| GlaConfig { num_kv_heads: Some(c.kv_heads()), ..c }),
        "rg_lru" => changed(mixer, |c: RgLruConfig| RgLruConfig {
            lru_width: Some(c.lru_width.unwrap_or(d)),
            num_blocks: c.num_blocks,
            conv1d_width: c.conv1d_width,
            c: c.c,
            activation: c.activation,
            ..RgLruConfig::default()
        }),
        "mlstm" => changed(mixer, |c: MlstmConfig| MlstmConfig {
            input_gate_bias_init: MlstmConfig::default().input_gate_bias_init,
            ..c
        }),
        "hyena" => changed(mixer, |c: HyenaConfig| HyenaConfig {
            pos_emb_lr_scale: HyenaConfig::new(1).pos_emb_lr_scale,
            ..c
        }),
        "stripedhyena" => changed(mixer, |c: StripedHyenaConfig| StripedHyenaConfig {
            num_attention_heads: if c.column_split_hyena { c.num_attention_heads } else { 1 },
            ..c
        }),
        kind if kind.starts_with("rwkv") => rwkv(mixer, d),
        _ => None,
    }
}

fn attention(c: AttentionConfig, d: usize) -> AttentionConfig {
    let head_dim = c.head_dim(d);
    AttentionConfig {
        n_kv_heads: Some(c.n_kv_heads()),
        head_dim: Some(head_dim),
        rope: c.rope.map(|rope| RotaryConfig { dim: Some(rope.dim.unwrap_or(head_dim)), ..rope }),
        nope: false,
        window_mode: if c.window.is_some() { c.window_mode } else { WindowMode::Sliding },
        scale: Some(c.scale.unwrap_or(1.0 / (head_dim as f64).sqrt())),
        ..c
    }
}

fn mamba1(c: Mamba1Config, d: usize) -> Mamba1Config {
    let Mamba1Config { expand, dt_min, dt_max, .. } = Mamba1Config::default();
    Mamba1Config { d_inner: Some(c.d_inner(d)), dt_rank: Some(c.dt_rank(d)), expand, dt_min, dt_max, ..c }
}

fn mamba2(c: Mamba2Config, d: usize) -> Mamba2Config {
    let default = Mamba2Config::default();
    let normed = Mamba2Config {
        d_inner: Some(c.d_inner(d)),
        d_ssm: Some(c.d_ssm(d)),
        expand: default.expand,
        out_bias: Some(c.out_bias.unwrap_or(c.bias)),
        dt_min: default.dt_min,
        dt_max: default.dt_max,
        a_init_range: default.a_init_range,
        ..c
    };
    if normed.rmsnorm {
        return normed;
    }
    Mamba2Config { norm_before_gate: default.norm_before_gate, norm_eps: default.norm_eps, ..normed }
}

fn gated_deltanet(c: GatedDeltaNetConfig) -> GatedDeltaNetConfig {
    let GatedDeltaNetConfig { expand_v, a_init_range, dt_min, dt_max, .. } = GatedDeltaNetConfig::default();
    GatedDeltaNetConfig {
        num_v_heads: Some(c.value_heads()),
        head_v_dim: Some(c.value_dim()),
        expand_v,
        a_init_range,
        dt_min,
        dt_max,
        ..c
    }
}

fn rwkv(mixer: &dyn MixerConfig, d: usize) -> Settled {
    let init_depth = Rwkv4Config::default().init_depth;
    match mixer.kind() {
        "rwkv4" => {
            changed(mixer, |c: Rwkv4Config| Rwkv4Config { dim_att: Some(c.dim_att.unwrap_or(d)), init_depth })
        }
        "rwkv5" => changed(mixer, |c: Rwkv5Config| Rwkv5Config {
            dim_att: Some(c.dim_att.unwrap_or(d)),
            init_depth,
            ..c
        }),
        "rwkv6" => changed(mixer, |c: Rwkv6Config| {
            let dim_att = c.dim_att.unwrap_or(d);
            let dim_value = Some(c.dim_value.unwrap_or(dim_att));
            Rwkv6Config { dim_att: Some(dim_att), dim_value, init_depth, ..c }
        }),
        "rwkv7" => changed(mixer, |c: Rwkv7Config| {
            let [decay, aaa, mv, gate] = c.ranks(d).map(Some);
            Rwkv7Config {
                dim_value: Some(c.dim_value.unwrap_or(d)),
                d_decay_lora: decay,
                d_aaa_lora: aaa,
                d_mv_lora: mv.filter(|_| c.value_residual),
                d_gate_lora: gate,
                init_depth,
                ..c
            }
        }),
        "rwkv_channel_mix" => changed(mixer, |c: RwkvChannelMixConfig| RwkvChannelMixConfig {
            dim_ffn: Some(c.dim_ffn(d)),
            init_depth,
            ..c
        }),
        _ => None,
    }
}
