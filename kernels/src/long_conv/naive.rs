//! The definition in tensor operations: a Toeplitz matrix a channel.

use candle_core::{Result, Tensor};

use super::LongConv;
use crate::host::state_dtype;

/// As [`long_conv`](super::long_conv), sequence by sequence; quadratic in time and memory.
///
/// # Errors
/// As there.
pub fn long_conv(args: &LongConv) -> Result<Tensor> {
    let dims = args.check()?;
    let work = state_dtype(args.u.dtype());
    let u = args.u.to_dtype(work)?.contiguous()?.reshape((dims.b * dims.l, dims.d))?;
    let zero = Tensor::zeros((dims.d, 1), work, u.device())?;
    let k = Tensor::cat(&[&args.k.to_dtype(work)?.contiguous()?, &zero], 1)?; // (d, lk + 1), the last tap zero
    let mut ys = Vec::new();
    for (row, s) in dims.segments.iter().enumerate() {
        if s.len == 0 {
            continue;
        }
        let now = u.narrow(0, s.start, s.len)?;
        let past = dims.past[row];
        let all = match args.history {
            Some(history) if past > 0 => {
                Tensor::cat(&[&history.get(row)?.narrow(0, 0, past)?.to_dtype(work)?, &now], 0)?
            }
            _ => now.clone(),
        };
        let inputs = past + s.len;
        let tap = |i: usize| {
            let (t, s) = (past + i / inputs, i % inputs);
            let j = (t + dims.ahead).checked_sub(s).filter(|&j| j < dims.lk);
            j.unwrap_or(dims.lk) as u32
        };
        let taps: Vec<u32> = (0..s.len * inputs).map(tap).collect();
        let taps = Tensor::new(taps, u.device())?;
        let toeplitz = k.index_select(&taps, 1)?.reshape((dims.d, s.len, inputs))?;
        let y = toeplitz.matmul(&all.t()?.unsqueeze(2)?.contiguous()?)?.squeeze(2)?.t()?; // (len, d)
        ys.push(match args.bias {
            Some(bias) => (y + now.broadcast_mul(&bias.to_dtype(work)?)?)?,
            None => y.contiguous()?,
        });
    }
    let y = if ys.is_empty() { u } else { Tensor::cat(&ys, 0)? };
    y.reshape((dims.b, dims.l, dims.d))?.to_dtype(args.u.dtype())
}
