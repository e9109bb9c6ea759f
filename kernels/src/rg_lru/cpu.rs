//! The unit on the CPU: gates, decays and recurrence in one walk over the tokens, shared among threads as the diagonal
//! scan is. The backward walk computes the gates again: nothing is kept but inputs and outputs.

use candle_core::{Result, Tensor, bail};

use super::args::{INPUTS, Sizes};
use super::{MAX_ROOT_GRADIENT, OP};
use crate::diagonal_scan::lanes::{Channels, Lanes, load, store};
use crate::diagonal_scan::plan::{self, Plan, Stretch, Walk, gather};
use crate::host::{self, Disjoint, Rows};
use crate::parts;
use crate::simd::Real;

/// Outputs, and the last one of each sequence.
pub(super) fn forward<T: Real>(inputs: &[Option<Tensor>; INPUTS], sizes: &Sizes) -> Result<(Vec<T>, Vec<T>)> {
    let dims = &sizes.dims;
    let mut states = match &inputs[4] {
        Some(initial) => {
            let (storage, layout) = initial.storage_and_layout();
            host::slice::<T>(&storage, layout)?.to_vec()
        }
        None => vec![T::ZERO; dims.segments.len() * dims.p],
    };
    let mut h = host::zeros(dims.b * dims.l * dims.p);
    with_unit(inputs, sizes, |unit| {
        let walk = Forward { unit, h: Disjoint::new(&mut h) };
        plan::run(&walk, dims, Plan::new::<T>(dims), &mut states);
    })?;
    Ok((h, states))
}

/// Gradients of x, the gates, Λ and the initial state.
pub(super) fn gradients<T: Real>(
    sizes: &Sizes,
    inputs: &[Option<Tensor>],
    h: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let dims = &sizes.dims;
    let [Some(dh), dstate] = grads else { bail!("{OP}: backward needs a gradient") };
    let (hs, dhs) = (h.storage_and_layout(), dh.storage_and_layout());
    let (p, tokens) = (dims.p, dims.b * dims.l * dims.p);
    let mut state = match dstate {
        Some(dstate) => {
            let (storage, layout) = dstate.storage_and_layout();
            host::slice::<T>(&storage, layout)?.to_vec()
        }
        None => vec![T::ZERO; dims.segments.len() * p],
    };
    let plan = Plan::new::<T>(dims);
    let (mut dx, mut di, mut dr) = (host::zeros(tokens), host::zeros(tokens), host::zeros(tokens));
    let mut rates = vec![T::ZERO; plan.slots(dims) * p];
    let (h, dh) = (Rows::new(&hs.0, hs.1, 2)?, Rows::new(&dhs.0, dhs.1, 2)?);
    let initial = inputs[4].as_ref().map(Tensor::storage_and_layout);
    let initial = initial.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
    let slopes = with_unit(inputs, sizes, |unit| {
        let outputs = [&mut dx, &mut di, &mut dr].map(|v| Disjoint::new(v));
        let walk = Backward { unit, h, dh, initial, outputs, rates: Disjoint::new(&mut rates) };
        plan::run(&walk, dims, plan, &mut state);
        // d rate / d Λ = -c σ(Λ)
        let c = T::real(-sizes.c);
        unit.param.iter().map(|v| c * v.sigmoid()).collect::<Vec<T>>()
    })?;
    let dparam: Vec<T> =
        parts::sum(rates, p).into_iter().zip(slopes).map(|(sum, slope)| sum * slope).collect();
    let shape = (dims.b, dims.l, p);
    Ok(vec![
        Some(host::tensor(dx, shape)),
        Some(host::tensor(di, shape)),
        Some(host::tensor(dr, shape)),
        Some(host::tensor(dparam, p)),
        inputs[4].as_ref().map(|_| host::tensor(state, (dims.segments.len(), p))),
    ])
}

/// `-c softplus(Λ)`
pub(super) fn rates<T: Real>(param: &[T], c: f64) -> Vec<T> {
    param.iter().map(|p| T::real(-c) * p.softplus()).collect()
}

/// `a = exp(rate gate)`, and `1 - a²` without cancellation: `-(e^y - 1) = tanh(-y/2) (e^y + 1)`.
#[inline(always)]
pub(super) fn decay<T: Real>(rate: T, gate: T) -> (T, T) {
    let log_a = rate * gate;
    let a = Real::exp(log_a);
    (a, Real::tanh(-log_a) * a.mul_add(a, T::ONE))
}

/// The inputs as slices.
struct Unit<'a, T> {
    x: Rows<'a, T>,
    input_gate: Rows<'a, T>,
    recurrent_gate: Rows<'a, T>,
    param: &'a [T],
    /// log a for an open gate.
    rates: Vec<T>,
    sizes: &'a Sizes,
}

