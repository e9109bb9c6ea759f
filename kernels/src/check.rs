//! Checks of what comes from outside, with errors that name the op, what was expected and what was found.

use candle_core::{Device, Result, Tensor, bail};

/// `(2, 5, 8)`
pub(crate) fn tuple(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("({})", dims.join(", "))
}

/// `selective_scan: dt has shape (2, 5, 8), expected (2, 5, 16), as x`
pub(crate) fn shape(op: &str, name: &str, t: &Tensor, expected: &[usize], why: &str) -> Result<()> {
    if t.dims() != expected {
        let found = tuple(t.dims());
        bail!("{op}: {name} has shape {found}, expected {}, {why}", tuple(expected));
    }
    if !t.dtype().is_float() {
        bail!("{op}: {name} has dtype {:?}, expected a floating-point one", t.dtype());
    }
    Ok(())
}

/// An optional argument's [`shape`].
pub(crate) fn optional(
    op: &str,
    name: &str,
    t: Option<&Tensor>,
    expected: &[usize],
    why: &str,
) -> Result<()> {
    t.map_or(Ok(()), |t| shape(op, name, t, expected, why))
}

/// That no size is 0, of those that must not be.
pub(crate) fn positive(op: &str, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => bail!("{op}: {name} is 0, expected at least 1"),
        None => Ok(()),
    }
}

/// That `groups` (of `name`) divide `width` (of `of`) evenly.
pub(crate) fn divides(op: &str, (name, groups): (&str, usize), (of, width): (&str, usize)) -> Result<()> {
    if groups == 0 || !width.is_multiple_of(groups) {
        bail!("{op}: {groups} groups of {name} do not divide the {width} {of}");
    }
    Ok(())
}

/// That the op runs where its data is.
pub(crate) fn on_cpu(op: &str, device: &Device) -> Result<()> {
    if !device.is_cpu() {
        bail!("{op} has no CUDA path yet, and its input is on {:?}: move it to the CPU", device.location());
    }
    Ok(())
}
