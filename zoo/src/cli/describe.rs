//! `semisep describe`

use comfy_table::{Cell, CellAlignment, Table, presets};
use semisep_models::{Description, LayerRow, WeightRow, Weights, describe};

use super::model::{Dtype, QuantArg};
use super::{Outcome, architecture, print};
use crate::units::{bytes, count, grouped};
use crate::{Error, Result};

/// Show what an architecture is before any weight exists
///
/// One row a layer (a run of equal layers is one row): parameters, those that a token meets where there are mixtures of
/// experts, FLOPs of a token at the given length, bytes of recurrent state, bytes of keys and values; then the totals.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Shipped blueprint, blueprint file, checkpoint folder, or model of the Hugging Face Hub, which is downloaded
    #[arg(value_name = "NAME|FILE|DIR|OWNER/NAME")]
    model: String,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 2048)]
    seqlen: usize,
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Dtype of weights, keys and values
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    quant: QuantArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let architecture = architecture::open(&self.model)?;
        let weights = Weights { dtype: self.dtype.into(), quant: self.quant.quant };
        let described = describe(&architecture, self.batch, self.seqlen, weights)?;
        print(&if self.json {
            format!("{:#}\n", serde_json::to_value(&described).map_err(Error::new)?)
        } else {
            as_text(&described)
        })?;
        Ok(Outcome::Good)
    }
}

fn as_text(d: &Description) -> String {
    let sequences = if d.batch == 1 { "1 sequence".to_owned() } else { format!("{} sequences", d.batch) };
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    // Mixtures of experts alone have parameters that a token does not meet.
    let sparse = d.total.active_parameters != d.total.parameters;
    let active = |n: u64| if sparse { vec![right(grouped(n))] } else { Vec::new() };
    let mut header = vec!["layers", "block", "kind", "parameters", "FLOPs/token", "state", "keys, values"];
    if sparse {
        header.insert(4, "active");
    }
    table.set_header(header);
    for run in d.layers.chunk_by(alike) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let layers =
            if run.len() == 1 { first.layer.to_string() } else { format!("{}-{}", first.layer, last.layer) };
        let parameters = match first.shares {
            Some(holder) => format!("as layer {holder}"),
            None => grouped(first.parameters),
        };
        let of = if run.len() == 1 { String::new() } else { format!(" × {}", run.len()) };
        let names = [Cell::new(layers), Cell::new(&first.block), Cell::new(&first.kind)];
        let figures = [
            right(count(first.flops_per_token)),
            right(bytes(first.state_bytes)),
            right(bytes(first.kv_bytes)),
        ];
        let parameters = vec![right(format!("{parameters}{of}"))];
        table.add_row(
            [names.to_vec(), parameters, active(first.active_parameters), figures.to_vec()].concat(),
        );
    }
    let head = if d.head_parameters == 0 { "tied".to_owned() } else { grouped(d.head_parameters) };
    for (part, parameters) in [
        ("embedding", grouped(d.embedding_parameters)),
        ("final norm", grouped(d.final_norm_parameters)),
        ("head", head),
    ] {
        table.add_row([Cell::new(part), Cell::new(""), Cell::new(""), right(parameters)]);
    }
    let t = &d.total;
    let names = [Cell::new("total"), Cell::new(""), Cell::new(""), right(grouped(t.parameters))];
    let figures = [right(count(t.flops_per_token)), right(bytes(t.state_bytes)), right(bytes(t.kv_bytes))];
    table.add_row([names.to_vec(), active(t.active_parameters), figures.to_vec()].concat());
    format!(
        "{}: {} of {} tokens, {}; weights {}\n{table}\n",
        d.name,
        sequences,
        grouped(d.seqlen as u64),
        d.dtype,
        held(&d.weights, t.weight_bytes)
    )
}

/// `141 MB: q8_0 137 MB, f16 3.5 MB`
fn held(rows: &[WeightRow], total: u64) -> String {
    let of = |row: &WeightRow| format!("{} {}", row.held, bytes(row.bytes));
    format!("{}: {}", bytes(total), rows.iter().map(of).collect::<Vec<_>>().join(", "))
}

/// Whether two neighbours go into one row.
fn alike(a: &LayerRow, b: &LayerRow) -> bool {
    *a == LayerRow { layer: a.layer, ..b.clone() }
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
