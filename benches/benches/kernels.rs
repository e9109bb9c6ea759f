//! Kernels at the shapes of the 130m models: throughput in tokens.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use semisep_benches::randn;
use semisep_kernels::{
    Attention, CausalConv1d, SelectiveScan, SsdChunkScan, attention, causal_conv1d, linear, selective_scan,
    ssd_chunk_scan,
};

const LENGTHS: [usize; 3] = [512, 2048, 8192];

/// One kernel over several lengths; `run` gets the inputs that `make` made for a length.
fn group<I>(
    c: &mut Criterion,
    name: &str,
    make: impl Fn(usize) -> Result<I>,
    run: impl Fn(&I) -> Result<()>,
) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for length in LENGTHS {
        let inputs = make(length).unwrap();
        group.throughput(Throughput::Elements(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |b| b.iter(|| run(&inputs).unwrap()));
    }
    group.finish();
}

struct Selective {
    tensors: [Tensor; 6], // x, dt, a, b, c, z
}

impl Selective {
    fn new(l: usize) -> Result<Self> {
        let a = randn(3, &[1536, 16])?.abs()?.neg()?;
        let (x, dt, z) = (randn(1, &[1, l, 1536])?, randn(2, &[1, l, 1536])?, randn(6, &[1, l, 1536])?);
        Ok(Self { tensors: [x, dt, a, randn(4, &[1, l, 1, 16])?, randn(5, &[1, l, 1, 16])?, z] })
    }

    fn tracked(self) -> Result<Self> {
        let [x, dt, a, b, c, z] = self.tensors;
        let var = |t: Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&t)?.into_inner());
        Ok(Self { tensors: [var(x)?, var(dt)?, var(a)?, var(b)?, var(c)?, var(z)?] })
    }

    fn run(&self) -> Result<Tensor> {
        let [x, dt, a, b, c, z] = &self.tensors;
        let scan = SelectiveScan { z: Some(z), dt_softplus: true, ..SelectiveScan::new(x, dt, a, b, c) };
        Ok(selective_scan(&scan)?.0)
    }
}

struct Ssd {
    tensors: [Tensor; 5], // x, dt, a, b, c
}

impl Ssd {
    fn new(l: usize) -> Result<Self> {
        let a = randn(3, &[24])?.abs()?.neg()?;
        let (b, c) = (randn(4, &[1, l, 1, 128])?, randn(5, &[1, l, 1, 128])?);
        Ok(Self { tensors: [randn(1, &[1, l, 24, 64])?, randn(2, &[1, l, 24])?, a, b, c] })
    }

    fn tracked(self) -> Result<Self> {
        let [x, dt, a, b, c] = self.tensors;
        let var = |t: Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&t)?.into_inner());
        Ok(Self { tensors: [var(x)?, var(dt)?, var(a)?, var(b)?, var(c)?] })
    }

    fn run(&self) -> Result<Tensor> {
        let [x, dt, a, b, c] = &self.tensors;
        Ok(ssd_chunk_scan(&SsdChunkScan { dt_softplus: true, ..SsdChunkScan::new(x, dt, a, b, c, 256) })?.0)
    }
}

fn backward(y: Tensor) -> Result<()> {
    black_box(y.sum_all()?.backward()?);
    Ok(())
}

fn kernels(c: &mut Criterion) {
    let done = |y: Tensor| {
        black_box(y);
        Ok(())
    };
    group(c, "selective_scan e1536 n16", Selective::new, |s| done(s.run()?));
    group(
        c,
        "selective_scan e1536 n16 with backward",
        |l| Selective::new(l)?.tracked(),
        |s| backward(s.run()?),
    );
    group(c, "ssd_chunk_scan h24 p64 n128", Ssd::new, |s| done(s.run()?));
    group(c, "ssd_chunk_scan h24 p64 n128 with backward", |l| Ssd::new(l)?.tracked(), |s| backward(s.run()?));
    group(
        c,
        "causal_conv1d d1792 k4",
        |l| Ok((randn(1, &[1, l, 1792])?, randn(2, &[1792, 4])?)),
        |(x, weight)| {
            let conv =
                CausalConv1d { x, weight, bias: None, silu: true, initial_state: None, cu_seqlens: None };
            done(causal_conv1d(conv)?.0)
        },
    );
    group(
        c,
        "attention h12 p64 causal",
        |l| Ok([randn(1, &[1, l, 12, 64])?, randn(2, &[1, l, 12, 64])?, randn(3, &[1, l, 12, 64])?]),
        |[q, k, v]| done(attention(&Attention { causal: true, ..Attention::new(q, k, v) })?),
    );
    group(
        c,
        "linear 768 to 3072",
        |l| Ok((randn(1, &[l, 768])?, randn(2, &[3072, 768])?)),
        |(x, w)| done(linear(x, w, None)?),
    );
}

criterion_group!(benches, kernels);
criterion_main!(benches);
