//! Attention with scores by distance, windows in blocks, the own position hidden, and squared-relu weights: the fast
//! path against the definition, and the definition against plain sums.

mod common;

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::attention::naive;
use semisep_kernels::{Attention, Weighting, WindowMode, attention};

type Path = fn(&Attention) -> Result<Tensor>;

/// Output and gradients of q, k, v and the bias.
fn run(path: Path, tensors: &[Tensor], args: &Attention) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = tensors.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let bias = vars.get(3).map(Var::as_tensor);
    let o = path(&Attention { q: &vars[0], k: &vars[1], v: &vars[2], bias, ..*args })?;
    let c = random(99, o.dims(), o.dtype());
    let grads = (&o * c)?.sum_all()?.backward()?;
    let of = |v: &Var| grads.get(v).cloned().map_or_else(|| v.zeros_like(), Ok);
    std::iter::once(Ok(o.clone())).chain(vars.iter().map(of)).collect()
}

fn compare(what: &str, tensors: &[Tensor], args: &Attention, tolerance: f64, grad: f64) -> Result<()> {
    let (want, got) = (run(naive::attention, tensors, args)?, run(attention, tensors, args)?);
    for ((name, got), want) in ["o", "dq", "dk", "dv", "dbias"].iter().zip(&got).zip(&want) {
        let size = want.abs()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if size > 1e-9 {
            assert_close(&format!("{what}: {name}"), got, want, if *name == "o" { tolerance } else { grad });
        } else if want.elem_count() > 0 {
            // Zero by construction: only rounding is left.
            let largest = got.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            assert!(largest < tolerance, "{what}: {name} is {largest}, expected 0");
        }
    }
    let free = attention(&Attention {
        q: &tensors[0],
        k: &tensors[1],
        v: &tensors[2],
        bias: tensors.get(3),
        ..*args
    })?;
    if want[0].elem_count() > 0 && want[0].abs()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? > 1e-9
    {
        assert_close(&format!("{what}: without a graph"), &free, &want[0], tolerance);
    }
    Ok(())
}

/// q, k, v and a bias for `n` distances.
fn tensors([b, lq, lk, h_kv, group, p, pv, n]: [usize; 8], dtype: DType) -> Result<Vec<Tensor>> {
    let h = h_kv * group;
    let q = (random(1, &[b, lq, h, p], DType::F64) * 4.0)?.to_dtype(dtype)?;
    let (k, v) = (random(2, &[b, lk, h_kv, p], dtype), random(3, &[b, lk, h_kv, pv], dtype));
    Ok(vec![q, k, v, random(4, &[h, n], dtype)])
}

fn options(all: &[Tensor]) -> Vec<(String, Attention<'_>)> {
    let plain = Attention::new(&all[0], &all[1], &all[2]);
    let mut cases = Vec::new();
    for weighting in [Weighting::Softmax, Weighting::ReluSquared] {
        for (causal, exclude_self) in [(true, false), (true, true), (false, false)] {
            for window_mode in [WindowMode::Sliding, WindowMode::Block] {
                for window in [None, Some(1), Some(6), Some(70)] {
                    let what = format!("{weighting:?} {causal} {exclude_self} {window_mode:?} {window:?}");
                    cases.push((
                        what,
                        Attention { weighting, causal, exclude_self, window_mode, window, ..plain },
                    ));
                }
            }
        }
    }
    cases
}

#[test]
fn fast_is_naive() -> Result<()> {
    for sizes in [
        [2, 0, 5, 1, 1, 4, 4, 3],
        [2, 1, 1, 2, 1, 8, 8, 3],
        [2, 1, 150, 2, 3, 8, 5, 20],
        [1, 7, 133, 1, 4, 8, 8, 200],
        [2, 65, 65, 2, 1, 8, 6, 9],
        [1, 130, 200, 1, 3, 5, 8, 64],
        [1, 97, 97, 2, 2, 5, 8, 1],
    ] {
        let all = tensors(sizes, DType::F64)?;
        for (what, args) in options(&all) {
            let used = if args.causal { 4 } else { 3 };
            compare(&format!("{sizes:?} {what}"), &all[..used], &args, 1e-12, 1e-11)?;
            compare(&format!("{sizes:?} {what} no bias"), &all[..3], &args, 1e-12, 1e-11)?;
        }
    }
    Ok(())
}

#[test]
fn f32_keeps_its_tolerance() -> Result<()> {
    for sizes in
        [[1, 130, 130, 2, 2, 64, 64, 40], [1, 1, 700, 2, 2, 64, 64, 40], [1, 40, 300, 1, 4, 32, 64, 400]]
    {
        let all = tensors(sizes, DType::F32)?;
        for (what, args) in options(&all) {
            let used = if args.causal { 4 } else { 3 };
            compare(&format!("{sizes:?} {what}"), &all[..used], &args, 1e-5, 1e-4)?;
        }
    }
    Ok(())
}

