//! Speed of the scans at the sizes of mamba-130m and mamba2-130m: nanoseconds a token, the best of several runs.
//!
//! `cargo run --release -p semisep-kernels --example scan_speed [LENGTH...]`

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_kernels::{
    SelectiveScan, SelectiveStateUpdate, SsdChunkScan, SsdStateUpdate, selective_scan,
    selective_state_update, ssd_chunk_scan, ssd_state_update,
};

fn random(shape: &[usize], mean: f64, std: f64) -> Result<Tensor> {
    (Tensor::randn(0f32, 1.0, shape, &Device::Cpu)? * std)? + mean
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

fn report(what: &str, l: usize, ns: f64) {
    println!("{what:<28} {l:>6} tokens {:>10.1} ns/token {:>10.3} ms", ns / l as f64, ns * 1e-6);
}

/// Times `scan` forward, and backward through all of `inputs`.
fn time(name: &str, l: usize, inputs: &[Tensor], scan: impl Fn(&[&Tensor]) -> Result<Tensor>) -> Result<()> {
    let runs = (200_000 / l).clamp(5, 50);
    let plain: Vec<&Tensor> = inputs.iter().collect();
    report(&format!("{name} forward"), l, best(runs, || scan(&plain).map(drop))?);
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let y = scan(&vars.iter().map(Var::as_tensor).collect::<Vec<_>>())?;
    report(&format!("{name} backward"), l, best(runs, || y.backward().map(drop))?);
    Ok(())
}

fn mamba1(l: usize) -> Result<()> {
    let (e, n) = (1536, 16);
    let inputs = [
        random(&[1, l, e], 0.0, 1.0)?,
        random(&[1, l, e], -4.0, 0.5)?,
        random(&[e, n], -8.0, 2.0)?,
        random(&[1, l, 1, n], 0.0, 1.0)?,
        random(&[1, l, 1, n], 0.0, 1.0)?,
        random(&[e], 0.0, 1.0)?,
        random(&[e], 0.0, 0.1)?,
        random(&[1, l, e], 0.0, 1.0)?,
    ];
    time("selective_scan", l, &inputs, |t| {
        let args = SelectiveScan {
            d: Some(t[5]),
            dt_bias: Some(t[6]),
            z: Some(t[7]),
            dt_softplus: true,
            ..SelectiveScan::new(t[0], t[1], t[2], t[3], t[4])
        };
        Ok(selective_scan(&args)?.0)
    })
}

fn mamba2(l: usize) -> Result<()> {
    let (h, p, n) = (24, 64, 128);
    let inputs = [
        random(&[1, l, h, p], 0.0, 1.0)?,
        random(&[1, l, h], -4.0, 0.5)?,
        random(&[h], -8.0, 2.0)?,
        random(&[1, l, 1, n], 0.0, 1.0)?,
        random(&[1, l, 1, n], 0.0, 1.0)?,
        random(&[h], 0.0, 1.0)?,
        random(&[h], 0.0, 0.1)?,
    ];
    time("ssd_chunk_scan", l, &inputs, |t| {
        let args = SsdChunkScan {
            d: Some(t[5]),
            dt_bias: Some(t[6]),
            dt_softplus: true,
            ..SsdChunkScan::new(t[0], t[1], t[2], t[3], t[4], 256)
        };
        Ok(ssd_chunk_scan(&args)?.0)
    })
}

/// One token, with as many states as the model has layers, so that they do not stay in a cache.
fn steps(layers: usize) -> Result<()> {
    let (e, n) = (1536, 16);
    let (x, dt, a) = (random(&[1, e], 0.0, 1.0)?, random(&[1, e], -4.0, 0.5)?, random(&[e, n], -8.0, 2.0)?);
    let (b, z) = (random(&[1, 1, n], 0.0, 1.0)?, random(&[1, e], 0.0, 1.0)?);
    let args = SelectiveStateUpdate {
        z: Some(&z),
        dt_softplus: true,
        ..SelectiveStateUpdate::new(&x, &dt, &a, &b, &b)
    };
    let states = (0..layers).map(|_| random(&[1, e, n], 0.0, 1.0)).collect::<Result<Vec<_>>>()?;
    let run = || states.iter().try_for_each(|s| selective_state_update(s, &args).map(drop));
    report("selective_state_update", 1, best(200, run)? / layers as f64);

    let (h, p, n) = (24, 64, 128);
    let (x, dt, a) = (random(&[1, h, p], 0.0, 1.0)?, random(&[1, h], -4.0, 0.5)?, random(&[h], -8.0, 2.0)?);
    let b = random(&[1, 1, n], 0.0, 1.0)?;
    let args = SsdStateUpdate { dt_softplus: true, ..SsdStateUpdate::new(&x, &dt, &a, &b, &b) };
    let states = (0..layers).map(|_| random(&[1, h, p, n], 0.0, 1.0)).collect::<Result<Vec<_>>>()?;
    let run = || states.iter().try_for_each(|s| ssd_state_update(s, &args).map(drop));
    let ns = best(200, run)? / layers as f64;
    report("ssd_state_update", 1, ns);
    println!("{:>40.1} GB/s read and written", (2 * 4 * h * p * n) as f64 / ns);
    Ok(())
}

fn main() -> Result<()> {
    let mut lengths: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if lengths.is_empty() {
        lengths = vec![512, 2048, 32_768];
    }
    let weights = random(&[768, 4672], 0.0, 1.0)?.to_dtype(DType::F32)?;
    let x = random(&[512, 768], 0.0, 1.0)?;
    report("a layer's projection matmul", 512, best(50, || x.matmul(&weights).map(drop))?);
    for &l in &lengths {
        mamba1(l)?;
        mamba2(l)?;
    }
    steps(24)
}
