//! The causal convolution.

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_kernels::causal_conv1d::naive;
use semisep_kernels::{
    CausalConv1d, causal_conv1d, causal_conv1d_backward, causal_conv1d_update, state_dtype,
};

use crate::common::random;
use crate::report::{Report, clock};

/// Outputs and gradients: tolerances against f64.
fn tolerances(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => (1e-12, 1e-12),
        DType::F32 => (1e-5, 1e-4),
        DType::F16 => (2e-3, 2e-3),
        _ => (1e-2, 1e-2),
    }
}

struct Case {
    size: (usize, usize, usize, usize),
    cu: Option<Vec<usize>>,
    silu: bool,
    bias: bool,
    initial: bool,
    /// Where in a row of 24 more channels x begins.
    view: Option<usize>,
}

fn cases(small: bool) -> Vec<Case> {
    let sizes: &[(usize, usize, usize, usize)] = if small {
        &[(2, 37, 24, 4), (1, 3, 5, 3), (1, 70, 40, 12)]
    } else {
        &[
            (1, 1, 1, 4),
            (2, 3, 8, 4),
            (1, 7, 33, 3),
            (3, 300, 48, 4),
            (2, 131, 40, 2),
            (1, 1000, 264, 4),
            (2, 5, 1, 1),
            (3, 65, 16, 1),
            (1, 20, 16, 12),
            (2, 64, 24, 7),
            (1, 513, 5, 20),
            (2, 40, 8, 64),
            (1, 300, 40, 128),
            (2, 77, 20, 8),
            (1, 2048, 1032, 4),
            (4, 1024, 512, 3),
            (0, 4, 8, 4),
            (2, 0, 8, 4),
        ]
    };
    let mut all = Vec::new();
    for (i, &size) in sizes.iter().enumerate() {
        for variant in 0..3 {
            let n = i + variant;
            let view = [None, Some(8), Some(3)][variant];
            all.push(Case {
                size,
                cu: None,
                silu: !n.is_multiple_of(3),
                bias: n.is_multiple_of(2),
                initial: n % 4 < 2,
                view,
            });
        }
    }
    let packs: &[&[usize]] = if small {
        &[&[0, 0, 3, 3, 40]]
    } else {
        &[&[0, 5], &[0, 1, 2, 4], &[0, 0, 3, 3, 9], &[0, 150, 150, 151, 300, 302, 302], &[0, 700, 2000]]
    };
    for (i, cu) in packs.iter().enumerate() {
        for (variant, (d, k)) in [(16, 4), (9, 3), (40, 2), (8, 12)].into_iter().enumerate() {
            let (n, size) = (i + variant, (1, cu[cu.len() - 1], d, k));
            let view = (variant == 0).then_some(8);
            all.push(Case {
                size,
                cu: Some(cu.to_vec()),
                silu: !n.is_multiple_of(3),
                bias: n.is_multiple_of(2),
                initial: n % 4 < 2,
                view,
            });
        }
    }
    all
}

pub(crate) fn check(device: &Device, report: &mut Report, small: bool) -> Result<()> {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        for (seed, case) in cases(small).iter().enumerate() {
            if let Err(error) = check_case(device, report, dtype, case, seed as u64) {
                report.expect(&format!("{dtype:?} {:?} packed {:?}: {error}", case.size, case.cu), false);
            }
        }
        check_steps(device, report, dtype)?;
    }
    let weight = Tensor::zeros((4, 129), DType::F32, device)?;
    let x = Tensor::zeros((1, 3, 4), DType::F32, device)?;
    let args = CausalConv1d {
        x: &x,
        weight: &weight,
        bias: None,
        silu: false,
        initial_state: None,
        cu_seqlens: None,
    };
    let error = causal_conv1d(args).map(drop).unwrap_err().to_string();
    report.expect(&format!("too many taps are an error: {error}"), error.contains("up to 128 taps"));
    Ok(())
}

/// The same numbers as variables: rounded to `dtype` on the device, and those in f64 on the CPU.
struct Twin {
    device: Var,
    exact: Var,
}

impl Twin {
    fn new(seed: u64, shape: &[usize], dtype: DType, device: &Device) -> Result<Self> {
        let rounded = random(seed, shape, dtype);
        Ok(Self {
            device: Var::from_tensor(&rounded.to_device(device)?)?,
            exact: Var::from_tensor(&rounded.to_dtype(DType::F64)?)?,
        })
    }
}

