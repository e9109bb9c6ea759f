//! Speed and memory of the long convolution: against direct sums, and against the bare transforms that it is made of.
//!
//! `cargo run --release -p semisep-kernels --example long_conv_speed [LENGTH...]`

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use realfft::RealFftPlanner;
use semisep_kernels::{ConvMethod, LongConv, long_conv};

/// Shortest time of `f`, in seconds.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The transforms alone: `forward` and `inverse` ones of `n` points for each of `channels`, on as many threads.
fn bare(n: usize, channels: usize, (forward, inverse): (usize, usize), runs: usize) -> Result<f64> {
    let mut planner = RealFftPlanner::<f32>::new();
    let (to, back) = (planner.plan_fft_forward(n), planner.plan_fft_inverse(n));
    best(runs, || {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..candle_core::utils::get_num_threads() {
                scope.spawn(|| {
                    let (mut x, mut s) = (to.make_input_vec(), to.make_output_vec());
                    let (mut a, mut b) = (to.make_scratch_vec(), back.make_scratch_vec());
                    x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 7) as f32);
                    while next.fetch_add(1, Ordering::Relaxed) < channels {
                        for _ in 0..forward {
                            let _ = to.process_with_scratch(&mut x, &mut s, &mut a);
                        }
                        for _ in 0..inverse {
                            s[0].im = 0.0;
                            s[n / 2].im = 0.0;
                            let _ = back.process_with_scratch(&mut s, &mut x, &mut b);
                        }
                        x.iter_mut().for_each(|x| *x *= 1e-6);
                    }
                });
            }
        });
        Ok(())
    })
}

/// Most memory held so far, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}

fn compare(l: usize, d: usize) -> Result<()> {
    let runs = (1 << 22 >> l.ilog2()).clamp(5, 30) / 2;
    let u = Tensor::randn(0f32, 1.0, (1, l, d), &Device::Cpu)?;
    let taps = (Tensor::randn(0f32, 1.0, (l, d), &Device::Cpu)? * 0.1)?;
    let (by_taps, by_channels) = (taps.t()?, taps.t()?.contiguous()?);
    let time =
        |k: &Tensor, method| best(runs, || long_conv(&LongConv { method, ..LongConv::new(&u, k) }).map(drop));
    let (fft, auto) = (time(&by_channels, ConvMethod::Fft)?, time(&by_channels, ConvMethod::Auto)?);
    let turned = time(&by_taps, ConvMethod::Fft)?;
    let transforms = bare(2 * l, d, (2, 1), runs)?;
    let direct = time(&by_channels, ConvMethod::Direct)?;
    let (vu, vk) = (Var::from_tensor(&u)?, Var::from_tensor(&by_channels)?);
    let args = LongConv { method: ConvMethod::Fft, ..LongConv::new(vu.as_tensor(), vk.as_tensor()) };
    let y = long_conv(&args)?;
    let backward = best(runs, || y.backward().map(drop))?;
    let transforms_back = bare(2 * l, d, (3, 2), runs)?;
    println!(
        "l {l:>6} d {d:>4}  fft {:>9.3} ms ({:.2} of the transforms alone)  k by taps {:>9.3} ms ({:.2})  auto {:>9.3} ms  direct {:>9.3} ms ({:.1}x)  backward {:>9.3} ms ({:.2})",
        fft * 1e3,
        fft / transforms,
        turned * 1e3,
        turned / transforms,
        auto * 1e3,
        direct * 1e3,
        direct / fft,
        backward * 1e3,
        backward / transforms_back,
    );
    Ok(())
}

/// One token after a history of `l`.
fn step(l: usize, d: usize) -> Result<()> {
    let past = Tensor::randn(0f32, 1.0, (1, l, d), &Device::Cpu)?;
    let u = Tensor::randn(0f32, 1.0, (1, 1, d), &Device::Cpu)?;
    let k = Tensor::randn(0f32, 1.0, (l + 1, d), &Device::Cpu)?.t()?;
    let time = best(50, || long_conv(&LongConv { history: Some(&past), ..LongConv::new(&u, &k) }).map(drop))?;
    println!(
        "step after {l} tokens, d {d}: {:.3} ms, {:.1} GB/s",
        time * 1e3,
        (8 * l * d) as f64 / time * 1e-9
    );
    Ok(())
}

fn main() -> Result<()> {
    let (l, d) = (8192, 768);
    let u = Tensor::zeros((1, l, d), candle_core::DType::F32, &Device::Cpu)?.affine(1.0, 1.0)?;
    let k = u.squeeze(0)?.t()?;
    let before = peak();
    let y = long_conv(&LongConv::new(&u, &k))?;
    let input = 4 * u.elem_count();
    let more = peak().saturating_sub(before + 4 * y.elem_count());
    println!(
        "memory at l {l}, d {d}: {:.2} of the input's bytes beyond the output",
        more as f64 / input as f64
    );
    let lengths: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    for &l in if lengths.is_empty() { &[256, 512, 1024, 2048, 4096, 8192, 65_536] } else { &lengths[..] } {
        compare(l, if l > 8192 { 32 } else { 768 })?;
    }
    step(8192, 768)
}
