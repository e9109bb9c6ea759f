//! The long convolution against recorded values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::long_conv::naive;
use semisep_kernels::{ConvMethod, LongConv, long_conv};

const METHODS: [ConvMethod; 3] = [ConvMethod::Auto, ConvMethod::Direct, ConvMethod::Fft];

/// Outputs, gradients.
const LADDER: [(DType, f64, f64); 2] = [(DType::F64, 1e-12, 1e-11), (DType::F32, 1e-5, 1e-4)];

#[test]
fn recorded_values_and_gradients() -> Result<()> {
    for case in cases("long_conv") {
        for (dtype, output, gradient) in LADDER {
            for method in METHODS {
                let names = ["u", "k", "bias", "x1", "x2"];
                let vars: Vec<(&str, Var)> =
                    names.iter().filter_map(|&n| Some((n, case.var(n, dtype)?))).collect();
                let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor());
                // Recorded as (b, d, l).
                let time_first = |name: &str| get(name).map(|t| t.transpose(1, 2)).transpose();
                let mut u = time_first("u")?.unwrap();
                if let Some(gate) = time_first("x1")? {
                    u = (u * gate)?;
                }
                let args = LongConv { bias: get("bias"), method, ..LongConv::new(&u, get("k").unwrap()) };
                let mut y = long_conv(&args)?;
                if let Some(gate) = time_first("x2")? {
                    y = (y * gate)?;
                }
                let y = y.transpose(1, 2)?;
                let what = format!("{} {dtype:?} {method:?}", case.name);
                // The recorded outputs are f64; a cotangent of ones stands in where none is recorded.
                assert_close(&what, &y, &case.get("out.y"), output);
                if !case.has("cot.y") {
                    continue;
                }
                let grads = case.loss(&[("y", &y)])?.backward()?;
                for (name, var) in &vars {
                    let want = case.get(&format!("grad.{name}"));
                    assert_close(&format!("{what}: {name}"), grads.get(var).unwrap(), &want, gradient);
                }
            }
        }
    }
    Ok(())
}

/// One problem: (sequences or `cu_seqlens`, l, d, lk, ahead, history lengths, bias).
struct Problem {
    rows: usize,
    l: usize,
    d: usize,
    lk: usize,
    ahead: usize,
    cu: Option<Vec<usize>>,
    past: Option<(usize, Vec<usize>)>,
    bias: bool,
}

fn plain(l: usize, d: usize, lk: usize) -> Problem {
    Problem { rows: 2, l, d, lk, ahead: 0, cu: None, past: None, bias: l.is_multiple_of(2) }
}

fn problems() -> Vec<Problem> {
    let packed = |l, cu: &[usize], d, lk| Problem { rows: 1, cu: Some(cu.to_vec()), ..plain(l, d, lk) };
    vec![
        plain(1, 3, 1),
        plain(1, 5, 9),
        plain(2, 16, 2),
        plain(7, 17, 3),
        plain(31, 33, 31),
        plain(64, 16, 64),
        plain(65, 5, 200),
        plain(200, 19, 7),
        plain(130, 3, 130),
        Problem { ahead: 30, ..plain(31, 18, 31) },
        Problem { ahead: 36, ..plain(37, 18, 73) },
        Problem { ahead: 5, ..plain(3, 18, 40) },
        Problem { ahead: 90, ..plain(40, 2, 100) },
        packed(40, &[0, 7, 8, 8, 40], 20, 40),
        packed(40, &[0, 20, 40], 17, 13),
        Problem { past: Some((9, vec![9, 9])), ..plain(12, 17, 30) },
        Problem { past: Some((60, vec![60, 60])), ..plain(1, 17, 30) },
        Problem { past: Some((60, vec![3, 41])), ..plain(3, 33, 50) },
        Problem { past: Some((60, vec![0, 57])), ..plain(37, 16, 64) },
        Problem { past: Some((8, vec![8, 0, 3])), ..packed(30, &[0, 12, 12, 30], 18, 25) },
        Problem { past: Some((20, vec![20, 13])), ahead: 4, ..plain(18, 6, 24) },
    ]
}

type Op = fn(&LongConv) -> Result<Tensor>;

