//! What a model is beside its layers: digits' places, initial values, and whether layers find what they need.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use semisep_core::{Rng, VarBuilder, abacus_positions};
use semisep_models::generate::{self, GenerateOptions};
use semisep_models::normal::Architecture;
use semisep_models::{Blueprint, LanguageModel, Registry, describe};

/// Digits are tokens 2, 3 and 5.
const DIGITS: &str = "digit_tokens = [2, 3, 5], max_places = 6";

/// A model of attention and Mamba-2 layers with these keys in `[model]`.
fn source(keys: &str) -> String {
    format!(
        "name = \"test\"\n[model]\nd_model = 16\nvocab_size = 10\n{keys}\n\
         [blocks.ssd]\nmixer = \"mamba2\"\nheaddim = 8\nd_state = 4\n\
         [blocks.attn]\nmixer = \"attention\"\nn_heads = 2\nwindow = 4\nmlp = {{}}\n\
         [stack]\nlayers = [\"ssd\", \"attn\"]\n"
    )
}

fn parse(source: &str) -> Architecture {
    let read = Blueprint::parse(source, "test.toml", &Registry::builtin());
    read.unwrap_or_else(|e| panic!("{e}")).architecture()
}

fn errors(source: &str) -> Vec<(String, String)> {
    match Blueprint::parse(source, "test.toml", &Registry::builtin()) {
        Ok(_) => panic!("no error in\n{source}"),
        Err(found) => found.diagnostics.into_iter().map(|d| (d.key, d.message)).collect(),
    }
}

fn build(source: &str) -> Result<LanguageModel> {
    LanguageModel::new(&parse(source), &VarBuilder::seeded(7, DType::F64, Device::Cpu))
}

fn ids(rows: &[&[u32]]) -> Result<Tensor> {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu)
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

const ROWS: [&[u32]; 2] = [&[2, 3, 5, 5, 0, 2, 2, 1, 3, 3, 5, 2], &[0, 2, 4, 3, 3, 2, 5, 5, 5, 5, 5, 9]];

/// The embedding that the first layer gets is that of the token plus that of the place, scaled.
#[test]
fn places_are_added_to_the_embedding() -> Result<()> {
    let text = source(&format!("embedding_multiplier = 3.0\nabacus = {{ {DIGITS} }}"));
    let vb = VarBuilder::seeded(7, DType::F64, Device::Cpu);
    let model = LanguageModel::new(&parse(&text), &vb)?;
    let get = |name: &str, shape: (usize, usize)| {
        vb.pp("backbone").pp(name).get(shape, "weight", semisep_core::Init::Normal { std: 0.02 })
    };
    let (tokens, places) = (get("embedding", (16, 16))?, get("abacus", (7, 16))?);
    let norm = |x: &Tensor| -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(2)?;
        x.broadcast_div(&(mean + 1e-5)?.sqrt()?)
    };
    let mut wanted = Vec::new();
    for row in ROWS {
        let at =
            abacus_positions(row, &[2, 3, 5], 0, &mut 0).into_iter().map(|p| p.min(6)).collect::<Vec<_>>();
        assert!(at.contains(&6) && at.contains(&0) || row[0] == 2);
        let select = |t: &Tensor, at: &[u32]| t.index_select(&Tensor::new(at, &Device::Cpu)?, 0);
        wanted.push(((select(&tokens, row)? + select(&places, &at)?)? * 3.0)?);
    }
    let wanted = norm(&Tensor::stack(&wanted, 0)?)?;
    let mut seen = 0;
    model.visit(&ids(&ROWS)?, &mut |i, _, x| {
        if i == 0 {
            seen += 1;
            assert!(worst(x, &wanted)? < 1e-12);
        }
        Ok(())
    })?;
    assert_eq!(seen, 1);
    // Without the embedding of places, the model says something else.
    let plain = build(&text.replace(&format!("abacus = {{ {DIGITS} }}"), ""))?;
    assert!(worst(&plain.forward(&ids(&ROWS)?, None)?, &model.forward(&ids(&ROWS)?, None)?)? > 1e-3);
    Ok(())
}

