//! The delta-rule scans in chunks against their own loop over steps:
//!
//! ```text
//! cargo run --release -p semisep-kernels --example delta_speed
//! ```
//! The best of several runs each, interleaved, so that the ratios hold on a machine that does other things too.
#![allow(clippy::print_stdout, reason = "a report")]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_kernels::{
    DeltaScan, DeltaUpdate, GatedDeltaRule, GatedDeltaRuleUpdate, delta_scan, delta_update, gated_delta_rule,
    gated_delta_rule_update, keep_freed_memory,
};

const LENGTH: usize = 2048;
const HEADS: usize = 12;
const WIDTH: usize = 64;

fn main() -> Result<()> {
    keep_freed_memory();
    println!("b 1, l {LENGTH}, h {HEADS}, n = p = {WIDTH}, f32; milliseconds, best of 5\n");
    println!("{:<34}{:>9}{:>9}{:>9}{:>12}", "", "chunks", "steps", "ratio", "+ backward");
    let keys = |seed| values(seed, &[1, LENGTH, HEADS, WIDTH]);
    let unit = |seed: u64| -> Result<Tensor> { keys(seed)?.affine(0.125, 0.0) };
    let (q, k, v, b) = (keys(1)?, unit(2)?, keys(3)?, unit(5)?);
    let a = b.neg()?;
    // log w = -e^-0.5 σ(·), as in RWKV-7.
    let w = keys(6)?.affine(-0.303, -0.303)?;
    report(
        "RWKV-7 (a decay a channel)",
        &[&q, &k, &v, &w, &a, &b],
        |x| {
            let [q, k, v, w, a, b] = x else { unreachable!("six tensors") };
            delta_scan(&DeltaScan { log_decay: Some(w), ..DeltaScan::new(q, k, v, a, b) })
        },
        |state, x| {
            let [q, k, v, w, a, b] = x else { unreachable!("six tensors") };
            delta_update(state, &DeltaUpdate { log_decay: Some(w), ..DeltaUpdate::new(q, k, v, a, b) })
        },
    )?;
    let beta = values(7, &[1, LENGTH, HEADS])?.affine(0.5, 0.5)?;
    for (name, steep) in
        [("gated DeltaNet (a decay a head)", 0.5), ("the same, decays to e^-20 a token", 20.0)]
    {
        let g = values(8, &[1, LENGTH, HEADS])?.affine(0.5 * steep, -0.5 * steep)?;
        report(
            name,
            &[&q, &k, &v, &beta, &g],
            |x| {
                let [q, k, v, beta, g] = x else { unreachable!("five tensors") };
                gated_delta_rule(&GatedDeltaRule { log_decay: Some(g), ..GatedDeltaRule::new(q, k, v, beta) })
            },
            |state, x| {
                let [q, k, v, beta, g] = x else { unreachable!("five tensors") };
                let step = GatedDeltaRuleUpdate::new(q, k, v, beta);
                gated_delta_rule_update(state, &GatedDeltaRuleUpdate { log_decay: Some(g), ..step })
            },
        )?;
    }
    Ok(())
}

fn report(
    name: &str,
    inputs: &[&Tensor],
    chunks: impl Fn(&[Tensor]) -> Result<(Tensor, Tensor)>,
    step: impl Fn(&Tensor, &[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let whole: Vec<Tensor> = inputs.iter().map(|x| (*x).clone()).collect();
    let tokens: Vec<Vec<Tensor>> = (0..LENGTH)
        .map(|t| inputs.iter().map(|x| x.narrow(1, t, 1)?.squeeze(1)).collect())
        .collect::<Result<_>>()?;
    let tracked: Vec<Tensor> =
        inputs.iter().map(|x| Ok(Var::from_tensor(x)?.as_tensor().clone())).collect::<Result<_>>()?;
    let state = Tensor::zeros((1, HEADS, WIDTH, WIDTH), DType::F32, &Device::Cpu)?;
    let mut best = [f64::INFINITY; 3];
    for _ in 0..5 {
        let start = Instant::now();
        chunks(&whole)?;
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for token in &tokens {
            step(&state, token)?;
        }
        best[1] = best[1].min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        chunks(&tracked)?.0.sum_all()?.backward()?;
        best[2] = best[2].min(start.elapsed().as_secs_f64());
    }
    let [fast, steps, both] = best.map(|s| 1e3 * s);
    println!("{name:<34}{fast:>9.2}{steps:>9.2}{:>9.1}{both:>12.2}", steps / fast);
    Ok(())
}

/// Reproducible values in [-1, 1).
fn values(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut state = seed;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}
