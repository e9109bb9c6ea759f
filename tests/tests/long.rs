//! Long inputs, every kind of mixer: a forward pass at width 768 over 8,192 tokens takes at most six times its input beside
//! the output, and dividing a long input into blocks changes nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use semisep_core::{Context, Mixer, VarBuilder};
use semisep_models::{Blueprint, Registry};
use semisep_tests::{assert_close, randn};

const D: usize = 768;
const L: usize = 8192;

/// The system's allocator, counting what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches nothing else.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the system's.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Every kind of mixer, with the keys that it asks for at this width.
fn blocks() -> Vec<(String, &'static str)> {
    let keys = |kind: &str| match kind {
        "attention" => "n_heads = 12",
        "block_state" => {
            "variant = \"mf\"\nn_heads = 12\nwindow = 512\nssm = { mixer = \"s5\" }\ncontexts = 32\nnorm = \"none\""
        }
        "hgrn2" => "expand_ratio = 96",
        "hyena" | "unstructured" => "l_max = 8192",
        "rwkv7" => "value_residual = false",
        "rwkv_channel_mix" => "version = 6",
        _ => "",
    };
    Registry::builtin().names().map(|kind| (kind.to_owned(), keys(kind))).collect()
}

fn build(kind: &str, keys: &str, d: usize, dtype: DType) -> Box<dyn Mixer> {
    let source = format!(
        "name = \"one\"\n[model]\nd_model = {d}\nvocab_size = 16\n[blocks.one]\nmixer = \"{kind}\"\n{keys}\n\
         [stack]\nn_layer = 1\npattern = [\"one\"]\n"
    );
    let blueprint = Blueprint::parse(&source, kind, &Registry::builtin());
    let architecture = blueprint.unwrap_or_else(|e| panic!("{kind}: {e}")).architecture();
    let config = &architecture.layers[0].stages[0].branches[0].mixer;
    config.build(d, VarBuilder::seeded(1, dtype, Device::Cpu)).unwrap()
}

/// Peak beside the output, over the input's bytes.
fn peak(kind: &str, keys: &str) -> f64 {
    let mixer = build(kind, keys, D, DType::F32);
    let x = Tensor::randn(0f32, 1.0, (1, L, D), &Device::Cpu).unwrap();
    let input = x.elem_count() * DType::F32.size_in_bytes();
    // Once for what stays (plans, threads), once to count.
    mixer.forward(&x.narrow(1, 0, 512).unwrap(), &mut Context::default()).unwrap();
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let y = mixer.forward(&x, &mut Context::default()).unwrap();
    assert_eq!(y.dims(), x.dims(), "{kind}");
    (PEAK.load(Ordering::Relaxed) - before - input) as f64 / input as f64
}

/// One pass over 2,500 tokens against two with the state carried, short enough not to be divided.
fn divide(kind: &str, keys: &str) {
    let mixer = build(kind, keys, 192, DType::F64);
    let x = randn(1, &[1, 2500, 192], DType::F64).unwrap();
    let (mut whole, mut parts) = (mixer.new_state(1).unwrap(), mixer.new_state(1).unwrap());
    let y = mixer.forward(&x, &mut Context::with_state(&mut whole)).unwrap();
    let mut part = |start, len| {
        let x = x.narrow(1, start, len).unwrap();
        mixer.forward(&x, &mut Context::with_state(&mut parts)).unwrap()
    };
    let want = Tensor::cat(&[part(0, 700), part(700, 1800)], 1).unwrap();
    assert_close(kind, &y, &want, 1e-10);
    assert_eq!(whole.seen(), parts.seen());
    // Packed: a boundary inside a block and one between blocks.
    let cu = [0, 300, 1024, 2500];
    let packed = mixer.forward(&x, &mut Context::packed(&cu)).unwrap();
    let alone = |start: usize, end: usize| {
        let x = x.narrow(1, start, end - start).unwrap();
        mixer.forward(&x, &mut Context::default()).unwrap()
    };
    let want = Tensor::cat(&[alone(0, 300), alone(300, 1024), alone(1024, 2500)], 1).unwrap();
    assert_close(&format!("{kind} packed"), &packed, &want, 1e-10);
}

#[test]
fn long_inputs() {
    let mut over = Vec::new();
    for (kind, keys) in blocks() {
        divide(&kind, keys);
        let ratio = peak(&kind, keys);
        println!("{kind:20} {ratio:5.2}");
        if ratio > 6.0 {
            over.push(format!("{kind} {ratio:.2}"));
        }
    }
    assert!(over.is_empty(), "more than six times the input: {over:?}");
}