/// Output, and gradients of all inputs; the filter is (d, lk), or its transpose lies dense.
fn run(p: &Problem, dtype: DType, method: ConvMethod, by_taps: bool, op: Op) -> Result<Vec<Tensor>> {
    let sequences = p.cu.as_ref().map_or(p.rows, |cu| cu.len() - 1);
    let u = Var::from_tensor(&random(1, &[p.rows, p.l, p.d], dtype))?;
    let k = random(2, &[p.d, p.lk], dtype);
    let k = Var::from_tensor(&if by_taps { k.t()?.contiguous()? } else { k })?;
    let bias = Var::from_tensor(&random(3, &[p.d], dtype))?;
    let capacity = p.past.as_ref().map_or(0, |p| p.0);
    let history = Var::from_tensor(&random(4, &[sequences, capacity, p.d], dtype))?;
    let turned = if by_taps { k.t()? } else { k.as_tensor().clone() };
    let y = op(&LongConv {
        bias: p.bias.then_some(bias.as_tensor()),
        history: p.past.as_ref().map(|_| history.as_tensor()),
        history_lengths: p.past.as_ref().map(|p| p.1.as_slice()),
        ahead: p.ahead,
        cu_seqlens: p.cu.as_deref(),
        method,
        ..LongConv::new(u.as_tensor(), &turned)
    })?;
    assert_eq!(y.dims(), [p.rows, p.l, p.d]);
    let loss = (&y * random(5, &[p.rows, p.l, p.d], dtype))?.sum_all()?;
    let grads = loss.backward()?;
    let grad = |var: &Var| grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok);
    let dk = if by_taps { grad(&k)?.t()? } else { grad(&k)? };
    Ok(vec![y, grad(&u)?, dk, grad(&bias)?, grad(&history)?])
}

