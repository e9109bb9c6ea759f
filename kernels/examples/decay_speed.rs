//! Speed of the decay scans on this machine: a prefill in chunks against as many single steps, in one process.
//!
//! `cargo run --release -p semisep-kernels --example decay_speed`
//!
//! The shape is RWKV-6's (12 heads of 64), for retention with as many values; times are the best of several runs.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_kernels::{
    DecayScan, DecayStateUpdate, ScalarDecayScan, ScalarDecayStateUpdate, decay_scan, decay_state_update,
    keep_freed_memory, scalar_decay_scan, scalar_decay_state_update,
};

const LENGTH: usize = 2048;
const HEADS: usize = 12;
const DIM: usize = 64;

/// Reproducible values in [-1, 1).
fn random(seed: u32, shape: &[usize]) -> Result<Tensor> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    Tensor::from_vec((0..shape.iter().product()).map(next).collect::<Vec<f32>>(), shape, &Device::Cpu)
}

/// Seconds of the fastest of some runs.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Gradients of the sum of the outputs in all of `inputs`.
fn backward(inputs: &[&Tensor], scan: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t)).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    scan(&tensors)?.sum_all()?.backward()?;
    Ok(())
}

fn report(name: &str, [prefill, steps, training]: [f64; 3]) {
    println!(
        "{name:<28} prefill {:7.2} ms   steps {:7.2} ms   ratio {:5.1}   forward and backward {:7.2} ms",
        prefill * 1e3,
        steps * 1e3,
        steps / prefill,
        training * 1e3,
    );
}

fn tokens(t: &Tensor) -> Result<Vec<Tensor>> {
    (0..LENGTH).map(|i| t.narrow(1, i, 1)?.squeeze(1)?.contiguous()).collect()
}

fn vector(name: &str, log_decay: &Tensor, bonus: Option<&Tensor>) -> Result<()> {
    let [q, k, v] = [1, 2, 3].map(|seed| random(seed, &[1, LENGTH, HEADS, DIM]));
    let (q, k, v) = (q?, k?, v?);
    let prefill = best(7, || {
        decay_scan(&DecayScan { bonus, ..DecayScan::new(&q, &k, &v, log_decay) })?;
        Ok(())
    })?;
    let rows = [tokens(&q)?, tokens(&k)?, tokens(&v)?, tokens(log_decay)?];
    let state = Tensor::zeros((1, HEADS, DIM, DIM), DType::F32, &Device::Cpu)?;
    let steps = best(3, || {
        for i in 0..LENGTH {
            let [q, k, v, g] = rows.each_ref().map(|r| &r[i]);
            decay_state_update(&state, &DecayStateUpdate { bonus, ..DecayStateUpdate::new(q, k, v, g) })?;
        }
        Ok(())
    })?;
    let training = best(5, || {
        backward(&[&q, &k, &v, log_decay], |t| {
            Ok(decay_scan(&DecayScan { bonus, ..DecayScan::new(&t[0], &t[1], &t[2], &t[3]) })?.0)
        })
    })?;
    report(name, [prefill, steps, training]);
    Ok(())
}

fn scalar(name: &str, log_decay: &Tensor) -> Result<()> {
    let [q, k, v] = [1, 2, 3].map(|seed| random(seed, &[1, LENGTH, HEADS, DIM]));
    let (q, k, v) = (q?, k?, v?);
    let prefill = best(7, || {
        scalar_decay_scan(&ScalarDecayScan::new(&q, &k, &v, log_decay))?;
        Ok(())
    })?;
    let rows = [tokens(&q)?, tokens(&k)?, tokens(&v)?];
    let state = Tensor::zeros((1, HEADS, DIM, DIM), DType::F32, &Device::Cpu)?;
    let steps = best(3, || {
        for i in 0..LENGTH {
            let [q, k, v] = rows.each_ref().map(|r| &r[i]);
            scalar_decay_state_update(&state, &ScalarDecayStateUpdate::new(q, k, v, log_decay))?;
        }
        Ok(())
    })?;
    let training = best(5, || {
        backward(&[&q, &k, &v], |t| {
            Ok(scalar_decay_scan(&ScalarDecayScan::new(&t[0], &t[1], &t[2], log_decay))?.0)
        })
    })?;
    report(name, [prefill, steps, training]);
    Ok(())
}

fn main() -> Result<()> {
    keep_freed_memory();
    println!("l = {LENGTH}, {HEADS} heads of {DIM}, f32");
    let raw = random(4, &[1, LENGTH, HEADS, DIM])?;
    let bonus = random(5, &[HEADS, DIM])?;
    // RWKV-6 decays by exp(-exp(w)) with w around -5 to 0; beyond what a chunk may be divided by, and within.
    vector("RWKV-6", &((&raw * 2.5)? - 2.5)?.exp()?.neg()?, Some(&bonus))?;
    vector("RWKV-6, steep decays", &(raw.clone() * 8.0)?.exp()?.neg()?, Some(&bonus))?;
    vector("GLA", &((raw - 1.0)? * 0.05)?, None)?;
    let gammas: Vec<f32> = (0..HEADS).map(|h| (-(-5.0 - h as f32).exp2()).ln_1p()).collect();
    scalar("retention", &Tensor::new(gammas, &Device::Cpu)?)
}
