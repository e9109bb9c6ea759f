//! RWKV 4 to 7: time mixes and channel mixes.

use semisep_core::MixerConfig;
use semisep_rwkv::{Layout, Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let rwkv5 = Rwkv5Config { head_size: 8, ..Default::default() };
    let rwkv6 = Rwkv6Config { head_size: 8, d_mix_lora: 3, d_decay_lora: 5, ..Default::default() };
    let rwkv7 = Rwkv7Config {
        head_size: 8,
        d_decay_lora: Some(5),
        d_aaa_lora: Some(4),
        d_mv_lora: Some(3),
        d_gate_lora: Some(6),
        ..Default::default()
    };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("rwkv4", Box::<Rwkv4Config>::default());
    add("rwkv4 wide", Box::new(Rwkv4Config { dim_att: Some(24), init_depth: 0.0 }));
    add("rwkv5", Box::new(rwkv5.clone()));
    add("rwkv5 learnt state", Box::new(Rwkv5Config { dim_att: Some(24), time_state: true, ..rwkv5 }));
    add("rwkv6", Box::new(rwkv6.clone()));
    let wide = Rwkv6Config { dim_value: Some(24), norm_eps: 1e-5, layout: Layout::Fla, ..rwkv6.clone() };
    add("rwkv6 fla", Box::new(wide));
    add("rwkv6 learnt state", Box::new(Rwkv6Config { dim_att: Some(8), time_state: true, ..rwkv6 }));
    add("rwkv7", Box::new(rwkv7.clone()));
    add("rwkv7 first", Box::new(Rwkv7Config { value_residual: false, ..rwkv7.clone() }));
    let wide = Rwkv7Config { dim_value: Some(32), kk_eps: 1e-3, layout: Layout::Fla, ..rwkv7.clone() };
    add("rwkv7 fla", Box::new(wide));
    add("rwkv7 learnt state", Box::new(Rwkv7Config { head_size: 4, time_state: true, ..rwkv7 }));
    for (name, version) in
        [("channel mix 4", 4), ("channel mix 5", 5), ("channel mix 6", 6), ("channel mix 7", 7)]
    {
        let dim_ffn = (version != 5).then_some(20);
        add(name, Box::new(RwkvChannelMixConfig { dim_ffn, ..RwkvChannelMixConfig::new(version) }));
    }
    cases
}
