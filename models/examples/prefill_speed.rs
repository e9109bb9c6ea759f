//! A layer's prefill against as many of its own steps, in one process:
//!
//! ```text
//! cargo run --release -p semisep-models --example prefill_speed
//! ```
//! One layer of width 768 with 12 heads of 64, 2,048 tokens, batch 1, f32, a state carried along in both. Times are the
//! best of several runs, interleaved, so that the ratios hold on a machine that does other things too. The scan is the
//! kernel alone on tensors of the layer's shapes, and its share that of the prefill.
#![allow(clippy::print_stdout, reason = "a report")]

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Context, Mixer, Shared, VarBuilder};
use semisep_kernels::{
    DecayScan, DeltaScan, GatedDeltaRule, ScalarDecayScan, SsdChunkScan, decay_scan, delta_scan,
    gated_delta_rule, keep_freed_memory, scalar_decay_scan, ssd_chunk_scan,
};
use semisep_models::{Blueprint, Registry};

const LENGTH: usize = 2048;
const WIDTH: usize = 768;
const HEADS: usize = 12;
const DIM: usize = 64;
const RUNS: usize = 4;
/// Prefills and scans in each: they are shorter than all the steps.
const PREFILLS: usize = 4;

/// Kinds of layers, their keys in a blueprint, and their scans.
const LAYERS: [(&str, &str, Scan); 8] = [
    ("rwkv5", "head_size = 64", Scan::Decay),
    ("rwkv6", "head_size = 64", Scan::Decay),
    ("rwkv7", "head_size = 64", Scan::Delta),
    ("gated_deltanet", "num_heads = 12\nhead_dim = 64\nexpand_v = 1.0", Scan::GatedDelta),
    ("gla", "num_heads = 12\nexpand_k = 1.0", Scan::Decay),
    ("retnet", "num_heads = 12\nexpand_v = 1.0", Scan::Scalar),
    ("mamba2", "d_inner = 768\nd_state = 64\nheaddim = 64", Scan::Ssd),
    ("mamba3", "expand = 1\nd_state = 64\nheaddim = 64", Scan::Scalar),
];

#[derive(Clone, Copy)]
enum Scan {
    Decay,
    Delta,
    GatedDelta,
    Scalar,
    Ssd,
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    keep_freed_memory();
    println!("b 1, l {LENGTH}, d_model {WIDTH}, {HEADS} heads of {DIM}, f32; milliseconds, best of {RUNS}\n");
    println!("{:<16}{:>9}{:>9}{:>8}{:>9}{:>8}", "layer", "prefill", "steps", "ratio", "scan", "share");
    let only: Vec<String> = std::env::args().skip(1).collect();
    for (kind, keys, scan) in LAYERS {
        if only.is_empty() || only.iter().any(|name| name == kind) {
            report(kind, keys, scan)?;
        }
    }
    Ok(())
}

fn report(kind: &str, keys: &str, scan: Scan) -> std::result::Result<(), Box<dyn Error>> {
    let mixer = build(kind, keys)?;
    let x = values(1, &[1, LENGTH, WIDTH])?;
    let tokens: Vec<Tensor> = (0..LENGTH).map(|t| x.narrow(1, t, 1)?.squeeze(1)).collect::<Result<_>>()?;
    let shared = |like: &Tensor| {
        let mut shared = Shared::default();
        mixer.receives().into_iter().for_each(|(name, _)| shared.set(name, like.clone()));
        shared
    };
    let (mut all, mut each): (Shared, Vec<Shared>) = (shared(&x), tokens.iter().map(shared).collect());
    let mut best = [f64::INFINITY; 3];
    for _ in 0..RUNS {
        for _ in 0..PREFILLS {
            let mut state = mixer.new_state(1)?;
            best[0] = best[0].min(seconds(|| {
                let mut ctx =
                    Context { state: Some(&mut state), shared: Some(&mut all), ..Context::default() };
                mixer.forward(&x, &mut ctx).map(drop)
            })?);
            best[2] = best[2].min(alone(scan)?);
        }
        let mut state = mixer.new_state(1)?;
        best[1] = best[1].min(seconds(|| {
            for (x, shared) in tokens.iter().zip(&mut each) {
                let mut ctx = Context { state: Some(&mut state), shared: Some(shared), ..Context::default() };
                mixer.step(x, &mut ctx)?;
            }
            Ok(())
        })?);
    }
    let [prefill, steps, scan] = best.map(|s| 1e3 * s);
    let (ratio, share) = (steps / prefill, 100.0 * scan / prefill);
    println!("{kind:<16}{prefill:>9.1}{steps:>9.1}{ratio:>8.1}{scan:>9.2}{share:>7.0}%");
    Ok(())
}

