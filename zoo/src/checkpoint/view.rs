//! Which elements of a stored tensor, and in what order.

/// Elements of a stored tensor: that of index i lies `start + Σ_d i_d · strides_d` elements from the tensor's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The first element.
    pub start: usize,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements from one place of an axis to the next.
    pub strides: Vec<usize>,
}

impl View {
    /// A whole tensor in row-major order.
    pub fn whole(shape: &[usize]) -> Self {
        let mut strides = vec![1usize; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
        }
        Self { start: 0, shape: shape.into(), strides }
    }

    /// Several axes of one; `None` if there is no such axis or its size is not the product of `sizes`. They may be several
    /// axes already; with one size, so many rows may be in several of any sizes.
    pub fn split(mut self, axis: usize, sizes: &[usize]) -> Option<Self> {
        if let (0, &[rows]) = (axis, sizes) {
            let mut product = 1usize;
            for &d in &self.shape {
                product = product.checked_mul(d)?;
                if product == rows {
                    return Some(self);
                }
            }
        }
        let product = sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        if *self.shape.get(axis)? != product {
            return self.shape[axis..].starts_with(sizes).then_some(self);
        }
        let stride = self.strides[axis];
        let strides = Self::whole(sizes).strides.into_iter().map(|s| s * stride);
        self.strides.splice(axis..=axis, strides);
        self.shape.splice(axis..=axis, sizes.iter().copied());
        Some(self)
    }

    /// `len` places of an axis; `None` if there are not so many.
    pub fn take(mut self, axis: usize, start: usize, len: usize) -> Option<Self> {
        if start.checked_add(len)? > *self.shape.get(axis)? {
            return None;
        }
        self.start += start * self.strides[axis];
        self.shape[axis] = len;
        Some(self)
    }

    /// Two axes in the other order; `None` if there are no such axes.
    pub fn swap(mut self, a: usize, b: usize) -> Option<Self> {
        if a.max(b) >= self.shape.len() {
            return None;
        }
        self.shape.swap(a, b);
        self.strides.swap(a, b);
        Some(self)
    }

    /// Elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The first elements of all runs of [`View::run`], in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = usize> {
        let (mut axes, mut run) = (self.shape.len(), 1);
        while axes > 0 && (self.shape[axes - 1] == 1 || self.strides[axes - 1] == run) {
            axes -= 1;
            run *= self.shape[axes];
        }
        let outer = &self.shape[..axes];
        (0..outer.iter().product::<usize>()).map(move |number| {
            let (mut at, mut rest) = (self.start, number);
            for (&d, &stride) in outer.iter().zip(&self.strides).rev() {
                at += rest % d * stride;
                rest /= d;
            }
            at
        })
    }

    /// The last axes that lie in one run: how many elements.
    pub(super) fn run(&self) -> usize {
        let mut run = 1;
        for (&d, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if d != 1 && stride != run {
                break;
            }
            run *= d;
        }
        run
    }
}
