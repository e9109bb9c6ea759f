//! Speed of attention on this machine: `cargo run --release -p semisep-kernels --example attention_speed`.
//!
//! GFLOP/s count the score pairs that causality and window leave, twice 2·p floating-point operations each forward, five
//! times backward; a plain matrix product of candle in the same process gives the scale.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_kernels::{Attention, RotaryLayout, attention, rotary};

const HEADS: usize = 12;
const DIM: usize = 64;

/// Reproducible values in [-1, 1).
fn random(shape: &[usize]) -> Result<Tensor> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(next).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Seconds of the fastest of many runs.
fn best(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let (mut best, begin) = (f64::INFINITY, Instant::now());
    let mut runs = 0;
    while runs < 3 || (begin.elapsed().as_secs_f64() < 1.5 && runs < 2000) {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}

fn pass(l: usize, h_kv: usize, window: Option<usize>) -> Result<()> {
    let (q, kv) = (random(&[1, l, HEADS, DIM])?, [1, l, h_kv, DIM]);
    let (k, v) = (random(&kv)?, random(&kv)?);
    let args = Attention { window, ..Attention::new(&q, &k, &v) };
    let pairs: usize = (0..l).map(|i| (i + 1).min(window.unwrap_or(l))).sum();
    let product = (2 * DIM * HEADS * pairs) as f64;
    let forward = best(|| attention(&args).map(drop))?;
    let vars = [Var::from_tensor(&q)?, Var::from_tensor(&k)?, Var::from_tensor(&v)?];
    let o = attention(&Attention { q: &vars[0], k: &vars[1], v: &vars[2], ..args })?;
    // The sum's own gradient is a broadcast: small beside the attention's.
    let loss = o.sum_all()?;
    let backward = best(|| loss.backward().map(drop))?;
    let title = format!("l {l}, kv heads {h_kv}, window {window:?}");
    println!(
        "{title:38} forward {:9.3} ms {:6.1} GFLOP/s   backward {:9.3} ms {:6.1} GFLOP/s",
        forward * 1e3,
        2.0 * product / forward * 1e-9,
        backward * 1e3,
        5.0 * product / backward * 1e-9
    );
    Ok(())
}

fn decode(context: usize, h_kv: usize, rows: usize) -> Result<()> {
    let q = random(&[rows, 1, HEADS, DIM])?;
    let cache = random(&[rows, context + 100, h_kv, DIM])?;
    let values = cache.copy()?;
    let lens = vec![context; rows];
    let args = Attention { kv_lens: Some(&lens), ..Attention::new(&q, &cache, &values) };
    let time = best(|| attention(&args).map(drop))?;
    let bytes = (2 * rows * context * h_kv * DIM * 4) as f64;
    println!(
        "decode, context {context:5}, kv heads {h_kv:2}, rows {rows}     {:9.1} us {:6.1} GB/s",
        time * 1e6,
        bytes / time * 1e-9
    );
    Ok(())
}

fn main() -> Result<()> {
    println!("{} threads", candle_core::utils::get_num_threads());
    let a = random(&[1536, 1536])?;
    let time = best(|| a.matmul(&a).map(drop))?;
    println!("candle matmul 1536³ {:8.1} GFLOP/s", 2.0 * 1536f64.powi(3) / time * 1e-9);
    let (q, k) = (random(&[HEADS, 2048, DIM])?, random(&[HEADS, DIM, 2048])?);
    let time = best(|| q.matmul(&k).map(drop))?;
    let flops = (2 * HEADS * DIM * 2048 * 2048) as f64;
    println!("candle matmul 12 × (2048, 64, 2048) {:8.1} GFLOP/s", flops / time * 1e-9);
    let long = random(&[1 << 26])?;
    let time = best(|| long.sum_all().map(drop))?;
    println!("candle sum of 256 MiB {:8.1} GB/s", (4 << 26) as f64 / time * 1e-9);
    for l in [512, 2048, 8192] {
        pass(l, HEADS, None)?;
    }
    pass(2048, 3, None)?;
    pass(8192, HEADS, Some(256))?;
    for context in [128, 2048, 8192] {
        decode(context, HEADS, 1)?;
    }
    decode(8192, 3, 1)?;
    decode(2048, HEADS, 4)?;
    let x = random(&[1, 2048, HEADS, DIM])?;
    let f = Tensor::arange(0f64, 32.0, &Device::Cpu)?.affine(-0.3, 0.0)?.exp()?.to_dtype(DType::F64)?;
    let time = best(|| rotary(&x, &f, &[0], RotaryLayout::Half, None).map(drop))?;
    println!(
        "rotary, l 2048 {:9.3} ms, {:6.1} GB/s",
        time * 1e3,
        (2 * 2048 * HEADS * DIM * 4) as f64 / time * 1e-9
    );
    Ok(())
}
