//! A card's name in file names and on the command line.

/// `h200` of `NVIDIA H200`, `a100` of `NVIDIA A100-SXM4-80GB`; other cards by their whole name in lower case with hyphens.
pub(crate) fn of(gpu: &str) -> String {
    let words: Vec<String> = gpu
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty() && !word.eq_ignore_ascii_case("nvidia"))
        .map(str::to_ascii_lowercase)
        .collect();
    match words.iter().find(|word| ["h100", "h200", "a100"].contains(&word.as_str())) {
        Some(known) => known.clone(),
        None => words.join("-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_slugs() {
        assert_eq!(of("NVIDIA H200"), "h200");
        assert_eq!(of("NVIDIA H100 80GB HBM3"), "h100");
        assert_eq!(of("NVIDIA A100-SXM4-80GB"), "a100");
        assert_eq!(of("NVIDIA GeForce RTX 4090"), "geforce-rtx-4090");
    }
}
