//! Attention against recorded cases, and the fast path against the definition.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::{Attention, attention, attention_naive};

type Path = fn(&Attention) -> Result<Tensor>;
const PATHS: [(&str, Path); 2] = [("naive", attention_naive), ("fast", attention)];

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
