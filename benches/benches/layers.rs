//! Layers of the 130m models, the parallel form and one step: throughput in tokens.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use semisep_attention::AttentionConfig;
use semisep_benches::randn;
use semisep_core::{Context, MixerConfig, MlpConfig, RotaryConfig, VarBuilder};
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;

const D: usize = 768;

fn cases() -> Vec<(&'static str, Box<dyn MixerConfig>)> {
    let rope = Some(RotaryConfig::default());
    vec![
        ("mamba1", Box::new(Mamba1Config::default())),
        ("mamba2", Box::new(Mamba2Config::default())),
        ("attention", Box::new(AttentionConfig { rope, ..AttentionConfig::new(12) })),
        ("mlp", Box::new(MlpConfig::default())),
    ]
}

fn layers(c: &mut Criterion) {
    for (name, config) in cases() {
        let vb = VarBuilder::seeded(1, DType::F32, Device::Cpu);
        let mixer = config.build(D, vb).unwrap();
        let mut group = c.benchmark_group(name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(2));
        for length in [512, 2048] {
            let x = randn(1, &[1, length, D]).unwrap();
            group.throughput(Throughput::Elements(length as u64));
            group.bench_function(BenchmarkId::new("forward", length), |b| {
                b.iter(|| black_box(mixer.forward(&x, &mut Context::default()).unwrap()))
            });
        }
        let x = randn(2, &[1, 1024, D]).unwrap();
        let mut state = mixer.new_state(1).unwrap();
        mixer.forward(&x, &mut Context::with_state(&mut state)).unwrap();
        let token = randn(3, &[1, D]).unwrap();
        group.throughput(Throughput::Elements(1));
        group.bench_function("step after 1024", |b| {
            b.iter(|| black_box(mixer.step(&token, &mut Context::with_state(&mut state)).unwrap()))
        });
        group.finish();
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
