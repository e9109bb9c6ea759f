//! Launches of `causal_conv1d.cu`.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor, bail};

use crate::cuda::compile::function;
use crate::cuda::launch::{Args, alloc, cuda, multiprocessors, table};

use super::special::{FAST_TAPS, channels, specialisation};
use super::update::Step;
use super::{Conv, Inputs, OP, Problem};

/// Threads of a block, as in the source.
const THREADS: usize = 128;
/// Longest runs of tokens of a thread, forward and backward. Forward, the rows that neighbours share are still in the
/// cache, and short runs start sooner; backward recomputes for k-1 tokens more and writes partials.
const RUN: (usize, usize) = (16, 256);
const SHORTEST_RUN: usize = 8;

/// How the work is laid over threads.
struct Plan {
    /// Lanes over channels, rows over runs.
    threads: (usize, usize),
    run: usize,
    /// Runs in all.
    items: usize,
    /// Blocks along the channels, and along the runs.
    columns: usize,
    blocks: usize,
    /// (sequence, first token, length, start) of every run of packed sequences.
    table: Option<CudaStorage>,
}

impl Plan {
    /// For threads of `vec` channels and runs of at most `longest` tokens.
    fn new(device: &CudaDevice, p: &Problem, vec: usize, longest: usize) -> Result<Self> {
        let vectors = p.d.div_ceil(vec);
        let lanes = vectors.next_power_of_two().min(32);
        let rows = THREADS / lanes;
        // Two full loads of the device, if the input gives that much.
        let wanted = multiprocessors(device)? * 1024;
        let mut run = longest;
        while run > SHORTEST_RUN && vectors * (p.b * p.l / run) < wanted {
            run /= 2;
        }
        let runs = |len: usize| len.div_ceil(run).max(1);
        let packed = p.segments.len() != p.b;
        let (items, table) = if packed {
            let rows = run_table(p, run, runs)?;
            (rows.len() / 4, Some(table(device, &rows)?))
        } else {
            (p.b * runs(p.l), None)
        };
        let columns = vectors.div_ceil(lanes);
        Ok(Self { threads: (lanes, rows), run, items, columns, blocks: items.div_ceil(rows), table })
    }
}

fn run_table(p: &Problem, run: usize, runs: impl Fn(usize) -> usize) -> Result<Vec<i32>> {
    if p.l > i32::MAX as usize {
        bail!("{OP}: {} packed tokens, the CUDA kernel takes up to 2^31", p.l);
    }
    let mut rows = Vec::new();
    for (n, s) in p.segments.iter().enumerate() {
        for i in 0..runs(s.len) {
            rows.extend([n, s.start, s.len, i * run].map(|v| v as i32));
        }
    }
    Ok(rows)
}

/// A tensor's storage and first value.
macro_rules! storage {
    ($guard:ident, $tensor:expr) => {
        let $guard = $tensor.storage_and_layout();
        let $guard = (cuda(OP, &$guard.0)?, $guard.1.start_offset());
    };
    ($guard:ident, option $tensor:expr) => {
        let $guard = $tensor.map(Tensor::storage_and_layout);
        let $guard = match &$guard {
            Some((s, l)) => Some((cuda(OP, s)?, l.start_offset())),
            None => None,
        };
    };
}

/// Channels a thread takes: as many as fill 8 bytes, if all rows begin on such a boundary.
fn vec(data: DType, p: &Problem, x: &Layout, dense: &[usize]) -> usize {
    let n = channels(data);
    let stride = x.stride();
    let aligned = |v: &usize| v.is_multiple_of(n);
    let rows = [p.d, stride[0], stride[1], x.start_offset()];
    if p.k <= FAST_TAPS && rows.iter().chain(dense).all(aligned) { n } else { 1 }
}

/// y and the final state.
pub(super) fn forward(conv: &Conv, device: &CudaDevice, inputs: &Inputs) -> Result<[Storage; 2]> {
    let [Some(x), Some(weight), bias, initial] = inputs else { bail!("{OP}: {} inputs", inputs.len()) };
    let (p, data) = (&conv.p, x.dtype());
    let vec = vec(data, p, x.layout(), &[]);
    let plan = Plan::new(device, p, vec, RUN.0)?;
    let function = function(device, &specialisation(data, p.k, vec, conv.silu)?, "forward")?;
    storage!(xs, x);
    storage!(ws, weight);
    storage!(bs, option bias);
    storage!(is, option initial);
    let mut y = alloc(device, data, p.b * p.l * p.d)?;
    let mut state = alloc(device, p.state, p.segments.len() * p.d * (p.k - 1))?;
    let stream = device.cuda_stream();
    let args = Args::new(&stream)
        .read(xs.0, xs.1)?
        .read(ws.0, ws.1)?
        .read_option(bs)?
        .read_option(is)?
        .read_option(plan.table.as_ref().map(|t| (t, 0)))?
        .write(&mut y, 0)?
        .write(&mut state, 0)?
        .ints([plan.items, p.l, p.d, plan.run, x.stride()[0], x.stride()[1]]);
    // SAFETY: the arguments of `forward` in the source; the plan covers each token and channel once.
    unsafe { args.launch(&function, plan.columns * plan.blocks, plan.threads) }?;
    Ok([Storage::Cuda(y), Storage::Cuda(state)])
}

