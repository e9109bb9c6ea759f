//! Contextual positions: the fast path against the definition.

mod common;

use candle_core::{DType, Result, Tensor, Var};
use common::{Case, assert_close, random};
use semisep_kernels::attention::cope::naive;
use semisep_kernels::{Attention, Cope, cope_attention};

type Path = fn(&Cope) -> Result<Tensor>;

fn tensors([b, lq, lk, h_kv, group, p, pv]: [usize; 7], dtype: DType) -> Result<Vec<Tensor>> {
    let q = (random(1, &[b, lq, h_kv * group, p], DType::F64) * 2.0)?.to_dtype(dtype)?;
    Ok(vec![q, random(2, &[b, lk, h_kv, p], dtype), random(3, &[b, lk, h_kv, pv], dtype)])
}

fn run(path: Path, all: &[Tensor], args: &Attention) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = all.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let attention = Attention { q: &vars[0], k: &vars[1], v: &vars[2], ..*args };
    let o = path(&Cope { attention, pos_emb: &vars[3] })?;
    let grads = (&o * random(99, o.dims(), o.dtype()))?.sum_all()?.backward()?;
    let of = |v: &Var| grads.get(v).cloned().map_or_else(|| v.zeros_like(), Ok);
    std::iter::once(Ok(o.clone())).chain(vars.iter().map(of)).collect()
}

fn compare(what: &str, all: &[Tensor], args: &Attention, tolerance: f64, grad: f64) -> Result<()> {
    // Against the definition in f64: positions are sums over the row, and in f32 as uncertain in one form as in the other.
    let exact: Vec<Tensor> = all.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_>>()?;
    let (want, got) = (run(naive::cope_attention, &exact, args)?, run(cope_attention, all, args)?);
    for ((name, got), want) in ["o", "dq", "dk", "dv", "dE"].iter().zip(&got).zip(&want) {
        if want.elem_count() > 0 && want.abs()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? > 1e-9 {
            assert_close(&format!("{what}: {name}"), got, want, if *name == "o" { tolerance } else { grad });
        }
    }
    Ok(())
}

#[test]
fn fast_is_naive() -> Result<()> {
    for (dtype, tolerance, grad) in [(DType::F64, 1e-12, 1e-11), (DType::F32, 1e-5, 1e-4)] {
        for sizes in [
            [2, 0, 3, 1, 1, 4, 4],
            [2, 1, 1, 2, 1, 4, 4],
            [2, 1, 150, 1, 3, 8, 5],
            [1, 70, 70, 2, 2, 8, 6],
            [1, 7, 133, 2, 1, 5, 8],
        ] {
            let mut all = tensors(sizes, dtype)?;
            let (h, p) = (sizes[3] * sizes[4], sizes[5]);
            for shape in [vec![p, 6], vec![h, p, 40], vec![p, 1]] {
                all.truncate(3);
                all.push(random(4, &shape, dtype));
                for window in [None, Some(1), Some(20)] {
                    let args = Attention { window, ..Attention::new(&all[0], &all[1], &all[2]) };
                    compare(
                        &format!("{dtype:?} {sizes:?} {shape:?} {window:?}"),
                        &all,
                        &args,
                        tolerance,
                        grad,
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// The records of the layers, which stand with the tests of those.
#[test]
fn golden_cases() -> Result<()> {
    for case in Case::all_in("../tests/golden/layers", "cope_attention") {
        for (dtype, tolerance, grad) in [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)] {
            for (path, run) in [("naive", naive::cope_attention as Path), ("fast", cope_attention)] {
                let what = format!("{} {dtype:?} {path}", case.name);
                let vars = ["q", "k", "v"].map(|n| case.var(n, dtype).unwrap());
                let pos_emb = Var::from_tensor(&case.get("param.pos_emb").to_dtype(dtype)?)?;
                let [q, k, v] = [0, 1, 2].map(|i| vars[i].transpose(1, 2).unwrap().contiguous().unwrap());
                let o = run(&Cope { attention: Attention::new(&q, &k, &v), pos_emb: &pos_emb })?
                    .transpose(1, 2)?;
                assert_close(&what, &o, &case.get("out.y"), tolerance);
                let grads = case.loss(&[("y", &o)])?.backward()?;
                for (name, var) in ["q", "k", "v", "pos_emb"].iter().zip(vars.iter().chain([&pos_emb])) {
                    let want = case.get(&format!("grad.{name}"));
                    assert_close(&format!("{what} grad {name}"), grads.get(var).unwrap(), &want, grad);
                }
                // One query after the other, each on the keys up to its own.
                let (lq, lk) = (q.dim(1)?, k.dim(1)?);
                let steps = (0..lq).map(|i| {
                    let lens = vec![lk - lq + i + 1; q.dims()[0]];
                    let q = q.narrow(1, i, 1)?.detach();
                    let attention = Attention { kv_lens: Some(&lens), ..Attention::new(&q, &k, &v) };
                    run(&Cope { attention, pos_emb: &pos_emb })
                });
                let steps = Tensor::cat(&steps.collect::<Result<Vec<_>>>()?, 1)?.transpose(1, 2)?;
                assert_close(&format!("{what} steps"), &steps, &case.get("out.y_step"), tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn packed_and_cached() -> Result<()> {
    let (cu, lens) = ([0, 3, 3, 70, 71], [40, 5, 90, 9]);
    let mut all = tensors([1, 71, 71, 2, 2, 8, 6], DType::F64)?;
    all.push(random(4, &[8, 9], DType::F64));
    let args = Attention { cu_seqlens: Some(&cu), ..Attention::new(&all[0], &all[1], &all[2]) };
    compare("packed", &all, &args, 1e-12, 1e-11)?;
    let mut cached = tensors([4, 71, 100, 2, 2, 8, 6], DType::F64)?;
    cached[0] = all[0].clone();
    cached.push(all[3].clone());
    let args = Attention { kv_lens: Some(&lens), ..args };
    compare("cached", &cached, &args, 1e-12, 1e-11)
}

#[test]
fn half_precision_stays_on_its_ladder() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        let all = tensors([2, 30, 30, 2, 2, 16, 16], dtype)?;
        let wide: Vec<Tensor> = all.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_>>()?;
        let pos_emb = &random(4, &[16, 8], DType::F64);
        let want = naive::cope_attention(&Cope {
            attention: Attention::new(&wide[0], &wide[1], &wide[2]),
            pos_emb,
        })?;
        let got = cope_attention(&Cope { attention: Attention::new(&all[0], &all[1], &all[2]), pos_emb })?;
        assert_eq!(got.dtype(), dtype);
        assert_close("half", &got, &want, 1e-2);
    }
    Ok(())
}

#[test]
fn bad_inputs_say_what_was_expected() -> Result<()> {
    let all = tensors([1, 5, 5, 1, 2, 4, 4], DType::F32)?;
    let attention = Attention::new(&all[0], &all[1], &all[2]);
    let pos_emb = &random(4, &[4, 9], DType::F32);
    assert!(cope_attention(&Cope { attention, pos_emb }).is_ok());
    let check = |args: Cope, part: &str| {
        let message = cope_attention(&args).unwrap_err().to_string();
        assert!(message.contains("cope_attention: ") && message.contains(part), "{message}");
    };
    check(Cope { attention, pos_emb: &random(4, &[5, 9], DType::F32) }, "expected (4, npos) or (2, 4, npos)");
    check(Cope { attention: Attention { causal: false, ..attention }, pos_emb }, "expected causal softmax");
    check(Cope { attention: Attention { softcap: Some(1.0), ..attention }, pos_emb }, "no softcap");
    Ok(())
}
