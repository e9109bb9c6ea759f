//! The norms against the recorded references.

mod common;

use candle_core::{DType, Result};
use common::{assert_close, cases};
use semisep_kernels::{gated_rms_norm, rms_norm};

/// Outputs and gradients of the reference's gated norm, in f64 and f32.
#[test]
fn golden_gated_rms_norm() -> Result<()> {
    for case in cases("gated_rmsnorm") {
        for (dtype, out_tol, grad_tol) in [(DType::F64, 1e-11, 1e-11), (DType::F32, 1e-5, 1e-4)] {
            let [x, z, weight] = ["x", "z", "weight"].map(|n| case.var(n, dtype));
            let (x, weight) = (x.unwrap(), weight.unwrap());
            let eps = case.number("eps").unwrap_or(1e-5);
            let group = case.number("group_size").map_or(x.dim(2)?, |g| g as usize);
            let before = case.flag("norm_before_gate", false);
            // A case without an output gradient for z records the plain norm.
            let gated = case.has("grad.z");
            let y = match &z {
                Some(z) if gated => gated_rms_norm(&x, z, Some(&weight), eps, group, before)?,
                _ => rms_norm(&x, Some(&weight), eps, group)?,
            };
            assert_close(&format!("{} y", case.name), &y, &case.get("out.y"), out_tol);
            let grads = case.loss(&[("y", &y)])?.backward()?;
            for (name, var) in [("x", Some(&x)), ("z", z.as_ref()), ("weight", Some(&weight))] {
                let Some(var) = var.filter(|_| case.has(&format!("grad.{name}"))) else { continue };
                let what = format!("{} grad {name} {dtype:?}", case.name);
                assert_close(&what, grads.get(var).unwrap(), &case.get(&format!("grad.{name}")), grad_tol);
            }
        }
    }
    Ok(())
}
