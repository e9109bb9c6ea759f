//! Figures for people: groups of digits, decimal prefixes.

/// In groups of three digits: `2,697,590,880`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    groups.into_iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

/// A count, with a decimal prefix: `80.4 M`.
pub fn count(n: u64) -> String {
    scaled(n, "")
}

/// Bytes, with a decimal prefix: `92.2 kB`; `-` for none.
pub fn bytes(n: u64) -> String {
    scaled(n, "B")
}

/// Three digits and a decimal prefix.
fn scaled(n: u64, unit: &str) -> String {
    if n == 0 {
        return "-".into();
    }
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    // 999.5 and above round up to the next prefix.
    let power = (0..prefixes.len() - 1).find(|p| (n as f64) < 999.5 * 1e3_f64.powi(*p as i32)).unwrap_or(6);
    let value = n as f64 / 1e3_f64.powi(power as i32);
    let decimals = if power == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.decimals$} {}{unit}", prefixes[power]).trim_end().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!([0, 7, 1000, 2_697_590_880].map(grouped), ["0", "7", "1,000", "2,697,590,880"]);
        let figures = [0, 512, 999, 1000, 92_160, 999_999, 188_743_680, u64::MAX];
        assert_eq!(
            figures.map(bytes),
            ["-", "512 B", "999 B", "1.0 kB", "92.2 kB", "1.0 MB", "189 MB", "18.4 EB"]
        );
        assert_eq!(count(80_433_120), "80.4 M");
    }
}