#[test]
fn packed_and_cached_sequences_have_their_own_positions() -> Result<()> {
    let (cu, lens) = ([0, 3, 3, 70, 71], [40, 5, 90, 9]);
    let all = tensors([1, 71, 71, 2, 2, 8, 6, 12], DType::F64)?;
    let mut cached = tensors([4, 71, 100, 2, 2, 8, 6, 12], DType::F64)?;
    cached[0] = all[0].clone();
    for (what, args) in options(&all) {
        let used = if args.causal { 4 } else { 3 };
        let packed = Attention { cu_seqlens: Some(&cu), ..args };
        compare(&format!("packed {what}"), &all[..used], &packed, 1e-12, 1e-11)?;
        let on_cache = Attention { kv_lens: Some(&lens), ..packed };
        compare(&format!("cached {what}"), &cached[..used], &on_cache, 1e-12, 1e-11)?;
        for (row, w) in cu.windows(2).enumerate() {
            let piece = |t: &Tensor| t.narrow(1, w[0], w[1] - w[0]);
            let (q, k, v) = (piece(&all[0])?, piece(&all[1])?, piece(&all[2])?);
            let bias = Some(&all[3]).filter(|_| args.causal);
            let want = naive::attention(&Attention { q: &q, k: &k, v: &v, bias, ..args })?;
            let o = attention(&Attention { bias, ..packed })?;
            if w[1] > w[0] && !(args.exclude_self && w[1] - w[0] == 1) {
                assert_close(&format!("{what} piece {row}"), &piece(&o)?, &want, 1e-12);
            }
        }
    }
    Ok(())
}

/// The definition, written out for one head as sums of numbers.
#[test]
fn the_definition_in_numbers() -> Result<()> {
    let (l, w, n) = (11, 4, 3);
    let all = tensors([1, l, l, 1, 1, 3, 2, n], DType::F64)?;
    let rows = |t: &Tensor| t.i((0, .., 0))?.to_vec2::<f64>();
    let (q, k, v) = (rows(&all[0])?, rows(&all[1])?, rows(&all[2])?);
    let bias = all[3].i(0)?.to_vec1::<f64>()?;
    for (what, args) in options(&all) {
        let args = Attention { window: args.window.map(|_| w), bias: args.causal.then_some(&all[3]), ..args };
        let got = rows(&naive::attention(&args)?)?;
        for i in 0..l {
            let (mut sum, mut out) = (0.0, [0.0; 2]);
            for t in 0..l {
                let near = match args.window_mode {
                    _ if args.window.is_none() => true,
                    WindowMode::Sliding => i < t + w,
                    WindowMode::Block => i / w == t / w,
                };
                if !near || (args.causal && t > i) || (args.exclude_self && t == i) {
                    continue;
                }
                let dot: f64 = q[i].iter().zip(&k[t]).map(|(a, b)| a * b).sum();
                let score = dot / 3f64.sqrt() + args.bias.map_or(0.0, |_| bias[(i - t).min(n - 1)]);
                let weight = match args.weighting {
                    Weighting::Softmax => score.exp(),
                    Weighting::ReluSquared => score.max(0.0).powi(2),
                };
                sum += weight;
                out.iter_mut().zip(&v[t]).for_each(|(o, v)| *o += weight * v);
            }
            let norm = if args.weighting == Weighting::Softmax && sum > 0.0 { sum } else { 1.0 };
            for (got, want) in got[i].iter().zip(out) {
                assert!((got - want / norm).abs() < 1e-12, "{what} at {i}: {got} {want} {norm}");
            }
        }
        let weights = naive::weights(&args)?.i((0, 0))?;
        let product = weights.matmul(&all[2].i((0, .., 0))?.contiguous()?)?;
        let size = product.abs()?.sum_all()?.to_scalar::<f64>()?;
        if size > 0.0 {
            let o = attention(&args)?;
            assert_close(&format!("{what} weights"), &product, &o.i((0, .., 0))?, 1e-12);
        }
    }
    Ok(())
}

#[test]
fn nan_is_not_swallowed() -> Result<()> {
    for lq in [1, 30] {
        let all = tensors([1, lq, 30, 1, 1, 4, 4, 2], DType::F32)?;
        let nan = (&all[0] * f64::NAN)?;
        let args = Attention { weighting: Weighting::ReluSquared, ..Attention::new(&nan, &all[1], &all[2]) };
        assert!(attention(&args)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_nan()));
    }
    Ok(())
}

#[test]
fn bad_inputs_say_what_was_expected() -> Result<()> {
    let all = tensors([1, 5, 5, 1, 2, 4, 4, 3], DType::F32)?;
    let good = Attention { bias: Some(&all[3]), ..Attention::new(&all[0], &all[1], &all[2]) };
    assert!(attention(&good).is_ok());
    let check = |args: Attention, part: &str| {
        let message = attention(&args).unwrap_err().to_string();
        assert!(message.contains("attention: ") && message.contains(part), "{message}");
    };
    let wrong = random(1, &[3, 3], DType::F32);
    check(Attention { bias: Some(&wrong), ..good }, "bias has shape [3, 3], expected (2, distances)");
    let none = Tensor::zeros((2, 0), DType::F32, &Device::Cpu)?;
    check(Attention { bias: Some(&none), ..good }, "at least one distance");
    check(Attention { bias: Some(&all[3].to_dtype(DType::U32)?), ..good }, "expected a float");
    check(Attention { causal: false, ..good }, "bias without causal");
    check(Attention { softcap: Some(1.0), ..good }, "bias and softcap");
    check(Attention { bias: None, causal: false, exclude_self: true, ..good }, "exclude_self without causal");
    let long = random(1, &[1, 9, 2, 4], DType::F32);
    let block = Attention { window: Some(2), window_mode: WindowMode::Block, ..good };
    check(Attention { q: &long, bias: None, causal: false, ..block }, "9 queries and 5 keys: block windows");
    Ok(())
}
