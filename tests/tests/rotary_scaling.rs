//! Rotary frequencies for long contexts, against numbers of the published formulas (transformers' `rope_utils`).
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::{Device, Result, Tensor};
use semisep_core::{Rotary, RotaryConfig, RotaryScaling};

fn near(config: RotaryConfig, head_dim: usize, expected: &[f64]) {
    let found = config.frequencies(head_dim);
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-14 * b.abs(), "{config:?}: {found:?}, expected {expected:?}");
    }
}

#[test]
fn frequencies() {
    let plain = RotaryConfig::default();
    let scaled = |theta, scaling| RotaryConfig { theta, scaling: Some(scaling), ..plain };
    near(scaled(1e4, RotaryScaling::Linear { factor: 4.0 }), 8, &[0.25, 0.025, 0.0025, 0.00025]);
    let llama3 = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    #[rustfmt::skip]
    near(scaled(5e5, llama3), 16, &[
        1.0, 0.19392274474868576, 0.03760603093086393, 0.007292664737217109, 0.0005248461609929547,
        3.428102195952591e-05, 6.647869871181235e-06, 1.2891731721515574e-06,
    ]);
    let yarn = |factor, n, beta_fast, beta_slow, truncate| RotaryScaling::Yarn {
        factor,
        original_max_position_embeddings: n,
        beta_fast,
        beta_slow,
        attention_factor: None,
        truncate,
    };
    #[rustfmt::skip]
    near(scaled(1e4, yarn(4.0, 4096, 32.0, 1.0, true)), 16, &[
        1.0, 0.31622776601683794, 0.1, 0.02569350598886808, 0.00625, 0.001383496476323666, 0.00025,
        7.905694150420948e-05,
    ]);
    // Half of the features of a larger head.
    let half = RotaryConfig { dim: Some(16), ..scaled(1e6, yarn(40.0, 2048, 16.0, 2.0, false)) };
    #[rustfmt::skip]
    near(half, 32, &[
        1.0, 0.1778279410038923, 0.025102913057344845, 0.00014058533129758727, 2.5e-05, 4.445698525097306e-06,
        7.905694150420949e-07, 1.4058533129758729e-07,
    ]);
}

/// YaRN's factor is on what turns, and on nothing else.
#[test]
fn attention_factor() -> Result<()> {
    let yarn = RotaryScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: true,
    };
    let config = RotaryConfig { dim: Some(4), scaling: Some(yarn), ..RotaryConfig::default() };
    assert!((config.attention_factor() - 1.138_629_436_111_989).abs() < 1e-15);
    let x = Tensor::ones((1, 3, 2, 6), candle_core::DType::F64, &Device::Cpu)?;
    let y = Rotary::new(&config, 6, &Device::Cpu)?.forward(&x, &[5], None)?;
    for head in y.flatten(0, 2)?.to_vec2::<f64>()? {
        let norm: f64 = head[..4].iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!((norm - 2.0 * config.attention_factor()).abs() < 1e-14);
        assert_eq!(head[4..], [1.0, 1.0]);
    }
    Ok(())
}

#[test]
fn checks() {
    let config = |scaling| RotaryConfig { scaling: Some(scaling), ..RotaryConfig::default() };
    let issue = |scaling, part: &str| {
        let message = config(scaling).check("rope", 8).unwrap().message;
        assert!(message.contains(part), "{message}");
    };
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        issue(RotaryScaling::Linear { factor }, "expected factor > 0");
    }
    let llama3 = |low, high, n| RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: n,
    };
    issue(llama3(4.0, 4.0, 8192), "low_freq_factor < high_freq_factor");
    issue(llama3(1.0, 4.0, 0), "original_max_position_embeddings from 1 on");
    assert!(config(llama3(1.0, 4.0, 8192)).check("rope", 8).is_none());
    assert!(config(llama3(1.0, 4.0, 8192)).check("rope", 7).is_some());
}
