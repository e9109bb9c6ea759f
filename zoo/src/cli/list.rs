//! `semisep list`

use std::path::PathBuf;

use candle_core::DType;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::json;

use super::model::Dtype;
use super::{Outcome, print};
use crate::catalogue::{Download, Entry, Filter, Known, available_bytes, open, shipped};
use crate::units::{bytes, count};
use crate::{Error, Result};

/// List public checkpoints of the zoo's families, and whether they fit this machine's memory
///
/// `~` stands before what is known to a few digits, `<` before what it is at most, `?` for what is not known. Memory is
/// that of the weights alone: a long context needs more.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Of this family
    #[arg(long, value_name = "F")]
    family: Option<String>,
    /// With this many parameters at most: 3B, 500M, 130000000
    #[arg(long, value_name = "N", value_parser = parameters)]
    max_params: Option<u64>,
    /// With layers of this kind, a blueprint's mixer: mamba2, attention
    #[arg(long, value_name = "K")]
    kind: Option<String>,
    /// Under this licence: apache-2.0
    #[arg(long, alias = "license", value_name = "L")]
    licence: Option<String>,
    /// With this text in their names or figures
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Those alone whose weights fit into the memory that is free
    #[arg(long)]
    fits: bool,
    /// Dtype of the weights in memory
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// A catalogue of one's own instead of the one that ships
    #[arg(long, value_name = "FILE.toml")]
    catalogue: Option<PathBuf>,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// A number with an optional k, M, B (or G), T.
fn parameters(text: &str) -> Result<u64, String> {
    let (digits, scale) = match text.char_indices().last().map(|(at, c)| (at, c.to_ascii_lowercase())) {
        Some((at, 'k')) => (&text[..at], 1e3),
        Some((at, 'm')) => (&text[..at], 1e6),
        Some((at, 'b' | 'g')) => (&text[..at], 1e9),
        Some((at, 't')) => (&text[..at], 1e12),
        _ => (text, 1.0),
    };
    let number: Option<f64> = digits.trim().parse().ok().map(|n: f64| n * scale);
    let number = number.filter(|n| (1.0..=1e15).contains(n));
    number
        .map(|n| n.round() as u64)
        .ok_or_else(|| "expected a number of parameters such as 3B or 500M".into())
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let entries = match &self.catalogue {
            Some(path) => open(path)?,
            None => shipped()?,
        };
        let filter = Filter {
            family: self.family.clone(),
            max_parameters: self.max_params,
            kind: self.kind.clone(),
            licence: self.licence.clone(),
            search: self.search.clone(),
        };
        filter.check(&entries)?;
        let free = available_bytes();
        if self.fits && free.is_none() {
            return Err(Error::new("--fits: this system does not say how much memory is free"));
        }
        let size = DType::from(self.dtype).size_in_bytes();
        let rows: Vec<Row<'_>> = entries
            .iter()
            .filter(|entry| filter.takes(entry))
            .map(|entry| Row::new(entry, size, free))
            .filter(|row| !self.fits || row.fits == Some(true))
            .collect();
        print(&if self.json { as_json(&rows, self.dtype)? } else { as_text(&rows, self.dtype, free) })?;
        Ok(Outcome::Good)
    }
}

struct Row<'a> {
    entry: &'a Entry,
    bytes: Option<u64>,
    fits: Option<bool>,
}

impl<'a> Row<'a> {
    fn new(entry: &'a Entry, size: usize, free: Option<u64>) -> Self {
        let bytes = entry.bytes(size);
        Self { entry, bytes, fits: bytes.zip(free).map(|(bytes, free)| bytes <= free) }
    }
}

fn as_json(rows: &[Row<'_>], dtype: Dtype) -> Result<String> {
    let value = |row: &Row<'_>| {
        let mut value = serde_json::to_value(row.entry).map_err(Error::new)?;
        value["kinds"] = json!(row.entry.kinds());
        value["dtype"] = json!(DType::from(dtype).as_str());
        value["download_bytes"] = json!(row.entry.download().map(|download| download.bytes));
        value["download_known"] = json!(row.entry.download().map(|download| download.known));
        value["weight_bytes"] = json!(row.bytes);
        value["fits"] = json!(row.fits);
        value["importer"] = json!(row.entry.has_importer());
        Ok(value)
    };
    let values = rows.iter().map(value).collect::<Result<Vec<_>>>()?;
    Ok(format!("{:#}\n", serde_json::Value::Array(values)))
}

fn as_text(rows: &[Row<'_>], dtype: Dtype, free: Option<u64>) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let header =
        ["model", "family", "parameters", "layers", "licence", "tokenizer", "download", "weights", "fits"];
    table.set_header(header);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let unknown = || "?".to_string();
    for row in rows {
        let entry = row.entry;
        let fits = match row.fits {
            _ if !entry.has_importer() => "no importer",
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let gated = if entry.gated { ", gated" } else { "" };
        let about = if entry.is_approximate("parameters") { "~" } else { "" };
        table.add_row([
            Cell::new(name(entry)),
            Cell::new(&entry.family),
            right(entry.parameters.map_or_else(unknown, |n| format!("{about}{}", count(n)))),
            Cell::new(layers(entry)),
            Cell::new(format!("{}{gated}", entry.licence.as_deref().unwrap_or("?"))),
            Cell::new(entry.tokenizer.as_deref().unwrap_or("?")),
            right(entry.download().map_or_else(unknown, download)),
            right(row.bytes.map_or_else(unknown, |n| format!("{about}{}", bytes(n)))),
            Cell::new(fits),
        ]);
    }
    let free = free.map_or_else(String::new, |free| format!("; {} of memory are free", bytes(free)));
    format!("{table}\n{} models; weights in {}{free}\n", rows.len(), DType::from(dtype).as_str())
}

/// The repository, and the file on a line of its own where there are several models in it.
fn name(entry: &Entry) -> String {
    let file = entry.file.as_ref().map_or_else(String::new, |file| format!("\n  {file}"));
    format!("{}{file}", entry.repo)
}

fn download(download: Download) -> String {
    let sign = match download.known {
        Known::Exact => "",
        Known::About => "~",
        Known::Most => "<",
    };
    format!("{sign}{}", bytes(download.bytes))
}

fn layers(entry: &Entry) -> String {
    if entry.layers.is_empty() {
        return entry.kinds().into_iter().collect::<Vec<_>>().join(", ");
    }
    let one = |(kind, n): (&String, &usize)| format!("{n} {kind}");
    entry.layers.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_parameters() {
        let of = |text: &str| parameters(text).ok();
        assert_eq!(of("3B"), Some(3_000_000_000));
        assert_eq!(of("1.5b"), Some(1_500_000_000));
        assert_eq!(
            [of("500M"), of("130000000"), of("7 k")],
            [Some(500_000_000), Some(130_000_000), Some(7000)]
        );
        for bad in ["", "B", "-1", "0", "NaN", "inf", "1e99", "3X", "é"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