#[test]
fn equals_its_definition() -> Result<()> {
    for (i, p) in problems().iter().enumerate() {
        let want = run(p, DType::F64, ConvMethod::Auto, false, naive::long_conv)?;
        for (dtype, output, gradient) in LADDER {
            for method in METHODS {
                for by_taps in [false, true] {
                    let got = run(p, dtype, method, by_taps, long_conv)?;
                    for (part, (got, want)) in got.iter().zip(&want).enumerate() {
                        let what = format!("problem {i} part {part} {dtype:?} {method:?} {by_taps}");
                        assert_close(&what, got, want, if part == 0 { output } else { gradient });
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn both_methods_agree_on_long_sequences() -> Result<()> {
    for (l, lk, past) in [(3000, 3000, 0), (4097, 700, 0), (1000, 5000, 4000)] {
        let p = Problem { past: Some((past, vec![past; 2])), ..plain(l, 18, lk) };
        let [direct, fft] =
            [ConvMethod::Direct, ConvMethod::Fft].map(|m| run(&p, DType::F64, m, true, long_conv));
        for (part, (got, want)) in fft?.iter().zip(&direct?).enumerate() {
            assert_close(&format!("{l} {lk} {past} part {part}"), got, want, 1e-12);
        }
        let single = run(&p, DType::F32, ConvMethod::Fft, false, long_conv)?;
        let want = run(&p, DType::F64, ConvMethod::Direct, false, long_conv)?;
        for (part, (got, want)) in single.iter().zip(&want).enumerate() {
            assert_close(&format!("f32 {l} {lk} {past} part {part}"), got, want, 1e-6);
        }
    }
    Ok(())
}

/// Pieces, each with what came before as history, are the whole.
#[test]
fn any_split_gives_the_same() -> Result<()> {
    let (u, k) = (random(1, &[2, 300, 20], DType::F64), random(2, &[20, 300], DType::F64));
    let want = long_conv(&LongConv::new(&u, &k))?;
    for method in METHODS {
        for split in [&[1, 299][..], &[150, 150], &[299, 1], &[7, 0, 93, 200]] {
            let (mut ys, mut start) = (Vec::new(), 0);
            for &len in split {
                let (now, past) = (u.narrow(1, start, len)?, u.narrow(1, 0, start)?.contiguous()?);
                ys.push(long_conv(&LongConv { history: Some(&past), method, ..LongConv::new(&now, &k) })?);
                start += len;
            }
            assert_close(&format!("{split:?} {method:?}"), &Tensor::cat(&ys, 1)?, &want, 1e-12);
        }
    }
    Ok(())
}

#[test]
fn the_future_moves_no_bit_of_a_direct_sum() -> Result<()> {
    let (u, k) = (random(1, &[1, 200, 5], DType::F32), random(2, &[5, 200], DType::F32));
    let other = Tensor::cat(&[&u.narrow(1, 0, 150)?, &random(9, &[1, 50, 5], DType::F32)], 1)?;
    let y = |u: &Tensor| -> Result<Vec<f32>> {
        let y = long_conv(&LongConv { method: ConvMethod::Direct, ..LongConv::new(u, &k) })?;
        y.narrow(1, 0, 150)?.flatten_all()?.to_vec1()
    };
    assert_eq!(y(&u)?, y(&other)?);
    let error = |u: &Tensor| long_conv(&LongConv { method: ConvMethod::Fft, ..LongConv::new(u, &k) });
    assert_close("fft", &error(&other)?.narrow(1, 0, 150)?, &error(&u)?.narrow(1, 0, 150)?, 1e-6);
    Ok(())
}

#[test]
fn slots_behind_a_history_are_not_read() -> Result<()> {
    let (u, k) = (random(1, &[1, 5, 3], DType::F32), random(2, &[3, 40], DType::F32));
    let past = random(3, &[1, 7, 3], DType::F32);
    let nan = Tensor::full(f32::NAN, (1, 9, 3), &Device::Cpu)?;
    let padded = Tensor::cat(&[&past, &nan], 1)?;
    for method in METHODS {
        let args = LongConv { method, ..LongConv::new(&u, &k) };
        let want = long_conv(&LongConv { history: Some(&past), ..args })?;
        let got = long_conv(&LongConv { history: Some(&padded), history_lengths: Some(&[7]), ..args })?;
        assert_close("padded", &got, &want, 0.0);
    }
    Ok(())
}

#[test]
fn half_precision_and_views() -> Result<()> {
    let wide = random(1, &[2, 70, 50], DType::BF16);
    let (u, k) = (wide.narrow(2, 9, 21)?, random(2, &[21, 70], DType::BF16));
    let y = long_conv(&LongConv::new(&u, &k))?;
    assert_eq!(y.dtype(), DType::BF16);
    let want = naive::long_conv(&LongConv::new(&u.to_dtype(DType::F64)?, &k.to_dtype(DType::F64)?))?;
    assert_close("bf16", &y, &want, 1e-2);
    Ok(())
}

#[test]
fn no_tokens() -> Result<()> {
    let (u, k) = (random(1, &[2, 0, 3], DType::F32), random(2, &[3, 4], DType::F32));
    assert_eq!(long_conv(&LongConv::new(&u, &k))?.dims(), [2, 0, 3]);
    let none = random(1, &[2, 4, 0], DType::F32);
    assert_eq!(long_conv(&LongConv::new(&none, &random(1, &[0, 4], DType::F32)))?.dims(), [2, 4, 0]);
    Ok(())
}

#[test]
fn errors_name_the_op_and_the_shapes() {
    let f = |shape: &[usize]| random(1, shape, DType::F32);
    let (u, k) = (f(&[2, 5, 3]), f(&[3, 5]));
    let history = f(&[1, 4, 3]);
    let ok = LongConv::new(&u, &k);
    let message = |args: LongConv| long_conv(&args).unwrap_err().to_string();
    for (args, part) in [
        (LongConv { u: &k, ..ok }, "u has shape (3, 5), expected (b, l, d)"),
        (LongConv { k: &u, ..ok }, "expected (3, lk)"),
        (LongConv { k: &f(&[3, 0]), ..ok }, "k has shape (3, 0)"),
        (LongConv { bias: Some(&f(&[4])), ..ok }, "bias has shape (4), expected (3)"),
        (
            LongConv { history: Some(&history), ..ok },
            "history has shape (1, 4, 3), expected (2, capacity, 3)",
        ),
        (LongConv { history: Some(&f(&[2, 4, 3])), history_lengths: Some(&[4, 5]), ..ok }, "capacity 4"),
        (LongConv { ahead: 5, ..ok }, "ahead is 5, expected less than the filter's length 5"),
        (LongConv { cu_seqlens: Some(&[0, 5]), ..ok }, "batch of 1"),
    ] {
        let found = message(args);
        assert!(found.contains("long_conv") && found.contains(part), "{found}: expected {part}");
    }
}