/// The layer of a blueprint with nothing else in it.
fn build(kind: &str, keys: &str) -> std::result::Result<Box<dyn Mixer>, Box<dyn Error>> {
    let source = format!(
        "name = \"{kind}\"\n[model]\nd_model = {WIDTH}\nvocab_size = 256\n\n[blocks.a]\nmixer = \"{kind}\"\n{keys}\n\n\
         [blocks.first]\nmixer = \"{kind}\"\n{keys}\n{first}\n\n\
         [stack]\nn_layer = 2\ndefault = \"a\"\nat = {{ first = [0] }}\n",
        first = if kind == "rwkv7" { "value_residual = false" } else { "" },
    );
    let blueprint = Blueprint::parse(&source, "prefill_speed.toml", &Registry::builtin())?;
    let architecture = blueprint.architecture();
    let branch = architecture.layers.last().and_then(|layer| layer.stages.first()?.branches.first());
    let branch = branch.ok_or("the blueprint has no layer")?;
    Ok(branch.mixer.build(WIDTH, VarBuilder::seeded(1, DType::F32, Device::Cpu))?)
}

/// Seconds of the scan alone.
fn alone(scan: Scan) -> Result<f64> {
    let keys = |seed, scale: f64| values(seed, &[1, LENGTH, HEADS, DIM])?.affine(0.5 * scale, 0.0);
    let heads = |seed| values(seed, &[1, LENGTH, HEADS])?.affine(0.25, -0.25);
    let (q, k, v) = (keys(1, 1.0)?, keys(2, 0.25)?, keys(3, 1.0)?);
    match scan {
        Scan::Decay => {
            let g = values(4, &[1, LENGTH, HEADS, DIM])?.affine(0.05, -0.05)?;
            let bonus = values(5, &[HEADS, DIM])?;
            let args = DecayScan { bonus: Some(&bonus), ..DecayScan::new(&q, &k, &v, &g) };
            seconds(|| decay_scan(&args).map(drop))
        }
        Scan::Delta => {
            let w = values(4, &[1, LENGTH, HEADS, DIM])?.affine(-0.303, -0.303)?;
            let b = keys(5, 0.25)?;
            let a = b.neg()?;
            let args = DeltaScan { log_decay: Some(&w), ..DeltaScan::new(&q, &k, &v, &a, &b) };
            seconds(|| delta_scan(&args).map(drop))
        }
        Scan::GatedDelta => {
            let (beta, g) = (heads(4)?.neg()?, heads(5)?);
            let args = GatedDeltaRule { log_decay: Some(&g), ..GatedDeltaRule::new(&q, &k, &v, &beta) };
            seconds(|| gated_delta_rule(&args).map(drop))
        }
        Scan::Scalar => {
            let g = heads(4)?;
            seconds(|| scalar_decay_scan(&ScalarDecayScan::new(&q, &k, &v, &g)).map(drop))
        }
        Scan::Ssd => {
            let (dt, a) = (heads(4)?.neg()?, values(5, &[HEADS])?.affine(0.5, -1.0)?);
            let maps = [6, 7].map(|seed| values(seed, &[1, LENGTH, 1, DIM]));
            let [b, c] = maps;
            let (b, c) = (b?, c?);
            seconds(|| ssd_chunk_scan(&SsdChunkScan::new(&v, &dt, &a, &b, &c, 256)).map(drop))
        }
    }
}

fn seconds(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
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