/// Gradients of the inputs, from those of y and the final state.
pub(super) fn backward(
    conv: &Conv,
    device: &CudaDevice,
    inputs: &Inputs,
    [dy, dfinal]: [Option<&Tensor>; 2],
) -> Result<Vec<Option<Tensor>>> {
    let [Some(x), Some(weight), bias, initial] = inputs else { bail!("{OP}: {} inputs", inputs.len()) };
    let Some(dy) = dy else { bail!("{OP}: no gradient of y") };
    let Problem { b, l, d, k, ref segments, state, .. } = conv.p;
    let data = x.dtype();
    let vec = vec(data, &conv.p, x.layout(), &[dy.layout().start_offset()]);
    let plan = Plan::new(device, &conv.p, vec, RUN.1)?;
    let special = specialisation(data, k, vec, conv.silu)?;
    let (main, reduce) = (function(device, &special, "backward")?, function(device, &special, "reduce")?);
    storage!(xs, x);
    storage!(ws, weight);
    storage!(bs, option bias);
    storage!(is, option initial);
    storage!(dys, dy);
    storage!(dfs, option dfinal);
    let mut dx = alloc(device, data, b * l * d)?;
    let mut dinitial = initial.map(|i| alloc(device, state, i.elem_count())).transpose()?;
    let mut partial = alloc(device, state, plan.blocks * (k + 1) * d)?;
    let mut dweight = alloc(device, state, d * k)?;
    let mut dbias = bias.map(|_| alloc(device, state, d)).transpose()?;
    let stream = device.cuda_stream();
    let args = Args::new(&stream)
        .read(xs.0, xs.1)?
        .read(ws.0, ws.1)?
        .read_option(bs)?
        .read_option(is)?
        .read_option(plan.table.as_ref().map(|t| (t, 0)))?
        .read(dys.0, dys.1)?
        .read_option(dfs)?
        .write(&mut dx, 0)?
        .write_option(dinitial.as_mut())?
        .write(&mut partial, 0)?
        .ints([plan.items, l, d, plan.run, x.stride()[0], x.stride()[1]]);
    // SAFETY: the arguments of `backward` in the source; the plan covers each token and channel once.
    unsafe { args.launch(&main, plan.columns * plan.blocks, plan.threads) }?;
    let args = Args::new(&stream)
        .read(&partial, 0)?
        .write(&mut dweight, 0)?
        .write_option(dbias.as_mut())?
        .ints([plan.blocks, d]);
    // SAFETY: the arguments of `reduce` in the source; a thread for each of the (k+1) d sums.
    unsafe { args.launch(&reduce, ((k + 1) * d).div_ceil(THREADS), (THREADS, 1)) }?;
    let tensor = |s: CudaStorage, shape: &[usize]| Tensor::from((Storage::Cuda(s), shape));
    Ok(vec![
        Some(tensor(dx, &[b, l, d])),
        Some(tensor(dweight, &[d, k])),
        dbias.map(|s| tensor(s, &[d])),
        dinitial.map(|s| tensor(s, &[segments.len(), d, k - 1])),
    ])
}

/// One token; the state, from `offset` on, moves on in place.
pub(super) fn update(step: &Step, state: &mut CudaStorage, offset: usize) -> Result<Storage> {
    let device = state.device.clone();
    let (size, data) = (step.size, step.x.dtype());
    let function = function(&device, &specialisation(data, size.k, 1, step.silu)?, "update")?;
    let is_data = |t: &Tensor| usize::from(t.dtype() == data);
    let flags = [is_data(&step.weight), step.bias.as_ref().map_or(0, is_data)];
    let stride = step.x.stride()[0];
    storage!(xs, step.x);
    storage!(ws, step.weight);
    storage!(bs, option step.bias.as_ref());
    let mut y = alloc(&device, data, size.b * size.d)?;
    let stream = device.cuda_stream();
    let args = Args::new(&stream)
        .write(state, offset)?
        .read(xs.0, xs.1)?
        .read(ws.0, ws.1)?
        .read_option(bs)?
        .write(&mut y, 0)?
        .ints([size.b, size.d, stride])
        .ints(flags);
    // SAFETY: the arguments of `update` in the source; a thread for each channel of each row.
    unsafe { args.launch(&function, (size.b * size.d).div_ceil(THREADS), (THREADS, 1)) }?;
    Ok(Storage::Cuda(y))
}
