//! The scan's tensors as slices, and the step sizes and decays of all tokens.

use candle_core::{DType, Result, Tensor, bail};

use super::args::Dims;
use super::{OP, SsdChunkScan, SsdStateUpdate};
use crate::host::{self, Disjoint, Rows};
use crate::simd::{Real, vectorized};

/// The scan's tensors in the order of the autograd graph: x, dt, a, b, c, d, dt_bias, z, initial state, log decay.
///
/// Either the decays come of the step sizes and of a, or they are given, as their logarithms; then a is absent, and dt,
/// which scales the inputs, may be.
pub(super) const INPUTS: usize = 10;

/// The arguments in the dtype of the arithmetic, as rows of tokens where they have tokens.
pub(super) fn prepare(args: &SsdChunkScan, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t| rows(t, 2, work);
    Ok([
        rows(args.x)?,
        rows(args.dt)?,
        whole(Some(args.a), work)?,
        rows(args.b)?,
        rows(args.c)?,
        whole(args.d, work)?,
        whole(args.dt_bias, work)?,
        args.z.map_or(Ok(None), rows)?,
        whole(args.initial_state, work)?,
        None,
    ])
}

/// The arguments of one token, likewise, outside of any graph.
pub(super) fn prepare_step(args: &SsdStateUpdate, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t| rows(t, 1, work);
    let inputs = [
        rows(args.x)?,
        rows(args.dt)?,
        whole(Some(args.a), work)?,
        rows(args.b)?,
        rows(args.c)?,
        whole(args.d, work)?,
        whole(args.dt_bias, work)?,
        args.z.map_or(Ok(None), rows)?,
        None,
        None,
    ];
    Ok(inputs.map(|t| t.map(|t| t.detach())))
}

pub(super) fn rows(t: &Tensor, lead: usize, work: DType) -> Result<Option<Tensor>> {
    host::in_rows(&t.to_dtype(work)?, lead).map(Some)
}

pub(super) fn whole(t: Option<&Tensor>, work: DType) -> Result<Option<Tensor>> {
    t.map(|t| t.to_dtype(work)?.contiguous()).transpose()
}

/// How raw step sizes become step sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepRule {
    pub(super) softplus: bool,
    pub(super) clamp: Option<(f64, f64)>,
}

/// Prepared arguments as slices; token `t` of the flattened batch is row `t`.
#[derive(Clone, Copy)]
pub(super) struct Views<'a, T> {
    pub(super) x: Rows<'a, T>,
    /// Step sizes, or what scales the inputs; 1 if absent.
    pub(super) dt: Option<Rows<'a, T>>,
    /// Empty where the decays are given.
    pub(super) a: &'a [T],
    pub(super) b: Rows<'a, T>,
    pub(super) c: Rows<'a, T>,
    /// A value a head, or a value a channel of every head.
    pub(super) d: Option<&'a [T]>,
    pub(super) dt_bias: Option<&'a [T]>,
    pub(super) z: Option<Rows<'a, T>>,
    pub(super) state: Option<&'a [T]>,
    /// Logarithms of the decays, where they do not come of the step sizes.
    pub(super) log_decay: Option<Rows<'a, T>>,
    pub(super) rule: StepRule,
}

/// Hands the prepared arguments to `f` as slices; `lead` dimensions of x, dt, b, c and z count tokens.
pub(super) fn with_views<T: Real, R>(
    inputs: &[Option<Tensor>],
    lead: usize,
    rule: StepRule,
    f: impl FnOnce(&Views<T>) -> R,
) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let rows =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| Rows::<T>::new(guard, layout, lead)).transpose();
    let slice =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose();
    let (Some(x), Some(b), Some(c)) = (rows(0)?, rows(3)?, rows(4)?) else {
        bail!("{OP}: x, b and c are needed");
    };
    let (dt, a, log_decay) = (rows(1)?, slice(2)?.unwrap_or_default(), rows(9)?);
    let (d, dt_bias, z, state) = (slice(5)?, slice(6)?, rows(7)?, slice(8)?);
    Ok(f(&Views { x, dt, a, b, c, d, dt_bias, z, state, log_decay, rule }))
}