fn with_unit<T: Real, R>(
    inputs: &[Option<Tensor>],
    sizes: &Sizes,
    f: impl FnOnce(&Unit<'_, T>) -> R,
) -> Result<R> {
    let [Some(x), Some(i), Some(r), Some(param), _] = inputs else {
        bail!("{OP}: x, gates and recurrent_param are needed")
    };
    let (x, i, r) = (x.storage_and_layout(), i.storage_and_layout(), r.storage_and_layout());
    let param = param.storage_and_layout();
    let param = host::slice(&param.0, param.1)?;
    Ok(f(&Unit {
        x: Rows::new(&x.0, x.1, 2)?,
        input_gate: Rows::new(&i.0, i.1, 2)?,
        recurrent_gate: Rows::new(&r.0, r.1, 2)?,
        param,
        rates: rates(param, sizes.c),
        sizes,
    }))
}

/// One token of some channels.
struct Token<T, const W: usize> {
    x: [T; W],
    /// Gates after their sigmoids.
    input: [T; W],
    recurrent: [T; W],
    a: [T; W],
    /// 1 - a²
    square: [T; W],
}

impl<T: Real> Unit<'_, T> {
    #[inline(always)]
    fn token<const W: usize>(&self, t: usize, channels: Channels) -> Token<T, W> {
        let p = self.sizes.dims.p;
        let [x] = load::<T, 1, W>(self.x.row(t), p, channels);
        let [mut input] = load::<T, 1, W>(self.input_gate.row(t), p, channels);
        let [mut recurrent] = load::<T, 1, W>(self.recurrent_gate.row(t), p, channels);
        let [rates] = load::<T, 1, W>(&self.rates, p, channels);
        let (mut a, mut square) = ([T::ZERO; W], [T::ZERO; W]);
        for k in 0..W {
            input[k] = input[k].sigmoid();
            recurrent[k] = recurrent[k].sigmoid();
            (a[k], square[k]) = decay(rates[k], recurrent[k]);
        }
        Token { x, input, recurrent, a, square }
    }

    /// Whether token `t` is the first of its sequence.
    #[inline(always)]
    fn first(&self, t: usize, stretch: Stretch) -> bool {
        t == self.sizes.dims.segments[stretch.segment].start
    }

    #[inline(always)]
    fn starts(&self, t: usize, stretch: Stretch) -> bool {
        self.first(t, stretch) && self.sizes.starts[stretch.segment]
    }
}

/// `a h + √(1 - a²) σ(i) x`
#[inline(always)]
fn advance<T: Real, const W: usize>(token: &Token<T, W>, starts: bool, h: &mut [T; W]) {
    for k in 0..W {
        let input = token.input[k] * token.x[k];
        let next = token.a[k].mul_add(h[k], token.square[k].sqrt() * input);
        h[k] = if starts { input } else { next };
    }
}

struct Forward<'a, T> {
    unit: &'a Unit<'a, T>,
    h: Disjoint<T>,
}

impl<T: Real> Walk<T> for Forward<'_, T> {
    fn backwards(&self) -> bool {
        false
    }

    #[inline(always)]
    fn walk<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        _: usize,
        carry: &mut Lanes<T, C, W>,
    ) {
        let p = self.unit.sizes.dims.p;
        let mut h = carry[0];
        for t in stretch.tokens(false) {
            advance(&self.unit.token(t, channels), self.unit.starts(t, stretch), &mut h);
            // SAFETY: these channels of these tokens are this task's.
            unsafe { store(&[h], &self.h, t * p, p, channels) };
        }
        carry[0] = h;
    }

    #[inline(always)]
    fn reduce<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        carry: &mut Lanes<T, C, W>,
        product: &mut Lanes<T, C, W>,
    ) {
        let (mut h, mut total) = (carry[0], product[0]);
        for t in stretch.tokens(false) {
            let (token, starts) = (self.unit.token(t, channels), self.unit.starts(t, stretch));
            advance(&token, starts, &mut h);
            for k in 0..W {
                total[k] *= if starts { T::ZERO } else { token.a[k] };
            }
        }
        (carry[0], product[0]) = (h, total);
    }
}

