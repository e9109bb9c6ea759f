//! Parts of layers that share parameters, and what mixers leave aside for each other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use candle_core::{DType, Device, Tensor};
use semisep_core::VarBuilder;
use semisep_models::normal::{Architecture, Input, Output};
use semisep_models::{Blueprint, LanguageModel, Registry, describe};

/// Mamba layers, the first and the last of which see what one block makes of the stream and the embedding.
const SHARED: &str = r#"
name = "shared"
[model]
d_model = 16
vocab_size = 24
[blocks.mem]
mixer = "attention"
n_heads = 2
concat_embedding = {}
adapter_rank = 2
norm = "none"
output = "aside"
share = true
[blocks.memory_mlp]
mixer = "mlp"
d_intermediate = 8
adapter_rank = 3
input = "aside"
output = "aside"
share = true
[blocks.out]
mixer = "linear"
norm = "none"
input = "aside"
output = "aside"
[blocks.ssm]
mixer = "mamba1"
d_state = 4
[blocks.seeing]
mixer = "mamba1"
d_state = 4
input = "both"
[blocks.hybrid]
series = ["mem", "memory_mlp", "out", "seeing"]
[stack]
layers = ["hybrid", "ssm", "hybrid"]
"#;

fn parse(text: &str) -> Result<Architecture, String> {
    let parsed = Blueprint::parse(text, "test.toml", &Registry::builtin());
    parsed.map(|blueprint| blueprint.architecture()).map_err(|e| e.to_string())
}

fn model(architecture: &Architecture) -> LanguageModel {
    LanguageModel::new(architecture, &VarBuilder::seeded(1, DType::F64, Device::Cpu)).unwrap()
}

#[test]
fn shared_parameters_are_stored_and_counted_once() {
    let architecture = parse(SHARED).unwrap();
    let model = model(&architecture);
    let names: Vec<&str> = model.parameter_groups().iter().map(|g| g.name.as_str()).collect();
    let has = |name: &str| names.contains(&format!("backbone.layers.{name}").as_str());
    for name in [
        "mem.in_proj.weight",
        "mem.input_layernorm.weight",
        "memory_mlp.fc1.weight",
        "norm_memory_mlp.weight",
    ] {
        assert!(has(&format!("0.{name}")) && !has(&format!("2.{name}")), "{name}: {names:?}");
    }
    for name in
        ["mem.q_adapter.1.weight", "memory_mlp.adapter.0.weight", "out.weight", "seeing.D", "norm4.weight"]
    {
        assert!(has(&format!("0.{name}")) && has(&format!("2.{name}")), "{name}: {names:?}");
    }
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
    let total: usize = model.parameter_groups().iter().map(|g| g.elements()).sum();
    let described = describe(&architecture, 1, 8, DType::F64).unwrap();
    assert_eq!(described.total.parameters, total as u64);
    assert_eq!(described.layers.iter().map(|l| l.shares).collect::<Vec<_>>(), [None, None, Some(0)]);
    let (first, last) = (described.layers[0].parameters, described.layers[2].parameters);
    // Attention 32 -> 3 x 32 -> 16, its norm; MLP with its norm.
    assert_eq!(first - last, 32 * 96 + 32 * 16 + 32 + 16 * 16 + 8 * 16 + 16);
}

#[test]
fn steps_continue_the_parallel_form() {
    let model = model(&parse(SHARED).unwrap());
    let ids: Vec<u32> = (0..22).map(|i| i * 7 % 24).collect();
    let ids = Tensor::from_vec(ids, (2, 11), &Device::Cpu).unwrap();
    let whole = model.forward(&ids, None).unwrap();
    let mut state = model.new_state(2).unwrap();
    model.forward(&ids.narrow(1, 0, 6).unwrap(), Some(&mut state)).unwrap();
    for t in 6..11 {
        let column = ids.narrow(1, t, 1).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let got = model.step(&column, &mut state).unwrap();
        let want = whole.narrow(1, t, 1).unwrap().squeeze(1).unwrap();
        let error = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(error.to_scalar::<f64>().unwrap() < 1e-12, "token {t}");
    }
}

#[test]
fn it_is_written_as_it_was_read() {
    let architecture = parse(SHARED).unwrap();
    let [attention, mlp, _, mamba] =
        [0, 1, 2, 3].map(|i| architecture.layers[2].stages[i].branches[0].clone());
    assert_eq!((attention.share.as_deref(), attention.output), (Some("mem"), Output::Aside));
    assert_eq!((mlp.pre_norm.as_deref(), mlp.input), (Some("norm_memory_mlp"), Input::Aside));
    assert_eq!((mamba.share, mamba.input, mamba.output), (None, Input::Both, Output::Stream));
    let text = architecture.to_toml();
    let again = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(format!("{again:?}"), format!("{architecture:?}"), "{text}");
    assert_eq!((again.hash(), again.to_toml()), (architecture.hash(), text));
    let apart = SHARED.replace("output = \"aside\"\nshare = true", "output = \"aside\"");
    assert_ne!(parse(&apart).unwrap().hash(), architecture.hash());
}

#[test]
fn what_is_lost_is_an_error() {
    for (from, to, message) in [
        ("input = \"both\"\n", "", "no later mixer of the layer reads what `out` leaves aside"),
        (
            "[\"mem\", \"memory_mlp\", ",
            "[\"memory_mlp\", ",
            "`memory_mlp` reads what an earlier mixer left aside: none does",
        ),
        ("input = \"both\"", "input = \"all\"", "all"),
    ] {
        let error = parse(&SHARED.replace(from, to)).unwrap_err();
        assert!(error.contains(message), "{error:?} lacks {message:?}");
    }
    let elsewhere = SHARED.replace("layers = [\"hybrid\", \"ssm\"", "layers = [\"hybrid\", \"other\"")
        + "[blocks.other]\nseries = [\"first\", \"memory_mlp\", \"out\", \"seeing\"]\n[blocks.first]\nmixer = \"linear\"\noutput = \"aside\"\nshare = \"mem\"\n";
    let error = parse(&elsewhere).unwrap_err();
    assert!(error.contains("share \"mem\" but"), "{error}");
}

/// Lower bounds of HGRN2 belong to all layers: described as built.
#[test]
fn parameters_of_all_layers_count_once() {
    let text = "name = \"bounds\"\n[model]\nd_model = 16\nvocab_size = 24\n[blocks.a]\nmixer = \"hgrn2\"\n\
                expand_ratio = 4\n[stack]\nn_layer = 3\npattern = [\"a\"]\n";
    let architecture = parse(text).unwrap();
    let total: usize = model(&architecture).parameter_groups().iter().map(|g| g.elements()).sum();
    let described = describe(&architecture, 1, 8, DType::F64).unwrap();
    assert_eq!(described.total.parameters, total as u64);
    assert_eq!(described.layers[0].parameters - described.layers[1].parameters, 3 * 16);
    assert!(described.layers.iter().all(|l| l.shares.is_none()));
}
