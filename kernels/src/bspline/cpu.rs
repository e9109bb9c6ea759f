//! Basis functions on the CPU: a vector of features at a time, all functions of it at once, without divisions.

use crate::host::{self, Disjoint, Rows};
use crate::simd::{Real, vectorized};

/// Features handled together.
const LANES: usize = 16;

/// Function values that are worth a thread.
const GRAIN: usize = 1 << 13;

type Lane<T> = [T; LANES];

/// Knots of all features, in blocks of [`LANES`], with the inverse spans that the recursion divides by.
pub(super) struct Spline<T> {
    order: usize,
    features: usize,
    /// Knots a feature.
    m: usize,
    /// Knot j of block c at `c m + j`.
    knots: Vec<Lane<T>>,
    /// `1 / (g_{j+d} - g_j)`, 0 for an empty span, at `(c order + d - 1) m + j`.
    inverse: Vec<Lane<T>>,
}

impl<T: Real> Spline<T> {
    /// `grid` (features, m), ascending rows; m > order + 1.
    pub(super) fn new(grid: &[T], m: usize, order: usize) -> Self {
        let features = grid.len() / m;
        let blocks = features.div_ceil(LANES);
        let mut knots = vec![[T::ZERO; LANES]; blocks * m];
        for (i, row) in grid.chunks_exact(m).enumerate() {
            for (j, &g) in row.iter().enumerate() {
                knots[i / LANES * m + j][i % LANES] = g;
            }
        }
        let mut inverse = vec![[T::ZERO; LANES]; blocks * order * m];
        for c in 0..blocks {
            for d in 1..=order {
                for j in 0..m - d {
                    let (near, far) = (knots[c * m + j], knots[c * m + j + d]);
                    let lane = &mut inverse[(c * order + d - 1) * m + j];
                    for l in 0..LANES {
                        let span = far[l] - near[l];
                        lane[l] = if span > T::ZERO { T::ONE / span } else { T::ZERO };
                    }
                }
            }
        }
        Self { order, features, m, knots, inverse }
    }

    /// Basis functions a feature.
    pub(super) fn functions(&self) -> usize {
        self.m - 1 - self.order
    }

    fn inverse(&self, block: usize, degree: usize) -> &[Lane<T>] {
        &self.inverse[(block * self.order + degree - 1) * self.m..][..self.m]
    }

    /// The functions of this degree at `x`, into the first m - 1 - degree of `b`, which has room for m - 1.
    #[inline(always)]
    fn basis(&self, block: usize, degree: usize, x: &Lane<T>, b: &mut [Lane<T>]) {
        let g = &self.knots[block * self.m..][..self.m];
        for (b, g) in b.iter_mut().zip(g.windows(2)) {
            for l in 0..LANES {
                b[l] = if g[0][l] <= x[l] && x[l] < g[1][l] { T::ONE } else { T::ZERO };
            }
        }
        for d in 1..=degree {
            let inverse = self.inverse(block, d);
            for j in 0..self.m - 1 - d {
                let (near, far) = (&g[j], &g[j + d + 1]);
                for l in 0..LANES {
                    let left = (x[l] - near[l]) * inverse[j][l] * b[j][l];
                    let right = (far[l] - x[l]) * inverse[j + 1][l];
                    b[j][l] = Real::mul_add(right, b[j + 1][l], left);
                }
            }
        }
    }

    /// Runs `f(row, block, x, scratch)` for each block of features of each row; rows are shared by threads.
    fn for_each(&self, x: Rows<T>, f: impl Fn(usize, usize, &Lane<T>, &mut [Lane<T>]) + Sync) {
        let grain = GRAIN.div_ceil((self.features * self.m).max(1));
        host::spinning(x.rows, grain, |rows| {
            let mut scratch = vec![[T::ZERO; LANES]; self.m];
            vectorized(
                #[inline(always)]
                || {
                    for row in rows {
                        for (block, part) in x.row(row).chunks(LANES).enumerate() {
                            let mut lane = [T::ZERO; LANES];
                            lane[..part.len()].copy_from_slice(part);
                            f(row, block, &lane, &mut scratch);
                        }
                    }
                },
            );
        });
    }

    /// (rows, features) -> (rows, functions, features)
    pub(super) fn forward(&self, x: Rows<T>) -> Vec<T> {
        let (k, width) = (self.functions(), self.features);
        let mut y = host::zeros(x.rows * k * width);
        let out = Disjoint::new(&mut y);
        self.for_each(
            x,
            #[inline(always)]
            |row, block, x, b| {
                self.basis(block, self.order, x, b);
                let from = block * LANES;
                let len = LANES.min(width - from);
                for (j, b) in b[..k].iter().enumerate() {
                    // SAFETY: no two rows or blocks write the same elements.
                    unsafe { out.slice((row * k + j) * width + from, len) }.copy_from_slice(&b[..len]);
                }
            },
        );
        y
    }

    /// Gradient of x from that of the functions, by `b_j' = order (b_j^- / (g_{j+order} - g_j) - b_{j+1}^- / (...))`,
    /// where b^- has one degree less.
    pub(super) fn backward(&self, x: Rows<T>, grad: &[T]) -> Vec<T> {
        let (k, width) = (self.functions(), self.features);
        let mut dx = host::zeros(x.rows * width);
        if self.order == 0 {
            return dx;
        }
        let out = Disjoint::new(&mut dx);
        let order = T::real(self.order as f64);
        self.for_each(
            x,
            #[inline(always)]
            |row, block, x, b| {
                self.basis(block, self.order - 1, x, b);
                let inverse = self.inverse(block, self.order);
                for (b, inverse) in b[..=k].iter_mut().zip(inverse) {
                    for l in 0..LANES {
                        b[l] *= inverse[l] * order;
                    }
                }
                let from = block * LANES;
                let len = LANES.min(width - from);
                // SAFETY: no two rows or blocks write the same elements.
                let dx = unsafe { out.slice(row * width + from, len) };
                for j in 0..k {
                    let grad = &grad[(row * k + j) * width + from..][..len];
                    for l in 0..len {
                        dx[l] = Real::mul_add(grad[l], b[j][l] - b[j + 1][l], dx[l]);
                    }
                }
            },
        );
        dx
    }
}
