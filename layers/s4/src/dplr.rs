//! The bilinear discretisation of `A = Λ - P P*`, which is diagonal plus low rank again.
//!
//! ```text
//! Ā = D (1 - P R*) (E - P P*)      D = (2/dt - Λ)⁻¹    E = 2/dt + Λ    R = (1 + P* D P)⁻¹ P* D
//!   = D E - (D P) G*               G = P* + R E - (R P) P*
//! B̄ = 2 D (1 - P R*) B
//! ```
//! Products of rows with columns run over both modes of each pair, `2 Re Σ`, and are real.
//! Source: Gu, Goel and Ré 2021, appendix C.2; state-spaces/s4 `s4.py`, `_setup_linear`.

use candle_core::{D, Result, Tensor, bail};
use semisep_core::Complex;

use crate::system::Continuous;

/// `h_t = poles ⊙ h_{t-1} - left (2 Re rightᵀ h_{t-1}) + input u_t`
pub(crate) struct Steps {
    pub(crate) poles: Complex, // (d, n)
    pub(crate) input: Complex, // (d, n)
    pub(crate) left: Complex,  // (r, d, n)
    pub(crate) right: Complex, // (r, d, n)
}

impl Steps {
    pub(crate) fn new(system: &Continuous, p: &Complex) -> Result<Self> {
        let rank = p.re.dim(0)?;
        let frequency = system.dt.recip()?.affine(2.0, 0.0)?;
        let real = Complex { re: frequency.clone(), im: frequency.zeros_like()? };
        let (d, e) = (real.sub(&system.a)?.reciprocal()?, real.add(&system.a)?);
        let p: Vec<Complex> = (0..rank).map(|k| p.map(|t| t.get(k))).collect::<Result<_>>()?;
        let q: Vec<Complex> = p.iter().map(Complex::conj).collect::<Result<_>>()?;
        let qd: Vec<Complex> = q.iter().map(|q| q.mul(&d)).collect::<Result<_>>()?;
        let r = solve(&qd, &p)?;
        let right = (0..rank).map(|i| {
            let mut g = q[i].add(&r[i].mul(&e)?)?;
            for (p, q) in p.iter().zip(&q) {
                g = g.sub(&q.scale(&column(&r[i], p)?)?)?;
            }
            Ok(g)
        });
        let right: Vec<Complex> = right.collect::<Result<_>>()?;
        let left: Vec<Complex> = p.iter().map(|p| p.mul(&d)).collect::<Result<_>>()?;
        let mut b = system.b.clone();
        for (p, r) in p.iter().zip(&r) {
            b = b.sub(&p.scale(&column(r, &system.b)?)?)?;
        }
        Ok(Self {
            poles: d.mul(&e)?,
            input: b.mul(&d)?.affine(2.0, 0.0)?,
            left: stack(&left)?,
            right: stack(&right)?,
        })
    }

    /// Ā as a real matrix on (Re h | Im h), (d, 2 n, 2 n).
    fn dense(&self) -> Result<Tensor> {
        let n = self.poles.re.dim(1)?;
        let eye = Tensor::eye(n, self.poles.re.dtype(), self.poles.re.device())?;
        let diagonal = |t: &Tensor| t.unsqueeze(1)?.broadcast_mul(&eye);
        let (re, im) = (diagonal(&self.poles.re)?, diagonal(&self.poles.im)?);
        let turn = Tensor::cat(&[Tensor::cat(&[&re, &im.neg()?], 2)?, Tensor::cat(&[&im, &re], 2)?], 1)?;
        let left = Tensor::cat(&[&self.left.re, &self.left.im], 2)?.permute((1, 2, 0))?; // (d, 2 n, r)
        let right = real_row(&self.right)?.transpose(0, 1)?; // (d, r, 2 n)
        turn - left.contiguous()?.matmul(&right.contiguous()?)?
    }
}

/// `2 Re Σ r c` of every channel, (d, 1).
fn column(r: &Complex, c: &Complex) -> Result<Tensor> {
    r.read(c)?.unsqueeze(1)
}

