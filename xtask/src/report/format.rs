//! Numbers as people read them.

/// Milliseconds with three significant digits: `0.648`, `9.85`, `153`, `1200`.
pub(crate) fn milliseconds(ms: f64) -> String {
    significant(ms, 3)
}

/// `digits` significant digits, without an exponent.
pub(crate) fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    format!("{value:.*}", (digits - 1 - magnitude).max(0) as usize)
}

/// TFLOP/s of `flop` operations in `ms`.
pub(crate) fn tflops(flop: u64, ms: f64) -> f64 {
    flop as f64 / ms / 1e9
}

/// Bytes in decimal units: `0.62 GB`, `48.2 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{} GB", significant(b / 1e9, 3)),
        b if b >= 1e6 => format!("{} MB", significant(b / 1e6, 3)),
        b if b >= 1e3 => format!("{} kB", significant(b / 1e3, 3)),
        b => format!("{b} B"),
    }
}

/// Thousands separated by commas.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A Markdown table; the first column is left-aligned, the others right-aligned.
pub(crate) fn markdown(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = (0..header.len()).map(|i| if i == 0 { "---" } else { "---:" }.to_owned()).collect();
    let mut out = line(header);
    out.push_str(&line(&rule));
    for row in rows {
        out.push_str(&line(row));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(milliseconds(0.64812), "0.648");
        assert_eq!(milliseconds(9.849), "9.85");
        assert_eq!(milliseconds(153.61), "154");
        assert_eq!(milliseconds(1200.4), "1200");
        assert_eq!(bytes(620_000_000), "620 MB");
        assert_eq!(bytes(1_234_000_000), "1.23 GB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(thousands(131_072), "131,072");
        assert_eq!(thousands(512), "512");
        assert_eq!(tflops(6_000_000_000_000, 10.0), 600.0);
    }

    #[test]
    fn tables_align_numbers_right() {
        let table = markdown(&["a".into(), "b".into()], &[vec!["x".into(), "1".into()]]);
        assert_eq!(table, "| a | b |\n| --- | ---: |\n| x | 1 |\n");
    }
}
