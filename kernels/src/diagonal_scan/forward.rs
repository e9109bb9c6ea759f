//! The scan on the CPU.

use candle_core::{Result, Tensor, bail};

use super::OP;
use super::args::{Decay, Dims, INPUTS};
use super::lanes::{Channels, Lanes, load, mul, mul_add, store};
use super::plan::{self, Plan, Stretch, Walk};
use crate::host::{self, Disjoint, Rows, Unwritten};
use crate::simd::Real;

/// Tokens between asking for a row and using it.
pub(super) const AHEAD: usize = 4;

/// All states, and the last one of each sequence.
pub(super) fn run<T: Real>(inputs: &[Option<Tensor>; INPUTS], dims: &Dims) -> Result<(Vec<T>, Vec<T>)> {
    run_planned(inputs, dims, Plan::new::<T>(dims))
}

fn run_planned<T: Real>(
    [a, x, initial]: &[Option<Tensor>; INPUTS],
    dims: &Dims,
    plan: Plan,
) -> Result<(Vec<T>, Vec<T>)> {
    let (Some(a), Some(x)) = (a, x) else { bail!("{OP}: a and x are needed") };
    let (a, x) = (a.storage_and_layout(), x.storage_and_layout());
    let mut states = match initial {
        Some(initial) => {
            let (storage, layout) = initial.storage_and_layout();
            host::slice::<T>(&storage, layout)?.to_vec()
        }
        None => vec![T::ZERO; dims.segments.len() * dims.width()],
    };
    let mut h = Unwritten::new(dims.b * dims.l * dims.width());
    let walk = Forward {
        a: Decay::new(&a.0, a.1, dims.varying)?,
        x: Rows::new(&x.0, x.1, 2)?,
        h: h.places(),
        p: dims.p,
        reverse: dims.reverse,
    };
    plan::run(&walk, dims, plan, &mut states);
    // SAFETY: every token belongs to a sequence, and each has been walked by all channels.
    Ok((unsafe { h.written() }, states))
}

struct Forward<'a, T> {
    a: Decay<'a, T>,
    x: Rows<'a, T>,
    h: Disjoint<T>,
    p: usize,
    reverse: bool,
}

/// `f(token, factor)` for the tokens of a stretch.
#[inline(always)]
pub(super) fn each<T: Real, const C: usize, const W: usize>(
    a: &Decay<'_, T>,
    p: usize,
    stretch: Stretch,
    channels: Channels,
    backwards: bool,
    mut f: impl FnMut(usize, &Lanes<T, C, W>),
) {
    match a {
        Decay::Fixed(row) => {
            let a = load(row, p, channels);
            for t in stretch.tokens(backwards) {
                f(t, &a);
            }
        }
        Decay::Varying(rows) => {
            for t in stretch.tokens(backwards) {
                f(t, &load(rows.row(t), p, channels));
            }
        }
    }
}

impl<T: Real> Walk<T> for Forward<'_, T> {
    fn backwards(&self) -> bool {
        self.reverse
    }

    fn fixed(&self) -> Option<(&[T], bool)> {
        self.a.fixed().map(|a| (a, false))
    }

    #[inline(always)]
    fn walk<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        _: usize,
        carry: &mut Lanes<T, C, W>,
    ) {
        let mut h = *carry;
        each(
            &self.a,
            self.p,
            stretch,
            channels,
            self.reverse,
            #[inline(always)]
            |t, a| {
                for plane in 0..C {
                    let columns = plane * self.p + channels.first;
                    self.x.prefetch(t + AHEAD, columns..columns + channels.len);
                }
                h = mul_add(a, &h, &load(self.x.row(t), self.p, channels));
                // SAFETY: these channels of these tokens are this task's.
                unsafe { store(&h, &self.h, t * C * self.p, self.p, channels) };
            },
        );
        *carry = h;
    }

    #[inline(always)]
    fn reduce<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        carry: &mut Lanes<T, C, W>,
        product: &mut Lanes<T, C, W>,
    ) {
        let varying = matches!(self.a, Decay::Varying(_));
        let (mut h, mut total) = (*carry, *product);
        each(
            &self.a,
            self.p,
            stretch,
            channels,
            self.reverse,
            #[inline(always)]
            |t, a| {
                h = mul_add(a, &h, &load(self.x.row(t), self.p, channels));
                if varying {
                    total = mul(a, &total);
                }
            },
        );
        (*carry, *product) = (h, total);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::{DiagonalScan, args};
    use super::*;

    /// Blocks of the length and tasks of channels give the same states, forwards and in the gradients.
    #[test]
    fn blocks_of_the_length_equal_channels() -> Result<()> {
        for (l, p, complex, varying, reverse) in [
            (1, 3, false, false, false),
            (97, 5, false, true, false),
            (97, 5, true, false, true),
            (64, 40, true, true, false),
            (131, 17, false, false, true),
            (131, 17, true, true, true),
        ] {
            let number: &[usize] = if complex { &[2, p] } else { &[p] };
            let shape = [&[2, l][..], number].concat();
            let values = |seed: f64, shape: &[usize]| -> Result<Tensor> {
                let n = shape.iter().product::<usize>() as f64;
                Tensor::arange(0.0, n, &Device::Cpu)?.affine(0.37 * seed, seed)?.sin()?.reshape(shape)
            };
            let x = values(1.7, &shape)?;
            let a = (values(2.3, if varying { &shape } else { number })? * 0.69)?;
            let initial = values(3.1, &[&[2][..], number].concat())?;
            let scan = DiagonalScan { reverse, initial_state: Some(&initial), ..DiagonalScan::new(&a, &x) };
            let dims = scan.check()?;
            let inputs = args::prepare(&scan, &dims, DType::F64)?;
            let (want, last) = run_planned::<f64>(&inputs, &dims, Plan::Channels { grain: 16 })?;
            for (blocks, tokens) in [(1, 7), (3, 10), (16, 1), (4, 200)] {
                let plan = Plan::Blocks { blocks, tokens };
                let (h, states) = run_planned::<f64>(&inputs, &dims, plan)?;
                let distance = |got: &[f64], want: &[f64]| -> f64 {
                    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max)
                };
                assert!(distance(&h, &want) < 1e-12 && distance(&states, &last) < 1e-12, "{plan:?} l = {l}");
                super::super::backward::tests::same_gradients(&inputs, &dims, &h, plan)?;
            }
        }
        Ok(())
    }
}
