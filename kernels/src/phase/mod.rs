//! Rotations whose angles depend on the data: angles summed over time, and pairs of features turned by them.
//!
//! ```text
//! θ_t = θ_{t-1} + δ_t                               angles, up to whole turns
//! w = x + bias                                      each group of x serves several heads, each with a bias
//! y_a = w_a cos θ - w_b sin θ                       pairs (a, b) = (j, j + n/2) for Half, (2j, 2j + 1) for Interleaved
//! y_b = w_a sin θ + w_b cos θ                       for j < s; further features pass
//! ```
//! A scan over keys and queries turned in this way is a scan with complex decays: Lahoti et al. 2026, "Mamba-3"
//! (arXiv 2603.15569), section on complex-valued states.
//!
//! Sums are kept in f64 and reduced by whole turns once they exceed eight, so that far positions stay exact.

mod cpu;
pub(crate) mod naive;

use candle_core::{DType, Result, Shape, Storage, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::rotary::RotaryLayout;
use crate::segments::{Segment, segments};
use crate::simd::Real;
use crate::{check, tape};

const SCAN: &str = "phase_scan";
const TURN: &str = "turn_by_phase";

/// Sums `delta` (b, l, ...) over time, from `initial` (sequences, ...) or 0 on: the sums (b, l, ...) and, for each
/// sequence, the last one (sequences, ...), both up to whole turns and in the state dtype. Sequences are the rows, or those
/// of `cu_seqlens`. Differentiable in both inputs, through both outputs.
///
/// # Errors
/// If shapes or boundaries do not fit, or the data is not on the CPU.
pub fn phase_scan(
    delta: &Tensor,
    initial: Option<&Tensor>,
    cu_seqlens: Option<&[usize]>,
) -> Result<(Tensor, Tensor)> {
    check::on_cpu(SCAN, delta.device())?;
    let segments = check_scan(delta, initial, cu_seqlens)?;
    let work = state_dtype(delta.dtype());
    let delta = delta.to_dtype(work)?.contiguous()?;
    let initial = initial.map(|t| t.to_dtype(work)?.contiguous()).transpose()?;
    let node = Sum { segments, width: delta.dims()[2..].iter().product() };
    match work {
        DType::F64 => node.run::<f64>(&delta, initial.as_ref()),
        _ => node.run::<f32>(&delta, initial.as_ref()),
    }
}

fn check_scan(delta: &Tensor, initial: Option<&Tensor>, cu: Option<&[usize]>) -> Result<Vec<Segment>> {
    let [b, l, rest @ ..] = delta.dims() else {
        bail!("{SCAN}: delta has shape {}, expected (b, l, ...)", check::tuple(delta.dims()))
    };
    check::shape(SCAN, "delta", delta, delta.dims(), "(b, l, ...)")?;
    let segments = segments(SCAN, *b, *l, cu)?;
    let states: Vec<usize> = [&[segments.len()], rest].concat();
    check::optional(SCAN, "initial", initial, &states, "(sequences, ...)")?;
    Ok(segments)
}

/// The sum over time in the graph.
struct Sum {
    segments: Vec<Segment>,
    width: usize,
}

impl Sum {
    fn run<T: Real>(self, delta: &Tensor, initial: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (sums, last) = {
            let ds = delta.storage_and_layout();
            let start = initial.map(|t| t.storage_and_layout());
            let start = start.as_ref().map(|(s, l)| host::slice::<T>(s, l)).transpose()?;
            cpu::sum(&self.segments, self.width, host::slice(&ds.0, ds.1)?, start)
        };
        let states: Vec<usize> = [&[self.segments.len()], &delta.dims()[2..]].concat();
        let outputs =
            vec![(host::storage(sums), delta.shape().clone()), (host::storage(last), Shape::from(states))];
        match &tape::record(self, &[Some(delta), initial], outputs)?[..] {
            [sums, last] => Ok((sums.clone(), last.clone())),
            other => bail!("{SCAN}: {} outputs", other.len()),
        }
    }

    fn gradients<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let ([Some(delta), initial], [Some(grad), last]) = (inputs, grads) else {
            bail!("{SCAN}: there is no gradient")
        };
        let grad = grad.storage_and_layout();
        let last = last.as_ref().map(Tensor::storage_and_layout);
        let last = last.as_ref().map(|(s, l)| host::slice::<T>(s, l)).transpose()?;
        let (d, start) = cpu::sum_backward(&self.segments, self.width, host::slice(&grad.0, grad.1)?, last);
        let start = initial.as_ref().map(|t| host::tensor(start, t.shape()));
        Ok(vec![Some(host::tensor(d, delta.shape())), start])
    }
}

impl tape::Backward for Sum {
    fn name(&self) -> &'static str {
        SCAN
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        match output.dtype() {
            DType::F64 => self.gradients::<f64>(inputs, grads),
            _ => self.gradients::<f32>(inputs, grads),
        }
    }
}

