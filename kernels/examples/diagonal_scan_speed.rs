//! Speed of the diagonal scan at the sizes of an S5 layer, alone and between the layer's maps: nanoseconds a token by
//! length, with one thread and with all.
//!
//! `cargo run --release -p semisep-kernels --example diagonal_scan_speed`

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use semisep_kernels::{DiagonalScan, MimoScan, diagonal_scan, keep_freed_memory, mimo_scan, set_threads};

fn random(shape: &[usize], std: f64) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)? * std
}

/// Shortest time of `f`, in nanoseconds, over `runs` runs.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e9);
    }
    Ok(best)
}

/// Nanoseconds a token, forward and backward.
fn time(l: usize, number: &[usize], varying: bool) -> Result<(f64, f64)> {
    let tokens = [&[1, l][..], number].concat();
    let a = (random(if varying { &tokens } else { number }, 1.0)?.tanh()? * 0.7)?;
    let x = random(&tokens, 1.0)?;
    let runs = (2_000_000 / l).clamp(8, 100);
    let forward = best(runs, || diagonal_scan(&DiagonalScan::new(&a, &x)).map(drop))?;
    let (a, x) = (Var::from_tensor(&a)?, Var::from_tensor(&x)?);
    let (h, _) = diagonal_scan(&DiagonalScan::new(a.as_tensor(), x.as_tensor()))?;
    let backward = best(runs.min(30), || h.backward().map(drop))?;
    Ok((forward / l as f64, backward / l as f64))
}

/// The whole scan of a layer: B, the scan over complex states, C, D.
fn time_layer(l: usize, p: usize, d: usize) -> Result<(f64, f64)> {
    let a = (random(&[2, p], 1.0)?.tanh()? * 0.7)?;
    let (input, output, skip) = (random(&[2 * p, d], 0.1)?, random(&[d, 2 * p], 0.1)?, random(&[d], 1.0)?);
    let u = random(&[1, 2048, d], 1.0)?.repeat((1, l / 2048, 1))?;
    let runs = (200_000 / l).clamp(2, 20);
    let scan = MimoScan { skip: Some(&skip), ..MimoScan::new(&u, &a, &input, &output) };
    let forward = best(runs, || mimo_scan(&scan).map(drop))?;
    if l > 1 << 16 {
        return Ok((forward / l as f64, f64::NAN));
    }
    let vars = [&u, &a, &input, &output, &skip].map(Var::from_tensor);
    let [u, a, input, output, skip] = vars;
    let (u, a, input, output, skip) = (u?, a?, input?, output?, skip?);
    let scan = MimoScan { skip: Some(&skip), ..MimoScan::new(&u, &a, &input, &output) };
    let (y, _) = mimo_scan(&scan)?;
    let backward = best(runs.min(5), || y.backward().map(drop))?;
    Ok((forward / l as f64, backward / l as f64))
}

fn print(l: usize, one: (f64, f64), all: (f64, f64)) {
    println!(
        "{l:>8} tokens: forward {:>8.2} ns/token ({:.2}x of one thread), backward {:>8.2} ({:.2}x)",
        all.0,
        one.0 / all.0,
        all.1,
        one.1 / all.1
    );
}

fn main() -> Result<()> {
    keep_freed_memory();
    for (name, p, d) in [
        ("S5's whole scan, 256 complex states, width 768", 256, 768),
        ("120 complex states, width 192", 120, 192),
    ] {
        println!("{name}");
        for l in [2048, 16_384, 65_536, 262_144] {
            set_threads(1);
            let one = time_layer(l, p, d)?;
            set_threads(usize::MAX);
            print(l, one, time_layer(l, p, d)?);
        }
    }
    for (name, number, varying) in [
        ("the scan alone, complex, 256 states", &[2, 256][..], false),
        ("complex, 16 states", &[2, 16], false),
        ("complex, 8 states", &[2, 8], false),
        ("real, 768 channels, by token (RG-LRU)", &[768], true),
    ] {
        println!("{name}");
        for l in [2048, 16_384, 65_536, 262_144] {
            if l * number.iter().product::<usize>() > 1 << 27 {
                continue;
            }
            set_threads(1);
            let one = time(l, number, varying)?;
            set_threads(usize::MAX);
            print(l, one, time(l, number, varying)?);
        }
    }
    Ok(())
}
