//! The real-gated linear recurrent unit against recorded reference values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::rg_lru::naive;
use semisep_kernels::{RgLru, RgLruUpdate, rg_lru, rg_lru_update};

type Unit = fn(&RgLru) -> Result<(Tensor, Tensor)>;

const UNITS: [(&str, Unit); 2] = [("naive", naive::rg_lru), ("fast", rg_lru)];

#[test]
fn recorded_cases() -> Result<()> {
    for (name, unit) in UNITS {
        for case in cases("rg_lru") {
            for (dtype, tolerance) in [(DType::F64, (1e-12, 1e-11)), (DType::F32, (1e-5, 1e-4))] {
                let var = |n: &str| case.var(n, dtype);
                let (x, i, r, a) =
                    (var("x").unwrap(), var("i").unwrap(), var("r").unwrap(), var("a_param").unwrap());
                let initial = var("initial_state");
                let (y, state) = unit(&RgLru {
                    initial_state: initial.as_ref().map(Var::as_tensor),
                    ..RgLru::new(x.as_tensor(), i.as_tensor(), r.as_tensor(), a.as_tensor())
                })?;
                let what = format!("{name} {} {dtype:?}", case.name);
                assert_close(&what, &y, &case.get("out.y"), tolerance.0);
                assert_close(&what, &state, &case.get("out.final_state"), tolerance.0);
                let grads = case.loss(&[("y", &y), ("final_state", &state)])?.backward()?;
                for (name, var) in [
                    ("x", Some(x)),
                    ("i", Some(i)),
                    ("r", Some(r)),
                    ("a_param", Some(a)),
                    ("initial_state", initial),
                ] {
                    if let Some(var) = var {
                        let want = case.get(&format!("grad.{name}"));
                        assert_close(&format!("{what} {name}"), grads.get(&var).unwrap(), &want, tolerance.1);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Batch, length, width, packed boundaries, and which sequences start here; an initial state if any goes on.
type Size<'a> = (usize, usize, usize, Option<&'a [usize]>, &'a [bool]);

/// Output, final states and the gradients of x, both gates, Λ and the initial state.
fn solve(unit: Unit, (b, l, d, cu, starts): Size, dtype: DType) -> Result<Vec<Tensor>> {
    let sequences = cu.map_or(b, |cu| cu.len() - 1);
    let values = |seed, shape: &[usize], scale: f64| {
        Var::from_tensor(&(random(seed, shape, DType::F64) * scale)?.to_dtype(dtype)?)
    };
    let vars = [
        values(1, &[b, l, d], 1.0)?,
        values(2, &[b, l, d], 3.0)?,
        values(3, &[b, l, d], 3.0)?,
        values(4, &[d], 3.0)?,
        values(5, &[sequences, d], 1.0)?,
    ];
    let with_state = starts.contains(&false);
    let [x, i, r, param, state] = vars.each_ref().map(Var::as_tensor);
    let (h, last) = unit(&RgLru {
        initial_state: with_state.then_some(state),
        starts: Some(starts),
        cu_seqlens: cu,
        ..RgLru::new(x, i, r, param)
    })?;
    assert_eq!((h.dims(), last.dims()), (&[b, l, d][..], &[sequences, d][..]));
    let cotangent = |seed, t: &Tensor| random(seed, t.dims(), DType::F64).to_dtype(t.dtype());
    let loss = ((&h * cotangent(6, &h)?)?.sum_all()? + (&last * cotangent(7, &last)?)?.sum_all()?)?;
    let grads = loss.backward()?;
    let mut all = vec![h, last];
    for var in &vars[..4 + usize::from(with_state)] {
        // Where there is no token, the definition does not reach the inputs.
        all.push(grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?);
    }
    Ok(all)
}

#[test]
fn fast_equals_definition() -> Result<()> {
    let cu: &[usize] = &[0, 5, 5, 6, 41];
    let sizes: [Size; 8] = [
        (1, 0, 3, None, &[true]),
        (2, 1, 1, None, &[true, false]),
        (3, 7, 17, None, &[true, false, true]),
        (1, 130, 33, None, &[false]),
        (2, 65, 100, None, &[true, true]),
        (1, 1100, 8, None, &[true]),
        (1, 41, 20, Some(cu), &[true, false, true, false]),
        (1, 41, 20, Some(cu), &[true; 4]),
    ];
    for size in sizes {
        let want = solve(naive::rg_lru, size, DType::F64)?;
        for (dtype, tolerance) in [(DType::F64, (1e-12, 1e-11)), (DType::F32, (1e-5, 1e-4))] {
            for (k, (got, want)) in solve(rg_lru, size, dtype)?.iter().zip(&want).enumerate() {
                let tolerance = if k < 2 { tolerance.0 } else { tolerance.1 };
                assert_close(&format!("{size:?} {dtype:?} {k}"), got, want, tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn steps_equal_the_sequence() -> Result<()> {
    let values = |seed| random(seed, &[2, 5, 19], DType::F32);
    let (x, i, r, param) = (values(1), values(2), values(3), random(4, &[19], DType::F32));
    let (h, last) = rg_lru(&RgLru::new(&x, &i, &r, &param))?;
    // What the state holds before a sequence starts does not matter.
    let state = random(5, &[2, 19], DType::F32);
    for t in 0..5 {
        let token = |t_: &Tensor| t_.narrow(1, t, 1)?.squeeze(1);
        let y = rg_lru_update(
            &state,
            &RgLruUpdate {
                x: &token(&x)?,
                input_gate: &token(&i)?,
                recurrent_gate: &token(&r)?,
                recurrent_param: &param,
                c: 8.0,
                starts: &[t == 0; 2],
            },
        )?;
        assert_close("step", &y, &token(&h)?, 1e-6);
    }
    assert_close("state", &state, &last, 1e-6);
    Ok(())
}

/// A closed gate makes a = 1, where the root has no gradient: it stays bounded.
#[test]
fn gradients_stay_finite_where_nothing_decays() -> Result<()> {
    let x = Var::from_tensor(&random(1, &[1, 6, 4], DType::F32))?;
    let r = Var::from_tensor(&Tensor::full(-100f32, (1, 6, 4), &Device::Cpu)?)?;
    let param = Var::from_tensor(&Tensor::full(-100f32, 4, &Device::Cpu)?)?;
    let (h, _) = rg_lru(&RgLru::new(x.as_tensor(), x.as_tensor(), r.as_tensor(), param.as_tensor()))?;
    let grads = h.sqr()?.sum_all()?.backward()?;
    for var in [&x, &r, &param] {
        let total = grads.get(var).unwrap().abs()?.sum_all()?.to_scalar::<f32>()?;
        assert!(total.is_finite());
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (x, param) = (t(&[2, 5, 4])?, t(&[4])?);
    let message = |args: &RgLru| rg_lru(args).unwrap_err().to_string();
    assert!(message(&RgLru::new(&x, &t(&[2, 5, 3])?, &x, &param)).contains("input_gate has shape (2, 5, 3)"));
    assert!(message(&RgLru::new(&x, &x, &x, &t(&[3])?)).contains("recurrent_param"));
    assert!(message(&RgLru { starts: Some(&[true]), ..RgLru::new(&x, &x, &x, &param) }).contains("starts"));
    Ok(())
}
