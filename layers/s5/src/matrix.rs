//! The matrices that the scan multiplies by, two a mode: real and imaginary part of the powers of its decay.

use candle_core::{Result, Tensor, bail};
use semisep_core::{Context, Mixing};
use semisep_kernels::{DiagonalScan, diagonal_scan};

use crate::KIND;
use crate::ssm::Core;

/// `M_p[t,s] = Π_{s<j≤t} Λ̄_p` for s ≤ t (s ≥ t backwards): heads are the real parts, then the imaginary parts, for each
/// direction. Values are real and imaginary part of `B̄ u`, side by side; the state's real part is `Re M · re - Im M · im`.
pub(crate) fn mixing(core: &Core, u: &Tensor) -> Result<Mixing> {
    if u.rank() != 3 {
        bail!("{KIND}: expected an input (b, l, d), found {:?}", u.dims());
    }
    let (a, x) = core.scan_inputs(u, &Context::default())?;
    let (b, l, _, p) = x.dims4()?;
    let a = if a.rank() == 2 { a.broadcast_as((b, l, 2, p))?.contiguous()? } else { a };
    let zero = x.narrow(2, 0, 1)?.zeros_like()?;
    // One plane at a time, so that matrix and values stay apart in what the kernel gives.
    let part = |k: usize| Tensor::cat(&[&x.narrow(2, k, 1)?, &zero], 2);
    let (re, im) = (part(0)?, part(1)?);
    let (mut matrices, mut outputs) = (Vec::new(), Vec::new());
    for reverse in [false, true].into_iter().take(1 + usize::from(core.config.bidirectional)) {
        let run = |x: &Tensor| diagonal_scan(&DiagonalScan { reverse, ..DiagonalScan::new(&a, x) });
        let (re, im) = (run(&re)?.0, run(&im)?.0); // (b, l, 2, p)
        outputs.push(Tensor::stack(&[re, im], 4)?.permute((0, 2, 3, 1, 4))?.reshape((b, 2 * p, l, 2))?);
        matrices.push(powers(&a, reverse)?);
    }
    let values = x.permute((0, 3, 1, 2))?; // (b, p, l, 2)
    let values = Tensor::cat(&vec![values; 2 * matrices.len()], 1)?;
    Ok(Mixing { matrix: Tensor::cat(&matrices, 1)?, values, output: Tensor::cat(&outputs, 1)? })
}

/// Products of decays (b, l, 2, p) over the tokens between: (b, 2 p, l, l).
fn powers(a: &Tensor, reverse: bool) -> Result<Tensor> {
    let (b, l, _, p) = a.dims4()?;
    let (re, im) = (a.narrow(2, 0, 1)?.squeeze(2)?, a.narrow(2, 1, 1)?.squeeze(2)?); // (b, l, p)
    let zero = Tensor::zeros((b, p), a.dtype(), a.device())?;
    let one = zero.ones_like()?;
    let mut rows = vec![zero.clone(); 2 * l * l];
    for s in 0..l {
        let (mut x, mut y) = (one.clone(), zero.clone());
        for k in 0..if reverse { s + 1 } else { l - s } {
            let t = if reverse { s - k } else { s + k };
            if k > 0 {
                let (ar, ai) = (re.narrow(1, t, 1)?.squeeze(1)?, im.narrow(1, t, 1)?.squeeze(1)?);
                (x, y) = (((&ar * &x)? - (&ai * &y)?)?, ((&ar * &y)? + (&ai * &x)?)?);
            }
            rows[t * l + s] = x.clone();
            rows[(l + t) * l + s] = y.clone();
        }
    }
    // (2 l l, b, p) -> (b, 2, p, l, l)
    if l == 0 {
        return Tensor::zeros((b, 2 * p, 0, 0), a.dtype(), a.device());
    }
    let all = Tensor::stack(&rows, 0)?.reshape((2, l, l, b, p))?;
    all.permute((3, 0, 4, 1, 2))?.reshape((b, 2 * p, l, l))
}