#[test]
fn runs_of_digits_go_on_over_pieces_and_steps() -> Result<()> {
    let model = build(&source(&format!("abacus = {{ {DIGITS}, max_shift = 3 }}")))?;
    let all = ids(&ROWS)?;
    let want = model.forward(&all, None)?;
    for split in [&[12][..], &[1; 12], &[2, 1, 0, 4, 5], &[7, 5], &[11, 1]] {
        let (mut state, mut start) = (model.new_state(2)?, 0);
        for &len in split {
            let got = model.forward(&all.narrow(1, start, len)?, Some(&mut state))?;
            if len > 0 {
                assert!(worst(&got, &want.narrow(1, start, len)?)? < 1e-11, "{split:?} at {start}");
            }
            start += len;
        }
    }
    let mut state = model.new_state(2)?;
    model.forward(&all.narrow(1, 0, 2)?, Some(&mut state))?;
    // Saved, loaded and forked within a number.
    let mut loaded = model.new_state(2)?;
    loaded.load(state.tensors()?)?;
    let mut fork = loaded.fork()?;
    for t in 2..12 {
        let token: Vec<u32> = ROWS.iter().map(|row| row[t]).collect();
        for state in [&mut state, &mut loaded, &mut fork] {
            let got = model.step(&token, state)?;
            assert!(worst(&got, &want.i((.., t))?.contiguous()?)? < 1e-11, "step {t}");
        }
    }
    assert_eq!(state.size_bytes(12), model.cost(2, 12).state_bytes + model.cost(2, 12).kv_bytes);
    let mut lacking = state.tensors()?;
    lacking.remove("abacus.run");
    assert!(model.new_state(2)?.load(lacking).is_err());
    Ok(())
}

#[test]
fn packed_sequences_count_their_own_digits() -> Result<()> {
    let model = build(&source(&format!("abacus = {{ {DIGITS} }}")))?;
    let packed = ids(&[&[2, 3, 3, 5, 5, 2, 0, 3]])?;
    let cu = [0, 2, 5, 5, 8];
    let mut state = model.new_state(4)?;
    let got = model.hidden(&packed, Some(&mut state), Some(&cu))?;
    assert!(worst(&got, &model.hidden(&packed, None, Some(&cu))?)? < 1e-12);
    let next = model.step(&[5, 5, 5, 5], &mut state)?;
    for (i, w) in cu.windows(2).enumerate() {
        let mut own = model.new_state(1)?;
        if w[1] > w[0] {
            let piece = packed.narrow(1, w[0], w[1] - w[0])?;
            let want = model.hidden(&piece, Some(&mut own), None)?;
            assert!(worst(&got.narrow(1, w[0], w[1] - w[0])?, &want)? < 1e-12, "sequence {i}");
        }
        assert!(worst(&next.narrow(0, i, 1)?, &model.step(&[5], &mut own)?)? < 1e-12, "step of sequence {i}");
    }
    // Generation packs prompts of different lengths: each goes on as it does alone.
    let prompts = vec![vec![2, 3], vec![0, 5, 5, 2, 3], vec![4]];
    let options = GenerateOptions { max_tokens: 9, prefill_chunk: 3, ..GenerateOptions::default() };
    let run = |prompts: &[Vec<u32>]| {
        generate::generate(&model, prompts, &options, &mut |_, _| generate::Flow::Continue)
    };
    let together = run(&prompts)?.tokens;
    for (prompt, tokens) in prompts.into_iter().zip(together) {
        assert_eq!(run(&[prompt])?.tokens[0], tokens);
    }
    Ok(())
}

#[test]
fn places_are_shifted_in_training_alone() -> Result<()> {
    let text = source(&format!("abacus = {{ {DIGITS}, max_shift = 2 }}"));
    let model = build(&text)?;
    let row = ids(&[&[2, 3, 0, 5]])?;
    let plain = model.hidden(&row, None, None)?;
    let mut rng = Rng::new(1);
    let drawn =
        (0..40).map(|_| model.hidden_in_training(&row, None, &mut rng)).collect::<Result<Vec<_>>>()?;
    let same = |x: &Tensor| worst(x, &plain).map(|e| e == 0.0);
    let shifted = drawn.iter().map(same).collect::<Result<Vec<_>>>()?;
    assert!(shifted.contains(&true) && shifted.contains(&false), "a shift of 0, 1 or 2");
    // Twice the same from the same seed; never any in inference.
    let again = model.hidden_in_training(&row, None, &mut Rng::new(1))?;
    assert!(worst(&again, &drawn[0])? == 0.0 && same(&model.hidden(&row, None, None)?)?);
    let unshifted = build(&text.replace(", max_shift = 2", ""))?;
    assert!(worst(&unshifted.hidden_in_training(&row, None, &mut rng)?, &plain)? == 0.0);
    Ok(())
}

