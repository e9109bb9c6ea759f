//! What blueprints mean: layouts, compositions, sharing, round trips.

use candle_core::DType;
use semisep_models::blueprint::json_schema;
use semisep_models::normal::{Architecture, Merge};
use semisep_models::{Blueprint, Registry, blueprints, describe};

fn parse(source: &str) -> Architecture {
    parse_with_warnings(source).architecture()
}

fn parse_with_warnings(source: &str) -> Blueprint {
    Blueprint::parse(source, "test.toml", &Registry::builtin()).unwrap_or_else(|e| panic!("{e}"))
}

/// Blocks `a` (MLP 8 wide) and `b` (16 wide) with this stack.
fn with_stack(stack: &str) -> String {
    format!(
        "name = \"test\"\n[model]\nd_model = 32\nvocab_size = 10\n\
         [blocks.a]\nmixer = \"mlp\"\nd_intermediate = 8\n[blocks.b]\nmixer = \"mlp\"\nd_intermediate = 16\n[stack]\n{stack}\n"
    )
}

fn order(stack: &str) -> String {
    parse(&with_stack(stack)).layers.iter().map(|l| l.block.clone()).collect()
}

#[test]
fn the_four_layouts() {
    assert_eq!(order("n_layer = 5\ndefault = \"a\"\nat = { b = [0, 3] }"), "baaba");
    assert_eq!(order("n_layer = 4\nat = { b = [0, 3], a = [2, 1] }"), "baab");
    assert_eq!(order("pattern = [\"a*2\", \"b\"]"), "aab");
    assert_eq!(order("n_layer = 7\npattern = [\"a * 2\", \"b\"]"), "aabaaba");
    assert_eq!(order("n_layer = 2\npattern = [\"a\", \"b\", \"b\"]"), "ab");
    assert_eq!(
        order("n_layer = 9\ndefault = \"a\"\nevery = { b = { period = 4, offset = 1 } }"),
        "abaaabaaa"
    );
    assert_eq!(order("n_layer = 4\nevery = { a = { period = 2 }, b = { period = 2, offset = 1 } }"), "abab");
    assert_eq!(order("layers = [\"b\", \"a*3\", \"b\"]"), "baaab");
    assert_eq!(order("n_layer = 2\nlayers = [\"b\", \"a\"]"), "ba");
}

#[test]
fn native_paths_are_those_of_state_spaces() {
    let text = with_stack("pattern = [\"a\"]").replace("d_intermediate = 8", "norm = \"both\"\nmlp = {}");
    let layer = &parse(&text).layers[0];
    let paths: Vec<_> = layer
        .stages
        .iter()
        .flat_map(|s| &s.branches)
        .map(|b| (b.path.as_str(), b.pre_norm.as_deref(), b.post_norm.as_deref()))
        .collect();
    assert_eq!(paths, [("mixer", Some("norm"), Some("post_norm")), ("mlp", Some("norm2"), None)]);
}

#[test]
fn parallel_and_series_blocks() {
    let text = with_stack("pattern = [\"both\", \"all\"]")
        + "[blocks.both]\nparallel = [\"a\", \"b\"]\nmerge = { scale = 0.5 }\nmlp = { output_multiplier = 2 }\n\
           [blocks.apart]\nparallel = [\"a\", \"b\"]\nshared_norm = false\nmerge = \"mean\"\n\
           [blocks.all]\nseries = [\"apart\", \"c\"]\nshare = true\n\
           [blocks.c]\nmixer = \"mlp\"\nnorm = \"post\"\npath = \"ffn.inner\"\n";
    let architecture = parse(&text);
    let show = |i: usize| -> Vec<String> {
        let layer: &semisep_models::normal::Layer = &architecture.layers[i];
        let stage = |s: &semisep_models::normal::Stage| {
            let branches = s.branches.iter().map(|b| {
                format!(
                    "{}>{}>{}",
                    b.pre_norm.as_deref().unwrap_or("-"),
                    b.path,
                    b.post_norm.as_deref().unwrap_or("-")
                )
            });
            format!("{:?} {}", s.merge, branches.collect::<Vec<_>>().join(" | "))
        };
        layer.stages.iter().map(stage).collect()
    };
    assert_eq!(show(0), ["Scaled(0.5) norm>a>- | norm>b>-", "Sum norm2>mlp>-"]);
    assert_eq!(show(1), ["Mean norm_a>a>- | norm_b>b>-", "Sum ->ffn.inner>post_norm2"]);
    assert_eq!(architecture.layers[0].stages[1].branches[0].output_multiplier, 2.0);
    assert_eq!(architecture.layers[0].stages[0].merge, Merge::Scaled(0.5));
    assert_eq!(architecture.layers[1].share.as_deref(), Some("all"));
    round_trip(&architecture);
}

