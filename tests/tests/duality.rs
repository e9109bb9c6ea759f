//! What the layers multiply by: semiseparable matrices of the rank of their state; softmax attention has no such bound.
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, IndexOp, Result};
use semisep_attention::AttentionConfig;
use semisep_core::{MixerConfig, VarBuilder};
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use semisep_mamba3::Mamba3Config;
use semisep_models::{OffDiagonal, off_diagonal_rank};
use semisep_retnet::RetNetConfig;
use semisep_s6::S6Config;
use semisep_short_conv::ShortConvConfig;
use semisep_tests::randn;

const D: usize = 16;
const L: usize = 48;

/// The largest rank over heads, and what it could be.
fn rank(config: &dyn MixerConfig) -> Result<OffDiagonal> {
    assert!(config.check(D).is_empty(), "{:?}", config.check(D));
    let mixer = config.build(D, VarBuilder::seeded(5, DType::F64, Device::Cpu))?;
    let matrix = mixer.matrix(&randn(1, &[1, L, D], DType::F64)?)?.unwrap().matrix.i(0)?;
    let mut most = OffDiagonal { rank: 0, possible: 0 };
    for head in 0..matrix.dim(0)? {
        let of = off_diagonal_rank(&matrix.i(head)?, 7, 1e-10)?;
        most = OffDiagonal { rank: most.rank.max(of.rank), possible: of.possible };
    }
    Ok(most)
}

#[test]
fn the_state_bounds_the_rank() -> Result<()> {
    // Steps large enough that each state element has a decay of its own within the length.
    let (dt_min, dt_max) = (0.01, 0.3);
    let mamba2 = |d_state| Mamba2Config { d_state, headdim: 8, dt_min, dt_max, ..Default::default() };
    let mamba3 =
        |d_state, is_mimo| Mamba3Config { d_state, headdim: 8, is_mimo, mimo_rank: 2, ..Default::default() };
    let cases: Vec<(&str, Box<dyn MixerConfig>, usize)> = vec![
        ("mamba1", Box::new(Mamba1Config { d_state: 3, dt_min, dt_max, ..Default::default() }), 3),
        ("s6", Box::new(S6Config { d_state: 3, dt_min, dt_max, ..Default::default() }), 3),
        ("mamba2 of 4", Box::new(mamba2(4)), 4),
        ("mamba2 of 8", Box::new(mamba2(8)), 8),
        ("mamba3", Box::new(mamba3(6, false)), 6),
        ("mamba3 mimo, each pair of ranks", Box::new(mamba3(8, true)), 8),
        ("retention, the width of a key", Box::new(RetNetConfig { num_heads: 2, ..Default::default() }), 8),
        ("a convolution of 4 taps", Box::new(ShortConvConfig { d_conv: 4, bias: false }), 3),
    ];
    for (name, config, bound) in cases {
        let of = rank(&*config)?;
        assert_eq!(of.rank, bound, "{name}: the bound is reached, and not passed");
        assert!(of.possible > bound, "{name}: a rank of {} is no news", of.possible);
    }
    Ok(())
}

#[test]
fn softmax_attention_is_not_semiseparable() -> Result<()> {
    // Eight numbers a head make scores of rank 8; their exponentials have any rank.
    let sharp = AttentionConfig { head_dim: Some(8), scale: Some(4.0), ..AttentionConfig::new(2) };
    let of = rank(&sharp)?;
    assert_eq!(of, OffDiagonal { rank: L / 2, possible: L / 2 });
    Ok(())
}
