//! Attention against recorded cases, and the fast path against the definition.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::attention::naive;
use semisep_kernels::{Attention, attention};

type Path = fn(&Attention) -> Result<Tensor>;
const PATHS: [(&str, Path); 2] = [("naive", naive::attention), ("fast", attention)];

/// (b, h, l, p) to (b, l, h, p), and back.
fn swap(t: &Tensor) -> Result<Tensor> {
    t.transpose(1, 2)?.contiguous()
}

#[test]
fn golden_cases() -> Result<()> {
    for case in cases("attention") {
        for (dtype, tolerance, grad_tolerance) in [(DType::F64, 1e-12, 1e-12), (DType::F32, 1e-5, 1e-4)] {
            for (path, run) in PATHS {
                let what = format!("{} {dtype:?} {path}", case.name);
                let vars = ["q", "k", "v"].map(|n| case.var(n, dtype).unwrap());
                let [q, k, v] = [0, 1, 2].map(|i| swap(&vars[i]).unwrap());
                let args = Attention {
                    causal: case.flag("causal", true),
                    window: case.number("window").map(|w| w as usize),
                    softcap: case.number("softcap"),
                    scale: case.number("scale"),
                    ..Attention::new(&q, &k, &v)
                };
                let o = swap(&run(&args)?)?;
                assert_close(&what, &o, &case.get("out.o"), tolerance);
                let [dq, dk, dv] = [&q, &k, &v].map(Tensor::detach);
                let untracked = run(&Attention { q: &dq, k: &dk, v: &dv, ..args })?;
                assert_close(&what, &swap(&untracked)?, &case.get("out.o"), tolerance);
                let grads = case.loss(&[("o", &o)])?.backward()?;
                for (name, var) in ["q", "k", "v"].iter().zip(&vars) {
                    let want = case.get(&format!("grad.{name}"));
                    assert_close(
                        &format!("{what} grad {name}"),
                        grads.get(var).unwrap(),
                        &want,
                        grad_tolerance,
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn bad_inputs_say_what_was_expected() -> Result<()> {
    let t = |shape: &[usize]| random(1, shape, DType::F32);
    let (q, k) = (t(&[2, 5, 4, 8]), t(&[2, 7, 2, 8]));
    let check = |args: Attention, part: &str| {
        let message = attention(&args).unwrap_err().to_string();
        assert!(message.contains("attention: ") && message.contains(part), "{message}");
    };
    let good = Attention::new(&q, &k, &k);
    assert!(attention(&good).is_ok());
    let k3 = t(&[2, 7, 3, 8]);
    check(Attention { k: &k3, v: &k3, ..good }, "3 heads, expected a divisor of q's 4");
    let narrow = t(&[2, 7, 2, 6]);
    check(Attention { k: &narrow, ..good }, "heads of 8, k of 6");
    check(Attention { v: &k3, ..good }, "v has shape [2, 7, 3, 8]");
    check(Attention { q: &t(&[2, 5, 32]), ..good }, "q has shape [2, 5, 32]");
    check(Attention { v: &k.to_dtype(DType::F64)?, ..good }, "v is F64");
    check(Attention { q: &q.to_dtype(DType::U32)?, ..good }, "a float");
    check(Attention { window: Some(0), ..good }, "window is 0");
    check(Attention { softcap: Some(0.0), ..good }, "softcap");
    check(Attention { softcap: Some(f64::NAN), ..good }, "softcap");
    check(Attention { scale: Some(f64::INFINITY), ..good }, "scale");
    check(Attention { kv_lens: Some(&[7, 8]), ..good }, "kv_lens[1] is 8, but the cache has capacity 7");
    check(Attention { kv_lens: Some(&[7, 4]), ..good }, "5 queries and 4 keys");
    check(Attention { kv_lens: Some(&[7]), ..good }, "1 kv_lens");
    check(Attention { k: &q, v: &q, q: &k, ..good }, "4 heads, expected a divisor of q's 2");
    let long = t(&[2, 9, 4, 8]);
    check(Attention { q: &long, ..good }, "9 queries and 7 keys");
    let one = t(&[1, 7, 2, 8]);
    check(Attention { k: &one, v: &one, ..good }, "expected 2 rows");
    let packed = t(&[1, 5, 4, 8]);
    let cu = Some(&[0, 2, 5][..]);
    check(Attention { cu_seqlens: cu, ..good }, "batch of 1");
    check(Attention { q: &packed, k: &one, v: &one, cu_seqlens: cu, ..good }, "1 rows of 5 as q");
    check(Attention { q: &packed, cu_seqlens: Some(&[0, 2, 6]), ..good }, "rise from 0 to the length 5");
    check(
        Attention { q: &packed, k: &one, v: &one, cu_seqlens: cu, kv_lens: Some(&[3]), ..good },
        "2 sequences",
    );
    Ok(())
}

fn vars(tensors: [&Tensor; 3]) -> Result<[Var; 3]> {
    let [q, k, v] = tensors;
    Ok([Var::from_tensor(q)?, Var::from_tensor(k)?, Var::from_tensor(v)?])
}

#[test]
fn queries_without_keys_give_zeros() -> Result<()> {
    for (_, run) in PATHS {
        let [q, k, v] = vars([
            &random(1, &[2, 3, 2, 4], DType::F32),
            &random(2, &[2, 5, 2, 4], DType::F32),
            &random(3, &[2, 5, 2, 4], DType::F32),
        ])?;
        let args = Attention { causal: false, kv_lens: Some(&[0, 5]), ..Attention::new(&q, &k, &v) };
        let o = run(&args)?;
        assert_eq!(o.narrow(0, 0, 1)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        assert!(o.narrow(0, 1, 1)?.abs()?.sum_all()?.to_scalar::<f32>()? > 0.1);
        let grads = o.sqr()?.sum_all()?.backward()?;
        for var in [&q, &k, &v] {
            let g = grads.get(var).unwrap();
            assert_eq!(g.narrow(0, 0, 1)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        }
        let empty = Tensor::zeros((2, 0, 2, 4), DType::F32, &Device::Cpu)?;
        assert_eq!(run(&Attention::new(&empty, &k, &v))?.dims(), [2, 0, 2, 4]);
        assert_eq!(run(&Attention::new(&empty, &empty, &empty))?.dims(), [2, 0, 2, 4]);
    }
    Ok(())
}

/// Sizes of a comparison.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    b: usize,
    lq: usize,
    lk: usize,
    h_kv: usize,
    group: usize,
    p: usize,
    pv: usize,
}

impl Sizes {
    /// q, k, v; scores of some units, so that the softmax is far from flat.
    fn tensors(&self, seed: u64, dtype: DType) -> Result<[Tensor; 3]> {
        let h = self.h_kv * self.group;
        let q = (random(seed, &[self.b, self.lq, h, self.p], DType::F64) * 4.0)?.to_dtype(dtype)?;
        let k = random(seed + 1, &[self.b, self.lk, self.h_kv, self.p], dtype);
        Ok([q, k, random(seed + 2, &[self.b, self.lk, self.h_kv, self.pv], dtype)])
    }
}

/// Output and gradients of both paths, with and without a graph.
fn compare(what: &str, [q, k, v]: [&Tensor; 3], args: Attention, tolerance: f64, grad: f64) -> Result<()> {
    let vars = vars([q, k, v])?;
    let c = random(99, &[q.dims()[0], q.dims()[1], q.dims()[2], v.dims()[3]], q.dtype());
    let [want, got] = PATHS.map(|(_, run)| -> Result<_> {
        let o = run(&Attention { q: &vars[0], k: &vars[1], v: &vars[2], ..args })?;
        let grads = (&o * &c)?.sum_all()?.backward()?;
        let of = |v: &Var| grads.get(v).cloned().map_or_else(|| v.zeros_like(), Ok);
        Ok((o, vars.iter().map(of).collect::<Result<Vec<_>>>()?))
    });
    let ((want, want_grads), (got, got_grads)) = (want?, got?);
    assert_close(what, &got, &want, tolerance);
    assert_close(&format!("{what}, no graph"), &attention(&Attention { q, k, v, ..args })?, &want, tolerance);
    for ((name, got), want) in ["q", "k", "v"].iter().zip(&got_grads).zip(&want_grads) {
        // A gradient that vanishes (one key alone) has no scale to be measured by.
        if want.abs()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? > 1e-9 {
            assert_close(&format!("{what}: d{name}"), got, want, grad);
        }
    }
    Ok(())
}

#[test]
fn fast_is_naive_over_odd_sizes() -> Result<()> {
    for (n, lq) in [0, 1, 2, 7, 63, 65, 130].into_iter().enumerate() {
        for (group, h_kv) in [(1, 2), (3, 2), (4, 1)] {
            for (lk, p, pv) in [(lq, 8, 8), (lq + 129, 17, 5), (lq + 1, 5, 20)] {
                let sizes = Sizes { b: 2, lq, lk, h_kv, group, p, pv };
                let [q, k, v] = sizes.tensors(n as u64, DType::F64)?;
                for (causal, window, softcap) in [
                    (true, None, None),
                    (true, Some(1), None),
                    (true, Some(5), Some(1.5)),
                    (true, Some(1000), None),
                    (false, None, Some(2.0)),
                    (false, Some(5), None),
                ] {
                    let what = format!("{sizes:?} causal {causal} window {window:?} softcap {softcap:?}");
                    let args = Attention { causal, window, softcap, ..Attention::new(&q, &k, &v) };
                    compare(&what, [&q, &k, &v], args, 1e-12, 1e-11)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn f32_keeps_its_tolerance() -> Result<()> {
    for (lq, lk, window) in [(130, 130, None), (65, 300, Some(100)), (1, 700, None), (3, 400, Some(7))] {
        let sizes = Sizes { b: 1, lq, lk, h_kv: 2, group: 2, p: 64, pv: 64 };
        let [q, k, v] = sizes.tensors(7, DType::F32)?;
        let args = Attention { window, softcap: Some(20.0), ..Attention::new(&q, &k, &v) };
        compare(&format!("{sizes:?}"), [&q, &k, &v], args, 1e-5, 1e-4)?;
    }
    Ok(())
}

/// Queries beyond the keys, which causality forbids, see all of them.
#[test]
fn more_queries_than_keys() -> Result<()> {
    let sizes = Sizes { b: 1, lq: 70, lk: 6, h_kv: 1, group: 2, p: 4, pv: 4 };
    let [q, k, v] = sizes.tensors(8, DType::F64)?;
    for window in [None, Some(2)] {
        let args = Attention { causal: false, window, ..Attention::new(&q, &k, &v) };
        compare("long q", [&q, &k, &v], args, 1e-12, 1e-11)?;
    }
    Ok(())
}

#[test]
fn half_precision_stays_on_its_ladder() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        for lq in [1, 40] {
            let sizes = Sizes { b: 2, lq, lk: 90, h_kv: 2, group: 2, p: 16, pv: 16 };
            let [q, k, v] = sizes.tensors(9, dtype)?;
            let wide = [&q, &k, &v].map(|t| t.to_dtype(DType::F64).unwrap());
            let want = naive::attention(&Attention::new(&wide[0], &wide[1], &wide[2]))?;
            let got = attention(&Attention::new(&q, &k, &v))?;
            assert_eq!(got.dtype(), dtype);
            assert_close("half", &got, &want, 1e-2);
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_are_separate_calls() -> Result<()> {
    let cu = [0, 3, 3, 70, 71, 130];
    let sizes = Sizes { b: 1, lq: 130, lk: 130, h_kv: 2, group: 2, p: 8, pv: 6 };
    let [q, k, v] = sizes.tensors(10, DType::F64)?;
    for (causal, window) in [(true, None), (true, Some(4)), (false, None)] {
        let args = Attention { causal, window, cu_seqlens: Some(&cu), ..Attention::new(&q, &k, &v) };
        compare("packed", [&q, &k, &v], args, 1e-12, 1e-11)?;
        let o = attention(&args)?;
        for w in cu.windows(2) {
            let piece = |t: &Tensor| t.narrow(1, w[0], w[1] - w[0]);
            let (q, k, v) = (piece(&q)?, piece(&k)?, piece(&v)?);
            let want = attention(&Attention { causal, window, ..Attention::new(&q, &k, &v) })?;
            assert_close("piece", &piece(&o)?, &want, 1e-12);
        }
    }
    Ok(())
}

/// A cache whose rows are filled to different lengths; NaN beyond, which must never be touched.
fn poisoned(t: &Tensor, capacity: usize, lens: &[usize]) -> Result<Tensor> {
    let (_, _, h, p) = t.dims4()?;
    let rows = lens.iter().enumerate().map(|(r, &n)| {
        let nan = Tensor::full(f32::NAN, (1, capacity - n, h, p), &Device::Cpu)?.to_dtype(t.dtype())?;
        Tensor::cat(&[t.narrow(0, r, 1)?.narrow(1, 0, n)?, nan], 1)
    });
    Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
}

#[test]
fn ragged_caches_are_separate_calls() -> Result<()> {
    let lens = [300, 7, 129, 64];
    for (lq, dtype, tolerance) in [(1, DType::F64, 1e-12), (5, DType::F64, 1e-12), (7, DType::F32, 1e-5)] {
        let sizes = Sizes { b: 4, lq, lk: 300, h_kv: 2, group: 2, p: 8, pv: 6 };
        let [q, k, v] = sizes.tensors(11, dtype)?;
        let (k_cache, v_cache) = (poisoned(&k, 310, &lens)?, poisoned(&v, 310, &lens)?);
        for window in [None, Some(60)] {
            let args = Attention { window, kv_lens: Some(&lens), ..Attention::new(&q, &k_cache, &v_cache) };
            compare("ragged", [&q, &k_cache, &v_cache], args, tolerance, 10.0 * tolerance)?;
            let o = attention(&args)?;
            for (r, &n) in lens.iter().enumerate() {
                let cut = |t: &Tensor, n| t.narrow(0, r, 1)?.narrow(1, 0, n);
                let (q, k, v) = (cut(&q, lq)?, cut(&k, n)?, cut(&v, n)?);
                let want = attention(&Attention { window, ..Attention::new(&q, &k, &v) })?;
                assert_close("row", &cut(&o, lq)?, &want, tolerance);
            }
        }
    }
    Ok(())
}

/// Ragged in both: different numbers of new queries on caches of different lengths.
#[test]
fn packed_queries_on_a_cache() -> Result<()> {
    let (lens, cu) = ([40, 0, 200, 9], [0, 3, 3, 73, 74]);
    let sizes = Sizes { b: 4, lq: 74, lk: 200, h_kv: 2, group: 3, p: 8, pv: 8 };
    let [q, k, v] = sizes.tensors(12, DType::F64)?;
    let q = q.narrow(0, 0, 1)?.contiguous()?;
    let (k, v) = (poisoned(&k, 201, &lens)?, poisoned(&v, 201, &lens)?);
    let args = Attention { cu_seqlens: Some(&cu), kv_lens: Some(&lens), ..Attention::new(&q, &k, &v) };
    compare("packed on a cache", [&q, &k, &v], args, 1e-12, 1e-11)
}

#[test]
fn any_split_into_chunks_is_the_whole() -> Result<()> {
    let sizes = Sizes { b: 2, lq: 150, lk: 150, h_kv: 2, group: 2, p: 8, pv: 8 };
    let [q, k, v] = sizes.tensors(13, DType::F64)?;
    for window in [None, Some(31)] {
        let whole = attention(&Attention { window, ..Attention::new(&q, &k, &v) })?;
        for chunk in [1, 7, 64, 149] {
            let mut parts = Vec::new();
            for start in (0..150).step_by(chunk) {
                let n = chunk.min(150 - start);
                let q = q.narrow(1, start, n)?;
                let lens = [start + n; 2];
                let (k, v) = (poisoned(&k, 150, &lens)?, poisoned(&v, 150, &lens)?);
                let args = Attention { window, kv_lens: Some(&lens), ..Attention::new(&q, &k, &v) };
                parts.push(attention(&args)?);
            }
            assert_close(&format!("chunks of {chunk}"), &Tensor::cat(&parts, 1)?, &whole, 1e-12);
        }
    }
    Ok(())
}

/// q, k and v as views of one fused projection, and a head dimension that does not lie in one piece.
#[test]
fn strided_inputs() -> Result<()> {
    let fused = random(14, &[2, 70, 4 + 2 + 2, 8], DType::F64);
    let (q, k, v) = (fused.narrow(2, 0, 4)?, fused.narrow(2, 4, 2)?, fused.narrow(2, 6, 2)?);
    let [cq, ck, cv] = [q.contiguous()?, k.contiguous()?, v.contiguous()?];
    let want = naive::attention(&Attention::new(&cq, &ck, &cv))?;
    assert_close("views", &attention(&Attention::new(&q, &k, &v))?, &want, 1e-12);
    let turned = cq.transpose(2, 3)?.contiguous()?.transpose(2, 3)?;
    assert_close("turned", &attention(&Attention::new(&turned, &k, &v))?, &want, 1e-12);
    let var = Var::from_tensor(&fused)?;
    let run = |run: Path| -> Result<Tensor> {
        let (q, k, v) = (var.narrow(2, 0, 4)?, var.narrow(2, 4, 2)?, var.narrow(2, 6, 2)?);
        let grads = run(&Attention::new(&q, &k, &v))?.sqr()?.sum_all()?.backward()?;
        Ok(grads.get(&var).unwrap().clone())
    };
    assert_close("gradient of views", &run(attention)?, &run(naive::attention)?, 1e-11);
    Ok(())
}

/// The gradient does not depend on how the threads happened to take their tasks.
#[test]
fn gradients_repeat_bit_by_bit() -> Result<()> {
    let sizes = Sizes { b: 1, lq: 700, lk: 700, h_kv: 1, group: 2, p: 8, pv: 8 };
    let [q, k, v] = sizes.tensors(15, DType::F32)?;
    let [q, k, v] = vars([&q, &k, &v])?;
    let run = || -> Result<Vec<Vec<f32>>> {
        let grads = attention(&Attention::new(&q, &k, &v))?.sqr()?.sum_all()?.backward()?;
        [&q, &k, &v].map(|v| grads.get(v).unwrap().flatten_all()?.to_vec1()).into_iter().collect()
    };
    let first = run()?;
    for _ in 0..3 {
        assert!(run()? == first);
    }
    Ok(())
}

/// NaN in what is seen comes through, on every path.
#[test]
fn nan_is_not_swallowed() -> Result<()> {
    for lq in [1, 30] {
        let sizes = Sizes { b: 1, lq, lk: 30, h_kv: 1, group: 1, p: 4, pv: 4 };
        let [q, k, v] = sizes.tensors(16, DType::F32)?;
        let nan = (&q * f64::NAN)?;
        let o = attention(&Attention::new(&nan, &k, &v))?.flatten_all()?.to_vec1::<f32>()?;
        assert!(o.iter().all(|x| x.is_nan()));
    }
    Ok(())
}

/// A score matrix of this length would take 40 GB: memory and time follow the window.
#[test]
fn long_sequences_cost_their_window() -> Result<()> {
    let sizes = Sizes { b: 1, lq: 100_000, lk: 100_000, h_kv: 1, group: 1, p: 4, pv: 4 };
    let [q, k, v] = sizes.tensors(17, DType::F32)?;
    let [vq, vk, vv] = vars([&q, &k, &v])?;
    let o = attention(&Attention { window: Some(16), ..Attention::new(&vq, &vk, &vv) })?;
    let grads = o.sqr()?.sum_all()?.backward()?;
    let tail = |t: &Tensor| t.narrow(1, 99_900, 100);
    let [tq, tk, tv] = vars([&tail(&q)?, &tail(&k)?, &tail(&v)?])?;
    let want = naive::attention(&Attention { window: Some(16), ..Attention::new(&tq, &tk, &tv) })?;
    let want_grads = want.sqr()?.sum_all()?.backward()?;
    // Where the window has left the cut behind.
    let inner = |t: &Tensor| t.narrow(1, t.dims()[1] - 60, 60);
    assert_close("o", &inner(&o)?, &inner(&want)?, 1e-5);
    for (long, short) in [(&vq, &tq), (&vk, &tk), (&vv, &tv)] {
        assert_close(
            "gradient",
            &inner(grads.get(long).unwrap())?,
            &inner(want_grads.get(short).unwrap())?,
            1e-4,
        );
    }
    Ok(())
}