fn check_case(device: &Device, report: &mut Report, dtype: DType, case: &Case, seed: u64) -> Result<()> {
    let (b, l, d, k) = case.size;
    let sequences = case.cu.as_ref().map_or(b, |cu| cu.len() - 1);
    let state = state_dtype(dtype);
    let wide = case.view.map_or(d, |_| d + 24);
    let x = Twin::new(seed * 8, &[b, l, wide], dtype, device)?;
    // Parameters in the data's dtype and in the state's, by turns.
    let parameters = if seed.is_multiple_of(2) { state } else { dtype };
    let weight = Twin::new(seed * 8 + 1, &[d, k], parameters, device)?;
    let bias = case.bias.then(|| Twin::new(seed * 8 + 2, &[d], parameters, device)).transpose()?;
    let shape = [sequences, d, k - 1];
    let initial = case.initial.then(|| Twin::new(seed * 8 + 3, &shape, state, device)).transpose()?;
    let cot_y = random(seed * 8 + 4, &[b, l, d], dtype);
    let cot_state = random(seed * 8 + 5, &shape, state);
    let (use_y, use_state) = (seed % 5 != 4, seed % 5 != 3 && k > 1 && d * sequences > 0);

    let run = |exact: bool| -> Result<Vec<Tensor>> {
        let pick = |t: &Twin| if exact { t.exact.clone() } else { t.device.clone() };
        let (whole, weight) = (pick(&x), pick(&weight));
        let (bias, initial) = (bias.as_ref().map(pick), initial.as_ref().map(pick));
        let view = whole.narrow(2, case.view.unwrap_or(0), d)?;
        let args = CausalConv1d {
            x: &view,
            weight: &weight,
            bias: bias.as_deref(),
            silu: case.silu,
            initial_state: initial.as_deref(),
            cu_seqlens: case.cu.as_deref(),
        };
        let (y, end) = if exact { naive::causal_conv1d(args)? } else { causal_conv1d(args)? };
        let term = |out: &Tensor, cot: &Tensor| {
            let cot = cot.to_device(out.device())?.to_dtype(state_dtype(out.dtype()))?;
            (out.to_dtype(cot.dtype())? * cot)?.sum_all()
        };
        let mut loss = Tensor::zeros((), if exact { DType::F64 } else { state }, y.device())?;
        if use_y && b * l > 0 {
            loss = (loss + term(&y, &cot_y)?)?;
        }
        if use_state {
            loss = (loss + term(&end, &cot_state)?)?;
        }
        let mut all = vec![y, end];
        let grads = loss.track_op().then(|| loss.backward()).transpose()?;
        for var in [Some(&whole), Some(&weight), bias.as_ref(), initial.as_ref()].into_iter().flatten() {
            let grad = grads.as_ref().and_then(|g| g.get(var));
            all.push(grad.map_or_else(|| var.zeros_like(), |g| Ok(g.clone()))?);
        }
        Ok(all)
    };
    report.poison(b * l * d, dtype)?;
    let got = run(false)?;
    let want = run(true)?;
    let again = run(false)?;
    let what =
        format!("{dtype:?} b {b} l {l} d {d} k {k} packed {:?} view {:?} seed {seed}", case.cu, case.view);
    report
        .expect(&format!("{what}: {} results, expected {}", got.len(), want.len()), got.len() == want.len());
    let (out, grad) = tolerances(dtype);
    let names = ["y", "state", "dx", "dweight", "d2", "d3"];
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        if got.elem_count() > 0 {
            let tolerance = if i < 2 { out } else { grad };
            report.compare(&format!("{what}: {dtype:?} {}", names[i]), got, want, tolerance)?;
            report.compare(&format!("{what}: again {}", names[i]), &again[i], got, 0.0)?;
        }
    }
    Ok(())
}

/// Tokens one at a time against the definition; the state in place.
fn check_steps(device: &Device, report: &mut Report, dtype: DType) -> Result<()> {
    let state_type = state_dtype(dtype);
    for (seed, (b, d, k)) in
        [(1, 5, 4), (3, 264, 4), (2, 33, 3), (2, 64, 2), (4, 7, 1), (1, 40, 12)].into_iter().enumerate()
    {
        let seed = 1000 + 8 * seed as u64;
        let x = random(seed, &[b, 9, d], dtype);
        let parameters = if seed.is_multiple_of(16) { dtype } else { state_type };
        let weight = random(seed + 1, &[d, k], parameters);
        let bias = (!seed.is_multiple_of(3)).then(|| random(seed + 2, &[d], parameters));
        let initial = random(seed + 3, &[b, d, k - 1], state_type);
        let exact = |t: &Tensor| t.to_dtype(DType::F64);
        let bias64 = bias.as_ref().map(exact).transpose()?;
        let (want, end) = naive::causal_conv1d(CausalConv1d {
            x: &exact(&x)?,
            weight: &exact(&weight)?,
            bias: bias64.as_ref(),
            silu: true,
            initial_state: Some(&exact(&initial)?),
            cu_seqlens: None,
        })?;
        let there = |t: &Tensor| t.to_device(device);
        let (x, weight, state) = (there(&x)?, there(&weight)?, there(&initial)?);
        let bias = bias.as_ref().map(there).transpose()?;
        let what = format!("update {dtype:?} b {b} d {d} k {k}: {dtype:?}");
        for t in 0..9 {
            // A view with its rows apart.
            let x = x.narrow(1, t, 1)?.squeeze(1)?;
            let y = causal_conv1d_update(&state, &x, &weight, bias.as_ref(), true)?;
            let want = want.narrow(1, t, 1)?.squeeze(1)?;
            report.compare(&format!("{what} step"), &y, &want, tolerances(dtype).0)?;
        }
        if k > 1 {
            report.compare(&format!("{what} step-state"), &state, &end, tolerances(dtype).0)?;
        }
    }
    Ok(())
}