/// Writing and reading again gives the same normal form.
fn round_trip(architecture: &Architecture) {
    let text = architecture.to_toml();
    let again =
        Blueprint::parse(&text, "again.toml", &Registry::builtin()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert!(again.warnings().is_empty(), "{}\n{text}", again.warnings());
    let again = again.architecture();
    assert_eq!(format!("{again:?}"), format!("{architecture:?}"), "{text}");
    assert_eq!(again.hash(), architecture.hash());
    assert_eq!(again.to_toml(), text);
}

#[test]
fn shipped_blueprints_are_without_errors_and_round_trip() {
    let names: Vec<&str> = blueprints::names().collect();
    assert!(names.len() >= 18 && names.is_sorted());
    for name in names {
        let source = blueprints::source(name).unwrap();
        assert!(source.starts_with("#:schema ../models/blueprint.schema.json\n"), "{name}");
        let blueprint = parse_with_warnings(source);
        assert!(blueprint.warnings().is_empty(), "{}", blueprint.warnings());
        assert_eq!(blueprint.name(), name);
        round_trip(&blueprint.architecture());
    }
    assert_eq!(blueprints::source("no-such"), None);
}

#[test]
fn every_kind_of_key_round_trips() {
    let text = "name = \"quo\\\"ted Größe\\\\\"\n[model]\nd_model = 64\nvocab_size = 11\npad_vocab_size_multiple = 4\n\
        tie_embeddings = false\nnorm = { kind = \"layer\", eps = 1e-6 }\nresidual_in_fp32 = false\n\
        embedding_multiplier = 12\nlogits_multiplier = 0.125\nlogits_soft_cap = 30.0\n\
        [blocks.a]\nmixer = \"mamba2\"\nheaddim = 16\ndt_limit = [0.001, inf]\nshare = \"twins\"\ninput_multiplier = 0.5\n\
        [blocks.b]\nmixer = \"mamba2\"\nheaddim = 16\ndt_limit = [0.001, inf]\nshare = \"twins\"\ninput_multiplier = 0.5\n\
        [blocks.c]\nmixer = \"attention\"\nn_heads = 4\nn_kv_heads = 2\nqk_norm = {}\nrope = { dim = 8, interleaved = true }\n\
        norm = \"none\"\npath = \"self_attn\"\nmlp = { gated = false, activation = \"relu2\", bias = true, norm = \"both\", norm_path = \"ln\" }\n\
        [stack]\nlayers = [\"a\", \"c\", \"b\", \"a*2\", \"c\"]\n";
    let architecture = parse(text);
    assert_eq!(architecture.layers[0].share, architecture.layers[2].share);
    round_trip(&architecture);
}

#[test]
fn names_of_folders_are_made_names_of_blueprints() {
    for (name, written) in [("", "unnamed"), ("a\nb\u{7f}", "ab")] {
        let mut architecture = parse(&with_stack("pattern = [\"a\", \"b\"]"));
        architecture.name = name.into();
        architecture.layers[0].block = "0.5 B/x".into();
        let again = parse(&architecture.to_toml());
        assert_eq!((again.name.as_str(), again.layers[0].block.as_str()), (written, "0_5_B_x"));
        assert_eq!(again.hash(), architecture.hash());
    }
}

#[test]
fn the_hash_knows_arithmetic_not_names() {
    let base = with_stack("n_layer = 4\npattern = [\"a\", \"b\"]");
    let hash = |text: &str| parse(text).hash();
    let renamed =
        base.replace("blocks.a]", "blocks.x]").replace("\"a\"", "\"x\"").replace("\"test\"", "\"other\"");
    assert_eq!(hash(&base), hash(&renamed));
    assert_eq!(hash(&base), hash(&with_stack("layers = [\"a\", \"b\", \"a\", \"b\"]")));
    for (from, to) in [
        ("d_intermediate = 8", "d_intermediate = 24"),
        ("d_intermediate = 8", "d_intermediate = 8\nactivation = \"gelu\""),
        ("d_intermediate = 8", "d_intermediate = 8\nshare = true"),
        ("vocab_size = 10", "vocab_size = 20"),
        ("n_layer = 4", "n_layer = 6"),
    ] {
        assert_ne!(hash(&base), hash(&base.replace(from, to)), "{to}");
    }
    assert_eq!(hash(&base).len(), 32);
}

#[test]
fn an_unused_block_is_a_warning() {
    let blueprint = parse_with_warnings(&with_stack("pattern = [\"a\"]"));
    assert_eq!((blueprint.warnings().errors(), blueprint.warnings().warnings()), (0, 1));
    assert_eq!(blueprint.warnings().diagnostics[0].key, "blocks.b");
    assert_eq!(blueprint.warnings().diagnostics[0].line, 8);
}

#[test]
fn the_checked_in_schema_is_that_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/blueprint.schema.json");
    let checked_in: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let current = json_schema(&Registry::builtin());
    // Beside the build, ready to be copied: quicker than building the example.
    let fresh = concat!(env!("CARGO_TARGET_TMPDIR"), "/blueprint.schema.json");
    std::fs::write(fresh, format!("{current:#}\n")).unwrap();
    assert!(checked_in == current, "run: cp {fresh} {path}");
}