impl<T: Real> Views<'_, T> {
    /// `dt + bias` of one token and head.
    #[inline(always)]
    pub(super) fn raw_step(&self, t: usize, head: usize) -> T {
        let raw = self.dt.map_or(T::ONE, |dt| dt.row(t)[head]);
        self.dt_bias.map_or(raw, |bias| raw + bias[head])
    }

    /// The step size from [`Views::raw_step`].
    #[inline(always)]
    pub(super) fn step(&self, raw: T) -> T {
        let step = if self.rule.softplus { raw.softplus() } else { raw };
        match self.rule.clamp {
            Some((low, high)) => Real::min(Real::max(step, T::real(low)), T::real(high)),
            None => step,
        }
    }

    /// (Δ, decay) of one token and head.
    #[inline(always)]
    pub(super) fn factors(&self, t: usize, head: usize) -> (T, T) {
        let dt = self.step(self.raw_step(t, head));
        let log_decay = match &self.log_decay {
            Some(given) => given.row(t)[head],
            None => dt * self.a[head],
        };
        (dt, Real::exp(log_decay))
    }

    /// Derivative of [`Views::step`]; a step size at a limit passes its gradient, one beyond does not.
    #[inline(always)]
    pub(super) fn step_grad(&self, raw: T) -> T {
        let (step, slope) = match self.rule.softplus {
            true => (raw.softplus(), raw.sigmoid()),
            false => (raw, T::ONE),
        };
        match self.rule.clamp {
            Some((low, high)) if step < T::real(low) || step > T::real(high) => T::ZERO,
            _ => slope,
        }
    }

    /// The skip's factor for channel `channel` of a head.
    #[inline(always)]
    pub(super) fn skip(&self, dims: &Dims, head: usize, channel: usize) -> T {
        match self.d {
            None => T::ZERO,
            Some(d) if d.len() == dims.h => d[head],
            Some(d) => d[head * dims.p + channel],
        }
    }

    /// Adds `d x` to one head's outputs, and gates them.
    #[inline(always)]
    pub(super) fn add_skip(&self, dims: &Dims, t: usize, head: usize, y: &mut [T]) {
        let Some(d) = self.d else { return };
        let x = &self.x.row(t)[head * dims.p..][..dims.p];
        if d.len() == dims.h {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = x.mul_add(d[head], *y));
        } else {
            let d = &d[head * dims.p..][..dims.p];
            y.iter_mut().zip(x).zip(d).for_each(|((y, &x), &d)| *y = x.mul_add(d, *y));
        }
    }
}

/// Step sizes and decays, `exp(Δ A)` or given, of all tokens, (tokens, h).
pub(super) struct Steps<T> {
    pub(super) dt: Vec<T>,
    pub(super) decay: Vec<T>,
}

impl<T: Real> Steps<T> {
    pub(super) fn new(v: &Views<T>, tokens: usize, h: usize) -> Self {
        const GRAIN: usize = 256;
        let (mut dt, mut decay) = (vec![T::ZERO; tokens * h], vec![T::ZERO; tokens * h]);
        let (dts, decays) = (Disjoint::new(&mut dt), Disjoint::new(&mut decay));
        host::parallel(tokens.div_ceil(GRAIN), |i| {
            let (first, last) = (i * GRAIN, tokens.min((i + 1) * GRAIN));
            vectorized(
                #[inline(always)]
                || {
                    for t in first..last {
                        // SAFETY: each token belongs to one task.
                        let (dt, decay) = unsafe { (dts.slice(t * h, h), decays.slice(t * h, h)) };
                        match &v.dt {
                            Some(given) => dt.copy_from_slice(given.row(t)),
                            None => dt.fill(T::ONE),
                        }
                        if let Some(bias) = v.dt_bias {
                            dt.iter_mut().zip(bias).for_each(|(dt, &bias)| *dt += bias);
                        }
                        dt.iter_mut().for_each(|dt| *dt = v.step(*dt));
                        if let Some(given) = &v.log_decay {
                            decay.iter_mut().zip(given.row(t)).for_each(|(d, &g)| *d = Real::exp(g));
                        } else {
                            for ((decay, &dt), &a) in decay.iter_mut().zip(&*dt).zip(v.a) {
                                *decay = Real::exp(dt * a);
                            }
                        }
                    }
                },
            );
        });
        Self { dt, decay }
    }
}