#[test]
fn digits_in_a_blueprint() -> Result<()> {
    let text = source(&format!("abacus = {{ {DIGITS} }}"));
    let architecture = parse(&text);
    let again = parse(&architecture.to_toml());
    assert_eq!((again.model.clone(), again.hash()), (architecture.model.clone(), architecture.hash()));
    // What decides parameters or arithmetic decides the hash; a choice of training does not.
    let hash = |keys: &str| parse(&source(keys)).hash();
    assert_ne!(hash(""), architecture.hash());
    assert_ne!(hash("abacus = { digit_tokens = [2, 3, 4], max_places = 6 }"), architecture.hash());
    assert_eq!(hash(&format!("abacus = {{ {DIGITS}, max_shift = 5 }}")), architecture.hash());
    assert_eq!(hash("rescale_prenorm_residual = false"), hash(""));
    assert!(!parse(&source("rescale_prenorm_residual = false")).model.rescale_prenorm_residual);
    // Described as built.
    let model = build(&text)?;
    let described = describe(&architecture, 3, 20, DType::F64)?;
    let parameters: usize = model.parameter_groups().iter().map(|g| g.elements()).sum();
    assert_eq!(described.total.parameters, parameters as u64);
    assert_eq!(described.total.state_bytes, model.cost(3, 20).state_bytes);
    assert_eq!(described.embedding_parameters, 16 * 16 + 7 * 16);
    // Errors are where they are.
    let at = |keys: &str| errors(&source(keys)).remove(0);
    let (key, message) = at("abacus = { digit_tokens = [1, 10] }");
    assert_eq!(key, "model.abacus.digit_tokens[1]");
    assert!(message.contains("token 10") && message.contains("vocabulary of 10"), "{message}");
    assert_eq!(at("abacus = { digit_tokens = [] }").0, "model.abacus.digit_tokens");
    assert_eq!(at("abacus = { digit_tokens = [1], max_places = 0 }").0, "model.abacus.max_places");
    assert_eq!(at("abacus = { digit_tokens = [1], max_shift = 100 }").0, "model.abacus.max_shift");
    assert_eq!(at("abacus = { digit_tokens = [1], places = 3 }").0, "model.abacus.places");
    assert_eq!(at("abacus = {}").0, "model.abacus");
    Ok(())
}

/// mamba_ssm's `_init_weights`: output projections start out at `1 / √(residual additions)` of their usual values.
#[test]
fn output_projections_of_pre_norm_branches_start_smaller() -> Result<()> {
    let first = |keys: &str, block: &str| -> Result<_> {
        let text = source(keys).replace("window = 4", block);
        let vb = VarBuilder::seeded(3, DType::F64, Device::Cpu);
        let model = LanguageModel::new(&parse(&text), &vb)?;
        let groups = model.parameter_groups().to_vec();
        Ok(move |name: &str| -> Vec<f32> {
            let group = groups.iter().find(|g| g.name == format!("backbone.layers.{name}"));
            let group = group.unwrap_or_else(|| panic!("{name}"));
            group.init.values(&group.shape, &mut Rng::named(3, &group.name))
        })
    };
    let plain = first("rescale_prenorm_residual = false", "")?;
    let scaled = first("", "")?;
    let factor = |of: &dyn Fn(&str) -> Vec<f32>, name: &str| {
        let (a, b) = (plain(name), of(name));
        let ratio = b[0] / a[0];
        assert!(a.iter().zip(&b).all(|(a, b)| (a * ratio - b).abs() <= 1e-6 * a.abs()), "{name}");
        ratio
    };
    // One addition of Mamba-2, two of attention and MLP.
    let third = (1.0f32 / 3.0).sqrt();
    for (name, want) in [
        ("0.mixer.out_proj.weight", third),
        ("1.mixer.out_proj.weight", third),
        ("1.mlp.fc2.weight", third),
        ("0.mixer.in_proj.weight", 1.0),
        ("1.mlp.fc1.weight", 1.0),
    ] {
        assert!((factor(&scaled, name) - want).abs() < 1e-6, "{name}");
    }
    // A norm behind the mixer undoes any scale: none is given.
    let post = first("", "norm = \"both\"")?;
    assert_eq!(factor(&post, "1.mixer.out_proj.weight"), 1.0);
    assert!((factor(&post, "1.mlp.fc2.weight") - third).abs() < 1e-6);
    Ok(())
}