#[test]
fn published_sizes() {
    let total = |name: &str| {
        let architecture = parse(blueprints::source(name).unwrap());
        describe(&architecture, 1, 2048, DType::BF16).unwrap()
    };
    let hybrid = total("mamba2attn-2.7b");
    assert_eq!(hybrid.total.parameters, 2_697_590_880);
    assert_eq!((hybrid.layers[0].kind.as_str(), hybrid.layers[0].parameters), ("mamba2", 40_216_560));
    assert_eq!((hybrid.layers[9].kind.as_str(), hybrid.layers[9].parameters), ("attention", 39_381_760));
    assert_eq!(hybrid.embedding_parameters, 128_737_280);
    assert_eq!(hybrid.total.kv_bytes, 2048 * 92_160);
    // Published as 129 135 360 and 128 989 632 (mamba-130m, mamba2-130m).
    assert_eq!(total("mamba-130m").total.parameters, 129_135_360);
    assert_eq!(total("mamba2-130m").total.parameters, 128_989_632);
    for (name, near) in [
        ("mamba-370m", 372e6),
        ("mamba-790m", 793e6),
        ("mamba-1.4b", 1372e6),
        ("mamba-2.8b", 2768e6),
        ("mamba2-370m", 368e6),
        ("mamba2-780m", 780e6),
        ("mamba2-1.3b", 1344e6),
        ("mamba2-2.7b", 2703e6),
        ("mamba2-hybrid-mlp-2.7b", 2.7e9),
        ("transformerpp-130m", 125e6),
        ("transformerpp-2.7b", 2.7e9),
    ] {
        let n = total(name).total.parameters as f64;
        assert!((n / near - 1.0).abs() < 0.02, "{name}: {n}");
    }
}

#[test]
fn block_state_and_gau_models_are_of_the_small_ones_size() {
    for (name, parameters) in
        [("bst-sh", 2_042_808), ("bst-mh", 2_043_756), ("bst-mf", 2_052_972), ("gau", 2_054_976)]
    {
        let architecture = parse(blueprints::source(name).unwrap());
        assert_eq!(
            describe(&architecture, 1, 256, DType::F32).unwrap().total.parameters,
            parameters,
            "{name}"
        );
    }
}

#[test]
fn the_small_models_are_of_equal_size() {
    assert!(blueprints::SUITE.iter().all(|name| blueprints::SMALL.contains(name)));
    let sizes = blueprints::SMALL.map(|name| {
        let architecture = parse(blueprints::source(name).unwrap());
        describe(&architecture, 1, 512, DType::F32).unwrap().total.parameters as f64
    });
    let (least, most) =
        (sizes.iter().copied().fold(f64::MAX, f64::min), sizes.iter().copied().fold(0.0, f64::max));
    let named: Vec<_> = blueprints::SMALL.iter().zip(&sizes).collect();
    assert!(least > 1e6 && most < 3e6 && most / least < 1.02, "{named:?}");
}

#[test]
fn shared_layers_count_once() {
    let own = with_stack("n_layer = 4\npattern = [\"a\"]");
    let shared = own.replace("d_intermediate = 8", "d_intermediate = 8\nshare = true");
    let describe = |text: &str| describe(&parse(text), 3, 7, DType::F32).unwrap();
    let (own, shared) = (describe(&own), describe(&shared));
    assert_eq!(shared.layers.iter().map(|l| l.shares).collect::<Vec<_>>(), [None, Some(0), Some(0), Some(0)]);
    let layer = own.layers[0].parameters;
    assert_eq!(layer, 32 + 2 * 32 * 8 + 8 * 32);
    assert_eq!(own.total.parameters - shared.total.parameters, 3 * layer);
    assert_eq!(own.total.weight_bytes, 4 * own.total.parameters);
    assert_eq!(own.total.flops_per_token, shared.total.flops_per_token);
}