fn stack(rows: &[Complex]) -> Result<Complex> {
    let part = |f: fn(&Complex) -> &Tensor| Tensor::stack(&rows.iter().map(f).collect::<Vec<_>>(), 0);
    Ok(Complex { re: part(|c| &c.re)?, im: part(|c| &c.im)? })
}

/// `(1 + K)⁻¹` times the rows, with `K[i, j] = 2 Re Σ rows[i] p[j]`: Gauss-Jordan over the few ranks, all channels at
/// once. K has a positive semidefinite symmetric part (that of D), so no exchange of rows is needed.
fn solve(rows: &[Complex], p: &[Complex]) -> Result<Vec<Complex>> {
    let mut rhs = rows.to_vec();
    let mut m: Vec<Vec<Tensor>> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let entry = |(j, p): (usize, &Complex)| column(row, p)?.affine(1.0, if i == j { 1.0 } else { 0.0 });
        m.push(p.iter().enumerate().map(entry).collect::<Result<_>>()?);
    }
    for i in 0..rows.len() {
        let inverse = m[i][i].recip()?;
        m[i] = m[i].iter().map(|v| v.mul(&inverse)).collect::<Result<_>>()?;
        rhs[i] = rhs[i].scale(&inverse)?;
        for k in (0..rows.len()).filter(|k| *k != i) {
            let factor = m[k][i].clone();
            m[k] = m[k].iter().zip(&m[i]).map(|(v, p)| v - (p * &factor)?).collect::<Result<_>>()?;
            rhs[k] = rhs[k].sub(&rhs[i].scale(&factor)?)?;
        }
    }
    Ok(rhs)
}

/// Readouts as rows on (Re h | Im h): `2 Re`, `-2 Im`, (.., 2 n).
fn real_row(c: &Complex) -> Result<Tensor> {
    Tensor::cat(&[c.re.affine(2.0, 0.0)?, c.im.affine(-2.0, 0.0)?], D::Minus1)
}

/// C (c, d, n, 2) as rows (d, c, 2 n), and back.
fn rows_of(c: &Tensor) -> Result<Tensor> {
    real_row(&Complex::from_pairs(c, c.dtype())?)?.transpose(0, 1)?.contiguous()
}

fn pairs_of(rows: &Tensor) -> Result<Tensor> {
    let n = rows.dim(2)? / 2;
    let rows = rows.transpose(0, 1)?;
    let part = |start, factor| rows.narrow(2, start, n)?.affine(factor, 0.0);
    Complex { re: part(0, 0.5)?, im: part(n, -0.5)? }.to_pairs()
}

/// `Ā^length`, (d, 2 n, 2 n).
fn power(steps: &Steps, mut length: usize) -> Result<Tensor> {
    let mut square = steps.dense()?;
    let mut result: Option<Tensor> = None;
    while length > 0 {
        if length % 2 == 1 {
            result = Some(match result {
                Some(r) => r.matmul(&square)?,
                None => square.clone(),
            });
        }
        length /= 2;
        if length > 0 {
            square = square.matmul(&square)?;
        }
    }
    match result {
        Some(r) => Ok(r),
        None => bail!("s4: the power of a transition needs a length of at least 1"),
    }
}

/// `C (1 - Ā^length)`
pub(crate) fn transform(c: &Tensor, steps: &Steps, length: usize) -> Result<Tensor> {
    let rows = rows_of(c)?;
    pairs_of(&(&rows - rows.matmul(&power(steps, length)?)?)?)
}

/// `C̃ (1 - Ā^length)⁻¹ = C̃ Π_k (1 + Ā^(2^k length))`, as many factors as matter.
pub(crate) fn untransform(c: &Tensor, steps: &Steps, length: usize) -> Result<Tensor> {
    /// 2^60 tokens: a memory longer than this is none.
    const MOST: usize = 60;
    let mut rows = rows_of(c)?;
    let mut x = power(steps, length)?;
    for _ in 0..MOST {
        rows = (&rows + rows.matmul(&x)?)?;
        let largest = x.detach().abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        if largest < 1e-12 {
            return pairs_of(&rows);
        }
        if !largest.is_finite() {
            break;
        }
        x = x.matmul(&x)?;
    }
    bail!("s4: the recurrence does not decay, so that C cannot be had from its transform for length {length}")
}