/// ```text
/// g = ∂h_t + carry        carry' = a g        ∂x = g m σ(i)        ∂i = g m x σ'(i)        m = √(1 - a²)
/// ∂log a = g a h_{t-1} - g σ(i) x a² / m      ∂r = ∂log a · rate σ'(r)                     ∂rate = Σ ∂log a σ(r)
/// ```
struct Backward<'a, T> {
    unit: &'a Unit<'a, T>,
    h: Rows<'a, T>,
    dh: Rows<'a, T>,
    initial: Option<&'a [T]>,
    /// ∂x, ∂i, ∂r.
    outputs: [Disjoint<T>; 3],
    /// ∂rate, a row a slot.
    rates: Disjoint<T>,
}

impl<T: Real> Backward<'_, T> {
    #[inline(always)]
    fn before<const W: usize>(&self, t: usize, stretch: Stretch, channels: Channels) -> [T; W] {
        let p = self.unit.sizes.dims.p;
        match (self.unit.first(t, stretch), self.initial) {
            (false, _) => load::<T, 1, W>(self.h.row(t - 1), p, channels)[0],
            (true, Some(initial)) => load::<T, 1, W>(&initial[stretch.segment * p..], p, channels)[0],
            (true, None) => [T::ZERO; W],
        }
    }

    /// Gradients at a token whose output's whole gradient is `g`: of x, i and r, and of the rate, which is added to
    /// `sum`.
    #[inline(always)]
    fn inputs<const W: usize>(
        &self,
        token: &Token<T, W>,
        starts: bool,
        g: &[T; W],
        before: &[T; W],
        rates: &[T; W],
        sum: &mut [T; W],
    ) -> [[T; W]; 3] {
        let least = T::real(1.0 / (MAX_ROOT_GRADIENT * MAX_ROOT_GRADIENT));
        let four = T::real(4.0);
        let [mut dx, mut di, mut dr] = [[T::ZERO; W]; 3];
        for k in 0..W {
            let (x, i, r, a, square) =
                (token.x[k], token.input[k], token.recurrent[k], token.a[k], token.square[k]);
            let m = if starts { T::ONE } else { square.sqrt() };
            dx[k] = g[k] * m * i;
            di[k] = g[k] * m * x * i * (T::ONE - i);
            // ∂√v/∂v = 1 / √(4 v), bounded; ∂v/∂log a = -2 a².
            let root = T::ONE / Real::max(four * square, least).sqrt();
            let dlog = g[k] * (a * before[k] - (a + a) * a * i * x * root);
            let dlog = if starts { T::ZERO } else { dlog };
            dr[k] = dlog * rates[k] * r * (T::ONE - r);
            sum[k] += dlog * r;
        }
        [dx, di, dr]
    }
}

impl<T: Real> Walk<T> for Backward<'_, T> {
    fn backwards(&self) -> bool {
        true
    }

    #[inline(always)]
    fn walk<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        slot: usize,
        carry: &mut Lanes<T, C, W>,
    ) {
        let p = self.unit.sizes.dims.p;
        let rates = load::<T, 1, W>(&self.unit.rates, p, channels)[0];
        let (mut c, mut sum) = (carry[0], [T::ZERO; W]);
        for t in stretch.tokens(true) {
            let (token, starts) = (self.unit.token(t, channels), self.unit.starts(t, stretch));
            let mut g = load::<T, 1, W>(self.dh.row(t), p, channels)[0];
            for k in 0..W {
                g[k] += c[k];
            }
            let before = self.before(t, stretch, channels);
            let found = self.inputs(&token, starts, &g, &before, &rates, &mut sum);
            for (lanes, output) in found.into_iter().zip(&self.outputs) {
                // SAFETY: these channels of these tokens are this task's.
                unsafe { store(&[lanes], output, t * p, p, channels) };
            }
            for k in 0..W {
                c[k] = if starts { T::ZERO } else { token.a[k] * g[k] };
            }
        }
        carry[0] = c;
        // SAFETY: walks of this slot and these channels follow each other.
        unsafe {
            let mut total = gather::<T, 1, W>(&self.rates, slot * p, p, channels);
            for k in 0..W {
                total[0][k] += sum[k];
            }
            store(&total, &self.rates, slot * p, p, channels);
        }
    }

    #[inline(always)]
    fn reduce<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        carry: &mut Lanes<T, C, W>,
        product: &mut Lanes<T, C, W>,
    ) {
        let p = self.unit.sizes.dims.p;
        let (mut c, mut total) = (carry[0], product[0]);
        for t in stretch.tokens(true) {
            let (token, starts) = (self.unit.token::<W>(t, channels), self.unit.starts(t, stretch));
            let g = load::<T, 1, W>(self.dh.row(t), p, channels)[0];
            for k in 0..W {
                let a = if starts { T::ZERO } else { token.a[k] };
                c[k] = a * (g[k] + c[k]);
                total[k] *= a;
            }
        }
        (carry[0], product[0]) = (c, total);
    }
}
