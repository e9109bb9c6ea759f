//! A comparison as a table.

use comfy_table::{Cell, CellAlignment, Table, presets};

use semisep_models::WeightRow;

use super::{BenchReport, LengthReport, ModelReport};

/// The report, readable: one row a model, lengths side by side.
pub fn table(report: &BenchReport) -> String {
    let mut out = String::new();
    let speed = |title: &str, figure: fn(&LengthReport) -> f64| {
        let cells = |m: &ModelReport| m.lengths.iter().map(|l| rate(figure(l))).collect();
        section(report, title, cells)
    };
    out += &speed("prefill, tokens/s", |l| l.prefill_tokens_per_second);
    out += &speed("decode after that context, tokens/s", |l| l.decode_tokens_per_second);
    out += &section(report, "its share of the read bandwidth", |m| {
        m.lengths.iter().map(|l| format!("{:.0} %", 100.0 * l.decode_of_read_bandwidth)).collect()
    });
    out += &section(report, "state + keys and values", |m| {
        m.lengths.iter().map(|l| bytes(l.state_bytes + l.kv_bytes)).collect()
    });
    out += &summary(report);
    let m = &report.machine;
    out += &format!(
        "{}, {} threads, {}: reads {:.1} GB/s, f32 products {:.0} GFLOP/s\n",
        m.cpu,
        m.threads,
        m.instructions,
        m.read_bandwidth / 1e9,
        m.gemm_rate / 1e9
    );
    out
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// One figure over all lengths.
fn section(report: &BenchReport, title: &str, cells: impl Fn(&ModelReport) -> Vec<String>) -> String {
    let mut table = new_table();
    let header = std::iter::once(Cell::new(title)).chain(report.options.lengths.iter().map(right));
    table.set_header(header.collect::<Vec<_>>());
    for model in &report.models {
        let row = std::iter::once(Cell::new(&model.name)).chain(cells(model).into_iter().map(right));
        table.add_row(row.collect::<Vec<_>>());
    }
    format!("{table}\n")
}

fn summary(report: &BenchReport) -> String {
    let mut table = new_table();
    table.set_header([
        "model",
        "parameters",
        "weights",
        "backend",
        "peak memory",
        "best prefill of product rate",
    ]);
    for model in &report.models {
        let best = model.lengths.iter().map(|l| l.prefill_of_gemm_rate).fold(0.0, f64::max);
        let weights = if model.random_weights { " random" } else { "" };
        table.add_row(vec![
            Cell::new(&model.name),
            right(model.parameters),
            Cell::new(format!("{}{weights}", held(&model.weights))),
            Cell::new(&model.backend),
            right(model.peak_bytes.map_or("unknown".into(), bytes)),
            right(format!("{:.0} %", 100.0 * best)),
        ]);
    }
    format!("{table}\n")
}

/// `q8_0 137.3 MB, f16 3.5 MB`
fn held(rows: &[WeightRow]) -> String {
    rows.iter().map(|row| format!("{} {}", row.held, bytes(row.bytes))).collect::<Vec<_>>().join(", ")
}

/// Three significant digits or more.
fn rate(v: f64) -> String {
    if v >= 100.0 { format!("{v:.0}") } else { format!("{v:.1}") }
}

/// In the unit that fits.
fn bytes(n: u64) -> String {
    match n {
        0..=9_999 => format!("{n} B"),
        10_000..=9_999_999 => format!("{:.1} KB", n as f64 / 1e3),
        10_000_000..=9_999_999_999 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!([rate(12.34), rate(1234.5)], ["12.3", "1234"]);
        assert_eq!([bytes(512), bytes(92_160), bytes(38_010_880)], ["512 B", "92.2 KB", "38.0 MB"]);
    }
}
