//! Gradients: a scan against the first one's direction, with conjugated decays.
//!
//! ```text
//! g_t = ∂h_t + conj(a_{t+1}) g_{t+1}      ∂x_t = g_t      ∂a_t = g_t conj(h_{t-1})      ∂h_0 = conj(a_1) g_1
//! ```
//! What is carried is `c_t = conj(a_{t+1}) g_{t+1}`: at first the final state's gradient, in the end the initial one's.

use candle_core::{Result, Tensor, bail};

use super::args::{Decay, Dims};
use super::forward::each;
use super::lanes::{Channels, Lanes, add, conj, load, mul, store};
use super::plan::{self, Plan, Stretch, Walk, gather};
use super::{OP, Scan};
use crate::host::{self, Disjoint, Rows, Unwritten};
use crate::parts;
use crate::simd::Real;

/// Gradients of a, x and the initial state.
pub(super) fn gradients<T: Real>(
    node: &Scan,
    inputs: &[Option<Tensor>],
    h: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let dims = &node.dims;
    let [Some(a), Some(_), initial] = inputs else { bail!("{OP}: a and x are needed") };
    let [Some(dh), dstate] = grads else { bail!("{OP}: backward needs a gradient") };
    let found =
        run::<T>(dims, Plan::new::<T>(dims), (a, initial.as_ref()), h, (dh, dstate.as_ref()), node.wants_a)?;
    Ok(vec![
        found.a.map(|da| host::tensor(da, a.shape())),
        Some(host::tensor(found.x, dims.tokens_shape())),
        initial.as_ref().map(|_| host::tensor(found.state, dims.states_shape())),
    ])
}

struct Gradients<T> {
    a: Option<Vec<T>>,
    x: Vec<T>,
    state: Vec<T>,
}

fn run<T: Real>(
    dims: &Dims,
    plan: Plan,
    (a, initial): (&Tensor, Option<&Tensor>),
    h: &Tensor,
    (dh, dstate): (&Tensor, Option<&Tensor>),
    wants_a: bool,
) -> Result<Gradients<T>> {
    let width = dims.width();
    let (a, h, dh) = (a.storage_and_layout(), h.storage_and_layout(), dh.storage_and_layout());
    let initial = initial.map(Tensor::storage_and_layout);
    let mut state = match dstate {
        Some(dstate) => {
            let (storage, layout) = dstate.storage_and_layout();
            host::slice::<T>(&storage, layout)?.to_vec()
        }
        None => vec![T::ZERO; dims.segments.len() * width],
    };
    let mut x = Unwritten::new(dims.b * dims.l * width);
    // One row for each token, or one for each slot to be added up.
    let (tokens, slots) = if dims.varying { (dims.b * dims.l, 0) } else { (0, plan.slots(dims)) };
    let mut by_token = Unwritten::new(if wants_a { tokens * width } else { 0 });
    let mut by_slot = vec![T::ZERO; if wants_a { slots * width } else { 0 }];
    let walk = Backward {
        a: Decay::new(&a.0, a.1, dims.varying)?,
        h: Rows::new(&h.0, h.1, 2)?,
        dh: Rows::new(&dh.0, dh.1, 2)?,
        initial: initial.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?,
        dx: x.places(),
        da: wants_a.then(|| if dims.varying { by_token.places() } else { Disjoint::new(&mut by_slot) }),
        dims,
    };
    plan::run(&walk, dims, plan, &mut state);
    let a = match (wants_a, dims.varying) {
        (false, _) => None,
        // SAFETY: every token belongs to a sequence, and each has been walked by all channels.
        (true, true) => Some(unsafe { by_token.written() }),
        (true, false) => Some(parts::sum(by_slot, width)),
    };
    // SAFETY: as above.
    let x = unsafe { x.written() };
    Ok(Gradients { a, x, state })
}

struct Backward<'a, T> {
    a: Decay<'a, T>,
    h: Rows<'a, T>,
    dh: Rows<'a, T>,
    initial: Option<&'a [T]>,
    dx: Disjoint<T>,
    da: Option<Disjoint<T>>,
    dims: &'a Dims,
}

