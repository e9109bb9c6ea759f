//! The Block-State Transformer.

use semisep_block_state::{BlockStateConfig, UnstructuredConfig, Variant};
use semisep_core::{MixerConfig, Nested, RelBiasConfig, WindowMode};
use semisep_mamba1::Mamba1Config;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mamba = || Nested::new(Mamba1Config { d_state: 4, ..Default::default() });
    let filter = UnstructuredConfig { emb_dim: 5, l_max: 20 };
    let config = |variant, ssm| BlockStateConfig {
        contexts: 5,
        head_dim: Some(6),
        d_intermediate: Some(20),
        ..BlockStateConfig::new(variant, ssm, 2, 5)
    };
    let rel_bias = Some(RelBiasConfig { buckets: 4, max_distance: 6 });
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("block_state sh", Box::new(BlockStateConfig { rel_bias, ..config(Variant::Sh, mamba()) }));
    add("block_state mh", Box::new(config(Variant::Mh, mamba())));
    add("block_state mf", Box::new(BlockStateConfig { rel_bias, ..config(Variant::Mf, mamba()) }));
    let options = |variant| BlockStateConfig {
        window_mode: WindowMode::Sliding,
        include_self: true,
        rel_bias,
        lift_bias: false,
        out_bias: true,
        ffn_bias: true,
        norm_eps: 1e-3,
        ..config(variant, Nested::new(filter.clone()))
    };
    add("block_state sh options", Box::new(options(Variant::Sh)));
    add("block_state mh options", Box::new(options(Variant::Mh)));
    add("block_state mf options", Box::new(options(Variant::Mf)));
    let sliding = BlockStateConfig { window_mode: WindowMode::Sliding, ..config(Variant::Mh, mamba()) };
    add("block_state sliding", Box::new(BlockStateConfig { d_intermediate: Some(0), ..sliding }));
    add(
        "block_state window of one",
        Box::new(BlockStateConfig { window: 1, contexts: 2, ..options(Variant::Mf) }),
    );
    add("unstructured", Box::new(filter));
    cases
}