/// Adds `bias` (h, r, n), if there is one, to x (b, l, r, g, n), whose groups serve h / g heads each, and turns the first
/// pairs of features by `phase` (b, l, h, s), the same for each of the r: (b, l, r, h, n) in x's dtype. Differentiable in
/// all three.
///
/// # Errors
/// If shapes do not fit, there are fewer than s pairs, or the data is not on the CPU.
pub fn turn_by_phase(
    x: &Tensor,
    bias: Option<&Tensor>,
    phase: &Tensor,
    layout: RotaryLayout,
) -> Result<Tensor> {
    check::on_cpu(TURN, x.device())?;
    let turn = Turn::new(x, bias, phase, layout)?;
    let work = state_dtype(x.dtype());
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous();
    let (xs, bias, phases) = (whole(x)?, bias.map(whole).transpose()?, whole(phase)?);
    let y = match work {
        DType::F64 => turn.forward::<f64>(&xs, bias.as_ref(), &phases)?,
        _ => turn.forward::<f32>(&xs, bias.as_ref(), &phases)?,
    };
    let (b, l, ..) = x.dims5()?;
    let shape = Shape::from((b, l, turn.r, turn.h, turn.n));
    let inputs = [Some(&xs), bias.as_ref(), Some(&phases)];
    tape::record(turn, &inputs, vec![(y, shape)])?.swap_remove(0).to_dtype(x.dtype())
}

/// The rotation in the graph.
#[derive(Debug, Clone, Copy)]
struct Turn {
    r: usize,
    g: usize,
    h: usize,
    n: usize,
    s: usize,
    layout: RotaryLayout,
}

impl Turn {
    fn new(x: &Tensor, bias: Option<&Tensor>, phase: &Tensor, layout: RotaryLayout) -> Result<Self> {
        let &[b, l, r, g, n] = x.dims() else {
            bail!("{TURN}: x has shape {}, expected (b, l, r, g, n)", check::tuple(x.dims()))
        };
        check::shape(TURN, "x", x, x.dims(), "(b, l, r, g, n)")?;
        let &[.., h, s] = phase.dims() else {
            bail!("{TURN}: phase has shape {}, expected (b, l, h, s)", check::tuple(phase.dims()))
        };
        check::shape(TURN, "phase", phase, &[b, l, h, s], "(b, l, h, s)")?;
        check::divides(TURN, ("x", g), ("heads of phase", h))?;
        check::optional(TURN, "bias", bias, &[h, r, n], "(h, r, n)")?;
        if 2 * s > n {
            bail!("{TURN}: {s} angles, but {n} features make only {} pairs", n / 2);
        }
        Ok(Self { r, g, h, n, s, layout })
    }

    /// The features of pair j.
    #[inline(always)]
    fn pair(&self, j: usize) -> (usize, usize) {
        match self.layout {
            RotaryLayout::Half => (j, j + self.n / 2),
            RotaryLayout::Interleaved => (2 * j, 2 * j + 1),
        }
    }

    fn forward<T: Real>(&self, x: &Tensor, bias: Option<&Tensor>, phase: &Tensor) -> Result<Storage> {
        let (xs, ps) = (x.storage_and_layout(), phase.storage_and_layout());
        let bias = bias.map(|t| t.storage_and_layout());
        let bias = bias.as_ref().map(|(s, l)| host::slice::<T>(s, l)).transpose()?;
        Ok(host::storage(cpu::turn(self, host::slice(&xs.0, xs.1)?, bias, host::slice(&ps.0, ps.1)?)))
    }

    fn gradients<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let [Some(x), bias, Some(phase)] = inputs else { bail!("{TURN}: {} inputs", inputs.len()) };
        let (ys, ps, gs) =
            (output.storage_and_layout(), phase.storage_and_layout(), grad.storage_and_layout());
        let (y, phases, g) =
            (host::slice::<T>(&ys.0, ys.1)?, host::slice::<T>(&ps.0, ps.1)?, host::slice::<T>(&gs.0, gs.1)?);
        let (back, dphase) = cpu::turn_backward(self, y, phases, g);
        let dbias = bias.as_ref().map(|t| host::tensor(cpu::over_tokens(self, &back), t.shape()));
        let dx = host::tensor(cpu::over_heads(self, back), x.shape());
        Ok(vec![Some(dx), dbias, Some(host::tensor(dphase, phase.shape()))])
    }
}

impl tape::Backward for Turn {
    fn name(&self) -> &'static str {
        TURN
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let [Some(grad)] = grads else { bail!("{TURN}: there is no gradient") };
        match output.dtype() {
            DType::F64 => self.gradients::<f64>(inputs, output, grad),
            _ => self.gradients::<f32>(inputs, output, grad),
        }
    }
}