fn rwkv(first: &str, stack: &str) -> String {
    format!(
        "name = \"test\"\n[model]\nd_model = 64\nvocab_size = 10\n\
         [blocks.first]\nmixer = \"rwkv7\"\nhead_size = 32\n{first}\n\
         [blocks.rest]\nmixer = \"rwkv7\"\nhead_size = 32\nmlp = {{ mixer = \"rwkv_channel_mix\", version = 7 }}\n\
         [stack]\n{stack}\n"
    )
}

/// RWKV-7's first value must have been left by an earlier layer before any other can take it.
#[test]
fn a_layer_that_nobody_hands_anything_is_an_error_of_the_blueprint() -> Result<()> {
    let good = rwkv("value_residual = false", "layers = [\"first\", \"rest*2\"]");
    let model = build(&good)?;
    assert!(model.forward(&ids(&[&[1, 2, 3]])?, None)?.sum_all()?.to_scalar::<f64>()?.is_finite());
    let of = |text: &str| errors(text).remove(0);
    let (key, message) = of(&rwkv("value_residual = true", "layers = [\"first\", \"rest*2\"]"));
    assert_eq!(key, "blocks.first.value_residual");
    assert!(message.starts_with("layer 0 (first): expected an earlier rwkv7 layer"), "{message}");
    // The default is written nowhere: the block is at fault. Each block once.
    let found = errors(&rwkv("", "layers = [\"first\", \"rest*2\"]"));
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["blocks.first", "blocks.rest"]);
    let (key, _) = of(&rwkv("value_residual = false", "layers = [\"rest\", \"first\", \"rest\"]"));
    assert_eq!(key, "blocks.rest");
    // Other widths than the first values have.
    let (_, message) = of(&rwkv("value_residual = false\ndim_value = 128", "layers = [\"first\", \"rest\"]"));
    assert!(message.contains("`v_first` 64 wide, found 128"), "{message}");
    // The normal form of a checkpoint is not read from a blueprint.
    let mut architecture = parse(&good);
    architecture.layers.remove(0);
    let described = describe(&architecture, 1, 8, DType::F32).unwrap_err().to_string();
    let built =
        LanguageModel::new(&architecture, &VarBuilder::shapes(DType::F32)).err().map(|e| e.to_string());
    for message in [described, built.unwrap_or_default()] {
        assert!(
            message.contains("layer 0 (rest)") && message.contains("value_residual = false"),
            "{message}"
        );
    }
    let given =
        source("").replace("mixer = \"mamba2\"\nheaddim = 8\nd_state = 4", "mixer = \"s5\"\ndt = \"given\"");
    assert_eq!(of(&given).0, "blocks.ssd.dt");
    Ok(())
}

#[test]
fn experts_that_a_token_passes_by_are_not_active() -> Result<()> {
    let text = source("").replace("mlp = {}", "mlp = { mixer = \"moe\", num_experts = 8, num_experts_per_tok = 2, d_intermediate = 12, shared_d_intermediate = 20 }");
    let described = describe(&parse(&text), 1, 16, DType::F32)?;
    let expert = 3 * 16 * 12;
    assert_eq!(described.layers[0].active_parameters, described.layers[0].parameters);
    assert_eq!(described.layers[1].active_parameters, described.layers[1].parameters - 6 * expert);
    assert_eq!(described.total.active_parameters, described.total.parameters - 6 * expert);
    // Every parameter met is a multiply-add; so are router and shared expert, not the experts passed by.
    let dense = describe(&parse(&text.replace("num_experts = 8", "num_experts = 2")), 1, 16, DType::F32)?;
    let router = 2 * 6 * 16;
    assert_eq!(described.total.flops_per_token, dense.total.flops_per_token + router);
    Ok(())
}