/// Random values made on the device.
fn normal(device: &Device, shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, device)?.to_dtype(dtype)
}

pub(crate) fn time(device: &Device, report: &mut Report) -> Result<()> {
    let shapes = [(16, 2048), (64, 512), (4, 8192), (1, 32768)];
    for (b, l) in shapes {
        time_sizes(device, report, (b, l, 5376), DType::BF16, None)?;
    }
    let cu: Vec<usize> = (0..=64).map(|i| i * 512).collect();
    time_sizes(device, report, (1, 32768, 5376), DType::BF16, Some(&cu))?;
    time_sizes(device, report, (16, 2048, 5376), DType::F32, None)?;
    time_sizes(device, report, (1, 2048, 3328), DType::BF16, None)?;
    time_sizes(device, report, (16, 2048, 5377), DType::BF16, None)?;
    time_autograd(device, report)?;
    for b in [1, 64, 256] {
        time_update(device, report, b)?;
    }
    Ok(())
}

fn time_sizes(
    device: &Device,
    report: &mut Report,
    (b, l, d): (usize, usize, usize),
    dtype: DType,
    cu: Option<&[usize]>,
) -> Result<()> {
    // Three sets in turn: together far more than the second-level cache holds.
    let xs = (0..3).map(|_| normal(device, &[b, l, d], dtype)).collect::<Result<Vec<_>>>()?;
    let dys = (0..3).map(|_| normal(device, &[b, l, d], dtype)).collect::<Result<Vec<_>>>()?;
    let weight = normal(device, &[d, 4], DType::F32)?;
    let bias = normal(device, &[d], DType::F32)?;
    let args = |i: usize| CausalConv1d {
        x: &xs[i % 3],
        weight: &weight,
        bias: Some(&bias),
        silu: true,
        initial_state: None,
        cu_seqlens: cu,
    };
    let packed = cu.map_or(String::new(), |cu| format!(" packed {}", cu.len() - 1));
    let shape = format!("L{l} B{b} D{d} W4 silu {dtype:?}{packed}");
    let bytes = (b * l * d * dtype.size_in_bytes()) as f64;
    report.time("causal_conv1d forward", &shape, 2.0 * bytes, |i| causal_conv1d(args(i)).map(drop))?;
    report.time("causal_conv1d backward", &shape, 3.0 * bytes, |i| {
        causal_conv1d_backward(args(i), &dys[i % 3], None).map(drop)
    })?;
    report.time("causal_conv1d forward + backward", &shape, 5.0 * bytes, |i| {
        causal_conv1d(args(i))?;
        causal_conv1d_backward(args(i), &dys[i % 3], None).map(drop)
    })?;
    Ok(())
}

/// The whole of a training step's part in candle's graph: it adds ones for the loss and sums of its own.
fn time_autograd(device: &Device, report: &mut Report) -> Result<()> {
    let (b, l, d) = (16, 2048, 5376);
    let x = Var::from_tensor(&normal(device, &[b, l, d], DType::BF16)?)?;
    let weight = Var::from_tensor(&normal(device, &[d, 4], DType::F32)?)?;
    let bias = Var::from_tensor(&normal(device, &[d], DType::F32)?)?;
    let args = CausalConv1d {
        x: &x,
        weight: &weight,
        bias: Some(&bias),
        silu: true,
        initial_state: None,
        cu_seqlens: None,
    };
    let bytes = 5.0 * (2 * b * l * d) as f64;
    report
        .time("causal_conv1d through candle's graph", "L2048 B16 D5376 W4 silu BF16", bytes, |_| {
            causal_conv1d(args)?.0.backward().map(drop)
        })
        .map(drop)
}

fn time_update(device: &Device, report: &mut Report, b: usize) -> Result<()> {
    let d = 5376;
    let states = (0..4).map(|_| normal(device, &[b, d, 3], DType::F32)).collect::<Result<Vec<_>>>()?;
    let x = normal(device, &[b, d], DType::BF16)?;
    let weight = normal(device, &[d, 4], DType::BF16)?;
    let bias = normal(device, &[d], DType::BF16)?;
    let step = |i: usize| causal_conv1d_update(&states[i % 4], &x, &weight, Some(&bias), true).map(drop);
    // x, y, the state twice, and the parameters.
    let bytes = (b * d * (2 + 2 + 24) + d * 10) as f64;
    let shape = format!("B{b} D{d} W4 silu BF16, f32 state");
    report.time("causal_conv1d_update from the host", &shape, bytes, step)?;
    let ms = clock::graph_ms(device, 40, step)?;
    report.add_time("causal_conv1d_update in a graph", &shape, bytes, ms);
    Ok(())
}