impl<T: Real> Backward<'_, T> {
    /// The state before token `t`.
    #[inline(always)]
    fn before<const C: usize, const W: usize>(
        &self,
        t: usize,
        segment: usize,
        channels: Channels,
    ) -> Lanes<T, C, W> {
        let (p, s) = (self.dims.p, self.dims.segments[segment]);
        let first = if self.dims.reverse { t + 1 == s.start + s.len } else { t == s.start };
        match (first, self.initial) {
            (false, _) => load(self.h.row(if self.dims.reverse { t + 1 } else { t - 1 }), p, channels),
            (true, Some(initial)) => load(&initial[segment * C * p..], p, channels),
            (true, None) => [[T::ZERO; W]; C],
        }
    }
}

impl<T: Real> Walk<T> for Backward<'_, T> {
    fn backwards(&self) -> bool {
        !self.dims.reverse
    }

    fn fixed(&self) -> Option<(&[T], bool)> {
        self.a.fixed().map(|a| (a, true))
    }

    #[inline(always)]
    fn walk<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        slot: usize,
        carry: &mut Lanes<T, C, W>,
    ) {
        let (p, width) = (self.dims.p, C * self.dims.p);
        let varying = self.dims.varying;
        let mut c = *carry;
        let mut sum = [[T::ZERO; W]; C];
        each(
            &self.a,
            p,
            stretch,
            channels,
            self.backwards(),
            #[inline(always)]
            |t, a| {
                let g = add(&load(self.dh.row(t), p, channels), &c);
                // SAFETY: these channels of these tokens are this task's.
                unsafe { store(&g, &self.dx, t * width, p, channels) };
                if let Some(da) = &self.da {
                    let product = mul(&g, &conj(&self.before::<C, W>(t, stretch.segment, channels)));
                    if varying {
                        // SAFETY: as above.
                        unsafe { store(&product, da, t * width, p, channels) };
                    } else {
                        sum = add(&sum, &product);
                    }
                }
                c = mul(&conj(a), &g);
            },
        );
        if let Some(da) = self.da.as_ref().filter(|_| !varying) {
            // SAFETY: walks of this slot and these channels follow each other.
            unsafe {
                let total = gather(da, slot * width, p, channels);
                store(&add(&total, &sum), da, slot * width, p, channels);
            }
        }
        *carry = c;
    }

    #[inline(always)]
    fn reduce<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        carry: &mut Lanes<T, C, W>,
        product: &mut Lanes<T, C, W>,
    ) {
        let p = self.dims.p;
        let (mut c, mut total) = (*carry, *product);
        each(
            &self.a,
            p,
            stretch,
            channels,
            self.backwards(),
            #[inline(always)]
            |t, a| {
                let a = conj(a);
                c = mul(&a, &add(&load(self.dh.row(t), p, channels), &c));
                if self.dims.varying {
                    total = mul(&a, &total);
                }
            },
        );
        (*carry, *product) = (c, total);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::args::INPUTS;
    use super::*;

    /// Gradients by this plan equal those by channels.
    pub(in super::super) fn same_gradients(
        inputs: &[Option<Tensor>; INPUTS],
        dims: &Dims,
        h: &[f64],
        plan: Plan,
    ) -> Result<()> {
        let [Some(a), Some(x), initial] = inputs else { bail!("a and x are needed") };
        let h = host::tensor(h.to_vec(), dims.tokens_shape());
        let dh = (x.cos()? + 0.3)?;
        let dstate = initial.as_ref().map(Tensor::cos).transpose()?;
        let of = |plan| {
            run::<f64>(dims, plan, (a, initial.as_ref()), &h, (&dh.contiguous()?, dstate.as_ref()), true)
        };
        let (got, want) = (of(plan)?, of(Plan::Channels { grain: 16 })?);
        for (got, want) in [
            (&got.x, &want.x),
            (&got.state, &want.state),
            (got.a.as_ref().unwrap_or(&got.x), want.a.as_ref().unwrap_or(&want.x)),
        ] {
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-11, "{plan:?}: {worst}");
        }
        Ok(())
    }
}
